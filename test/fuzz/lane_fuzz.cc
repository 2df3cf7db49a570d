// What comes to a page server over a lane: arbitrary questions, at a home whose pages are in all kinds of states. Whatever is
// asked, the answer fits the question, nobody is granted what is not there, and no lock is left behind.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../native/lanes.h"
#include "../../native/member.h"
#include "../../native/region.h"

using namespace faultline;

namespace {

constexpr uint64_t kPage = 4096, kPages = 64, kExtentPages = 8;

Region* region;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "lane: %s\n", what);
  abort();
}

void make_region() {
  std::string error;
  Member* member = member_at(member_create("lane_fuzz", error));
  SystemFailure failure;
  region = member == nullptr ? nullptr : region_create(member->handle, {1, "memory", kPages * kPage, kPage, kExtentPages}, failure);
  require(region != nullptr, "a region can be made");
  Slices* slices = slices_make(2);
  slices->at[0] = {0, kPages / 2, 0, 1};
  slices->at[1] = {kPages / 2, kPages / 2, 1, 2};
  region_set_slices(*region, slices);
  for (uint64_t extent = 0; extent < region->extent_count / 2; extent++) region->homed[extent].store(kHomed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (region == nullptr) make_region();
  for (uint64_t page = 0; page < kPages; page++) {
    memset(static_cast<void*>(&region->pages[page]), 0, sizeof(PageEntry));
    memset(static_cast<void*>(&region->directory[page]), 0, sizeof(DirectoryEntry));
  }
  // Each step: a byte for who asks, and a question; or a directory word of some page.
  while (size >= 1 + sizeof(LaneQuestion)) {
    Serving serving;
    memcpy(&serving.question, data + 1, sizeof(LaneQuestion));
    const uint8_t who = data[0];
    data += 1 + sizeof(LaneQuestion);
    size -= 1 + sizeof(LaneQuestion);
    const LaneQuestion& question = serving.question;
    if (who & 0x80) {
      const uint64_t page = question.page % kPages;
      end(region->directory[page], question.op & 3, question.access, question.version, question.generation & 7, (who & 0x40) != 0);
      continue;
    }
    serving.slot = who & 7;
    if (question.op == kLaneReturned) {
      serve_returned(*region, serving.slot, question);
      continue;
    }
    // The page server itself turns these away.
    if (question.count == 0 || question.count > kLanePages || (question.op != kLaneRequest && question.op != kLaneRecall && question.op != kLaneRetire)) continue;
    if (serve_begin(*region, serving)) serve_finish(*region, serving);
    const LaneAnswer& answer = serving.answer;
    require(answer.granted <= question.count && answer.content <= kLaneSame, "the answer fits the question");
    for (uint32_t i = 0; i < answer.granted && question.op == kLaneRetire; i++) {
      const uint64_t page = page_of(question, i);
      require(page < kPages && serving.slot == (page < kPages / 2 ? 0 : 1) && held(region->pages[page].word.load()) == kInvalid, "what a home is told to be gone is gone");
    }
    for (uint32_t i = 0; i < answer.granted && question.op == kLaneRequest; i++) {
      const uint64_t page = page_of(question, i);
      require(page < kPages / 2 && region->homed_here(page), "only pages of this home are granted");
      const uint64_t word = region->directory[page].word.load();
      require(answer.versions[i] != 0 && answer.versions[i] == version_of(word), "with the version that they have");
      if (question.access == kWrite && (i == 0 || question.keep != 0)) require(state_of(word) == kOwned && owner_of(word) == serving.slot, "who may write owns it");
      else require(state_of(word) == kIdle && region->directory[page].copyset.load() != 0, "who may read is in the copyset");
    }
    for (uint64_t page = 0; page < kPages; page++) {
      require((region->directory[page].word.load() & (kLock | kHop)) == 0 && (region->pages[page].word.load() & kBusy) == 0, "nothing stays locked");
    }
    require(region->member->gate.drained(), "nobody stays in the gate");
  }
  return 0;
}
