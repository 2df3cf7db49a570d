// Lanes between two members of one process, under ThreadSanitizer: real faults, real sockets, real page servers. Threads of
// both members load and store in the same pages; one thread is both coordinators for what lanes leave to them, and makes
// trouble: transactions, recalls, pins, lanes that are closed and made anew in the middle. No data race, every fault ends,
// no store is lost, and after all nothing is left of any claim, lock or hop. Meanwhile threads of both make calls, some of
// which nobody answers, and some of which nobody waits for: each answer is that of its call.
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../native/fault.h"
#include "../../native/futex.h"
#include "../../native/lanes.h"
#include "../../native/member.h"
#include "../../native/region.h"
#include "guard_argument.h"
#include "report.h"

using namespace faultline;

// A page server sends a page's bytes after it has unlocked the page, and what orders that before the next bytes come is
// that somebody has received them: the sanitizer does not see that. (What is overtaken on the way is poisoned, and thrown
// away by whoever receives it.)
extern "C" const char* __tsan_default_suppressions() { return "race:push_out\n"; }
// The longest memory there is: a read whose stack it has forgotten can't be known for one of push_out's.
extern "C" const char* __tsan_default_options() { return "history_size=7"; }

namespace {

constexpr int kThreads = 3;  // of each member
constexpr uint64_t kPage = 4096, kPages = 96, kExtentPages = 8;
// What has to have happened before the threads stop.
constexpr uint64_t kLaneFaults = 4000, kHops = 300, kAhead = 300, kRetired = 300;
constexpr int kReconnects = 10;
constexpr int kCalls = 500;
// s: far more than a run takes; the signal ends the process, and make reports it.
constexpr unsigned kDeadline = 150;
constexpr uint32_t kHome = 0, kOther = 1;  // slots, and indices
constexpr uint32_t kIds[] = {11, 12};

Member* members[2];
Region* regions[2];
std::atomic<int> running{0};
std::atomic<int> reconnects{0};
std::atomic<int> called{0};  // calls that were answered

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

bool enough() {
  const RegionStats& home = regions[kHome]->stats;
  const RegionStats& other = regions[kOther]->stats;
  return other.lane_faults >= kLaneFaults && home.lane_recalls_sent >= kHops && home.lane_invalidations_sent >= kRetired && other.lane_pages_ahead >= kAhead && reconnects >= kReconnects && called >= kCalls;
}

void caller(uint32_t at, int number) {
  uint32_t random = static_cast<uint32_t>(number) * 2654435761u + 7;
  bool right = true;
  for (int count = 0; !enough(); count++) {
    const std::string text(1 + next_random(random) % kCallText, static_cast<char>('a' + count % 26));
    const std::unique_ptr<Call> call = Call::ask(*members[at], 1 - at, kIds[1 - at], text);
    if (call == nullptr) {
      sched_yield();
      continue;
    }
    if (next_random(random) % 32 == 0) continue;
    std::string answer;
    Call::State state = Call::State::kWaits;
    for (int slices = 0; state == Call::State::kWaits && slices < 20; slices++) state = call->wait(10, answer);
    if (state != Call::State::kAnswered) continue;
    right = right && answer == text;
    called++;
  }
  test::check(right, "an answer is that of its call");
  running--;
}

// Each thread has a word of its own in every page, and knows what it must read there.
void user(uint32_t at, int number) {
  uint32_t random = static_cast<uint32_t>(number) * 2654435761u + 1;
  std::array<uint64_t, kPages> mine{};
  bool right = true;
  const uintptr_t base = regions[at]->app.load() + static_cast<uint64_t>(number) * 64;
  while (!enough()) {
    const uint64_t page = next_random(random) % kPages;
    switch (next_random(random) % 8) {
      case 0:  // a scan, which is read ahead
        for (uint64_t i = page; i < kPages && i < page + 12; i++) right = right && load(base + i * kPage) == mine[i];
        break;
      case 4: {  // a prefetch
        uint64_t looked_at = 0;
        const uint64_t end = page + 1 + next_random(random) % 12;
        lane_fetch(*regions[at], page, end < kPages ? end : kPages, next_random(random) % 2 ? kRead : kWrite, looked_at);
        right = right && looked_at <= kPages;
        break;
      }
      case 1: case 2: case 3: right = right && increment(base + page * kPage) == ++mine[page]; break;
      default: right = right && load(base + page * kPage) == mine[page];
    }
  }
  test::check(right, "a thread reads what it stored");
  for (uint64_t page = 0; page < kPages; page++) test::check(load(base + page * kPage) == mine[page], "no store is lost");
  running--;
}

uint32_t clock32() { return static_cast<uint32_t>(now_us()); }

// All pages have their home at one of the two members.
void set_slices(Region& region) {
  Slices* slices = slices_make(1);
  slices->at[0] = {0, kPages, kHome, 1};
  region_set_slices(region, slices);
}

// Both members' coordinators, which trust one another and send no messages.
class Coordinator {
 public:
  void run() {
    fault_this_is_coordinator(true);
    uint32_t random = 4711;
    while (running > 0) {
      RingRecord record;
      for (uint32_t at : {kHome, kOther}) {
        while (members[at]->ring.pop(record)) {
          if (record.kind == kRingFault) serve(at, record);
          if (record.kind == kRingLaneCall) answer_calls(at, random);
        }
      }
      disturb(random);
      sched_yield();
    }
    fault_this_is_coordinator(false);
  }

 private:
  PageEntry& entry(uint32_t at, uint64_t page) { return regions[at]->pages[page]; }
  DirectoryEntry& directory(uint64_t page) { return regions[kHome]->directory[page]; }

  // One in 64 is forgotten.
  void answer_calls(uint32_t at, uint32_t& random) {
    for (const ArrivedCall& call : calls_take(*members[at])) {
      test::check(call.member == kIds[1 - at], "a call says who asks");
      if (next_random(random) % 64 == 0) continue;
      call_answer(*members[at], call.serial, call.text);
      test::check(!call_answer(*members[at], call.serial, call.text), "a call is answered once");
    }
  }

  void begin_transaction(uint64_t page) {
    regions[kHome]->touch(page, kDirectoryTouched);
    Begun begun;
    while ((begun = begin(directory(page))) == Begun::kLocked) sched_yield();
    test::check(begun == Begun::kBegun, "one transaction at a time");
  }

  void end_close_at(uint32_t at, uint64_t page, bool to_shared, bool unacked) {
    const uint32_t opened = close_run(*regions[at], page, 1, to_shared ? uint32_t{kOpenRead} : uint32_t{kOpenNone});
    settle(*regions[at], page, end_close(entry(at, page), to_shared, unacked, opened));
  }

  // Under TXN: the page is idle afterwards, and to write nobody has a copy but `but`. False: somebody holds it; later.
  bool make_idle(uint64_t page, bool to_write, uint32_t but) {
    const uint64_t word = directory(page).word.load();
    uint32_t version = version_of(word);
    uint64_t copies = directory(page).copyset.load();
    if (state_of(word) == kOwned) {
      bool keep = !to_write;
      bool bytes = false;
      const CloseStep step = begin_recall(entry(kOther, page), version, keep, true, clock32(), bytes);
      if (step == CloseStep::kDeferred) return false;
      // Nothing there: its grant is still on its way over the lane, and will be poisoned; the bytes are here.
      const bool there = step == CloseStep::kClose || step == CloseStep::kResend;
      if (step == CloseStep::kClose) end_close_at(kOther, page, keep, bytes);
      if (there && bytes) memcpy(regions[kHome]->service + page * kPage, regions[kOther]->service + page * kPage, kPage);
      returned(entry(kOther, page), version);
      copies = there && keep ? 2 : 0;
      if (copies == 0) version++;
      end(directory(page), kIdle, 0, version, copies, true);
    }
    if (to_write && (copies & 2) && but != kOther) {
      const CloseStep step = begin_invalidate(entry(kOther, page), version, clock32());
      if (step == CloseStep::kDeferred) return false;
      if (step == CloseStep::kClose) end_close_at(kOther, page, false, false);
      end(directory(page), kIdle, 0, version + 1, 0, true);
    }
    return true;
  }

  bool close_home(uint64_t page, bool to_shared) {
    const CloseStep step = begin_downgrade(entry(kHome, page), to_shared, clock32());
    if (step == CloseStep::kClose) end_close_at(kHome, page, to_shared, false);
    return step != CloseStep::kDeferred;
  }

  void serve(uint32_t at, const RingRecord& record) {
    const uint64_t page = record.page;
    const bool to_write = record.access == kWrite;
    begin_transaction(page);
    const bool free = make_idle(page, to_write, at) && (at == kHome || close_home(page, !to_write));
    const uint64_t word = directory(page).word.load();
    uint32_t version = version_of(word);
    uint64_t copies = directory(page).copyset.load();
    uint32_t state = kIdle, owner = 0;
    if (!free) {
      members[at]->ring.push(record);
      return end(directory(page), state_of(word), owner_of(word), version, copies, false);
    }
    const uint32_t grant = to_write || (at == kHome && copies == 0) ? kExclusive : kShared;
    const uint32_t next = to_write || version == 0 ? version + 1 : version;
    bool was_open = false;
    InstallStep step;
    while ((step = begin_install(entry(at, page), next, was_open)) == InstallStep::kBusyPage) sched_yield();
    if (step == InstallStep::kBegun) {
      const bool has = held(entry(at, page).word.load()) == kShared && entry(at, page).version.load() == version;
      if (was_open) close_run(*regions[at], page, 1, kOpenNone);
      if (at == kOther && !has) memcpy(regions[kOther]->service + page * kPage, regions[kHome]->service + page * kPage, kPage);
      const uint32_t opened = open_run(*regions[at], page, 1, open_of(grant));
      settle(*regions[at], page, end_install(entry(at, page), next, grant, opened, clock32()));
      version = next;
      if (at == kOther && to_write) {
        state = kOwned;
        owner = kOther;
        copies = 0;
      } else if (at == kOther) {
        copies |= 2;
      }
    } else if (step == InstallStep::kDiscarded) {
      // Poisoned: to be asked for anew. The claim and its poison end.
      settle(*regions[at], page, abandon(entry(at, page)));
    }
    end(directory(page), state, owner, version, copies, false);
  }

  void disturb(uint32_t& random) {
    const uint64_t page = next_random(random) % kPages;
    switch (next_random(random) % 64) {
      case 0: case 1: case 2: {
        begin_transaction(page);
        make_idle(page, next_random(random) & 1, kHome);
        const uint64_t word = directory(page).word.load();
        return end(directory(page), state_of(word), owner_of(word), version_of(word), directory(page).copyset.load(), false);
      }
      case 3: case 4: {
        begin_transaction(page);
        close_home(page, next_random(random) & 1);
        const uint64_t word = directory(page).word.load();
        return end(directory(page), state_of(word), owner_of(word), version_of(word), directory(page).copyset.load(), false);
      }
      case 5: return coalesce(*regions[next_random(random) & 1], page);
      case 6:
        if (next_random(random) % 32 == 0) reconnect();
        return;
      default: return;
    }
  }

  // As when the view changes: afterwards no claim of either is left on a lane.
  void reconnect() {
    for (uint32_t at : {kHome, kOther}) lanes_close_peer(*members[at], 1 - at, kIds[1 - at]);
    for (uint32_t at : {kHome, kOther}) {
      for (uint64_t page = 0; page < kPages; page++) {
        const uint64_t word = entry(at, page).word.load();
        // One that a thread has claimed by a lane that it took before, and finds shut: it will be gone at once.
        if ((word & kLane) && pend(word) != 0) test::check(lanes_connected(*members[at]) == 0, "no claim is on a lane that is closed");
      }
    }
    // With the view comes a new table of homes, while threads and page servers look at the old one.
    for (Region* region : regions) set_slices(*region);
    connect();
    reconnects++;
  }

 public:
  static void connect() {
    const uint8_t tokens[2][kTokenBytes] = {{1, 2, 3}, {4, 5, 6}};
    for (uint32_t at : {kHome, kOther}) lanes_expect(*members[at], 1 - at, kIds[1 - at], tokens[at]);
    for (uint32_t at : {kHome, kOther}) lanes_connect(*members[at], 1 - at, kIds[1 - at], addresses[1 - at].near, tokens[1 - at]);
  }
  static LaneAddresses addresses[2];
};
LaneAddresses Coordinator::addresses[2];

}  // namespace

int main(int argc, char** argv) {
  GuardKind kind;
  if (!test::guard_argument(argc, argv, kind)) return 0;
  alarm(kDeadline);
  fault_install();
  SystemFailure failure;
  for (uint32_t at : {kHome, kOther}) {
    std::string error;
    members[at] = member_at(member_create("lanes_test " + std::to_string(at), error));
    test::check(members[at] != nullptr, "a member is created");
    if (members[at] == nullptr) return test::report("lanes");
    regions[at] = region_create(members[at]->handle, {1, "memory", kPages * kPage, kPage, kExtentPages}, failure);
    test::check(regions[at] != nullptr, "a region is created");
    if (regions[at] == nullptr) return test::report("lanes");
    members[at]->attached = true;
    // An address that is free: the kernel's choice, given back.
    void* place = mmap(nullptr, regions[at]->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap(place, regions[at]->size);
    test::check(region_map(*regions[at], reinterpret_cast<uintptr_t>(place), failure, kind), "and mapped");
    set_slices(*regions[at]);
    Coordinator::addresses[at] = lanes_open(*members[at], kIds[at], "", failure);
    test::check(!Coordinator::addresses[at].near.empty(), "a page server starts");
  }
  for (uint64_t extent = 0; extent < regions[kHome]->extent_count; extent++) regions[kHome]->homed[extent].store(kHomed);
  Coordinator::connect();

  running = 2 * kThreads + 2;
  Coordinator coordinator;
  std::thread both([&] { coordinator.run(); });
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) for (uint32_t at : {kHome, kOther}) threads.emplace_back(user, at, 2 * i + static_cast<int>(at));
  for (uint32_t at : {kHome, kOther}) threads.emplace_back(caller, at, static_cast<int>(at));
  for (std::thread& thread : threads) thread.join();
  both.join();

  for (Member* member : members) lanes_stop(*member);
  for (uint64_t page = 0; page < kPages; page++) {
    for (Region* region : regions) {
      const uint64_t word = region->pages[page].word.load();
      test::check(unresumed(word) == 0 && !(word & kBusy), "nobody is left waiting");
      test::check(pend(word) == 0 || !(word & kLane), "no claim is left to a lane");
    }
    test::check((regions[kHome]->directory[page].word.load() & kDirectoryFlags) == 0, "no lock and no hop is left");
  }
  const RegionStats& other = regions[kOther]->stats;
  const auto number = [](const std::atomic<uint64_t>& value) { return static_cast<unsigned long long>(value.load()); };
  std::printf("lanes: %llu faults over lanes, %llu pages read ahead, %llu hops, %llu copies retired, %llu referred, %llu broken, %d times made anew; %d calls\n", number(other.lane_faults),
              number(other.lane_pages_ahead), number(regions[kHome]->stats.lane_recalls_sent), number(regions[kHome]->stats.lane_invalidations_sent), number(other.lane_referred), number(other.lane_broken), reconnects.load(), called.load());
  for (Region* region : regions) region_release(*region);
  for (Member* member : members) member_stopped(*member);
  const bool right = test::failed == 0;
  std::printf("lanes: %d passed, %d failed\n", right ? 1 : 0, test::failed.load());
  return right ? 0 : 1;
}
