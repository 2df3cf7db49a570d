// The main addon: the process-wide functions, and the surfaces of members, regions and pages. Node-API only.
#include <napi.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "attempt.h"
#include "fault.h"
#include "futex.h"
#include "member.h"
#include "napi_help.h"

namespace faultline {
namespace {

std::atomic<bool> main_hook{false};
thread_local bool main_thread;

Napi::Value now(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), static_cast<double>(now_us())); }

Napi::Value lock_file(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string path = arguments.text(0);
  if (!arguments.ok) return arguments.env.Undefined();
  const int file = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) {
    throw_system(arguments.env, {"ERR_SYSTEM", "open", errno});
    return arguments.env.Undefined();
  }
  if (flock(file, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    close(file);
    if (error == EWOULDBLOCK) return Napi::Number::New(arguments.env, -1);
    throw_system(arguments.env, {"ERR_SYSTEM", "flock", error});
    return arguments.env.Undefined();
  }
  return Napi::Number::New(arguments.env, file);
}

Napi::Value is_locked(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string path = arguments.text(0);
  if (!arguments.ok) return arguments.env.Undefined();
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) return Napi::Boolean::New(arguments.env, false);
  const bool locked = flock(file, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  close(file);
  return Napi::Boolean::New(arguments.env, locked);
}

void close_file(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t file = arguments.u32(0);
  if (arguments.ok) close(static_cast<int>(file));
}

void set_main_hook(const Napi::CallbackInfo&) {
  main_hook = true;
  main_thread = true;
}
Napi::Value has_main_hook(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), main_hook.load()); }
Napi::Value is_main_thread(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), main_thread); }

Napi::Value bridge_port_address(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(reinterpret_cast<uintptr_t>(bridge_port())));
}

// Only tried, and given back at once: what else the process maps meanwhile may still be in the way.
Napi::Value can_map(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto bytes = static_cast<size_t>(arguments.number(0));
  if (!arguments.ok) return arguments.env.Undefined();
  void* mapping = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return Napi::Boolean::New(arguments.env, false);
  munmap(mapping, bytes);
  return Napi::Boolean::New(arguments.env, true);
}

Napi::Value threads_in_faults(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), fault_threads()); }

void exiting(const Napi::CallbackInfo& info) {
  const Napi::Value code = info[0];
  Arguments arguments(info);
  const uint32_t grace = arguments.u32(1);
  if (!arguments.ok) return;
  members_exiting();
  fault_exiting(code.IsNumber() ? code.As<Napi::Number>().Int32Value() : 0, grace);
}

void leave_now(const Napi::CallbackInfo& info) { _exit(info[0].IsNumber() ? info[0].As<Napi::Number>().Int32Value() : 0); }

void park_faults(const Napi::CallbackInfo& info) { fault_parks(info[0].ToBoolean()); }

Napi::Object init(Napi::Env env, Napi::Object exports) {
  fault_install();
  exports.Set("osPageSize", Napi::Number::New(env, static_cast<double>(sysconf(_SC_PAGESIZE))));
#if defined(__x86_64__)
  exports.Set("arch", "x64");
#else
  exports.Set("arch", "arm64");
#endif
  exports.Set("now", Napi::Function::New(env, now));
  exports.Set("lockFile", Napi::Function::New(env, lock_file));
  exports.Set("isLocked", Napi::Function::New(env, is_locked));
  exports.Set("closeFile", Napi::Function::New(env, close_file));
  exports.Set("setMainHook", Napi::Function::New(env, set_main_hook));
  exports.Set("hasMainHook", Napi::Function::New(env, has_main_hook));
  exports.Set("isMainThread", Napi::Function::New(env, is_main_thread));
  exports.Set("bridgePort", Napi::Function::New(env, bridge_port_address));
  exports.Set("canMap", Napi::Function::New(env, can_map));
  exports.Set("threadsInFaults", Napi::Function::New(env, threads_in_faults));
  exports.Set("parkFaults", Napi::Function::New(env, park_faults));
  exports.Set("leaveNow", Napi::Function::New(env, leave_now));
  exports.Set("exiting", Napi::Function::New(env, exiting));
  init_member(env, exports);
  init_region(env, exports);
  init_pages(env, exports);
  init_lanes(env, exports);
  init_stamps(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(faultline, init)

}  // namespace faultline
