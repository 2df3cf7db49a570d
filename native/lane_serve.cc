// What a page server does to words and mappings for a question, without any socket: the answering half of lane_steps.cc.
#include <cstring>

#include "futex.h"
#include "lane.h"

namespace faultline {
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
