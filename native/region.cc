#include "region.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

#include "attempt.h"
#include "fault.h"
#include "futex.h"
#include "proxies.h"

// Older headers do not have it; make_memory() says if the kernel does not know it.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace faultline {
namespace {

// Regions alive in one process, those included whose addresses are kept for buffers.
constexpr uint32_t kRegions = 1024;

std::atomic<Region*> regions[kRegions];
std::atomic<uint32_t> region_high{0};  // places in use lie below it
uint32_t place_uses[kRegions];
// What was at a place before, and is used again by whoever comes there next.
Region* former[kRegions];

// Guards creation, mapping, going down and release; never taken in the handler.
std::recursive_mutex& mutex() {
  static std::recursive_mutex* const one = new std::recursive_mutex;
  return *one;
}

void* reserve_table(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, bytes, MADV_DONTDUMP);
  return memory;
}

void hide(void* memory, uint64_t bytes) {
  // Neither core dumps nor forked children should have the cluster's memory.
  madvise(memory, bytes, MADV_DONTDUMP);
  madvise(memory, bytes, MADV_DONTFORK);
}

#ifdef FAULTLINE_SIMULATION
// All members of a simulation are in one process, where their views can't lie at one address: there are none.
void* map_view(uintptr_t address, uint64_t, int, int, int = PROT_NONE) { return reinterpret_cast<void*>(address); }
void unmap_view(uintptr_t, uint64_t) {}
#else
void* map_view(uintptr_t address, uint64_t size, int flags, int memfd, int protection = PROT_NONE) {
  void* view = mmap(reinterpret_cast<void*>(address), size, protection, flags, memfd, 0);
  if (view != MAP_FAILED && memfd >= 0) hide(view, size);
  return view;
}

void unmap_view(uintptr_t address, uint64_t size) { munmap(reinterpret_cast<void*>(address), size); }
#endif

uint64_t round_up(uint64_t bytes) { return (bytes + 4095) & ~uint64_t{4095}; }

void free_tables(Region& region) {
  if (region.pages != nullptr) munmap(region.pages, round_up(region.page_count * sizeof(PageEntry)));
  if (region.directory != nullptr) munmap(region.directory, round_up(region.page_count * sizeof(DirectoryEntry)));
  if (region.homed != nullptr) munmap(region.homed, round_up(region.extent_count));
  if (region.touched != nullptr) munmap(region.touched, round_up(region.extent_count));
  region.pages = nullptr;
  region.directory = nullptr;
  region.homed = nullptr;
  region.touched = nullptr;
  for (Slices* slices = region.slices.exchange(nullptr); slices != nullptr;) {
    Slices* former = slices->former;
    free(slices);
    slices = former;
  }
}

// A region that has ended leaves its struct to the next one at its place. (Tables that a parked thread may still use stay
// with it, and it for ever, because it is active.)
void keep_for_next(uint32_t place, Region* region) {
  if (region->pages == nullptr && former[place] == nullptr) former[place] = region;
}

// Nobody finds it any more.
void leave_place(uint32_t place) {
  Region* region = regions[place].exchange(nullptr);
  region->app.store(0);
  keep_for_next(place, region);
}

// Mappings that all regions of this process may use. Not all that the kernel allows: at its limit every other mmap of
// the process fails, too, and libraries that need memory then end it.
int64_t mapping_budget() {
  static const int64_t budget = [] {
    long limit = 65530;
    if (FILE* file = fopen("/proc/sys/vm/max_map_count", "re")) {
      if (fscanf(file, "%ld", &limit) != 1) limit = 65530;
      fclose(file);
    }
    return static_cast<int64_t>(limit) * 6 / 10;
  }();
  return budget;
}

std::atomic<int64_t> borders_used{0};

// Tries to close a page, some µs apart, before a process that could not go on correctly ends.
constexpr int kCloseTries = 1000;

// How many more places of different neighbours there are if the run of pages (BUSY, or about to be so) is set to `open`.
int64_t new_borders(const Region& region, uint64_t first, uint64_t count, uint32_t wanted) {
  const auto at = [&](uint64_t page) { return open(region.pages[page].word.load(std::memory_order_relaxed)); };
  const uint32_t left = first > 0 ? at(first - 1) : wanted;
  const uint64_t end = first + count;
  const uint32_t right = end < region.page_count ? at(end) : wanted;
  int64_t before = 0;
  uint32_t last = first > 0 ? left : at(first);
  for (uint64_t page = first; page < end; page++) {
    const uint32_t here = at(page);
    before += here != last;
    last = here;
  }
  if (end < region.page_count) before += right != last;
  return (left != wanted) + (right != wanted) - before;
}

// Sets what a run of pages allows. false: no mapping is left for it. force: only the kernel may say no.
bool set_view(Region& region, uint64_t first, uint64_t count, uint32_t wanted, bool force) {
#ifdef FAULTLINE_SIMULATION
  if (!force && simulation_refuses(region, first, count, wanted)) return false;
#endif
  if (!region.guard->splits()) return region.guard->set(region, first, count, wanted);
  // mapping_budget() reads a file the first time: region_create() does that, never a handler.
  const int64_t more = new_borders(region, first, count, wanted);
  // A region that uses few can't give any back: it may go on to the kernel's own limit.
  if (!force && more > 0 && borders_used.load(std::memory_order_relaxed) > mapping_budget() && region.borders.load(std::memory_order_relaxed) > mapping_budget() / 8) return false;
  if (!region.guard->set(region, first, count, wanted)) return false;
  region.borders.fetch_add(more, std::memory_order_relaxed);
  borders_used.fetch_add(more, std::memory_order_relaxed);
  return true;
}

// Takes BUSY on every open page of the region that is in [first, end); waits for those that are BUSY.
void take_all(Region& region, uint64_t first, uint64_t end, bool also_pinned, bool wait, std::vector<uint64_t>& taken) {
  for (uint64_t extent = first / region.extent_pages; extent * region.extent_pages < end; extent++) {
    if (!(region.touched[extent].load() & kPagesTouched)) continue;
    const uint64_t from = std::max(first, extent * region.extent_pages);
    const uint64_t to = std::min({end, (extent + 1) * region.extent_pages, region.page_count});
    for (uint64_t page = from; page < to; page++) {
      for (int tries = 0;; tries++) {
        if (begin_coalesce(region.pages[page], also_pinned)) {
          taken.push_back(page);
          break;
        }
        // BUSY ends by itself: it is held over a protection change or a copy only.
        if (!wait || !(region.pages[page].word.load() & kBusy) || tries > 1000000) break;
        wait_for_busy();
      }
    }
  }
}

}  // namespace

double histogram_bound(int bucket) {
  if (bucket >= RegionStats::kBuckets - 1) return INFINITY;
  return std::exp2(static_cast<double>(bucket) / 4.0);
}

int histogram_bucket(uint64_t us) {
  if (us <= 1) return 0;
  // Four buckets for each power of two, without floating point: the handler uses it.
  const int power = 63 - __builtin_clzll(us);
  const uint64_t rest = power >= 2 ? (us >> (power - 2)) & 3 : (us << (2 - power)) & 3;
  const int bucket = power * 4 + static_cast<int>(rest) + 1;
  return bucket < RegionStats::kBuckets ? bucket : RegionStats::kBuckets - 1;
}

void Region::renew() {
  name[0] = 0;
  memfd = -1;
  uffd = -1;
  proxies = nullptr;
  service = nullptr;
  guard = nullptr;
  coalesce_hand = 0;
  down.store(kUp);
  detail[0] = 0;
  borders.store(0);
  dense_from.store(0);
  dense_to.store(0);
  stats.clear();
  released.store(false);
}

const Slices::Slice* Region::slice_of(uint64_t page) const {
  const Slices* table = slices.load();
  if (table == nullptr) return nullptr;
  uint32_t low = 0;
  uint32_t high = table->count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (table->at[middle].first <= page) low = middle;
    else high = middle;
  }
  const Slices::Slice& slice = table->at[low];
  return high > low && page >= slice.first && page - slice.first < slice.count ? &slice : nullptr;
}

Slices* slices_make(uint32_t count) {
  auto* slices = static_cast<Slices*>(calloc(1, sizeof(Slices) + count * sizeof(Slices::Slice)));
  if (slices != nullptr) slices->count = count;
  return slices;
}

void region_set_slices(Region& region, Slices* slices) {
  slices->former = region.slices.load();
  region.slices.store(slices);
}

uint32_t effective_down(const Region& region) {
  const uint32_t own = region.down.load();
  if (own != kUp) return own;
  return region.member->handle == region.member_handle ? region.member->down.load() : uint32_t{kClosed};
}

Region* region_at(uint32_t handle) {
  const uint32_t place = (handle & 0x3ff);
  Region* region = place < kRegions ? regions[place].load() : nullptr;
  return region != nullptr && region->handle == handle && !region->released ? region : nullptr;
}

Region* region_enter_handle(uint32_t handle) {
  Region* region = region_at(handle);
  if (region == nullptr) return nullptr;
  region->active.fetch_add(1);
  if (region_at(handle) == region) return region;
  region->active.fetch_sub(1);
  return nullptr;
}

Region* region_enter(uintptr_t address) {
  const uint32_t high = region_high.load();
  for (uint32_t i = 0; i < high; i++) {
    Region* region = regions[i].load();
    if (region == nullptr) continue;
    const uintptr_t app = region->app.load();
    if (app == 0 || address - app >= region->size) continue;
    region->active.fetch_add(1);
    // Its addresses, or its struct, may have passed to another region meanwhile.
    if (regions[i].load() == region && region->app.load() == app && address - app < region->size) return region;
    region->active.fetch_sub(1);
  }
  return nullptr;
}

Region* region_enter_id(const Member& member, uint32_t id) {
  const uint32_t high = region_high.load();
  for (uint32_t i = 0; i < high; i++) {
    Region* region = regions[i].load();
    if (region == nullptr || region->id != id || region->released) continue;
    region->active.fetch_add(1);
    if (regions[i].load() == region && region->id == id && !region->released && region->member == &member && region->member_handle == member.handle) return region;
    region->active.fetch_sub(1);
  }
  return nullptr;
}

Region* region_create(uint32_t member_handle, const RegionSpec& spec, SystemFailure& failure) {
  Member* member = member_at(member_handle);
  if (member == nullptr) {
    failure = {"ERR_NATIVE_HANDLE", "", 0};
    return nullptr;
  }
  mapping_budget();
  std::lock_guard<std::recursive_mutex> lock(mutex());
  uint32_t place = 0;
  while (place < kRegions && regions[place].load() != nullptr) place++;
  if (place == kRegions) {
    failure = {"ERR_OUT_OF_MEMORY", "region_create", ENOMEM};
    return nullptr;
  }
  // Never deleted, because a handler may look at it. One that is parked in it keeps it.
  Region* region = former[place];
  if (region != nullptr && region->active.load() == 0) {
    former[place] = nullptr;
    region->renew();
  } else {
    region = new Region;
  }
  region->handle = (++place_uses[place] << 10) | place;
  region->member_handle = member_handle;
  region->member = member;
  region->id = spec.id;
  std::strncpy(region->name, spec.name.c_str(), sizeof region->name - 1);
  region->size = spec.size;
  region->page_size = spec.page_size;
  region->page_shift = __builtin_ctzll(spec.page_size);
  region->page_count = spec.size >> region->page_shift;
  region->extent_pages = spec.extent_pages;
  region->extent_count = (region->page_count + spec.extent_pages - 1) / spec.extent_pages;
  region->guard = &guard_unmapped();
  region->pages = static_cast<PageEntry*>(reserve_table(round_up(region->page_count * sizeof(PageEntry))));
  region->directory = static_cast<DirectoryEntry*>(reserve_table(round_up(region->page_count * sizeof(DirectoryEntry))));
  region->homed = static_cast<std::atomic<uint8_t>*>(reserve_table(round_up(region->extent_count)));
  region->touched = static_cast<std::atomic<uint8_t>*>(reserve_table(round_up(region->extent_count)));
  bool whole = region->pages != nullptr && region->directory != nullptr && region->homed != nullptr && region->touched != nullptr;
  if (!whole) failure = {"ERR_OUT_OF_MEMORY", "mmap", errno};
  if (whole) {
    region->memfd = memfd_create("faultline", MFD_CLOEXEC);
    if (region->memfd < 0) failure = {"ERR_SYSTEM", "memfd_create", errno};
    else if (ftruncate(region->memfd, static_cast<off_t>(spec.size)) != 0) failure = {"ERR_OUT_OF_MEMORY", "ftruncate", errno};
    else {
      void* view = mmap(nullptr, spec.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->memfd, 0);
      if (view == MAP_FAILED) failure = {"ERR_OUT_OF_MEMORY", "mmap", errno};
      else {
        hide(view, spec.size);
        region->service = static_cast<uint8_t*>(view);
      }
    }
    whole = region->service != nullptr;
  }
  if (!whole) {
    if (region->memfd >= 0) close(region->memfd);
    free_tables(*region);
    keep_for_next(place, region);
    return nullptr;
  }
  regions[place].store(region);
  if (place >= region_high.load()) region_high.store(place + 1);
  return region;
}

bool region_map(Region& region, uintptr_t address, SystemFailure& failure, GuardKind kind) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (region.app.load() != 0) {
    if (region.app.load() == address) return true;
    failure = {"ERR_ADDRESS_TAKEN", "", EEXIST};
    return false;
  }
  int flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  Reservation* reservation = nullptr;
  // An earlier member's region at this very place may have left buffers that still live: they see the new one.
  for (uint32_t i = 0; i < region_high.load(); i++) {
    Region* old = regions[i].load();
    if (old == nullptr || !old->released || old->app.load() != address || old->size != region.size) continue;
    reservation = old->reservation;
    old->reservation = nullptr;
    leave_place(i);
    flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED;
    break;
  }
  const bool watched = kind != GuardKind::kMprotect;
  void* view = map_view(address, region.size, flags, region.memfd, watched ? PROT_READ | PROT_WRITE : PROT_NONE);
  if (view == MAP_FAILED || view != reinterpret_cast<void*>(address)) {
    if (view != MAP_FAILED) unmap_view(reinterpret_cast<uintptr_t>(view), region.size);
    const int error = view == MAP_FAILED ? errno : EEXIST;
    failure = {error == EEXIST ? "ERR_ADDRESS_TAKEN" : "ERR_OUT_OF_MEMORY", "mmap", error};
    return false;
  }
  if (watched) {
    const char* call = nullptr;
    const bool system_calls = kind == GuardKind::kWithSystemCalls;
    region.uffd = userfaultfd_watch(address, region.size, call, system_calls);
    if (region.uffd < 0) failure = {"ERR_SYSTEM", call, errno};
    else if (system_calls) region.proxies = proxies_start(region, failure);
    if (region.uffd < 0 || (system_calls && region.proxies == nullptr)) {
      if (region.uffd >= 0) close(region.uffd);
      region.uffd = -1;
      // Buffers of an earlier member may still point here.
      if (reservation != nullptr) map_view(address, region.size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1);
      else unmap_view(address, region.size);
      return false;
    }
    fault_install_bus();
  }
  if (reservation == nullptr) {
    reservation = new Reservation;
    reservation->address = address;
    reservation->size = region.size;
  }
  region.reservation = reservation;
  region.guard = watched ? &guard_userfaultfd() : &guard_mprotect();
  region.app.store(address);
  return true;
}

void region_down(Region& region, uint32_t down, const std::string& detail) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  const uint32_t before = region.down.load();
  // close() of the last handle can be undone by opening again; the other final codes can't.
  if (is_final(before) && before != kClosed) return;
  if (down != kUp) std::strncpy(region.detail, detail.c_str(), sizeof region.detail - 1);
  region.down.store(down);
  if (down == kUp) return unpoison(region, 0, region.page_count);
  std::vector<uint64_t> taken;
  take_all(region, 0, region.page_count, true, true, taken);
  if (!taken.empty() && region.app.load() != 0) {
    // Every handler that opens a page after this saw `down` after it took BUSY, and opened nothing.
    region.guard->set(region, 0, region.page_count, kOpenNone);
    borders_used.fetch_sub(region.borders.exchange(0), std::memory_order_relaxed);
  }
  for (const uint64_t page : taken) settle(region, page, finish(region.pages[page], kOpenNone));
  if (!is_final(down)) return;
  // Threads that sleep on a page look again, and find the region down.
  for (uint64_t extent = 0; extent < region.extent_count; extent++) {
    if (!(region.touched[extent].load() & kPagesTouched)) continue;
    for (uint64_t page = extent * region.extent_pages; page < std::min(region.page_count, (extent + 1) * region.extent_pages); page++) {
      if (region.pages[page].word.load() & kSleepers) {
        region.pages[page].word.fetch_add(kSequenceOne);
        futex_wake(&region.pages[page].word);
      }
    }
  }
  region.coalesce_turn.fetch_add(1);
  futex_wake(&region.coalesce_turn);
}

void regions_close_views(Member& member, bool final) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  const uint32_t down = member.down.load();
  for (uint32_t i = 0; i < region_high.load(); i++) {
    Region* region = regions[i].load();
    if (region == nullptr || region->released || region->member_handle != member.handle) continue;
    if (final) {
      region_down(*region, down, member.detail);
    } else {
      std::vector<uint64_t> taken;
      take_all(*region, 0, region->page_count, true, true, taken);
      if (!taken.empty() && region->app.load() != 0) {
        region->guard->set(*region, 0, region->page_count, kOpenNone);
        borders_used.fetch_sub(region->borders.exchange(0), std::memory_order_relaxed);
      }
      for (const uint64_t page : taken) settle(*region, page, finish(region->pages[page], kOpenNone));
    }
  }
}

void region_release(Region& region) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (region.released) return;
  if (!is_final(region.down.load())) region_down(region, kClosed, "");
  region.released = true;
  const uintptr_t app = region.app.load();
  if (app != 0) {
    attempt_release(app, region.size);
    // Anonymous and closed: the memfd can go, and no other mapping can come where old buffers point.
    map_view(app, region.size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1);
  }
  // A lane's answer comes within its time, or not at all.
  for (int tries = 0; region.on_lanes.load() != 0 && tries < 100000; tries++) wait_for_busy();
  if (region.service != nullptr) munmap(region.service, region.size);
  region.service = nullptr;
  if (region.memfd >= 0) close(region.memfd);
  region.memfd = -1;
  // Threads in the handler see the region down and leave; one that is parked because the process exits stays, and
  // with it the tables.
  for (int tries = 0; region.active.load() != 0 && tries < 10000; tries++) sched_yield();
  if (region.active.load() == 0 && (region.proxies == nullptr || proxies_stop(region.proxies))) {
    region.proxies = nullptr;
    if (region.uffd >= 0) close(region.uffd);
    region.uffd = -1;
    free_tables(region);
  }
  Reservation* reservation = region.reservation;
  if (reservation != nullptr && reservation->buffers.load() != 0) return;
  region.reservation = nullptr;
  for (uint32_t i = 0; i < region_high.load(); i++) if (regions[i].load() == &region) leave_place(i);
  if (reservation != nullptr) {
    unmap_view(reservation->address, reservation->size);
    delete reservation;
  }
}

void reservation_unref(Reservation* reservation) {
  std::lock_guard<std::recursive_mutex> lock(mutex());
  if (reservation->buffers.fetch_sub(1) != 1) return;
  for (uint32_t i = 0; i < region_high.load(); i++) {
    Region* region = regions[i].load();
    if (region == nullptr || region->reservation != reservation) continue;
    if (!region->released) return;
    region->reservation = nullptr;
    leave_place(i);
  }
  unmap_view(reservation->address, reservation->size);
  delete reservation;
}

// (lseek is async-signal-safe, and nobody uses the descriptor's position.)
uint64_t next_data(const Region& region, uint64_t page) {
  const off_t data = lseek(region.memfd, static_cast<off_t>(page * region.page_size), SEEK_DATA);
  return data < 0 ? region.size.load() : static_cast<uint64_t>(data);
}

uint64_t next_hole(const Region& region, uint64_t page) {
  const off_t hole = lseek(region.memfd, static_cast<off_t>(page * region.page_size), SEEK_HOLE);
  return hole < 0 ? region.size.load() : static_cast<uint64_t>(hole);
}

uint64_t data_until(Region& region, uint64_t page) {
  const uint64_t known = region.dense_to.load(std::memory_order_relaxed);
  if (page >= region.dense_from.load(std::memory_order_relaxed) && page < known) return known;
  const uint64_t hole = next_hole(region, page) >> region.page_shift;
  region.dense_from.store(page, std::memory_order_relaxed);
  region.dense_to.store(hole, std::memory_order_relaxed);
  return hole;
}

uint64_t region_memory(const Region& region) {
  struct stat facts;
  return region.memfd >= 0 && fstat(region.memfd, &facts) == 0 ? static_cast<uint64_t>(facts.st_blocks) * 512 : 0;
}

void ring_memory(Region& region) {
  if (region.member->handle == region.member_handle) region.member->ring.push({kRingMemory, region.handle, 0, 0, 0});
}

void spend_memory(Region& region, uint64_t pages) {
  if (region.member->memory.spend(pages * region.page_size)) ring_memory(region);
}

bool make_memory(const Region& region, uint64_t offset, uint64_t bytes) { return madvise(region.service + offset, bytes, MADV_POPULATE_WRITE) == 0; }

bool is_hole(const Region& region, uint64_t page) { return next_data(region, page) >= (page + 1) * region.page_size; }

void settle(Region& region, uint64_t page, After after) {
  if (after.wake) futex_wake(&region.pages[page].word);
  if (after.ring && region.member->handle == region.member_handle) region.member->ring.push({kRingFree, region.handle, page, 0, 0});
}

uint32_t open_run(Region& region, uint64_t first, uint64_t count, uint32_t wanted) {
  // Checked after BUSY was taken: who closes all views takes BUSY after it has said "down".
  if (wanted == kOpenNone || effective_down(region) != kUp) return kAsItWas;
  region.stats.protection_changes.fetch_add(1, std::memory_order_relaxed);
  if (set_view(region, first, count, wanted, false)) return wanted;
  region.stats.mapping_limit_hits.fetch_add(1, std::memory_order_relaxed);
  return kAsItWas;
}

uint64_t fill_run(Region& region, uint64_t first, uint64_t end) {
  uint64_t to = first;
  uint32_t allowed = kOpenNone;
  for (; to < end && begin_coalesce(region.pages[to], true); to++) {
    const uint32_t here = open(region.pages[to].word.load());
    if (to == first) allowed = here;
    if (here == allowed) continue;
    settle(region, to, finish(region.pages[to], kAsItWas));
    break;
  }
  // Asked after BUSY was taken, as in open_run().
  if (to > first && effective_down(region) == kUp) {
    region.stats.filled_pages.fetch_add(to - first, std::memory_order_relaxed);
    region.guard->fill(region, first, to - first, allowed);
  }
  for (uint64_t page = first; page < to; page++) settle(region, page, finish(region.pages[page], kAsItWas));
  return to - first;
}

void fill_holes(Region& region, uint64_t first, uint64_t count) {
  if (!region.guard->leaves_holes()) return;
  const uint64_t end = first + count;
  for (uint64_t page = first; page < end;) {
    const uint64_t data = std::min(end, next_data(region, page) >> region.page_shift);
    if (data > page) page += std::max<uint64_t>(fill_run(region, page, data), 1);
    else page = std::max(page + 1, next_hole(region, page) >> region.page_shift);
  }
}

uint32_t close_run(Region& region, uint64_t first, uint64_t count, uint32_t wanted, const BusyPages* others) {
  region.stats.protection_changes.fetch_add(1, std::memory_order_relaxed);
  if (set_view(region, first, count, wanted, false)) return wanted;
  region.stats.mapping_limit_hits.fetch_add(1, std::memory_order_relaxed);
  // A run can't be closed for want of mappings: closing more than it joins mappings instead of splitting them.
  int tries = 0;
  for (uint64_t span = 64;; span *= 8) {
    const uint64_t from = first / span * span;
    const uint64_t to = std::min(region.page_count, (first + count + span - 1) / span * span);
    // BUSY is needed for the closed pages, too: nobody may open one of them in the middle of this.
    std::vector<bool> ours(to - from, false);
    for (uint64_t page = from; page < to; page++) {
      const bool own = (page >= first && page < first + count) || (others != nullptr && others->has(page));
      if (!own) region.touch(page, kPagesTouched);
      ours[page - from] = own || begin_closing(region.pages[page]);
    }
    bool closed = false;
    for (uint64_t start = from; start < to;) {
      uint64_t end = start + 1;
      while (end < to && ours[end - from] == ours[start - from]) end++;
      if (ours[start - from]) {
        const bool done = set_view(region, start, end - start, kOpenNone, true);
        if (start <= first && first < end) closed = done;
        for (uint64_t page = start; page < end; page++) {
          if (page >= first && page < first + count) continue;
          if (others != nullptr && others->has(page)) {
            if (done) closed_early(region.pages[page]);
            continue;
          }
          const uint32_t before = open(region.pages[page].word.load());
          if (done && before != kOpenNone) region.stats.coalesced.fetch_add(1, std::memory_order_relaxed);
          settle(region, page, finish(region.pages[page], done ? uint32_t{kOpenNone} : before));
        }
      }
      start = end;
    }
    if (closed) return kOpenNone;
    if (span < region.page_count) continue;
    // Even that took a split, beside pages that are pinned or BUSY. Nobody may go on with a page that is not closed.
    if (++tries == kCloseTries) {
      fprintf(stderr, "faultline: page %llu of region '%s' can't be closed: the kernel has no mapping left (vm.max_map_count)\n", static_cast<unsigned long long>(first), region.name);
      abort();
    }
    wait_for_busy();
  }
}

void unpoison(Region& region, uint64_t first, uint64_t count) {
  if (region.proxies == nullptr || region.released) return;
  // Whatever is open already is filled again when it is used.
  madvise(reinterpret_cast<void*>(region.app.load() + first * region.page_size), count * region.page_size, MADV_DONTNEED);
}

void coalesce(Region& region, uint64_t page) {
  // So many pages that it is not needed again soon. The hand goes round, so that what was used last is closed last.
  constexpr uint64_t kEnough = 8192;
  uint64_t closed = 0;
  for (uint64_t step = 0; step < region.extent_count && closed < kEnough; step++) {
    const uint64_t extent = region.coalesce_hand++ % region.extent_count;
    // The page that is about to be opened, and its neighbours, are in use.
    if (extent == region.extent_of(page) && step + 1 < region.extent_count) continue;
    std::vector<uint64_t> taken;
    take_all(region, extent * region.extent_pages, std::min(region.page_count, (extent + 1) * region.extent_pages), false, false, taken);
    for (size_t start = 0; start < taken.size();) {
      size_t stop = start + 1;
      while (stop < taken.size() && taken[stop] == taken[stop - 1] + 1) stop++;
      const bool done = set_view(region, taken[start], stop - start, kOpenNone, true);
      for (size_t i = start; i < stop; i++) {
        PageEntry& entry = region.pages[taken[i]];
        settle(region, taken[i], finish(entry, done ? uint32_t{kOpenNone} : open(entry.word.load())));
      }
      if (done) closed += stop - start;
      start = stop;
    }
  }
  region.stats.coalesced.fetch_add(closed, std::memory_order_relaxed);
  region.coalesce_turn.fetch_add(1);
  futex_wake(&region.coalesce_turn);
}

}  // namespace faultline
