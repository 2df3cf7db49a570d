// An addon of somebody else with a SIGSEGV handler of its own, which passes on what it does not know: as crash reporters do.
#include <node_api.h>
#include <signal.h>

#include <atomic>

namespace {

struct sigaction previous = {};
std::atomic<uint32_t> seen{0};

void handle(int number, siginfo_t* info, void* context) {
  seen++;
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(number, info, context);
  // Nobody was there before: the default must happen when the instruction runs again.
  signal(number, SIG_DFL);
}

napi_value Install(napi_env, napi_callback_info) {
  struct sigaction ours = {};
  ours.sa_sigaction = handle;
  ours.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &ours, &previous);
  return nullptr;
}

napi_value Seen(napi_env env, napi_callback_info) {
  napi_value value = nullptr;
  napi_create_uint32(env, seen, &value);
  return value;
}

napi_value Init(napi_env env, napi_value exports) {
  napi_value value = nullptr;
  napi_create_function(env, "install", NAPI_AUTO_LENGTH, Install, nullptr, &value);
  napi_set_named_property(env, exports, "install", value);
  napi_create_function(env, "seen", NAPI_AUTO_LENGTH, Seen, nullptr, &value);
  napi_set_named_property(env, exports, "seen", value);
  return exports;
}

}  // namespace

NAPI_MODULE(foreign_handler, Init)
