// How much memory a member may take for pages whose homes are elsewhere (the option memoryLimit). What is taken is the
// kernel's to say (region_memory()); between two times that it is asked, those who bring pages count what they add.
#pragma once

#include <atomic>
#include <cstdint>

namespace faultline {

// A limit on memory is one that is kept where it can be: where nothing can be given back (pins, a storm of faults) a thread
// goes on after so many waits.
constexpr uint32_t kMemoryPatience = 5;
// µs of each of them, unless there is room before.
constexpr int64_t kMemoryWait = 20'000;

struct Budget {
  static constexpr int64_t kNone = INT64_MIN;
  // Bytes that may still come. Below `low` the coordinator is told; at nothing, who wants a page that is not here waits
  // until it has made room, for a bounded time.
  std::atomic<int64_t> left{INT64_MAX};
  // kNone: there is no limit.
  std::atomic<int64_t> low{kNone};
  // Moves when there may be room again: the futex of those who wait.
  std::atomic<uint32_t> turn{0};

  // For a new member. No thread of the one before it is in a handler's wait for memory for longer than that takes.
  void clear() {
    low.store(kNone);
    left.store(INT64_MAX);
  }
  bool limited() const { return low.load(std::memory_order_relaxed) != kNone; }
  bool is_short() const { return limited() && left.load(std::memory_order_relaxed) <= 0; }
  // true: the coordinator must be told. Async-signal-safe.
  bool spend(uint64_t bytes) {
    const int64_t at = low.load(std::memory_order_relaxed);
    if (at == kNone) return false;
    const auto more = static_cast<int64_t>(bytes);
    const int64_t before = left.fetch_sub(more, std::memory_order_relaxed);
    return before > at && before - more <= at;
  }
};

}  // namespace faultline
