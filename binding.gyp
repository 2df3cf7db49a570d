{
  'targets': [
    {
      # Uses V8's own API, so it is built for one major version of Node; the package works without it on Node >= 22,
      # except for attempt().
      'target_name': 'v8_bridge',
      'sources': ['native/v8_bridge.cc'],
      'defines': ['NAPI_VERSION=8'],
      'cflags': ['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-cast-function-type'],
      # A handler or a finalizer may still point into it when the worker that loaded it has ended.
      'ldflags': ['-Wl,-z,nodelete'],
    },
  ],
}
