// What the asking end of a lane does to words and mappings, without any socket (the other end: lane_serve.cc). It runs in the fault
// handler: atomics on memory that exists, the guard, lseek, memset, the ring and the futex, all async-signal-safe.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "futex.h"
#include "lane.h"
#include "stamps.h"

namespace faultline {
namespace {

// Of one question for bytes.
uint64_t most_pages(const Region& region) { return std::max<uint64_t>(1, std::min<uint64_t>(kLanePages, kLaneBytes >> region.page_shift)); }

// Turns are used again: nothing that the last one was is left.
void as_new(LaneTurn& turn) {
  turn.hop = false;
  turn.retire = false;
  turn.ahead = false;
  turn.for_asker = false;
  turn.streams = nullptr;
}

// BUSY ends by itself, after a protection change or a copy.
InstallStep begin(PageEntry& page, uint32_t version, bool& was_open) {
  for (;;) {
    const InstallStep step = begin_install(page, version, was_open, true);
    if (step != InstallStep::kBusyPage) return step;
#ifdef FAULTLINE_SIMULATION
    wait_for_busy();
#else
    sched_yield();
#endif
  }
}

void to_coordinator(Region& region, uint64_t page, bool faulted) {
  uint32_t access = 0;
  uint32_t held_version = 0;
  After after;
  PageEntry& entry = region.pages[page];
  const bool goes_on = faulted ? claim_to_coordinator(entry, access, held_version, after) : release_ahead(entry, access, held_version, after);
  if (goes_on) stamp(region.id, page, Stage::kRung);
  if (goes_on && region.member->handle == region.member_handle) region.member->ring.push({kRingFault, region.handle, page, access, held_version});
  settle(region, page, after);
}

// begun: bit i: page i was installed.
void end_question(Region& region, LaneTurn& turn, uint64_t begun, void (*with_lane)(Region&, void*)) {
  for (uint32_t i = 0; (turn.hop || turn.retire) && i < turn.question.count; i++) {
    const uint64_t page = page_of(turn.question, i);
    if (!(begun >> i & 1) && leave_hop(region.directory[page])) settle(region, page, {false, true});
  }
  // Last: who waits for the lanes to be idle knows then that no claim is left on them.
  with_lane(region, turn.lane);
  turn.lane = nullptr;
}

}  // namespace

bool lane_to_home(Region& region, uint64_t page, LaneTurn& turn) {
  const Slices::Slice* slice = region.slice_of(page);
  if (slice == nullptr) return false;
  turn.lane = lane_take(region, slice->slot);
  if (turn.lane == nullptr) return false;
  turn.slot = slice->slot;
  as_new(turn);
  turn.question.generation = slice->generation;
  return true;
}

void lane_ask(Region& region, uint64_t page, uint32_t access, uint32_t held_version, Streams* streams, LaneTurn& turn) {
  LaneQuestion& question = turn.question;
  question.magic = kLaneMagic;
  question.op = kLaneRequest;
  question.access = static_cast<uint8_t>(access);
  question.keep = 0;
  question.count = 1;
  question.region = region.id;
  question.version = held_version;
  question.stride = 1;
  question.page = page;
  turn.streams = streams;
  if (held_version != 0 || streams == nullptr) return;
  int64_t stride = 1;
  uint64_t window = stream_window(*streams, region, page, stride);
  window = std::min(window, most_pages(region));
  // The home of the first page is asked for all of them.
  const Slices::Slice* slice = region.slice_of(page);
  uint32_t asked = 1;
  for (; asked < window; asked++) {
    const uint64_t next = page + static_cast<uint64_t>(stride * asked);
    if (slice == nullptr || next < slice->first || next - slice->first >= slice->count || region.homed_here(next)) break;
    region.touch(next, kPagesTouched);
    if (!claim_ahead(region.pages[next], kRead)) break;
  }
  question.count = static_cast<uint8_t>(asked);
  question.stride = static_cast<int32_t>(stride);
  stream_asked(*streams, region, page, asked);
}

bool lane_ask_ahead(Region& region, uint64_t& page, uint64_t end, uint32_t access, LaneTurn& turn) {
  LaneQuestion& question = turn.question;
  const uint64_t most = most_pages(region);
  for (; page < end; page++) {
    region.touch(page, kPagesTouched);
    if (!would_claim(region.pages[page], access)) continue;
    if (region.homed_here(page)) {
      // Another member's, or a matter of this home alone. No thread is to be counted as one that waits for the page.
      bool registered = true;
      const auto run = static_cast<uint32_t>(std::min(most, end - page));
      const bool asks = lane_hop(region, page, access, registered, run, 1, turn) || (access == kWrite && lane_retire(region, page, registered, 0, run, 1, turn));
      if (!asks) continue;
      turn.ahead = true;
      page += turn.question.count;
      return true;
    }
    if (!lane_to_home(region, page, turn)) return false;
    if (claim_ahead(region.pages[page], access)) break;
    lane_put_back(region, turn.lane);
    turn.lane = nullptr;
  }
  if (page >= end) return false;
  const Slices::Slice* slice = region.slice_of(page);
  const uint64_t first = page++;
  while (page < end && page - first < most && slice != nullptr && page - slice->first < slice->count && !region.homed_here(page)) {
    region.touch(page, kPagesTouched);
    if (!claim_ahead(region.pages[page], access)) break;
    page++;
  }
  turn.ahead = true;
  question.magic = kLaneMagic;
  question.op = kLaneRequest;
  question.access = static_cast<uint8_t>(access);
  question.keep = 1;
  question.count = static_cast<uint8_t>(page - first);
  question.region = region.id;
  question.version = 0;
  question.stride = 1;
  question.page = first;
  return true;
}

namespace {

// This home is to ask the member at `slot` about the page, and about those that follow it in these steps, `most` in all: takes a lane, and
// of each page what `begin` takes (which is told whether it is the first), as far as it does. false: nothing was changed.
template <typename Begin>
bool begin_turn(Region& region, uint64_t page, uint32_t slot, uint32_t most, int64_t stride, LaneTurn& turn, Begin begin) {
  const Slices::Slice* slice = region.slice_of(page);
  if (slice == nullptr) return false;
  turn.slot = slot;
  turn.lane = lane_take(region, slot);
  if (turn.lane == nullptr) return false;
  LaneQuestion& question = turn.question;
  question.magic = kLaneMagic;
  question.region = region.id;
  question.generation = slice->generation;
  question.page = page;
  question.stride = static_cast<int32_t>(stride);
  question.count = 0;
  Gate& gate = region.member->gate;
  if (gate.enter()) {
    for (; question.count < most; question.count++) {
      const uint64_t at = page_of(question, question.count);
      if (at < slice->first || at - slice->first >= slice->count || !region.homed_here(at)) break;
      region.touch(at, kPagesTouched);
      const ServeStep step = begin(at, question.count == 0);
      if (step == ServeStep::kRefusedAndRing) settle(region, at, {false, true});
      if (step != ServeStep::kLocked) break;
    }
    gate.leave();
  }
  if (question.count == 0) {
    lane_put_back(region, turn.lane);
    turn.lane = nullptr;
    return false;
  }
  as_new(turn);
  return true;
}

}  // namespace

bool lane_hop(Region& region, uint64_t page, uint32_t access, bool& registered, uint32_t most, int64_t stride, LaneTurn& turn) {
  const uint64_t word = region.directory[page].word.load();
  if (state_of(word) != kOwned || (word & kDirectoryFlags)) return false;
  // What nobody waits for yet is only read: of pages that migrate the owner would keep nothing.
  const bool keeps = access == kRead && !(word & kMigratory);
  const uint32_t owner = owner_of(word);
  uint32_t version = 0;
  const bool begun = begin_turn(region, page, owner, keeps ? most : 1, stride, turn, [&](uint64_t at, bool first) {
    PageEntry& entry = region.pages[at];
    DirectoryEntry& directory = region.directory[at];
    if (first) return begin_hop(entry, directory, access, owner, registered, version);
    const uint64_t its = directory.word.load();
    if (state_of(its) != kOwned || (its & kMigratory)) return ServeStep::kRefused;
    uint32_t its_version = 0;
    bool counted = true;
    return begin_hop(entry, directory, kRead, owner, counted, its_version);
  });
  if (!begun) return false;
  turn.hop = true;
  turn.question.op = kLaneRecall;
  turn.question.access = static_cast<uint8_t>(access);
  turn.question.keep = keeps;
  turn.question.version = version;
  return true;
}

bool lane_hop(Region& region, uint64_t page, uint32_t access, bool& registered, Streams* streams, LaneTurn& turn) {
  int64_t stride = 1;
  uint64_t most = 1;
  if (access == kRead && streams != nullptr) {
    most = std::min<uint64_t>(stream_window(*streams, region, page, stride), most_pages(region));
  }
  if (!lane_hop(region, page, access, registered, static_cast<uint32_t>(most), stride, turn)) return false;
  if (access == kRead && streams != nullptr) stream_asked(*streams, region, page, turn.question.count);
  return true;
}

bool lane_retire(Region& region, uint64_t page, bool& registered, uint64_t writer, uint32_t most, int64_t stride, LaneTurn& turn) {
  const uint64_t others = region.directory[page].copyset.load() & ~writer;
  // Slots that share a bit can't be told apart: theirs are the coordinator's.
  if (others == 0 || (others & slot_bit(kCoarseSlot)) || state_of(region.directory[page].word.load()) != kIdle) return false;
  const auto slot = static_cast<uint32_t>(__builtin_ctzll(others));
  const bool begun = begin_turn(region, page, slot, most, stride, turn, [&](uint64_t at, bool first) {
    bool counted = true;
    return begin_retire(region.pages[at], region.directory[at], slot, first ? registered : counted);
  });
  if (!begun) return false;
  turn.retire = true;
  turn.writer = writer;
  turn.question.op = kLaneRetire;
  turn.question.access = kWrite;
  turn.question.keep = 1;
  turn.question.version = 0;
  return true;
}

bool lane_retire(Region& region, uint64_t page, bool& registered, bool first, Streams* streams, LaneTurn& turn) {
  if (!first) return lane_retire(region, page, registered, 0, turn.question.count, turn.question.stride, turn);
  if (streams == nullptr) return lane_retire(region, page, registered, 0, 1, 1, turn);
  if (state_of(region.directory[page].word.load()) != kIdle || region.directory[page].copyset.load() == 0) return false;
  int64_t stride = 1;
  const uint32_t most = std::min(stream_window(*streams, region, page, stride), kLanePages);
  if (!lane_retire(region, page, registered, 0, most, stride, turn)) return false;
  stream_asked(*streams, region, page, turn.question.count);
  return true;
}

LaneQuestion lane_thanks(const LaneTurn& turn, const LaneAnswer& answer, uint32_t i) {
  LaneQuestion thanks = turn.question;
  thanks.op = kLaneReturned;
  thanks.page = page_of(turn.question, i);
  thanks.count = 1;
  thanks.version = answer.versions[i];
  return thanks;
}

void lane_install(Region& region, LaneTurn& turn, const LaneAnswer& answer, uint64_t& begun) {
  const LaneQuestion& question = turn.question;
  begun = 0;
  turn.granted = answer.granted;
  for (uint32_t i = 0; i < question.count; i++) {
    const uint64_t page = page_of(question, i);
    PageEntry& entry = region.pages[page];
    bool was_open = false;
    // The owner of a page has it in the version in which this home has granted it: nobody changes that under HOP.
    if (i >= answer.granted || (turn.hop && answer.versions[i] != version_of(region.directory[page].word.load()))) {
      to_coordinator(region, page, i == 0 && !turn.ahead);
      continue;
    }
    if (turn.retire) {
      begun |= uint64_t{1} << i;
      continue;
    }
    // Not open: nobody reads the page while it is cleared.
    if (answer.content == kLaneZero && !is_hole(region, page)) memset(region.service + page * region.page_size, 0, region.page_size);
    const InstallStep step = begin(entry, answer.versions[i], was_open);
    if (step == InstallStep::kBegun) begun |= uint64_t{1} << i;
    else {
      count(region.stats.discarded_pages);
      if (step == InstallStep::kDiscarded) to_coordinator(region, page, i == 0 && !turn.ahead);
    }
  }
}

namespace {

// Pages [first, end) of a question, alike and neighbours: one protection change for all of them.
struct Alike {
  uint32_t end;
  uint64_t lowest;  // of their pages
};
template <typename Same>
Alike alike_from(const LaneQuestion& question, uint64_t mask, uint32_t first, Same same) {
  const bool forwards = question.stride == 1;
  uint32_t end = first + 1;
  while ((forwards || question.stride == -1) && end < question.count && (mask >> end & 1) && same(end)) end++;
  return {end, page_of(question, forwards ? first : end - 1)};
}

// The copies are gone. What this home is alone with now it opens at once, to write: the thread asked for that.
void finish_retire(Region& region, LaneTurn& turn, uint64_t begun) {
  const LaneQuestion& question = turn.question;
  Gate& gate = region.member->gate;
  const bool inside = !turn.for_asker && gate.enter();
  const Slices::Slice* slice = inside ? region.slice_of(question.page) : nullptr;
  const bool home = slice != nullptr && slice->generation == question.generation && region.homed_here(question.page) && effective_down(region) == kUp;
  uint64_t locked = 0;
  uint32_t retired = 0;
  for (uint32_t i = 0; i < question.count; i++) {
    if (!(begun >> i & 1)) continue;
    const uint64_t page = page_of(question, i);
    const Retired result = end_retire(region.pages[page], region.directory[page], turn.slot, turn.writer, home);
    if (result.locked) locked |= uint64_t{1} << i;
    else settle(region, page, {result.after.page.wake, result.after.page.ring || result.after.ring});
    retired++;
  }
  const uint32_t now = clock32();
  for (uint32_t i = 0; i < question.count;) {
    if (!(locked >> i & 1)) {
      i++;
      continue;
    }
    const Alike run = alike_from(question, locked, i, [](uint32_t) { return true; });
    const uint32_t opened = open_run(region, run.lowest, run.end - i, kOpenWrite);
    for (; i < run.end; i++) {
      const uint64_t page = page_of(question, i);
      const HomeAfter after = unlock_home(region.pages[page], region.directory[page], kExclusive, opened, now);
      settle(region, page, {after.page.wake, after.page.ring || after.ring});
    }
  }
  if (inside) gate.leave();
  count(region.stats.lane_invalidations_sent, retired);
  if (turn.for_asker) return;
  if (turn.ahead) {
    count(region.stats.lane_pages_ahead, retired);
  } else if (begun & 1) {
    count(region.stats.lane_faults);
    count(region.stats.lane_pages_ahead, retired - 1);
  } else {
    count(region.stats.lane_referred);
  }
}

}  // namespace

void lane_finish(Region& region, LaneTurn& turn, const LaneAnswer& answer, uint64_t begun) {
  if (turn.retire) {
    finish_retire(region, turn, begun);
    return end_question(region, turn, begun, lane_put_back);
  }
  const LaneQuestion& question = turn.question;
  // A hop that leaves the owner no copy leaves the home alone with the page.
  const auto grant_at = [&](uint32_t i) { return (turn.hop ? question.keep == 0 : access_at(question, i) == kWrite) ? uint32_t{kExclusive} : uint32_t{kShared}; };
  const uint32_t now = clock32();
  uint32_t installed = 0;
  for (uint32_t i = 0; i < question.count;) {
    if (!(begun >> i & 1)) {
      i++;
      continue;
    }
    const Alike run = alike_from(question, begun, i, [&](uint32_t other) { return grant_at(other) == grant_at(i); });
    // What another member is waiting for is not opened here: it goes on at once, and whoever wants it here opens it.
    const uint32_t opened = turn.for_asker ? uint32_t{kOpenNone} : open_run(region, run.lowest, run.end - i, open_of(grant_at(i)));
    for (; i < run.end; i++) {
      const uint64_t page = page_of(question, i);
      if (turn.hop) {
        const HomeAfter after = end_hop(region.pages[page], region.directory[page], question.access, question.keep != 0, turn.slot, opened, now);
        settle(region, page, {after.page.wake, after.page.ring || after.ring});
      } else {
        settle(region, page, end_install(region.pages[page], answer.versions[i], grant_at(i), opened, now));
      }
      installed++;
    }
  }
  count(region.stats.installed_pages, installed);
  if (answer.content == kLaneBytesFollow) spend_memory(region, installed);
  if (answer.content == kLaneBytesFollow) count(region.stats.installed_bytes, installed * region.page_size);
  else count(region.stats.installed_without_bytes, installed);
  const bool served = (begun & 1) != 0;
  if (turn.streams != nullptr) {
    detour_learn(*turn.streams, region, question.access, answer.granted == 0);
    if (answer.granted > 0 && answer.granted < question.count) stream_granted(*turn.streams, region, page_of(question, question.count - 1u), page_of(question, answer.granted - 1u), answer.granted);
  }
  if (served) {
    if (!turn.ahead) count(region.stats.lane_faults);
    if (turn.hop) count(region.stats.lane_recalls_sent, installed);
    if (!turn.for_asker) count(region.stats.lane_pages_ahead, turn.ahead ? installed : installed - 1);
  } else if (!turn.ahead) {
    count(region.stats.lane_referred);
  }
  end_question(region, turn, begun, lane_put_back);
}

void lane_give_up(Region& region, LaneTurn& turn, void (*with_lane)(Region&, void*)) {
  // The home may have granted what nobody will ever install. A copy is found out at its invalidation; but a page that this
  // member owns without knowing it is lost when it leaves, so the coordinator asks for it again. (What a home asks for is the
  // owner's until the home has it.)
  turn.granted = 0;
  const bool owned = turn.ahead && !turn.hop && !turn.retire && turn.question.access == kWrite;
  for (uint32_t i = 0; i < turn.question.count; i++) to_coordinator(region, page_of(turn.question, i), owned || (i == 0 && !turn.ahead));
  end_question(region, turn, 0, with_lane);
}

}  // namespace faultline
