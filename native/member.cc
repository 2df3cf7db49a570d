#include "member.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "futex.h"
#include "lanes.h"
#include "region.h"

namespace faultline {
namespace {

// Members alive in one process at a time: one for each cluster that it has joined.
constexpr uint32_t kMembers = 64;

struct Table {
  std::mutex mutex;
  Member* members[kMembers] = {};
  bool exiting = false;
  uint32_t used[kMembers] = {};  // how often the place was used: the upper half of the handle
};

Table& table() {
  // Never destroyed: threads may outlive static destructors.
  static Table* const all = new Table;
  return *all;
}

// Freezes members whose lease is over, although their coordinator may not be running (a stopped process that goes on).
// One thread for the process; it sleeps until the next lease could be over.
class Watchdog {
 public:
  static Watchdog& instance() {
    static Watchdog* const one = new Watchdog;
    return *one;
  }

  // Only a lease that is nearer than what the thread sleeps for must wake it.
  void look_at(uint64_t until) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!running_) {
      running_ = true;
      pthread_t thread;
      running_ = pthread_create(&thread, nullptr, [](void* self) -> void* { static_cast<Watchdog*>(self)->run(); return nullptr; }, this) == 0;
      if (running_) pthread_detach(thread);
    }
    if (until < wakes_at_) changed_.notify_one();
  }

 private:
  void run() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (;;) {
      const uint64_t next = freeze_overdue();
      std::unique_lock<std::mutex> lock(mutex_);
      wakes_at_ = next;
      const uint64_t now = now_us();
      if (next == UINT64_MAX) changed_.wait(lock);
      else if (next > now) changed_.wait_for(lock, std::chrono::microseconds(next - now));
      wakes_at_ = 0;
    }
  }

  // Returns when the next lease is over.
  uint64_t freeze_overdue() {
    std::vector<Member*> members;
    {
      std::lock_guard<std::mutex> lock(table().mutex);
      for (Member* member : table().members) if (member != nullptr && !member->stopped) members.push_back(member);
    }
    uint64_t next = UINT64_MAX;
    for (Member* member : members) {
      uint64_t until = member->lease.load();
      if (until == 0) continue;
      if (until > now_us()) {
        if (until < next) next = until;
        continue;
      }
      if (!member->lease.compare_exchange_strong(until, 0)) {
        next = now_us();
        continue;
      }
      if (member->down.load() == kUp) member_down(*member, kFrozen, "");
      member->ring.push({kRingLeaseOver, 0, 0, 0, 0});
    }
    return next;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false;
  uint64_t wakes_at_ = 0;
};

}  // namespace

uint32_t member_create(const std::string& key, std::string& error) {
  std::lock_guard<std::mutex> lock(table().mutex);
  // Whoever ends the process says so first, and looks for members then.
  if (table().exiting) {
    error = "ERR_NATIVE_EXITING";
    return 0;
  }
  uint32_t place = kMembers;
  for (uint32_t i = 0; i < kMembers; i++) {
    Member* member = table().members[i];
    if (member != nullptr && !member->stopped && member->key == key) {
      error = "ERR_NATIVE_KEY";
      return 0;
    }
    if (place == kMembers && (member == nullptr || member->stopped)) place = i;
  }
  if (place == kMembers) {
    error = "ERR_NATIVE_MEMBERS";
    return 0;
  }
  if (table().members[place] == nullptr) table().members[place] = new Member;
  Member& member = *table().members[place];
  if (!member.ring.open()) {
    error = "ERR_OUT_OF_MEMORY";
    return 0;
  }
  member.key = key;
  member.handle = (++table().used[place] << 8) | (place + 1);
  member.gate.open();
  member.detail[0] = 0;
  member.lease = 0;
  member.memory.clear();
  member.dying = false;
  member.attached = false;
  member.clients.clear();
  member.slots.clear();
  member.down = kUp;
  member.stopped = false;
  return member.handle;
}

void members_exiting() {
  std::lock_guard<std::mutex> lock(table().mutex);
  table().exiting = true;
}

uint32_t member_find(const std::string& key) {
  std::lock_guard<std::mutex> lock(table().mutex);
  for (Member* member : table().members) if (member != nullptr && !member->stopped && member->key == key) return member->handle;
  return 0;
}

Member* member_at(uint32_t handle) {
  const uint32_t place = (handle & 0xff) - 1;
  if (place >= kMembers) return nullptr;
  std::lock_guard<std::mutex> lock(table().mutex);
  Member* member = table().members[place];
  return member != nullptr && member->handle == handle ? member : nullptr;
}

void member_down(Member& member, uint32_t down, const std::string& detail) {
  {
    std::lock_guard<std::mutex> lock(member.mutex);
    // What is final stays so: an evicted member that is then closed was evicted.
    if (is_final(member.down.load())) return;
    if (down > kFrozen) {
      std::strncpy(member.detail, detail.c_str(), sizeof member.detail - 1);
    }
    member.down.store(down);
    if (is_final(down)) for (auto& [id, slot] : member.slots) slot.done = true;
    member.changed.notify_all();
  }
#ifndef FAULTLINE_SIMULATION
  if (is_final(down)) lanes_stop(member);
#endif
  if (down != kUp) regions_close_views(member, is_final(down));
  futex_wake(&member.down);
}

void member_stopped(Member& member) {
#ifndef FAULTLINE_SIMULATION
  lanes_stop(member);
#endif
  std::lock_guard<std::mutex> lock(member.mutex);
  if (member.stopped) return;
  member.lease = 0;
  member.attached = false;
  for (auto& [id, slot] : member.slots) slot.done = true;
  member.stopped = true;
  member.ring.close();
  member.changed.notify_all();
}

bool member_wait_stopped(Member& member, int64_t timeout_ms) {
  std::unique_lock<std::mutex> lock(member.mutex);
  return member.changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return member.stopped.load(); });
}

void member_request_stop(Member& member, uint32_t timeout_ms) {
  if (!member.stopped) member.ring.push({kRingStop, 0, timeout_ms, 0, 0});
}

void member_set_lease(Member& member, uint64_t until) {
  member.lease.store(until);
  if (until != 0) Watchdog::instance().look_at(until);
}

uint32_t slot_create(Member& member, const std::string& request) {
  uint32_t id;
  bool done;
  {
    std::lock_guard<std::mutex> lock(member.mutex);
    id = ++member.next_slot;
    Slot& slot = member.slots[id];
    done = slot.done = member.stopped || is_final(member.down.load());
    slot.request = request;
  }
  // A ring that stays full is one of a coordinator that has died; who waits finds that out.
  if (!done && !request.empty()) member.ring.push({kRingCall, id, 0, 0, 0});
  return id;
}

bool slot_request(Member& member, uint32_t slot, std::string& request) {
  std::lock_guard<std::mutex> lock(member.mutex);
  const auto found = member.slots.find(slot);
  if (found == member.slots.end()) return false;
  request.swap(found->second.request);
  return true;
}

int slot_wait(Member& member, uint32_t slot, int64_t timeout_ms, std::string& payload) {
  std::unique_lock<std::mutex> lock(member.mutex);
  const auto found = member.slots.find(slot);
  if (found == member.slots.end()) return -1;
  member.changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return found->second.done || found->second.closed; });
  if (!found->second.done) return 0;
  payload = found->second.payload;
  return 1;
}

bool slot_complete(Member& member, uint32_t slot, const std::string& payload) {
  std::lock_guard<std::mutex> lock(member.mutex);
  const auto found = member.slots.find(slot);
  if (found == member.slots.end() || found->second.done) return false;
  found->second.payload = payload;
  found->second.done = true;
  member.changed.notify_all();
  return true;
}

void slot_close(Member& member, uint32_t slot) {
  std::lock_guard<std::mutex> lock(member.mutex);
  member.slots.erase(slot);
}

uint32_t client_create(Member& member) {
  std::lock_guard<std::mutex> lock(member.mutex);
  const uint32_t id = ++member.next_client;
  member.clients.insert(id);
  return id;
}

void client_gone(Member& member, uint32_t client) {
  {
    std::lock_guard<std::mutex> lock(member.mutex);
    if (member.clients.erase(client) == 0 || member.stopped) return;
  }
  member.ring.push({kRingClientGone, 0, client, 0, 0});
}

void client_close(Member& member, uint32_t client) {
  std::lock_guard<std::mutex> lock(member.mutex);
  member.clients.erase(client);
}

}  // namespace faultline
