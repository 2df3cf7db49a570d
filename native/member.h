// One member of this process: what its threads and its coordinator share besides regions. Members are kept in a table
// and their memory is never given back, because a thread in the fault handler may hold on to one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "budget.h"
#include "request_ring.h"

namespace faultline {

enum Down : uint32_t {
  kUp = 0,
  kFrozen = 1,
  kClosed = 2,
  kEvicted = 3,
  kClusterLost = 4,
  kDestroyed = 5,
  kCoordinatorDied = 6,
};

// Final codes end waits; Up and Frozen don't.
inline bool is_final(uint32_t down) { return down > kFrozen; }

// Keeps handlers out of the home transitions while homes change. Entering costs one atomic addition.
class Gate {
 public:
  // Async-signal-safe. false: closed; nothing to leave.
  bool enter() {
    if (word_.fetch_add(1) & kClosedBit) {
      leave();
      return false;
    }
    return true;
  }
  void leave() { word_.fetch_sub(1); }
  bool close() { return ((word_.fetch_or(kClosedBit) & ~kClosedBit)) == 0; }
  bool drained() const { return (word_.load() & ~kClosedBit) == 0; }
  void open() { word_.fetch_and(~kClosedBit); }

 private:
  static constexpr uint32_t kClosedBit = 1u << 31;
  std::atomic<uint32_t> word_{0};
};

struct Slot {
  std::string request;
  bool done = false;
  bool closed = false;
  std::string payload;
};

struct Lanes;

struct Member {
  uint32_t handle = 0;
  std::string key;
  RequestRing ring;
  Gate gate;
  // A Down code, and the futex of threads that wait while the member is frozen.
  std::atomic<uint32_t> down{kUp};
  // What is appended to the line that a process dies with; written before `down`.
  char detail[256] = {};
  std::atomic<uint64_t> lease{0};
  Budget memory;
  // nullptr until lanes are first opened, then kept for the next member in this place.
  std::atomic<Lanes*> lanes{nullptr};
  // A thread has asked for the last words already; what it did, for the line that the process ends with.
  std::atomic<bool> dying{false};
  std::atomic<uint64_t> dying_offset{0};
  std::atomic<bool> dying_write{false};
  std::atomic<uint32_t> dying_thread{0};
  // The coordinator is attached and will answer the ring.
  std::atomic<bool> attached{false};
  std::atomic<bool> stopped{false};

  std::mutex mutex;  // for what follows; never taken in the handler
  std::condition_variable changed;
  uint32_t next_client = 0;
  std::set<uint32_t> clients;
  uint32_t next_slot = 0;
  std::map<uint32_t, Slot> slots;
};

// The process ends: no member is made any more.
void members_exiting();
// 0 if the key is taken, there is no room, or the process ends.
uint32_t member_create(const std::string& key, std::string& error);
uint32_t member_find(const std::string& key);
Member* member_at(uint32_t handle);

// Down, in all its regions. Closes all views unless it goes up.
void member_down(Member& member, uint32_t down, const std::string& detail);
void member_stopped(Member& member);
bool member_wait_stopped(Member& member, int64_t timeout_ms);
void member_request_stop(Member& member, uint32_t timeout_ms);
void member_set_lease(Member& member, uint64_t until);

// request: put on the ring, unless it is empty.
uint32_t slot_create(Member& member, const std::string& request);
// What was asked, once; false: nobody waits any more.
bool slot_request(Member& member, uint32_t slot, std::string& request);
// 1 done (payload set), 0 not yet, -1 no such slot.
int slot_wait(Member& member, uint32_t slot, int64_t timeout_ms, std::string& payload);
bool slot_complete(Member& member, uint32_t slot, const std::string& payload);
void slot_close(Member& member, uint32_t slot);

uint32_t client_create(Member& member);
void client_gone(Member& member, uint32_t client);
void client_close(Member& member, uint32_t client);

}  // namespace faultline
