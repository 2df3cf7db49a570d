// What a lane's two ends do to words and mappings, without any socket. The asking half runs in the fault handler:
// atomics on memory that exists, the guard, lseek, memset, the ring and the futex, all async-signal-safe.
#include <sched.h>
#include <unistd.h>

#include <cstring>

#include "futex.h"
#include "lane.h"
#include "stamps.h"

namespace faultline {
namespace {

uint32_t clock32() { return static_cast<uint32_t>(now_us()); }

void count(std::atomic<uint64_t>& counter, uint64_t by = 1) { counter.fetch_add(by, std::memory_order_relaxed); }

// What is read ahead unasked is only read: pages that a member owns without having written them would be lost with it.
uint32_t access_at(const LaneQuestion& question, uint32_t i) { return i == 0 || question.keep != 0 ? question.access : uint32_t{kRead}; }

uint64_t page_of(const LaneQuestion& question, uint32_t i) { return question.page + static_cast<uint64_t>(static_cast<int64_t>(question.stride) * i); }

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

// ---- streams --------------------------------------------------------------------------------------------------------

uint32_t stream_window(Streams& streams, Region& region, uint64_t page, int64_t& stride) {
  // As near as that, a fault may belong to a stream whose stride is not known yet, or has changed.
  constexpr int64_t kNear = 64;
  streams.turn++;
  Stream* oldest = &streams.at[0];
  Stream* near = nullptr;
  for (Stream& stream : streams.at) {
    if (static_cast<int32_t>(stream.used - oldest->used) < 0) oldest = &stream;
    if (stream.region != &region) continue;
    const auto step = static_cast<int64_t>(page - stream.last);
    if (stream.stride != 0 && step == stream.stride) {
      stream.used = streams.turn;
      stream.window = stream.window == 0 ? 2 : stream.window * 2;
      stride = stream.stride;
      return stream.window;
    }
    if (step != 0 && step > -kNear && step < kNear) near = &stream;
  }
  Stream& stream = near != nullptr ? *near : *oldest;
  stream.stride = near != nullptr ? static_cast<int64_t>(page - stream.last) : 0;
  stream.region = &region;
  stream.last = page;
  stream.window = 0;
  stream.used = streams.turn;
  stride = 1;
  return 1;
}

void stream_asked(Streams& streams, Region& region, uint64_t page, uint32_t asked) {
  for (Stream& stream : streams.at) {
    if (stream.region != &region || stream.used != streams.turn) continue;
    stream.last = page + static_cast<uint64_t>(stream.stride * static_cast<int64_t>(asked > 0 ? asked - 1 : 0));
    if (stream.window > asked) stream.window = asked;
  }
}

void stream_granted(Streams& streams, const Region& region, const LaneQuestion& question, uint32_t granted) {
  if (granted == 0 || granted >= question.count) return;
  for (Stream& stream : streams.at) {
    if (stream.region != &region || stream.last != page_of(question, question.count - 1u)) continue;
    stream.last = page_of(question, granted - 1);
    stream.window = granted;
  }
}

bool detour_take(Streams& streams, Region& region, uint32_t access) {
  Detour& detour = streams.detours[access == kWrite];
  if (detour.region != &region || detour.left == 0) return false;
  detour.left--;
  return true;
}

void detour_learn(Streams& streams, Region& region, uint32_t access, bool refused) {
  Detour& detour = streams.detours[access == kWrite];
  if (!refused) {
    if (detour.region == &region) detour = {};
    return;
  }
  const uint32_t before = detour.region == &region ? detour.length : 0;
  const uint32_t length = before == 0 ? 1 : before * 4 < kDetourLongest ? before * 4 : kDetourLongest;
  detour = {&region, length, length};
}

// ---- the thread that faulted ----------------------------------------------------------------------------------------

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
  const uint64_t most = kLaneBytes >> region.page_shift;
  if (window > most) window = most;
  if (window > kLanePages) window = kLanePages;
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
  uint64_t most = kLaneBytes >> region.page_shift;
  if (most > kLanePages) most = kLanePages;
  if (most < 1) most = 1;
  for (; page < end; page++) {
    region.touch(page, kPagesTouched);
    if (!would_claim(region.pages[page], access)) continue;
    if (region.homed_here(page)) {
      // Another member's, or a matter of this home alone. No thread is to be counted as one that waits for the page.
      bool registered = true;
      const auto run = static_cast<uint32_t>(most < end - page ? most : end - page);
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
    most = stream_window(*streams, region, page, stride);
    const uint64_t room = kLaneBytes >> region.page_shift;
    if (most > room) most = room;
    if (most > kLanePages) most = kLanePages;
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
  const uint64_t window = stream_window(*streams, region, page, stride);
  const auto most = static_cast<uint32_t>(window < kLanePages ? window : kLanePages);
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
  const bool forwards = question.stride == 1;
  for (uint32_t i = 0; i < question.count;) {
    if (!(locked >> i & 1)) {
      i++;
      continue;
    }
    uint32_t end = i + 1;
    while ((forwards || question.stride == -1) && end < question.count && (locked >> end & 1)) end++;
    const uint32_t opened = open_run(region, page_of(question, forwards ? i : end - 1), end - i, kOpenWrite);
    for (; i < end; i++) {
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
  const bool forwards = question.stride == 1;
  for (uint32_t i = 0; i < question.count;) {
    if (!(begun >> i & 1)) {
      i++;
      continue;
    }
    uint32_t end = i + 1;
    while ((forwards || question.stride == -1) && end < question.count && (begun >> end & 1) && grant_at(end) == grant_at(i)) end++;
    const uint64_t first = page_of(question, forwards ? i : end - 1);
    // What another member is waiting for is not opened here: it goes on at once, and whoever wants it here opens it.
    const uint32_t opened = turn.for_asker ? uint32_t{kOpenNone} : open_run(region, first, end - i, open_of(grant_at(i)));
    for (; i < end; i++) {
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
    stream_granted(*turn.streams, region, question, answer.granted);
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

// ---- the page server ------------------------------------------------------------------------------------------------

namespace {

// A member that is frozen, or down, grants nothing; nor does one that is not the home that was asked.
const Slices::Slice* serving_slice(const Region& region, const LaneQuestion& question) {
  const Slices::Slice* slice = region.slice_of(question.page);
  const uint64_t lease = region.member->lease.load();
  const bool fenced = lease != 0 && now_us() >= lease;
  return !fenced && slice != nullptr && slice->generation == question.generation && effective_down(region) == kUp ? slice : nullptr;
}

bool all_holes(const Region& region, const LaneQuestion& question, uint32_t count) {
  if (question.stride == 1) return next_data(region, question.page) >= (question.page + count) * region.page_size;
  for (uint32_t i = 0; i < count; i++) if (!is_hole(region, page_of(question, i))) return false;
  return true;
}

bool makes_sense(const Region& region, const LaneQuestion& question) {
  return question.page < region.page_count && question.count <= kLanePages && (question.access == kRead || question.access == kWrite);
}

}  // namespace

bool serve_begin(Region& region, Serving& serving) {
  const LaneQuestion& question = serving.question;
  LaneAnswer& answer = serving.answer;
  memset(&answer, 0, sizeof answer);
  answer.magic = kLaneMagic;
  serving.taken = 0;
  serving.closes = 0;
  count(region.stats.lane_served);
  Gate& gate = region.member->gate;
  if (!makes_sense(region, question) || !gate.enter()) return false;
  // Asked inside the gate: homes change only outside of it.
  const Slices::Slice* slice = serving_slice(region, question);
  if (slice != nullptr && question.op == kLaneRecall) {
    const uint32_t now = clock32();
    for (; slice->slot == serving.slot && serving.taken < question.count; serving.taken++) {
      const uint64_t page = page_of(question, serving.taken);
      if (page < slice->first || page - slice->first >= slice->count) break;
      PageEntry& entry = region.pages[page];
      // Of the others the home sees by the version whether they are what it has granted.
      if (!begin_lane_recall(entry, serving.taken == 0 ? question.version : entry.version.load(), question.keep != 0, now)) break;
      serving.closes |= uint64_t{1} << serving.taken;
    }
    if (serving.taken > 0) return true;
  } else if (slice != nullptr && question.op == kLaneRetire && slice->slot == serving.slot) {
    const uint32_t now = clock32();
    for (; serving.taken < question.count; serving.taken++) {
      const uint64_t page = page_of(question, serving.taken);
      bool closes = false;
      if (page < slice->first || page - slice->first >= slice->count || !begin_lane_invalidate(region.pages[page], now, closes)) break;
      if (closes) serving.closes |= uint64_t{1} << serving.taken;
    }
    if (serving.taken > 0) return true;
  } else if (slice != nullptr && question.op == kLaneRequest && region.homed_here(question.page)) {
    const uint32_t now = clock32();
    for (; serving.taken < question.count; serving.taken++) {
      const uint64_t page = page_of(question, serving.taken);
      if (page < slice->first || page - slice->first >= slice->count) break;
      region.touch(page, kPagesTouched | kDirectoryTouched);
      const ServeStep step = lock_serve(region.pages[page], region.directory[page], access_at(question, serving.taken), serving.slot, question.version, now);
      if (step == ServeStep::kRefusedAndRing) settle(region, page, {false, true});
      if (step != ServeStep::kLocked && step != ServeStep::kClose) break;
      if (step == ServeStep::kClose) serving.closes |= uint64_t{1} << serving.taken;
    }
    if (serving.taken > 0) return true;
  }
  gate.leave();
  return false;
}

void serve_finish(Region& region, Serving& serving) {
  const LaneQuestion& question = serving.question;
  LaneAnswer& answer = serving.answer;
  const bool recall = question.op == kLaneRecall;
  const bool retire = question.op == kLaneRetire;
  const auto to_shared_at = [&](uint32_t i) { return recall ? question.keep != 0 : !retire && access_at(question, i) == kRead; };
  const bool neighbours = question.stride == 1;
  BusyPages busy{question.page, question.stride, serving.closes};
  for (uint32_t i = 0; i < serving.taken;) {
    const uint64_t first = page_of(question, i);
    const auto open_at = [&](uint32_t at) { return open(region.pages[page_of(question, at)].word.load()) != kOpenNone; };
    if (!(serving.closes >> i & 1)) {
      i++;
      continue;
    }
    const bool is_open = open_at(i);
    const bool to_shared = to_shared_at(i);
    uint32_t end = i + 1;
    while (neighbours && end < serving.taken && (serving.closes >> end & 1) && open_at(end) == is_open && to_shared_at(end) == to_shared) end++;
    // To read-only only what was open: what is closed stays closed until somebody needs it.
    const uint32_t opened = is_open ? close_run(region, first, end - i, to_shared ? kOpenRead : kOpenNone, &busy) : uint32_t{kOpenNone};
    // Their BUSY ends now.
    for (uint32_t closed = i; closed < end; closed++) busy.busy &= ~(uint64_t{1} << closed);
    for (; i < end; i++) settle(region, page_of(question, i), end_close(region.pages[page_of(question, i)], to_shared, recall, opened));
  }
  if (retire) {
    answer.content = kLaneSame;
    answer.granted = static_cast<uint8_t>(serving.taken);
    region.member->gate.leave();
    return count(region.stats.lane_invalidations_received, serving.taken);
  }
  // Pages that nobody has written are holes, and need no bytes. All pages of an answer are alike.
  const bool same = !recall && question.version != 0;
  // What is recalled is all sent, if only a part of it has been written: it has been given up already.
  const bool zero = !same && (recall ? all_holes(region, question, serving.taken) : is_hole(region, question.page));
  answer.content = same ? kLaneSame : zero ? kLaneZero : kLaneBytesFollow;
  serving.first_byte = question.page * region.page_size;
  // Neighbours up to here are as the first one is, without asking the kernel about each.
  const uint64_t alike = serving.taken == 1 || same || recall || !neighbours ? 0 : zero ? next_data(region, question.page) >> region.page_shift : data_until(region, question.page);
  uint32_t granted = 0;
  for (; granted < serving.taken; granted++) {
    const uint64_t page = page_of(question, granted);
    if (recall) {
      answer.versions[granted] = region.pages[page].version.load();
      continue;
    }
    if (granted > 0 && page >= alike && is_hole(region, page) != zero) break;
    if (unlock_serve(region.directory[page], access_at(question, granted), serving.slot, answer.versions[granted])) settle(region, page, {false, true});
  }
  for (uint32_t i = granted; i < serving.taken; i++) {
    const uint64_t page = page_of(question, i);
    if (unlock_unserved(region.directory[page])) settle(region, page, {false, true});
  }
  answer.granted = static_cast<uint8_t>(granted);
  region.member->gate.leave();
  if (recall) count(region.stats.lane_recalls_received);
  count(region.stats.lane_pages_out, granted);
  if (answer.content == kLaneBytesFollow) count(region.stats.lane_bytes_out, granted * region.page_size);
}

bool serve_hop(Region& region, const Serving& serving, LaneTurn& turn) {
  const LaneQuestion& question = serving.question;
  if (question.op != kLaneRequest || !makes_sense(region, question) || serving_slice(region, question) == nullptr || !region.homed_here(question.page)) return false;
  region.touch(question.page, kPagesTouched | kDirectoryTouched);
  const uint64_t word = region.directory[question.page].word.load();
  // No thread is to be counted as one that waits for the page.
  bool registered = true;
  if (state_of(word) == kIdle && question.access == kWrite && serving.slot < kCoarseSlot) {
    if (!lane_retire(region, question.page, registered, slot_bit(serving.slot), question.keep != 0 ? question.count : 1, question.stride, turn)) return false;
    turn.ahead = true;
    turn.for_asker = true;
    return true;
  }
  if (state_of(word) != kOwned || owner_of(word) == serving.slot) return false;
  const uint64_t room = kHopBytes >> region.page_shift;
  const auto most = static_cast<uint32_t>(question.count < room ? question.count : room);
  if (most == 0 || !lane_hop(region, question.page, question.access, registered, most, question.stride, turn)) return false;
  turn.ahead = true;
  turn.for_asker = true;
  return true;
}

bool serve_again(const Region& region, const Serving& serving) {
  const LaneQuestion& question = serving.question;
  if (!makes_sense(region, question) || serving_slice(region, question) == nullptr) return false;
  const PageEntry& page = region.pages[question.page];
  if (question.op != kLaneRequest) return ends_soon(page, clock32());
  return region.homed_here(question.page) && ends_soon(page, region.directory[question.page], question.access, serving.slot, clock32());
}

void serve_returned(Region& region, uint32_t slot, const LaneQuestion& question) {
  if (question.page >= region.page_count) return;
  const Slices::Slice* slice = region.slice_of(question.page);
  if (slice != nullptr && slice->slot == slot) returned(region.pages[question.page], question.version);
}

}  // namespace faultline
