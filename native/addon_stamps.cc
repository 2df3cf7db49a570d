// The surface of stamps: the coordinator sets its own, and the benchmark reads them all.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>

#include "napi_help.h"
#include "stamps.h"

namespace faultline {
namespace {

constexpr uint64_t kMostStamps = 10'000'000;

// Once for each process, before any region exists.
void open_log() {
  const char* text = getenv("FAULTLINE_STAMPS");
  const unsigned long long wanted = text != nullptr ? strtoull(text, nullptr, 10) : 0;
  if (wanted == 0) return;
  const uint64_t capacity = wanted < kMostStamps ? wanted : kMostStamps;
  void* memory = mmap(nullptr, sizeof(StampLog) + capacity * sizeof(Stamp), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) return;
  auto* log = static_cast<StampLog*>(memory);
  log->capacity = capacity;
  stamp_log.store(log);
}

// (region id, page, stage)
void set_stamp(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const uint32_t region = arguments.u32(0);
  const uint64_t page = arguments.number(1);
  const uint32_t stage = arguments.u32(2);
  if (arguments.ok) stamp(region, page, stage);
}

// All stamps since the last call, as [ns, region, page, stage, ...]. Nobody may be in a fault meanwhile.
Napi::Value take_stamps(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  StampLog* log = stamp_log.load();
  uint64_t count = log == nullptr ? 0 : log->count.exchange(0);
  if (log != nullptr && count > log->capacity) count = log->capacity;
  Napi::Float64Array result = Napi::Float64Array::New(env, count * 4);
  for (uint64_t i = 0; i < count; i++) {
    result[4 * i] = static_cast<double>(log->stamps[i].ns);
    result[4 * i + 1] = log->stamps[i].region;
    result[4 * i + 2] = static_cast<double>(log->stamps[i].page);
    result[4 * i + 3] = log->stamps[i].stage;
  }
  return result;
}

}  // namespace

void init_stamps(Napi::Env env, Napi::Object exports) {
  static std::once_flag once;
  std::call_once(once, open_log);
  exports.Set("stamp", Napi::Function::New(env, set_stamp));
  exports.Set("takeStamps", Napi::Function::New(env, take_stamps));
}

}  // namespace faultline
