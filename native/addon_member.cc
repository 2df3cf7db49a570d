// The surface of members: the ring, the gate, leases, clients, and the slots of blocking calls.
#include <uv.h>

#include <memory>
#include <utility>
#include <vector>

#include "attempt.h"
#include "fault.h"
#include "futex.h"
#include "napi_help.h"

namespace faultline {
namespace {

// The coordinator's end of a ring in its event loop. Lives until its handle is closed.
struct Wakeup {
  uv_poll_t poll;
  napi_env env = nullptr;
  Napi::FunctionReference callback;
  uint32_t member = 0;
  napi_async_cleanup_hook_handle hook = nullptr;
  bool closing = false;
};

// One coordinator for each thread.
thread_local Wakeup* attached = nullptr;

void close_wakeup(Wakeup* wakeup) {
  if (wakeup->closing) return;
  wakeup->closing = true;
  uv_poll_stop(&wakeup->poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&wakeup->poll), [](uv_handle_t* handle) {
    auto* wakeup = static_cast<Wakeup*>(handle->data);
    if (wakeup->hook != nullptr) napi_remove_async_cleanup_hook(wakeup->hook);
    wakeup->callback.Reset();
    delete wakeup;
  });
}

// Not by way of Napi::FunctionReference, which turns every failure into a C++ exception: nobody in the event loop could
// catch that. The call fails without an error of its own if the thread is being ended, for example by process.exit() on
// the main thread, and then there is nobody to tell. An error that the coordinator threw is an uncaught one there.
void call_coordinator(const Wakeup& wakeup) {
  const napi_env env = wakeup.env;
  Napi::HandleScope scope(env);
  napi_value global, function, result, error;
  if (napi_get_global(env, &global) != napi_ok || napi_get_reference_value(env, wakeup.callback, &function) != napi_ok) return;
  if (napi_make_callback(env, nullptr, global, function, 0, nullptr, &result) != napi_pending_exception) return;
  if (napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_fatal_exception(env, error);
}

// The environment ends. If the coordinator had not stopped its member, it was ended by something else: nobody will
// answer any more.
void environment_ends(napi_async_cleanup_hook_handle, void* data) {
  auto* wakeup = static_cast<Wakeup*>(data);
  attached = nullptr;
  fault_this_is_coordinator(false);
  if (Member* member = member_at(wakeup->member); member != nullptr && !member->stopped) {
    member_down(*member, kCoordinatorDied, "");
    member_stopped(*member);
  }
  close_wakeup(wakeup);
}

void member_attach(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (!arguments.ok) return;
  if (!info[1].IsFunction()) return arguments.fail("ERR_NATIVE_ARGUMENT", "argument 1 must be a function");
  uv_loop_t* loop;
  if (napi_get_uv_event_loop(arguments.env, &loop) != napi_ok) return arguments.fail("ERR_SYSTEM", "there is no event loop");
  auto* wakeup = new Wakeup;
  wakeup->env = arguments.env;
  wakeup->member = member->handle;
  wakeup->callback = Napi::Persistent(info[1].As<Napi::Function>());
  wakeup->poll.data = wakeup;
  if (uv_poll_init(loop, &wakeup->poll, member->ring.descriptor()) != 0) {
    delete wakeup;
    return arguments.fail("ERR_SYSTEM", "the ring can't be polled");
  }
  uv_poll_start(&wakeup->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
    auto* wakeup = static_cast<Wakeup*>(poll->data);
    Member* member = member_at(wakeup->member);
    if (member == nullptr || member->stopped) return;
    member->ring.clear();
    call_coordinator(*wakeup);
  });
  napi_add_async_cleanup_hook(arguments.env, environment_ends, wakeup, &wakeup->hook);
  attached = wakeup;
  member->attached = true;
  fault_this_is_coordinator(true);
}

Napi::Value drain(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  size_t length = 0;
  double* records = arguments.doubles(1, 5, length);
  if (!arguments.ok) return arguments.env.Undefined();
  size_t count = 0;
  RingRecord record;
  for (;;) {
    while ((count + 1) * 5 <= length && member->ring.pop(record)) {
      double* at = records + 5 * count++;
      at[0] = record.kind;
      at[1] = record.region;
      at[2] = static_cast<double>(record.page);
      at[3] = record.access;
      at[4] = record.version;
    }
    // Only an empty answer says that the coordinator goes to sleep.
    if (count > 0 || member->ring.sleep()) break;
  }
  return Napi::Number::New(arguments.env, static_cast<double>(count));
}

Napi::Value create(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string key = arguments.text(0);
  if (!arguments.ok) return arguments.env.Undefined();
  std::string error;
  const uint32_t handle = member_create(key, error);
  if (handle == 0) {
    throw_code(arguments.env, error.c_str(), "a member for " + key + " can't be made in this process");
    return arguments.env.Undefined();
  }
  return Napi::Number::New(arguments.env, handle);
}

Napi::Value find_member(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string key = arguments.text(0);
  if (!arguments.ok) return arguments.env.Undefined();
  return Napi::Number::New(arguments.env, member_find(key));
}

void down(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t code = arguments.u32(1);
  const std::string detail = arguments.text(2);
  if (arguments.ok) member_down(*member, code, detail);
}

Napi::Value state(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t handle = arguments.u32(0);
  if (!arguments.ok) return arguments.env.Undefined();
  // A member whose place has passed to another is closed, whoever still asks.
  Member* member = member_at(handle);
  uint32_t code = member == nullptr ? uint32_t{kClosed} : member->down.load();
  if (member != nullptr && member->stopped && !is_final(code)) code = kClosed;
  return Napi::Number::New(arguments.env, code);
}

void stopped(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (!arguments.ok) return;
  if (attached != nullptr && attached->member == member->handle) {
    close_wakeup(attached);
    attached = nullptr;
    fault_this_is_coordinator(false);
  }
  member_stopped(*member);
}

void request_stop(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t timeout = arguments.u32(1);
  if (arguments.ok) member_request_stop(*member, timeout);
}

Napi::Value wait_stopped(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t handle = arguments.u32(0);
  const uint32_t timeout = arguments.u32(1);
  if (!arguments.ok) return arguments.env.Undefined();
  Member* member = member_at(handle);
  return Napi::Boolean::New(arguments.env, member == nullptr || member_wait_stopped(*member, timeout));
}

void set_lease(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint64_t until = arguments.number(1);
  if (arguments.ok) member_set_lease(*member, until);
}

// (member, left, low): bytes that may come, and at how many left the coordinator wants to hear of it.
void set_memory(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const double left = info[1].IsNumber() ? info[1].As<Napi::Number>().DoubleValue() : 0;
  const uint64_t low = arguments.number(2);
  if (!arguments.ok) return;
  member->memory.left.store(static_cast<int64_t>(left));
  member->memory.low.store(static_cast<int64_t>(low));
  member->memory.turn.fetch_add(1);
  futex_wake(&member->memory.turn);
}

Napi::Value lease(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return arguments.ok ? Napi::Number::New(arguments.env, static_cast<double>(member->lease.load())) : arguments.env.Undefined();
}

void die(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  Region* region = arguments.region(1);
  if (arguments.ok) arguments.page(2, region);
  if (arguments.ok) fault_die(*region, member->dying_offset, member->dying_write, member->dying_thread);
}

Napi::Value gate_close(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return arguments.ok ? Napi::Boolean::New(arguments.env, member->gate.close()) : arguments.env.Undefined();
}
Napi::Value gate_drained(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  return arguments.ok ? Napi::Boolean::New(arguments.env, member->gate.drained()) : arguments.env.Undefined();
}
void gate_open(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (arguments.ok) member->gate.open();
}

// A client's thread may end without a word: its environment's cleanup says so.
struct ClientHook {
  uint32_t member;
  uint32_t client;
};

// Of this thread's clients; who closes takes its own out, so that a thread that comes and goes keeps none.
thread_local std::vector<std::unique_ptr<ClientHook>> client_hooks;

std::unique_ptr<ClientHook> take_hook(uint32_t member, uint32_t client) {
  for (auto& at : client_hooks) {
    if (at->member != member || at->client != client) continue;
    std::unique_ptr<ClientHook> hook = std::move(at);
    at = std::move(client_hooks.back());
    client_hooks.pop_back();
    return hook;
  }
  return nullptr;
}

void client_thread_ends(void* data) {
  const auto* ending = static_cast<ClientHook*>(data);
  const std::unique_ptr<ClientHook> hook = take_hook(ending->member, ending->client);
  if (Member* member = member_at(hook->member)) client_gone(*member, hook->client);
}

Napi::Value client_create_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  if (!arguments.ok) return arguments.env.Undefined();
  const uint32_t client = client_create(*member);
  client_hooks.push_back(std::make_unique<ClientHook>(ClientHook{member->handle, client}));
  napi_add_env_cleanup_hook(arguments.env, client_thread_ends, client_hooks.back().get());
  return Napi::Number::New(arguments.env, client);
}

void client_close_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t handle = arguments.u32(0);
  const uint32_t client = arguments.u32(1);
  if (!arguments.ok) return;
  if (const std::unique_ptr<ClientHook> hook = take_hook(handle, client)) napi_remove_env_cleanup_hook(arguments.env, client_thread_ends, hook.get());
  if (Member* member = member_at(handle)) client_close(*member, client);
}

Napi::Value slot_create_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const std::string request = arguments.text(1);
  return arguments.ok ? Napi::Number::New(arguments.env, slot_create(*member, request)) : arguments.env.Undefined();
}

Napi::Value slot_request_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t slot = arguments.u32(1);
  std::string request;
  if (!arguments.ok) return arguments.env.Undefined();
  return slot_request(*member, slot, request) ? Napi::Value(Napi::String::New(arguments.env, request)) : arguments.env.Null();
}

Napi::Value slot_wait_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t handle = arguments.u32(0);
  const uint32_t slot = arguments.u32(1);
  const uint32_t timeout = arguments.u32(2);
  if (!arguments.ok) return arguments.env.Undefined();
  std::string payload;
  Member* member = member_at(handle);
  const int result = member == nullptr ? 1 : slot_wait(*member, slot, timeout, payload);
  if (result < 0) {
    throw_code(arguments.env, "ERR_NATIVE_HANDLE", "no such slot");
    return arguments.env.Undefined();
  }
  return result == 0 ? arguments.env.Null() : Napi::Value(Napi::String::New(arguments.env, payload));
}

Napi::Value slot_complete_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Member* member = arguments.member(0);
  const uint32_t slot = arguments.u32(1);
  const std::string payload = arguments.text(2);
  return arguments.ok ? Napi::Boolean::New(arguments.env, slot_complete(*member, slot, payload)) : arguments.env.Undefined();
}

void slot_close_call(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t handle = arguments.u32(0);
  const uint32_t slot = arguments.u32(1);
  if (!arguments.ok) return;
  if (Member* member = member_at(handle)) slot_close(*member, slot);
}

}  // namespace

void init_member(Napi::Env env, Napi::Object exports) {
  exports.Set("memberCreate", Napi::Function::New(env, create));
  exports.Set("memberFind", Napi::Function::New(env, find_member));
  exports.Set("memberAttach", Napi::Function::New(env, member_attach));
  exports.Set("drain", Napi::Function::New(env, drain));
  exports.Set("memberDown", Napi::Function::New(env, down));
  exports.Set("memberState", Napi::Function::New(env, state));
  exports.Set("memberStopped", Napi::Function::New(env, stopped));
  exports.Set("requestStop", Napi::Function::New(env, request_stop));
  exports.Set("waitStopped", Napi::Function::New(env, wait_stopped));
  exports.Set("setLease", Napi::Function::New(env, set_lease));
  exports.Set("setMemory", Napi::Function::New(env, set_memory));
  exports.Set("lease", Napi::Function::New(env, lease));
  exports.Set("die", Napi::Function::New(env, die));
  exports.Set("gateClose", Napi::Function::New(env, gate_close));
  exports.Set("gateDrained", Napi::Function::New(env, gate_drained));
  exports.Set("gateOpen", Napi::Function::New(env, gate_open));
  exports.Set("clientCreate", Napi::Function::New(env, client_create_call));
  exports.Set("clientClose", Napi::Function::New(env, client_close_call));
  exports.Set("slotCreate", Napi::Function::New(env, slot_create_call));
  exports.Set("slotRequest", Napi::Function::New(env, slot_request_call));
  exports.Set("slotWait", Napi::Function::New(env, slot_wait_call));
  exports.Set("slotComplete", Napi::Function::New(env, slot_complete_call));
  exports.Set("slotClose", Napi::Function::New(env, slot_close_call));
}

}  // namespace faultline
