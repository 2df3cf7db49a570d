// When a fault passed which point: for the benchmark, which shows where its time goes. A process that is started with
// FAULTLINE_STAMPS=N keeps the first N stamps; otherwise each costs one look at a pointer.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>

namespace faultline {

// In the order of a fault that takes every way there is. lib/coordinator/stamps.ts has those of the coordinators.
enum class Stage : uint32_t {
  kTrapped = 1,        // the handler runs
  kLaneSent = 2,       // the question is about to leave
  kLaneReceived = 3,   // the page server has it
  kLaneAnswered = 4,   // the answer is about to leave
  kLaneArrived = 5,    // the asking thread has it, and the bytes
  kLaneInstalled = 6,  // the page is open, or it is known that the coordinator must get it
  kRung = 7,           // it is about to go on the ring
  kInstalled = 17,     // the coordinator has opened the page, and is about to wake who waits
  kResumed = 18,       // the handler is about to return
};

struct Stamp {
  uint64_t ns;
  uint32_t region;  // its id in the cluster's table
  uint32_t stage;
  uint64_t page;
};

struct StampLog {
  std::atomic<uint64_t> count;
  uint64_t capacity;
  Stamp stamps[1];
};

// Set before the first fault, and never changed: nullptr without FAULTLINE_STAMPS.
inline std::atomic<StampLog*> stamp_log{nullptr};

// Async-signal-safe.
inline void stamp(uint32_t region, uint64_t page, uint32_t stage) {
  StampLog* log = stamp_log.load(std::memory_order_relaxed);
  if (log == nullptr) return;
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  const uint64_t at = log->count.fetch_add(1, std::memory_order_relaxed);
  if (at < log->capacity) log->stamps[at] = {static_cast<uint64_t>(time.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(time.tv_nsec), region, stage, page};
}

inline void stamp(uint32_t region, uint64_t page, Stage stage) { ::faultline::stamp(region, page, static_cast<uint32_t>(stage)); }

}  // namespace faultline
