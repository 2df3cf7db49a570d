// Giving up pages of other homes, and their memory, when memory is short or they are worth nothing any more.
#pragma once

#include <cstdint>
#include <vector>

#include "region.h"

namespace faultline {

// Pages that this member owns in one version.
struct OwnedRun {
  uint64_t first, count;
  uint32_t version;
};

// Whole pages of the memfd read as zero from here on, and take no memory where the kernel can do that.
void give_memory_back(Region& region, uint64_t offset, uint64_t length);

// M15 for what it may be done to. Returns how many valid copies that were.
uint64_t drop_pages(Region& region, uint64_t first, uint64_t count);

// One step of a clock whose "was used" bit is OPEN. What is open is closed, and stays held; whoever uses it opens it again
// without asking anybody. What the hand finds closed has not been used since it was here last: a clean copy is dropped; an
// owned page is told to the caller, who gives it back, as long as `most_runs` are enough. Memory of copies that are not
// valid any more goes at once. Ends after `most` pages of change, or when it has looked at many. Returns the next page.
uint64_t reclaim_pages(Region& region, uint64_t first, uint64_t count, uint64_t most, size_t most_runs, std::vector<OwnedRun>& owned);

}  // namespace faultline
