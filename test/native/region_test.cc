// The real fault handler under ThreadSanitizer: threads load and store through the guarded view of a region, while a
// coordinator answers them, takes pages back, moves homes through the gate, completes slots, and lets leases run out so
// that the watchdog closes everything, and other regions come and go. No data race, no signal-unsafe call, every fault ends,
// no store is lost, and what a region leaves behind is used by the next one.
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../../native/fault.h"
#include "../../native/futex.h"
#include "../../native/member.h"
#include "../../native/region.h"
#include "guard_argument.h"
#include "report.h"

using namespace faultline;

namespace {

constexpr int kThreads = 4;
// What has to have happened before the threads stop.
constexpr int kCloses = 3000, kLeaseEnds = 5, kMoves = 50;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kExtentPages = 4;
constexpr uint64_t kPages = 24;
// s: far more than a run takes; the signal ends the process, and make reports it.
constexpr unsigned kDeadline = 150;
// µs
constexpr uint64_t kLease = 1500;
// A kind that the product does not have: the record's page is a slot to complete.
constexpr uint32_t kSlotRequest = 100;

Member* member;
Region* region;
std::atomic<int> running{0};
std::atomic<int> lease_ends{0}, moves{0}, clients_gone{0}, closes{0};

// Not instrumented: a page fault inside of the sanitizer's own functions would find it in the middle of something.
__attribute__((no_sanitize("thread"), noinline)) uint64_t increment(uintptr_t address) {
  volatile auto* word = reinterpret_cast<volatile uint64_t*>(address);
  const uint64_t value = *word + 1;
  *word = value;
  return value;
}
__attribute__((no_sanitize("thread"), noinline)) uint64_t load(uintptr_t address) { return *reinterpret_cast<volatile uint64_t*>(address); }

uint32_t next_random(uint32_t& random) {
  random = random * 1664525 + 1013904223;
  return random >> 8;
}

// Each thread has a word of its own in every page, and knows what it must read there.
void user(int number) {
  uint32_t random = static_cast<uint32_t>(number) * 2654435761u + 1;
  std::array<uint64_t, kPages> mine{};
  bool right = true;
  for (int i = 0; closes < kCloses || lease_ends < kLeaseEnds || moves < kMoves; i++) {
    const uint64_t page = next_random(random) % kPages;
    const uintptr_t address = region->app.load() + page * kPage + static_cast<uint64_t>(number) * 64;
    if (next_random(random) & 1) right = right && increment(address) == ++mine[page];
    else right = right && load(address) == mine[page];
    if (i % 1000 == 0) {
      const uint32_t slot = slot_create(*member, "");
      member->ring.push({kSlotRequest, 0, slot, 0, 0});
      std::string payload;
      right = right && slot_wait(*member, slot, 60'000, payload) == 1 && payload == std::to_string(slot);
      slot_close(*member, slot);
      client_gone(*member, client_create(*member));
    }
  }
  test::check(right, "a thread reads what it stored, and gets answers of its own");
  for (uint64_t page = 0; page < kPages; page++) {
    test::check(load(region->app.load() + page * kPage + static_cast<uint64_t>(number) * 64) == mine[page], "no store is lost");
  }
  running--;
}

// Regions of another member of this process, one after the other, at the same place or at another, used and released.
void comes_and_goes(Member& other) {
  uint32_t random = 99;
  std::set<Region*> structs;
  bool right = true;
  int count = 0;
  for (; running > 0; count++) {
    SystemFailure failure;
    const uint64_t pages = 1 + next_random(random) % kPages;
    Region* mine = region_create(other.handle, {7, "comes and goes", pages * kPage, kPage, kExtentPages}, failure);
    test::check(mine != nullptr && mine->down.load() == kUp && mine->stats.write_faults == 0, "a region begins anew");
    if (mine == nullptr) return;
    structs.insert(mine);
    for (uint64_t extent = 0; extent < mine->extent_count; extent++) mine->homed[extent].store(kHomed);
    void* place = mmap(nullptr, mine->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap(place, mine->size);
    // Another thread of the test may have got the addresses in between; then it is used closed.
    if (region_map(*mine, reinterpret_cast<uintptr_t>(place), failure)) {
      const uintptr_t address = mine->app.load() + (next_random(random) % pages) * kPage;
      right = right && load(address) == 0 && increment(address) == 1 && load(address) == 1;
      right = right && mine->stats.read_faults + mine->stats.write_faults > 0;
    }
    region_release(*mine);
  }
  test::check(right, "a region that comes has no bytes of the one before");
  test::check(count > 10 && structs.size() <= 2, "a region's struct is used by the next one");
  std::printf("region: %d others came and went, in %zu structs\n", count, structs.size());
}

class Coordinator {
 public:
  void run() {
    fault_this_is_coordinator(true);
    uint32_t random = 12345;
    while (running > 0) {
      RingRecord record;
      while (member->ring.pop(record)) take(record);
      disturb(next_random(random), random);
      if (member->ring.sleep()) sched_yield();
    }
    // What is left in the ring names no thread any more.
    member_set_lease(*member, 0);
    if (member->down.load() == kFrozen) member_down(*member, kUp, "");
    fault_this_is_coordinator(false);
  }

 private:
  void take(const RingRecord& record) {
    switch (record.kind) {
      case kRingFault: return answer(record);
      case kSlotRequest: test::check(slot_complete(*member, static_cast<uint32_t>(record.page), std::to_string(record.page)), "a slot is completed once"); return;
      case kRingClientGone: clients_gone++; return;
      case kRingCoalesce: coalesce(*region, record.page); return;
      case kRingLeaseOver:
        lease_ends++;
        if (member->down.load() == kFrozen) member_down(*member, kUp, "");
        return;
      default: return;
    }
  }

  void answer(const RingRecord& record) {
    const uint64_t page = record.page;
    const bool home = region->homed_here(page);
    if (home && !begin_transaction(page)) return;
    PageEntry& entry = region->pages[page];
    const uint32_t version = ++versions_[page];
    bool was_open = false;
    InstallStep step;
    while ((step = begin_install(entry, version, was_open)) == InstallStep::kBusyPage) sched_yield();
    if (step == InstallStep::kBegun) {
      const uint32_t grant = record.access == kWrite || home ? kExclusive : kShared;
      if (was_open) close_run(*region, page, 1, kOpenNone);
      const uint32_t opened = open_run(*region, page, 1, open_of(grant));
      settle(*region, page, end_install(entry, version, grant, opened, static_cast<uint32_t>(now_us())));
    } else {
      // Overtaken: asked again. A claim that is gone needs no answer.
      if (step == InstallStep::kDiscarded) member->ring.push(record);
    }
    if (home) end(region->directory[page], kIdle, 0, version, 0, false);
  }

  bool begin_transaction(uint64_t page) {
    region->touch(page, kDirectoryTouched);
    Begun begun;
    while ((begun = begin(region->directory[page])) == Begun::kLocked) sched_yield();
    test::check(begun == Begun::kBegun, "one transaction at a time");
    return begun == Begun::kBegun;
  }

  void disturb(uint32_t what, uint32_t& random) {
    const uint64_t page = next_random(random) % kPages;
    PageEntry& entry = region->pages[page];
    const auto now = static_cast<uint32_t>(now_us());
    const bool home = region->homed_here(page);
    switch (what % 16) {
      case 0: case 1: case 2: case 3:
        if (home) {
          if (!begin_transaction(page)) return;
          const bool to_shared = what & 16384;
          if (begin_downgrade(entry, to_shared, now) == CloseStep::kClose) end_close_run(page, to_shared, false, close_run(*region, page, 1, to_shared ? uint32_t{kOpenRead} : uint32_t{kOpenNone}));
          end(region->directory[page], kIdle, 0, versions_[page], 0, false);
        } else {
          bool bytes = false;
          const uint32_t version = entry.version.load();
          bool keep = what & 16384;
          if (begin_recall(entry, version, keep, true, now, bytes) == CloseStep::kClose) end_close_run(page, keep, bytes, close_run(*region, page, 1, keep ? uint32_t{kOpenRead} : uint32_t{kOpenNone}));
          returned(entry, version);
        }
        return;
      case 4: case 5:
        if (begin_invalidate(entry, versions_[page], now) == CloseStep::kClose) end_close_run(page, false, false, close_run(*region, page, 1, kOpenNone));
        return;
      case 6: if (begin_drop(entry)) end_close_run(page, false, false, close_run(*region, page, 1, kOpenNone)); return;
      case 7: coalesce(*region, page); return;
      case 8: {
        if (what & 16384) return;
        // Homes move only while no handler is in a home transition.
        member->gate.close();
        while (!member->gate.drained()) sched_yield();
        const uint64_t extent = region->extent_of(page);
        const bool now_homed = region->homed[extent].load() != kHomed;
        for (uint64_t i = extent * kExtentPages; i < (extent + 1) * kExtentPages; i++) end(region->directory[i], kIdle, 0, ++versions_[i], 0, false);
        region->homed[extent].store(now_homed ? kHomed : kNotHomed);
        member->gate.open();
        moves++;
        return;
      }
      case 9: if (member->down.load() == kUp) member_set_lease(*member, now_us() + kLease); return;
      case 10: if (member->lease.load() != 0 && (what & 16384)) member_set_lease(*member, now_us() + kLease); return;
      default: return;
    }
  }

  void end_close_run(uint64_t page, bool to_shared, bool unacked, uint32_t opened) {
    closes++;
    settle(*region, page, end_close(region->pages[page], to_shared, unacked, opened));
  }

  std::array<uint32_t, kPages> versions_{};
};

}  // namespace

int main(int argc, char** argv) {
  GuardKind kind;
  if (!test::guard_argument(argc, argv, kind)) return 0;
  alarm(kDeadline);
  fault_install();
  std::string error;
  member = member_at(member_create("region_test", error));
  test::check(member != nullptr, "a member is created");
  SystemFailure failure;
  region = member != nullptr ? region_create(member->handle, {1, "memory", kPages * kPage, kPage, kExtentPages}, failure) : nullptr;
  test::check(region != nullptr, "a region is created");
  if (region == nullptr) return test::report("region");
  member->attached = true;
  // An address that is free: the kernel's choice, given back.
  void* place = mmap(nullptr, region->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  munmap(place, region->size);
  test::check(region_map(*region, reinterpret_cast<uintptr_t>(place), failure, kind), "and mapped");
  for (uint64_t extent = 0; extent < region->extent_count; extent += 2) region->homed[extent].store(kHomed);

  running = kThreads;
  Coordinator coordinator;
  std::thread server([&] { coordinator.run(); });
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) threads.emplace_back(user, i);
  Member* other = member_at(member_create("region_test, another", error));
  test::check(other != nullptr, "another member is created");
  std::thread changing([&] { if (other != nullptr) comes_and_goes(*other); });
  for (std::thread& thread : threads) thread.join();
  server.join();
  changing.join();
  if (other != nullptr) member_stopped(*other);

  test::check(clients_gone > 0, "the coordinator hears of clients that are gone");
  for (uint64_t page = 0; page < kPages; page++) {
    test::check(unresumed(region->pages[page].word.load()) == 0, "nobody is left waiting");
  }
  std::printf("region: %llu faults, %d closes, %d leases over, %d moves of homes\n",
              static_cast<unsigned long long>(region->stats.read_faults + region->stats.write_faults), closes.load(), lease_ends.load(), moves.load());
  region_release(*region);
  member_stopped(*member);
  const bool right = test::failed == 0;
  std::printf("region: %d passed, %d failed\n", right ? 1 : 0, test::failed.load());
  return right ? 0 : 1;
}
