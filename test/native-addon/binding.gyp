{
  'targets': [
    {
      'target_name': 'accesses',
      'sources': ['accesses.cc'],
      'defines': ['NAPI_VERSION=8'],
      'cflags': ['-Wall', '-Wextra'],
      'cflags_cc': ['-std=c++17', '-pthread'],
      'ldflags': ['-pthread'],
    },
  ],
}
