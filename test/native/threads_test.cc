// Handlers on many threads against a coordinator, on real tables and the real ring, under ThreadSanitizer: no data race,
// no lost wake-up, no claim without its answer, and every fault ends.
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <thread>
#include <vector>

#include "../../native/directory.h"
#include "../../native/futex.h"
#include "../../native/request_ring.h"
#include "report.h"

using namespace faultline;

namespace {

constexpr int kThreads = 6;
constexpr int kFaults = 4000;
constexpr uint64_t kPages = 5;

PageEntry pages[kPages];
RequestRing ring;
std::atomic<int> running{kThreads};
std::atomic<uint64_t> served{0};

void settle(uint64_t page, After after) {
  if (after.wake) futex_wake(&pages[page].word);
  if (after.ring) ring.push({kRingFree, 1, page, 0, 0});
}

void handler(int seed) {
  uint32_t random = static_cast<uint32_t>(seed) * 2654435761u + 1;
  for (int i = 0; i < kFaults; i++) {
    random = random * 1664525 + 1013904223;
    const uint64_t number = (random >> 16) % kPages;
    const uint32_t access = (random >> 8) & 1 ? kWrite : kRead;
    PageEntry& page = pages[number];
    bool registered = false;
    for (bool here = false; !here;) {
      const Decision decision = fault(page, access, false, registered);
      switch (decision.step) {
        case Step::kReturn: here = true; break;
        case Step::kReopen: settle(number, finish(page, open_of(held(page.word.load())))); break;
        case Step::kClaimed:
          ring.push({kRingFault, 1, number, access, decision.held_version});
          futex_wait(&page.word, decision.futex, 1'000'000);
          break;
        case Step::kSleep: futex_wait(&page.word, decision.futex, 1'000'000); break;
        default: here = true; test::check(false, "nothing is lost here");
      }
    }
    if (registered) settle(number, resume(page, static_cast<uint32_t>(now_us())));
    served++;
  }
  running--;
}

void coordinator() {
  std::array<uint32_t, kPages> version{};
  uint32_t random = 7;
  RingRecord record;
  while (running > 0 || ring.pop(record)) {
    while (ring.pop(record)) {
      if (record.kind != kRingFault) continue;
      PageEntry& page = pages[record.page];
      bool was_open;
      InstallStep step;
      const uint32_t next = ++version[record.page];
      while ((step = begin_install(page, next, was_open)) == InstallStep::kBusyPage) sched_yield();
      if (step == InstallStep::kDiscarded) {
        ring.push({kRingFault, 1, record.page, record.access, 0});
        continue;
      }
      test::check(step == InstallStep::kBegun, "an answer finds its claim");
      const uint32_t grant = record.access == kWrite ? kExclusive : kShared;
      settle(record.page, end_install(page, next, grant, open_of(grant), static_cast<uint32_t>(now_us())));
    }
    random = random * 1664525 + 1013904223;
    const uint64_t number = (random >> 16) % kPages;
    const auto now = static_cast<uint32_t>(now_us());
    bool bytes = false;
    switch ((random >> 8) % 4) {
      case 0: if (begin_invalidate(pages[number], version[number], now) == CloseStep::kClose) settle(number, end_close(pages[number], false, false, kOpenNone)); break;
      case 1: {
        bool keep = random & 1;
        if (begin_recall(pages[number], pages[number].version.load(), keep, true, now, bytes) == CloseStep::kClose) settle(number, end_close(pages[number], keep, bytes, keep ? open_of(kShared) : kOpenNone));
        returned(pages[number], pages[number].version.load());
        break;
      }
      case 2: if (begin_coalesce(pages[number], false)) settle(number, finish(pages[number], kOpenNone)); break;
      default: if (begin_drop(pages[number])) settle(number, end_close(pages[number], false, false, kOpenNone));
    }
    if (ring.sleep()) sched_yield();
  }
}

// What each producer pushed arrives once, in its order.
void ring_order() {
  RequestRing own;
  test::check(own.open(), "a ring opens");
  constexpr uint64_t kEach = 20'000;
  std::vector<std::thread> producers;
  for (uint32_t id = 0; id < 4; id++) {
    producers.emplace_back([&own, id] {
      for (uint64_t i = 0; i < kEach; i++) while (!own.push({kRingFault, id, i, 0, 0})) sched_yield();
    });
  }
  std::array<uint64_t, 4> next{};
  bool ordered = true;
  for (uint64_t got = 0; got < 4 * kEach;) {
    RingRecord record;
    if (!own.pop(record)) {
      own.sleep();
      sched_yield();
      continue;
    }
    ordered = ordered && record.page == next[record.region];
    next[record.region]++;
    got++;
  }
  for (std::thread& producer : producers) producer.join();
  test::check(ordered, "records of one producer arrive once and in order");
  own.close();
}

// A ring is closed while producers that nobody can stop, handlers for example, still push: none of them may write into a
// descriptor that has become somebody else's.
void ring_closes_beside_producers() {
  for (int round = 0; round < 50; round++) {
    RequestRing own;
    test::check(own.open(), "a ring opens");
    std::atomic<bool> over{false};
    std::atomic<int> pushed{0};
    std::vector<std::thread> producers;
    for (int i = 0; i < 2; i++) {
      producers.emplace_back([&] {
        // Fewer than the ring has room for: nobody pops after the end.
        for (int n = 0; n < 2000 && !over; n++) {
          own.push({kRingFree, 1, 0, 0, 0});
          pushed++;
          sched_yield();
        }
      });
    }
    RingRecord record;
    while (pushed < 100) {
      while (own.pop(record)) {
      }
      own.sleep();
      sched_yield();
    }
    own.sleep();
    own.close();
    // The lowest free number: the one that has just been closed.
    const int next = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const int until = pushed + 20;
    for (int tries = 0; pushed < until && tries < 10'000; tries++) {
      while (own.pop(record)) {
      }
      own.sleep();
      sched_yield();
    }
    over = true;
    for (std::thread& producer : producers) producer.join();
    uint64_t count = 0;
    test::check(read(next, &count, sizeof count) < 0, "nothing was written to a descriptor that came after the ring's");
    close(next);
  }
}

// A thread on a lane installs what the coordinator is recalling: "unchanged" is said only if it does not.
void recalls_on_the_way() {
  constexpr uint32_t kRounds = 20'000;
  PageEntry page{};
  std::atomic<uint32_t> begun{0}, ended{0};
  // Both have to run at the same time: who waits looks before it lets others run.
  const auto until = [](const std::atomic<uint32_t>& reached, uint32_t round) { for (int looks = 0; reached.load() < round;) if (++looks > 5'000) std::this_thread::yield(); };
  std::thread installer([&] {
    for (uint32_t round = 1; round <= kRounds; round++) {
      until(begun, round);
      bool was_open = false;
      if (begin_install(page, 10, was_open, true) == InstallStep::kBegun) end_install(page, 10, kExclusive, kOpenWrite, 0);
      ended.store(round);
    }
  });
  uint32_t both = 0;
  for (uint32_t round = 1; round <= kRounds; round++) {
    page.word = kLane | (uint64_t{kRead} << kPendShift);
    page.version = 3;
    page.poison = 0;
    page.resident_until = 0;
    page.installed_at = 0;
    begun.store(round);
    for (volatile uint32_t i = round % 64; i > 0;) i = i - 1;
    bool keep = false, bytes = false;
    CloseStep close;
    while ((close = begin_recall(page, 10, keep, true, 1'000'000, bytes)) == CloseStep::kDeferred) std::this_thread::yield();
    if (close == CloseStep::kClose) end_close(page, false, bytes, kOpenNone);
    until(ended, round);
    if (held(page.word) == kExclusive) both++;
  }
  installer.join();
  test::check(both == 0, "a page that is recalled while it arrives has one owner");
}

}  // namespace

int main() {
  ring_order();
  ring_closes_beside_producers();
  recalls_on_the_way();
  test::check(ring.open(), "the ring opens");
  std::thread server(coordinator);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) threads.emplace_back(handler, i + 1);
  for (std::thread& thread : threads) thread.join();
  server.join();
  test::check(served == uint64_t{kThreads} * kFaults, "every fault ended");
  for (const PageEntry& page : pages) {
    const uint64_t word = page.word.load();
    test::check(unresumed(word) == 0 && !(word & (kBusy | kPendMask)), "nothing is left behind");
  }
  // The count of answers that found their claims differs from run to run: one line for the whole.
  const bool right = test::failed == 0;
  std::printf("threads: %d passed, %d failed\n", right ? 1 : 0, test::failed.load());
  return right ? 0 : 1;
}
