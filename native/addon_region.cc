// The surface of regions: making, mapping, buffers, going down, statistics.
#include <dlfcn.h>

#include <cmath>

#include "attempt.h"
#include "futex.h"
#include "napi_help.h"

namespace faultline {
namespace {

// Node 22 and later have it; Node 20 takes the bridge's, which uses V8.
SharedBufferMaker shared_buffer_maker() {
  static const auto ours = reinterpret_cast<SharedBufferMaker>(dlsym(RTLD_DEFAULT, "node_api_create_external_sharedarraybuffer"));
  return ours != nullptr ? ours : bridge_port()->make_shared_buffer.load();
}

Napi::Value create(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t member = arguments.u32(0);
  if (!arguments.ok) return arguments.env.Undefined();
  if (!info[1].IsObject()) {
    arguments.fail("ERR_NATIVE_ARGUMENT", "argument 1 must be a region's description");
    return arguments.env.Undefined();
  }
  const auto spec = info[1].As<Napi::Object>();
  const auto number = [&](const char* name) -> uint64_t {
    const Napi::Value value = spec.Get(name);
    const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
    if (number < 1 || number > 9007199254740991.0) {
      arguments.fail("ERR_NATIVE_ARGUMENT", std::string(name) + " must be a whole number above 0");
      return 0;
    }
    return static_cast<uint64_t>(number);
  };
  RegionSpec wanted{static_cast<uint32_t>(number("id")), spec.Get("name").ToString().Utf8Value(), number("size"), number("pageSize"), number("extentPages")};
  if (arguments.ok && ((wanted.page_size & (wanted.page_size - 1)) != 0 || wanted.page_size < 4096 || wanted.page_size > (2u << 20) || wanted.size % wanted.page_size != 0)) {
    arguments.fail("ERR_NATIVE_ARGUMENT", "pageSize must be a power of two from 4096 to 2 MiB, and size a multiple of it");
  }
  if (!arguments.ok) return arguments.env.Undefined();
  SystemFailure failure;
  Region* region = region_create(member, wanted, failure);
  if (region == nullptr) {
    throw_system(arguments.env, failure);
    return arguments.env.Undefined();
  }
  return Napi::Number::New(arguments.env, region->handle);
}

void map(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (!arguments.ok) return;
  bool lossless = false;
  const uint64_t address = info[1].IsBigInt() ? info[1].As<Napi::BigInt>().Uint64Value(&lossless) : 0;
  if (!lossless || address == 0 || address % region->page_size != 0) return arguments.fail("ERR_NATIVE_ARGUMENT", "argument 1 must be an address, a multiple of the page size");
  SystemFailure failure;
  const uint64_t guard = arguments.number(2);
  if (!arguments.ok) return;
  if (guard > static_cast<uint64_t>(GuardKind::kWithSystemCalls)) return arguments.fail("ERR_NATIVE_ARGUMENT", "argument 2 must be a guard");
  if (!region_map(*region, address, failure, static_cast<GuardKind>(guard))) throw_system(arguments.env, failure);
}

Napi::Value buffer(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint64_t offset = arguments.number(1);
  const uint64_t length = arguments.number(2);
  if (!arguments.ok) return arguments.env.Undefined();
  if (region->app.load() == 0) arguments.fail("ERR_NATIVE_HANDLE", "the region is not mapped");
  else if (offset > region->size || length > region->size - offset) arguments.fail("ERR_NATIVE_RANGE", "the buffer is not in the region");
  const SharedBufferMaker make = shared_buffer_maker();
  if (make == nullptr) arguments.fail("ERR_NATIVE_BRIDGE", "this Node can't make a buffer over a region without the V8 bridge");
  if (!arguments.ok) return arguments.env.Undefined();
  Reservation* reservation = region->reservation;
  reservation->buffers.fetch_add(1);
  napi_value result;
  // The finalizer may run on any thread, when the last reference in any isolate is gone.
  const auto finalize = [](void*, void* hint) { reservation_unref(static_cast<Reservation*>(hint)); };
  const int status = make(arguments.env, reinterpret_cast<void*>(region->app.load() + offset), length, finalize, reservation, &result);
  if (status != napi_ok) {
    reservation_unref(reservation);
    arguments.fail("ERR_OUT_OF_MEMORY", "a SharedArrayBuffer of " + std::to_string(length) + " bytes can't be made by this Node");
    return arguments.env.Undefined();
  }
  return Napi::Value(arguments.env, result);
}

void down(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  const uint32_t code = arguments.u32(1);
  const std::string detail = arguments.text(2);
  if (arguments.ok) region_down(*region, code, detail);
}

void release(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (arguments.ok) region_release(*region);
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (!arguments.ok) return arguments.env.Undefined();
  return Napi::Number::New(arguments.env, static_cast<double>(region_memory(*region)));
}

Napi::Value stats(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  Region* region = arguments.region(0);
  if (!arguments.ok) return arguments.env.Undefined();
  const RegionStats& from = region->stats;
  Napi::Object result = Napi::Object::New(arguments.env);
  const auto set = [&](const char* name, const std::atomic<uint64_t>& value) { result.Set(name, static_cast<double>(value.load(std::memory_order_relaxed))); };
  set("readFaults", from.read_faults);
  set("writeFaults", from.write_faults);
  set("localFaults", from.local_faults);
  set("joinedFaults", from.joined_faults);
  set("upgradeFaults", from.upgrade_faults);
  set("lostFaults", from.lost_faults);
  set("protectionChanges", from.protection_changes);
  set("mappingLimitHits", from.mapping_limit_hits);
  set("coalesced", from.coalesced);
  result.Set("guard", static_cast<double>(region->proxies != nullptr ? GuardKind::kWithSystemCalls : region->uffd >= 0 ? GuardKind::kUserfaultfd : GuardKind::kMprotect));
  set("filledPages", from.filled_pages);
  set("installedPages", from.installed_pages);
  set("discardedPages", from.discarded_pages);
  set("installedBytes", from.installed_bytes);
  set("installedWithoutBytes", from.installed_without_bytes);
  set("invalidatedPages", from.invalidated_pages);
  set("recalledPages", from.recalled_pages);
  set("droppedPages", from.dropped_pages);
  result.Set("memory", static_cast<double>(region_memory(*region)));
  set("laneFaults", from.lane_faults);
  set("laneReferred", from.lane_referred);
  set("laneBroken", from.lane_broken);
  set("lanePagesAhead", from.lane_pages_ahead);
  set("laneMessages", from.lane_messages);
  set("laneServed", from.lane_served);
  set("lanePagesOut", from.lane_pages_out);
  set("laneBytesOut", from.lane_bytes_out);
  set("laneRecallsSent", from.lane_recalls_sent);
  set("laneRecallsReceived", from.lane_recalls_received);
  set("laneInvalidationsSent", from.lane_invalidations_sent);
  set("laneInvalidationsReceived", from.lane_invalidations_received);
  uint64_t resident = 0;
  for (uint64_t extent = 0; extent < region->extent_count; extent++) {
    if (!(region->touched[extent].load(std::memory_order_relaxed) & kPagesTouched)) continue;
    for (uint64_t page = extent * region->extent_pages; page < std::min(region->page_count, (extent + 1) * region->extent_pages); page++) {
      if (allows(held(region->pages[page].word.load(std::memory_order_relaxed))) != 0) resident++;
    }
  }
  result.Set("residentPages", static_cast<double>(resident));
  Napi::Array waits = Napi::Array::New(arguments.env, RegionStats::kBuckets);
  for (int i = 0; i < RegionStats::kBuckets; i++) waits.Set(static_cast<uint32_t>(i), static_cast<double>(from.waits[i].load(std::memory_order_relaxed)));
  result.Set("waitHistogram", waits);
  return result;
}

Napi::Value bounds(const Napi::CallbackInfo& info) {
  Napi::Array result = Napi::Array::New(info.Env(), RegionStats::kBuckets);
  for (int i = 0; i < RegionStats::kBuckets; i++) result.Set(static_cast<uint32_t>(i), histogram_bound(i));
  return result;
}

Napi::Value lacks(const Napi::CallbackInfo& info) {
  int error = 0;
  const char* call = userfaultfd_lacks(error, info[0].IsBoolean() && info[0].As<Napi::Boolean>());
  if (call == nullptr) return info.Env().Null();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("syscall", call);
  result.Set("errno", error);
  result.Set("message", strerror(error));
  return result;
}

Napi::Value can_make_buffers(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), shared_buffer_maker() != nullptr); }

}  // namespace

void init_region(Napi::Env env, Napi::Object exports) {
  exports.Set("regionCreate", Napi::Function::New(env, create));
  exports.Set("regionMap", Napi::Function::New(env, map));
  exports.Set("userfaultfdLacks", Napi::Function::New(env, lacks));
  exports.Set("regionBuffer", Napi::Function::New(env, buffer));
  exports.Set("regionDown", Napi::Function::New(env, down));
  exports.Set("regionRelease", Napi::Function::New(env, release));
  exports.Set("regionMemory", Napi::Function::New(env, memory));
  exports.Set("regionStats", Napi::Function::New(env, stats));
  exports.Set("histogramBounds", Napi::Function::New(env, bounds));
  // A getter: the bridge may be connected after this addon was loaded.
  exports.DefineProperty(Napi::PropertyDescriptor::Accessor(env, exports, "canMakeBuffers", can_make_buffers, napi_enumerable));
}

}  // namespace faultline
