{
  # The addon's own sources, with the simulator's time, threads, waking and guard in place of the machine's.
  'targets': [
    {
      'target_name': 'simulation',
      'defines': ['NAPI_VERSION=8', 'NAPI_DISABLE_CPP_EXCEPTIONS', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS', 'FAULTLINE_SIMULATION'],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")', '../../../native'],
      'cflags': ['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-cast-function-type', '-O2'],
      'cflags_cc': ['-std=c++17'],
      'sources': [
        'simulation.cc', '../../../native/addon_pages.cc', '../../../native/directory.cc', '../../../native/region.cc',
        '../../../native/reclaim.cc',
        '../../../native/lane_serve.cc', '../../../native/lane_steps.cc', '../../../native/member.cc', '../../../native/request_ring.cc',
        '../../../native/serve.cc', '../../../native/streams.cc',
      ],
    },
  ],
}
