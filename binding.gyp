{
  'target_defaults': {
    'defines': ['NAPI_VERSION=8', 'NAPI_DISABLE_CPP_EXCEPTIONS', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS'],
    'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
    'cflags': ['-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-cast-function-type', '-O2'],
    'cflags_cc': ['-std=c++17'],
    # A handler or a finalizer may still point into an addon when the worker that loaded it has ended.
    'ldflags': ['-Wl,-z,nodelete'],
  },
  'targets': [
    {
      'target_name': 'faultline',
      'sources': [
        'native/addon.cc', 'native/addon_member.cc', 'native/addon_region.cc', 'native/addon_pages.cc', 'native/reclaim.cc',
        'native/attempt.cc', 'native/calls.cc', 'native/operand.cc', 'native/directory.cc', 'native/fault.cc',
        'native/guard_mprotect.cc', 'native/proxies.cc', 'native/guard_userfaultfd.cc', 'native/lane_client.cc', 'native/lane_serve.cc', 'native/lane_steps.cc',
        'native/lanes.cc', 'native/page_server.cc', 'native/page_server_connections.cc', 'native/page_server_questions.cc', 'native/member.cc',
        'native/region.cc', 'native/addon_lanes.cc', 'native/addon_stamps.cc', 'native/request_ring.cc', 'native/serve.cc', 'native/streams.cc',
      ],
      # What the fault handler touches of thread-local storage must exist before it runs: no lazy allocation.
      'cflags+': ['-ftls-model=initial-exec'],
    },
    {
      # Uses V8's own API, so it is built for one major version of Node; the package works without it on Node >= 22,
      # except for attempt().
      'target_name': 'v8_bridge',
      'sources': ['native/v8_bridge.cc'],
    },
  ],
}
