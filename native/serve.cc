#include "serve.h"

#include "futex.h"
#include "stamps.h"

namespace faultline {
namespace {

// µs that the pages of the last faults stay when a thread faults again at the same instruction; doubles each time, and is
// drawn anew each time from one to eight times that, because those who hold for as long as one another can go on taking
// pages from one another for ever.
constexpr uint32_t kStraddle = 16;
constexpr uint32_t kStraddleLimit = 10'000;

// Leaves the count of threads that have not resumed.
void leave(Region& region, Turn& turn) {
  if (turn.registered) settle(region, turn.page, resume(region.pages[turn.page], clock32()));
  turn.registered = false;
}

// D1, first half: takes LOCK and BUSY of a page that this member is home of, and of the pages of its extent that nobody
// has used, so that a home builds its data with one fault for each extent. Stays inside the gate if it says true.
bool take_home(Region& region, uint64_t page, uint32_t access, Turn& turn) {
  Gate& gate = region.member->gate;
  if (!gate.enter()) return false;
  // Asked again inside the gate: homes change only while it is closed and empty.
  if (!region.homed_here(page)) {
    gate.leave();
    return false;
  }
  region.touch(page, kPagesTouched | kDirectoryTouched);
  const HomeLock locked = lock_home(region.pages[page], region.directory[page], access, false, turn.grant);
  if (locked != HomeLock::kLocked) {
    gate.leave();
    if (locked == HomeLock::kRefusedAndRing) settle(region, page, {false, true});
    return false;
  }
  turn.first = page;
  turn.end = page + 1;
  if (turn.grant == kExclusive) {
    const uint64_t low = region.extent_of(page) * region.extent_pages;
    const uint64_t high = low + region.extent_pages < region.page_count ? low + region.extent_pages : region.page_count;
    uint32_t other;
    const auto take = [&](uint64_t neighbour) {
      const HomeLock result = lock_home(region.pages[neighbour], region.directory[neighbour], kWrite, true, other);
      if (result == HomeLock::kRefusedAndRing) settle(region, neighbour, {false, true});
      return result == HomeLock::kLocked;
    };
    while (turn.end < high && take(turn.end)) turn.end++;
    while (turn.first > low && take(turn.first - 1)) turn.first--;
  }
  return true;
}

// D1, second half.
void change_home(Region& region, const Turn& turn) {
  const uint32_t opened = open_run(region, turn.first, turn.end - turn.first, open_of(turn.grant));
  // Of a run only what has memory is open now; the thread waits for this page.
  if (turn.end - turn.first > 1 && opened != kAsItWas && region.guard->leaves_holes()) region.guard->fill(region, turn.page, 1, opened);
  const uint32_t now = clock32();
  for (uint64_t i = turn.first; i < turn.end; i++) {
    const HomeAfter after = unlock_home(region.pages[i], region.directory[i], turn.grant, opened, now);
    settle(region, i, {after.page.wake, after.page.ring || after.ring});
  }
  region.member->gate.leave();
}

}  // namespace

Next serve_look(Region& region, Turn& turn) {
  if (turn.lane.retire) {
    // The home may be alone with its page now; if more copies than these are in the way, the coordinator asks for them all at once.
    turn.lane.retire = false;
    turn.ask_home = turn.lane.granted > 0 && ++turn.retired < kRetiredOneByOne;
  }
  turn.down = effective_down(region);
  if (turn.down != kUp) {
    leave(region, turn);
    return turn.down == kFrozen ? Next::kFrozen : Next::kRefused;
  }
  region.touch(turn.page, kPagesTouched);
  const bool homed = region.homed_here(turn.page);
  bool lane = !homed && would_claim(region.pages[turn.page], turn.access);
  if (lane && turn.patience > 0 && region.member->memory.limited() && allows(held(region.pages[turn.page].word.load())) == 0) {
    turn.futex = region.member->memory.turn.load();
    if (region.member->memory.is_short()) {
      // Nobody may be kept from the page by a thread that does not want it yet.
      leave(region, turn);
      turn.patience--;
      ring_memory(region);
      return Next::kMemory;
    }
  }
  if (lane && turn.streams != nullptr && detour_take(*turn.streams, region, turn.access)) lane = false;
  lane = lane && lane_to_home(region, turn.page, turn.lane);
  const Decision decision = fault(region.pages[turn.page], turn.access, turn.ask_home && homed, turn.registered, lane);
  if (lane && decision.lane) {
    if (decision.held_version != 0) count(region.stats.upgrade_faults);
    lane_ask(region, turn.page, turn.access, decision.held_version, turn.streams, turn.lane);
    return Next::kLane;
  }
  if (lane) lane_put_back(region, turn.lane.lane);
  switch (decision.step) {
    case Step::kReturn:
      leave(region, turn);
      return Next::kRun;
    case Step::kReopen:
      turn.at_home = false;
      return Next::kChange;
    case Step::kHome:
      turn.at_home = take_home(region, turn.page, turn.access, turn);
      turn.ask_home = turn.at_home;
      if (turn.at_home) return Next::kChange;
      if (lane_hop(region, turn.page, turn.access, turn.registered, turn.streams, turn.lane)) return Next::kLane;
      if (turn.access == kWrite && lane_retire(region, turn.page, turn.registered, turn.retired == 0, turn.streams, turn.lane)) return Next::kLane;
      return Next::kLook;
    case Step::kLost:
      leave(region, turn);
      return Next::kLost;
    case Step::kClaimed:
      if (decision.held_version != 0) count(region.stats.upgrade_faults);
      stamp(region.id, turn.page, Stage::kRung);
      region.member->ring.push({kRingFault, region.handle, turn.page, turn.access, decision.held_version});
      break;
    case Step::kSleep:
      if (!turn.waited) count(region.stats.joined_faults);
      break;
  }
  turn.waited = true;
  turn.futex = decision.futex;
  // What changes may be that the page is the home's own to give.
  turn.ask_home = true;
  return Next::kWait;
}

Next serve_change(Region& region, Turn& turn) {
  if (!turn.waited) count(region.stats.local_faults);
  if (turn.at_home) {
    change_home(region, turn);
    return Next::kLook;
  }
  PageEntry& entry = region.pages[turn.page];
  turn.futex = region.coalesce_turn.load();
  const uint32_t opened = open_run(region, turn.page, 1, open_of(held(entry.word.load())));
  settle(region, turn.page, finish(entry, opened));
  if (opened != kAsItWas || effective_down(region) != kUp) return Next::kLook;
  if (region.member->handle == region.member_handle) region.member->ring.push({kRingCoalesce, region.handle, turn.page, 0, 0});
  return Next::kMappings;
}

bool serve_fill(Region& region, const Turn& turn) {
  // Pages beyond the one that somebody wants, where the page before it is in use: who walks through new memory need not
  // stop at each page. A single one costs nothing beside it.
  constexpr uint64_t kAhead = 15;
  const uint64_t page = turn.page;
  uint64_t end = page + 1;
  if (page > 0 && is_hole(region, page) && !is_hole(region, page - 1)) {
    const uint64_t extent_end = (region.extent_of(page) + 1) * region.extent_pages;
    end = page + 1 + kAhead;
    for (const uint64_t most : {extent_end, region.page_count, next_data(region, page) >> region.page_shift}) if (most < end) end = most;
  }
  return fill_run(region, page, end) > 0;
}

bool open_home(Region& region, uint64_t page, uint32_t access) {
  Turn turn;
  if (!take_home(region, page, access, turn)) return false;
  change_home(region, turn);
  return true;
}

void hold_recent(Recent& recent, Region& region, uint64_t page, bool ran, uint32_t own, uint32_t now) {
  if (ran) {
    recent.count = 0;
    recent.hold = kStraddle;
  }
  bool known = false;
  for (int i = 0; i < recent.count; i++) known = known || (recent.region[i] == &region && recent.page[i] == page);
  if (known) {
    if (recent.hold < kStraddleLimit) recent.hold *= 2;
  } else {
    const int place = recent.count < kRemembered ? recent.count++ : static_cast<int>(page % kRemembered);
    recent.region[place] = &region;
    recent.page[place] = page;
  }
  // Different for each thread and each time; a good mixer is enough.
  uint32_t draw = now * 0x9e3779b1u ^ own * 0x85ebca6bu;
  draw = (draw ^ draw >> 15) * 0x2c1b3c6du;
  draw ^= draw >> 13;
  for (int i = 0; i < recent.count; i++) {
    if (recent.region[i] != &region || recent.page[i] == page || recent.page[i] >= region.page_count) continue;
    region.pages[recent.page[i]].resident_until.store(now + (recent.hold << (draw >> 3 & 3)) + recent.hold * (draw & 7) / 8);
  }
}

}  // namespace faultline
