#include "request_ring.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

namespace faultline {
namespace {
// Yields of the processor before a producer gives up on a full ring: the coordinator is then far behind or gone.
constexpr int kFullTries = 100000;
// Yields of the processor that close() grants to producers which are just waking the consumer.
constexpr int kCloseTries = 100000;
}  // namespace

bool RequestRing::open() {
  if (cells_ == nullptr) {
    void* memory = mmap(nullptr, kCells * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    cells_ = static_cast<Cell*>(memory);
  }
  for (uint64_t i = 0; i < kCells; i++) cells_[i].turn.store(i, std::memory_order_relaxed);
  tail_.store(0);
  head_ = 0;
  asleep_.store(1);
  event_.store(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  return event_.load() >= 0;
}

void RequestRing::close() {
  // The cells stay for the next member in this place: a late producer must not write into unmapped memory.
  const int event = event_.exchange(-1);
  if (event < 0) return;
  // Nor into a descriptor that has become somebody else's: whoever announced itself before the exchange may still write
  // to this one. It does not block; one that was stopped there costs the descriptor, which is the lesser evil.
  for (int tries = 0; wakers_.load() != 0; tries++) {
    if (tries == kCloseTries) return;
    sched_yield();
  }
  ::close(event);
}

bool RequestRing::push(const RingRecord& record) {
  uint64_t place = tail_.load(std::memory_order_relaxed);
  Cell* cell;
  for (int tries = 0;;) {
    cell = &cells_[place % kCells];
    const uint64_t turn = cell->turn.load(std::memory_order_acquire);
    if (turn == place) {
      if (tail_.compare_exchange_weak(place, place + 1, std::memory_order_relaxed)) break;
    } else if (turn < place) {
      if (++tries > kFullTries) return false;
      sched_yield();  // async-signal-safe: a bare system call
      place = tail_.load(std::memory_order_relaxed);
    } else {
      place = tail_.load(std::memory_order_relaxed);
    }
  }
  cell->record = record;
  cell->turn.store(place + 1);
  if (asleep_.exchange(0) == 1) {
    const uint64_t one = 1;
    wakers_.fetch_add(1);
    const int event = event_.load();
    // Async-signal-safe by POSIX. It can only fail if the counter is at its limit, and then it is readable anyway.
    ssize_t written = event >= 0 ? write(event, &one, sizeof one) : 0;
    static_cast<void>(written);
    wakers_.fetch_sub(1);
  }
  return true;
}

bool RequestRing::pop(RingRecord& record) {
  Cell& cell = cells_[head_ % kCells];
  if (cell.turn.load() != head_ + 1) return false;
  record = cell.record;
  cell.turn.store(head_ + kCells, std::memory_order_release);
  head_++;
  return true;
}

bool RequestRing::sleep() {
  asleep_.store(1);
  // Whoever filled the next cell before this store saw "awake", and did not wake.
  if (cells_[head_ % kCells].turn.load() != head_ + 1) return true;
  asleep_.store(0);
  return false;
}

void RequestRing::clear() {
  uint64_t count;
  ssize_t got = read(event_.load(), &count, sizeof count);
  static_cast<void>(got);
}

}  // namespace faultline
