#include "reclaim.h"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <cstring>

#include "futex.h"

namespace faultline {
namespace {

// Pages, in order, of which BUSY was taken, stretch by stretch: `use` ends it.
template <typename Use>
void each_stretch(const std::vector<uint64_t>& taken, Use use) {
  for (size_t i = 0; i < taken.size();) {
    size_t end = i + 1;
    while (end < taken.size() && taken[end] == taken[end - 1] + 1) end++;
    use(taken[i], end - i);
    i = end;
  }
}

// M15, second half. Returns how many were valid copies.
uint64_t drop_taken(Region& region, const std::vector<uint64_t>& taken) {
  uint64_t dropped = 0;
  each_stretch(taken, [&](uint64_t first, uint64_t count) {
    bool any_open = false;
    for (uint64_t page = first; page < first + count; page++) any_open = any_open || open(region.pages[page].word.load()) != kOpenNone;
    if (any_open) close_run(region, first, count, kOpenNone);
    // The pages' memory, before a reader of the words may bring new bytes.
    give_memory_back(region, first * region.page_size, count * region.page_size);
    for (uint64_t page = first; page < first + count; page++) {
      if (held(region.pages[page].word.load()) == kShared) dropped++;
      settle(region, page, end_close(region.pages[page], false, false, kOpenNone));
    }
  });
  return dropped;
}

// M14, second half.
void close_taken(Region& region, const std::vector<uint64_t>& taken) {
  each_stretch(taken, [&](uint64_t first, uint64_t count) {
    const uint32_t opened = close_run(region, first, count, kOpenNone);
    for (uint64_t page = first; page < first + count; page++) settle(region, page, finish(region.pages[page], opened));
  });
}

// false: there is no room for another run.
bool tell_owned(std::vector<OwnedRun>& owned, size_t most, uint64_t page, uint32_t version) {
  if (!owned.empty() && owned.back().first + owned.back().count == page && owned.back().version == version) {
    owned.back().count++;
    return true;
  }
  if (owned.size() == most) return false;
  owned.push_back({page, 1, version});
  return true;
}

}  // namespace

void give_memory_back(Region& region, uint64_t offset, uint64_t length) {
  if (length == 0 || region.memfd < 0) return;
  region.dense_to.store(0, std::memory_order_relaxed);
  if (fallocate(region.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) memset(region.service + offset, 0, length);
}

uint64_t drop_pages(Region& region, uint64_t first, uint64_t count) {
  std::vector<uint64_t> taken;
  for (uint64_t page = first; page < first + count; page++) {
    if (!(region.touched[region.extent_of(page)].load() & kPagesTouched)) continue;
    if (begin_drop(region.pages[page])) taken.push_back(page);
  }
  return drop_taken(region, taken);
}

uint64_t reclaim_pages(Region& region, uint64_t first, uint64_t count, uint64_t most, size_t most_runs, std::vector<OwnedRun>& owned) {
  constexpr uint64_t kLooks = 16384;
  const auto now = static_cast<uint32_t>(now_us());
  const uint64_t end = first + count;
  uint64_t page = first;
  uint64_t changed = 0;
  uint64_t looks = 0;
  std::vector<uint64_t> closing;
  std::vector<uint64_t> dropping;
  while (page < end && changed < most && looks < kLooks) {
    const uint64_t extent = region.extent_of(page);
    const uint64_t stop = std::min(end, (extent + 1) * region.extent_pages);
    looks++;
    if (!(region.touched[extent].load() & kPagesTouched)) {
      page = stop;
      continue;
    }
    closing.clear();
    dropping.clear();
    // What lies before it is a hole.
    uint64_t data = next_data(region, page) >> region.page_shift;
    for (; page < stop; page++, looks++) {
      PageEntry& entry = region.pages[page];
      const uint64_t word = entry.word.load();
      if (in_use(entry, word, now) || held(word) == kLost) continue;
      const bool closed = open(word) == kOpenNone || open(word) == kSacrificed;
      if (held(word) == kInvalid) {
        if (page > data) data = next_data(region, page) >> region.page_shift;
        if (page >= data && begin_drop(entry)) dropping.push_back(page);
      } else if (!closed) {
        if (begin_coalesce(entry, false)) closing.push_back(page);
      } else if (held(word) == kShared) {
        if (begin_drop(entry)) dropping.push_back(page);
      } else if (tell_owned(owned, most_runs, page, entry.version.load())) {
        changed++;
      }
    }
    close_taken(region, closing);
    region.stats.dropped_pages.fetch_add(drop_taken(region, dropping), std::memory_order_relaxed);
    changed += closing.size() + dropping.size();
  }
  return page;
}

}  // namespace faultline
