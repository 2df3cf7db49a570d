// An addon of somebody else with a handler of its own for SIGSEGV or SIGBUS: one that passes on what it does not know, as
// crash reporters do, and one that takes every such signal for a crash.
#include <node_api.h>
#include <signal.h>
#include <unistd.h>

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

// Says so and lets the default action end the process when the instruction runs again.
void handle_alone(int number, siginfo_t*, void*) {
  constexpr char kLine[] = "an addon's handler took a fault for a crash\n";
  if (write(2, kLine, sizeof kLine - 1) < 0) _exit(1);
  signal(number, SIG_DFL);
}

int number_of(napi_env env, napi_callback_info info) {
  napi_value argument = nullptr;
  size_t count = 1;
  uint32_t number = SIGSEGV;
  napi_get_cb_info(env, info, &count, &argument, nullptr, nullptr);
  if (count == 1) napi_get_value_uint32(env, argument, &number);
  return static_cast<int>(number);
}

napi_value InstallAlone(napi_env env, napi_callback_info info) {
  struct sigaction ours = {};
  ours.sa_sigaction = handle_alone;
  ours.sa_flags = SA_SIGINFO;
  sigaction(number_of(env, info), &ours, nullptr);
  return nullptr;
}

napi_value Install(napi_env env, napi_callback_info info) {
  struct sigaction ours = {};
  ours.sa_sigaction = handle;
  ours.sa_flags = SA_SIGINFO;
  sigaction(number_of(env, info), &ours, &previous);
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
  napi_create_function(env, "installAlone", NAPI_AUTO_LENGTH, InstallAlone, nullptr, &value);
  napi_set_named_property(env, exports, "installAlone", value);
  napi_create_function(env, "seen", NAPI_AUTO_LENGTH, Seen, nullptr, &value);
  napi_set_named_property(env, exports, "seen", value);
  return exports;
}

}  // namespace

NAPI_MODULE(foreign_handler, Init)
