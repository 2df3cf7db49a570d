// The second addon: the only code that uses V8's own API, whose ABI differs between Node's major versions. It stops the
// JavaScript of attempt(), and makes SharedArrayBuffers on Node 20. Everything else works without it.
#include <node_api.h>
#include <node_version.h>
#include <v8.h>

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "attempt.h"

namespace {

using faultline::AttemptRecord;
using faultline::BridgePort;

// Per environment (main thread or worker).
struct Environment {
  BridgePort* port = nullptr;
  napi_ref nothing = nullptr;  // a JavaScript function that does nothing
};

// Node-API's values are V8's handles under another name; Node itself converts them so.
v8::Local<v8::Value> to_local(napi_value value) {
  v8::Local<v8::Value> local;
  static_assert(sizeof(local) == sizeof(value), "a napi_value is a v8::Local");
  memcpy(static_cast<void*>(&local), &value, sizeof(value));
  return local;
}

napi_value to_napi(v8::Local<v8::Value> local) {
  napi_value value;
  memcpy(&value, static_cast<void*>(&local), sizeof(value));
  return value;
}

// ---- the SharedArrayBuffer of Node 20 --------------------------------------------------------------------------------

#if !defined(V8_ENABLE_SANDBOX)  // with V8's sandbox no buffer may lie outside it

struct Finalizer {
  void (*finalize)(void* data, void* hint);
  void* hint;
};

// Any thread.
void finalize_store(void* data, size_t, void* argument) {
  std::unique_ptr<Finalizer> finalizer(static_cast<Finalizer*>(argument));
  if (finalizer->finalize != nullptr) finalizer->finalize(data, finalizer->hint);
}

int make_shared_buffer(napi_env, void* data, size_t byte_length, void (*finalize)(void*, void*), void* hint,
                       napi_value* result) {
  auto* finalizer = new (std::nothrow) Finalizer{finalize, hint};
  if (finalizer == nullptr) return napi_generic_failure;
  std::unique_ptr<v8::BackingStore> store =
      v8::SharedArrayBuffer::NewBackingStore(data, byte_length, finalize_store, finalizer);
  *result = to_napi(v8::SharedArrayBuffer::New(v8::Isolate::GetCurrent(), std::move(store)));
  return napi_ok;
}

#endif

// ---- attempt ---------------------------------------------------------------------------------------------------------

void terminate(void* isolate) { static_cast<v8::Isolate*>(isolate)->TerminateExecution(); }

napi_value throw_error(napi_env env, const char* code, const std::string& message) {
  napi_throw_error(env, code, message.c_str());
  return nullptr;
}

napi_value throw_type_error(napi_env env, const char* message) {
  napi_throw_type_error(env, "ERR_NATIVE_ARGUMENT", message);
  return nullptr;
}

// fn() as JavaScript calls it; empty if it threw or was stopped.
v8::MaybeLocal<v8::Value> call(v8::Isolate* isolate, napi_value function) {
  v8::Local<v8::Context> context = isolate->GetCurrentContext();
  return to_local(function).As<v8::Function>()->Call(context, v8::Undefined(isolate), 0, nullptr);
}

// May this environment still run JavaScript? Not after worker.terminate() or process.exit(). Node-API asks that before
// each call, and there is no other public way to ask.
bool may_run(napi_env env, napi_value nothing) {
  napi_value undefined;
  if (napi_get_undefined(env, &undefined) != napi_ok) return false;
  if (napi_call_function(env, undefined, nothing, 0, nullptr, nullptr) == napi_ok) return true;
  napi_value ignored;
  napi_get_and_clear_last_exception(env, &ignored);
  return false;
}

// Leaves the thread being terminated, so that returning to JavaScript goes on unwinding it: the interrupt is only noticed
// by a JavaScript function, so one is called here; otherwise the caller would run on for a while with no result.
napi_value stop_again(v8::Isolate* isolate, napi_value nothing) {
  isolate->TerminateExecution();
  (void)call(isolate, nothing);
  return nullptr;
}

void set_number(napi_env env, napi_value object, const char* name, double number) {
  napi_value value;
  napi_create_double(env, number, &value);
  napi_set_named_property(env, object, name, value);
}

void set_string(napi_env env, napi_value object, const char* name, const char* string) {
  napi_value value;
  napi_create_string_utf8(env, string, NAPI_AUTO_LENGTH, &value);
  napi_set_named_property(env, object, name, value);
}

napi_value describe(napi_env env, const AttemptRecord& record) {
  napi_value result, loss;
  napi_create_object(env, &loss);
  set_string(env, loss, "kind", record.down == 0 ? "page" : "region");
  set_string(env, loss, "region", record.region_name);
  set_number(env, loss, "page", static_cast<double>(record.page));
  set_number(env, loss, "pageSize", static_cast<double>(record.page_size));
  set_number(env, loss, "offset", static_cast<double>(record.offset));
  set_number(env, loss, "member", record.member);
  set_number(env, loss, "epoch", record.epoch);
  set_number(env, loss, "down", record.down);
  napi_create_object(env, &result);
  napi_set_named_property(env, result, "loss", loss);
  return result;
}

napi_value attempt(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value function;
  void* data;
  napi_get_cb_info(env, info, &count, &function, nullptr, &data);
  auto* environment = static_cast<Environment*>(data);
  napi_valuetype type = napi_undefined;
  if (count == 1) napi_typeof(env, function, &type);
  if (type != napi_function) return throw_type_error(env, "attempt: expected a function");
  if (environment->port == nullptr) return throw_error(env, "ERR_NATIVE_STATE", "attempt: install() was not called");
  napi_value nothing;
  napi_get_reference_value(env, environment->nothing, &nothing);

  v8::Isolate* isolate = v8::Isolate::GetCurrent();
  AttemptRecord record;
  record.isolate = isolate;
  if (int error = environment->port->enter(&record)) {
    return throw_error(env, "ERR_SYSTEM", std::string("attempt: can't be prepared: ") + strerror(error));
  }

  v8::TryCatch try_catch(isolate);
  v8::Local<v8::Value> value;
  const bool returned = call(isolate, function).ToLocal(&value);
  environment->port->leave(&record);

  if (record.losses == 0) {
    if (returned) {
      napi_value result;
      napi_create_object(env, &result);
      napi_set_named_property(env, result, "value", to_napi(value));
      return result;
    }
    // A termination that is not ours can't be thrown again, and isn't caught by a TryCatch either: it goes on by itself.
    if (!try_catch.HasTerminated()) try_catch.ReThrow();
    return nullptr;
  }

  // Whatever the function returned or threw after the loss means nothing. Always cancelled, whether it has been noticed
  // or not: leave() has waited until it was there, and if it stayed it would end the program without a word.
  isolate->CancelTerminateExecution();
  try_catch.Reset();
  if (!may_run(env, nothing)) return stop_again(isolate, nothing);
  for (const AttemptRecord* outer = record.outer; outer != nullptr; outer = outer->outer) {
    // That termination was cancelled together with ours.
    if (outer->losses != 0) return stop_again(isolate, nothing);
  }
  return describe(env, record);
}

// ---- the addon -------------------------------------------------------------------------------------------------------

napi_value install(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value argument;
  void* data;
  napi_get_cb_info(env, info, &count, &argument, nullptr, &data);
  uint64_t address = 0;
  bool lossless = false;
  if (count != 1 || napi_get_value_bigint_uint64(env, argument, &address, &lossless) != napi_ok || !lossless ||
      address == 0) {
    return throw_type_error(env, "install: expected the bigint that bridgePort() returns");
  }
  auto* port = reinterpret_cast<BridgePort*>(address);
  if (port->version != faultline::kBridgePortVersion || port->bytes != sizeof(BridgePort)) {
    return throw_error(env, "ERR_NATIVE_BRIDGE", "install: the two addons are from different builds");
  }
  // The same in every environment; both addons stay loaded for the life of the process, so the pointers stay good.
  port->terminate.store(terminate, std::memory_order_release);
#if !defined(V8_ENABLE_SANDBOX)
  port->make_shared_buffer.store(make_shared_buffer, std::memory_order_release);
#endif
  static_cast<Environment*>(data)->port = port;
  return nullptr;
}

void set_function(napi_env env, napi_value exports, const char* name, napi_callback callback, Environment* data) {
  napi_value function;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, data, &function) == napi_ok) {
    napi_set_named_property(env, exports, name, function);
  }
}

}  // namespace

NAPI_MODULE_INIT() {
  // Node-API modules are loaded whatever Node they were built for, but V8's own API is that of one major version.
  const napi_node_version* version;
  if (napi_get_node_version(env, &version) != napi_ok || version->major != NODE_MAJOR_VERSION) {
    return throw_error(env, "ERR_NATIVE_BRIDGE", "the V8 bridge was built for Node " NODE_STRINGIFY(NODE_MAJOR_VERSION));
  }
  auto* environment = new Environment();
  napi_set_instance_data(
      env, environment, [](napi_env, void* data, void*) { delete static_cast<Environment*>(data); }, nullptr);
  napi_value source, nothing;
  if (napi_create_string_utf8(env, "(function () {})", NAPI_AUTO_LENGTH, &source) != napi_ok ||
      napi_run_script(env, source, &nothing) != napi_ok ||
      napi_create_reference(env, nothing, 1, &environment->nothing) != napi_ok) {
    return throw_error(env, "ERR_NATIVE_BRIDGE", "the V8 bridge can't be initialised");
  }
  set_function(env, exports, "install", install, environment);
  set_function(env, exports, "attempt", attempt, environment);
  return exports;
}
