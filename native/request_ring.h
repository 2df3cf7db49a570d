// The queue on which faulting threads (and a few others) reach the coordinator: bounded, lock-free, many producers, one
// consumer, after Dmitry Vyukov's bounded queue. A producer may be stopped between taking a cell and filling it; the
// consumer then sees an empty cell and comes back at the wake-up that follows the filling.
#pragma once

#include <atomic>
#include <cstdint>

namespace faultline {

enum RingKind : uint32_t {
  kRingFault = 1,
  kRingFree = 2,
  kRingFatal = 3,
  kRingCoalesce = 4,
  kRingClientGone = 5,
  kRingLeaseOver = 6,
  kRingStop = 7,
  kRingMemory = 8,
  kRingCall = 9,
  kRingLaneCall = 10,
};

struct RingRecord {
  uint32_t kind;
  uint32_t region;
  uint64_t page;
  uint32_t access;
  uint32_t version;
};

class RequestRing {
 public:
  // Allocates; false without memory or descriptors.
  bool open();
  void close();

  // From any thread, a signal handler included. Waits, bounded, while the ring is full; false if it stayed full.
  bool push(const RingRecord& record);

  // The coordinator only. false: nothing there; the next push then wakes.
  // For the one consumer.
  bool empty() const { return cells_[head_ % kCells].turn.load() != head_ + 1; }
  bool pop(RingRecord& record);
  // Before the coordinator goes to sleep; false: something came meanwhile, go on popping.
  bool sleep();
  // The descriptor that becomes readable at a wake-up, and how to make it unreadable again.
  int descriptor() const { return event_.load(); }
  void clear();

 private:
  static constexpr uint64_t kCells = 8192;
  struct Cell {
    std::atomic<uint64_t> turn;
    RingRecord record;
  };

  Cell* cells_ = nullptr;
  std::atomic<int> event_{-1};
  // Producers that are about to write to the descriptor.
  std::atomic<uint32_t> wakers_{0};
  alignas(64) std::atomic<uint64_t> tail_{0};
  alignas(64) uint64_t head_ = 0;
  alignas(64) std::atomic<uint32_t> asleep_{1};
};

}  // namespace faultline
