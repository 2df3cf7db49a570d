// A region at this member: a memfd mapped twice (the app view, guarded, at the same address in every member; the service
// view, always writable), and the tables of page words and directory words.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

#include "directory.h"
#include "guard.h"
#include "member.h"

namespace faultline {

struct Proxies;

inline void count(std::atomic<uint64_t>& counter, uint64_t by = 1) { counter.fetch_add(by, std::memory_order_relaxed); }

struct RegionStats {
  std::atomic<uint64_t> read_faults, write_faults, local_faults, joined_faults, upgrade_faults, lost_faults;
  std::atomic<uint64_t> protection_changes, mapping_limit_hits, coalesced, filled_pages;
  std::atomic<uint64_t> installed_pages, discarded_pages, installed_bytes, installed_without_bytes;
  std::atomic<uint64_t> invalidated_pages, recalled_pages, dropped_pages;
  // On lanes. As the one that asks: faults served, referred to the coordinator, broken off; pages of them that were read
  // ahead; messages. As a page server: questions answered, pages and bytes sent.
  std::atomic<uint64_t> lane_faults, lane_referred, lane_broken, lane_pages_ahead, lane_messages;
  std::atomic<uint64_t> lane_served, lane_pages_out, lane_bytes_out;
  std::atomic<uint64_t> lane_recalls_sent, lane_recalls_received, lane_invalidations_sent, lane_invalidations_received;
  // µs that threads waited in faults that others had to serve: four buckets for each power of two, from 1 µs.
  static constexpr int kBuckets = 96;
  std::atomic<uint64_t> waits[kBuckets];

  void clear() {
    static_assert(std::is_standard_layout<RegionStats>::value, "counters and nothing else");
    auto* counters = reinterpret_cast<std::atomic<uint64_t>*>(this);
    for (size_t i = 0; i < sizeof(RegionStats) / sizeof *counters; i++) counters[i].store(0, std::memory_order_relaxed);
  }
};
double histogram_bound(int bucket);
int histogram_bucket(uint64_t us);

// What an extent's pages are at this member.
enum Homed : uint8_t { kNotHomed = 0, kHomed = 1, kHomedLost = 2 };
enum Touched : uint8_t { kPagesTouched = 1, kDirectoryTouched = 2 };

// Whose home which pages are, for lanes: a copy of what the members agreed on. Replaced as a whole, never changed.
struct Slices {
  struct Slice {
    uint64_t first, count;
    uint32_t slot, generation;
  };
  uint32_t count = 0;
  Slices* former = nullptr;  // kept while a handler may look at it: as long as the region
  Slice at[1];
};

// The addresses of an app view. They outlive the region while buffers over them do.
struct Reservation {
  uintptr_t address = 0;
  uint64_t size = 0;
  std::atomic<uint32_t> buffers{0};
};

// A handler may read the pointer to one at any time, so its memory stays; the next region at the same place in the table of
// regions uses it again (region_create). What is atomic here only to be looked at by such a handler: handle, id, size.
struct Region {
  std::atomic<uint32_t> handle{0};
  uint32_t member_handle = 0;
  Member* member = nullptr;
  std::atomic<uint32_t> id{0};
  char name[256] = {};
  std::atomic<uint64_t> size{0};
  uint64_t page_size = 0;
  int page_shift = 0;
  uint64_t page_count = 0;
  uint64_t extent_pages = 0;
  uint64_t extent_count = 0;

  int memfd = -1;
  uint8_t* service = nullptr;
  std::atomic<uintptr_t> app{0};
  Reservation* reservation = nullptr;
  Guard* guard = nullptr;
  int uffd = -1;  // watches the app view, if the guard is userfaultfd
  Proxies* proxies = nullptr;  // serve what it reports, if system calls are served

  PageEntry* pages = nullptr;
  DirectoryEntry* directory = nullptr;
  std::atomic<uint8_t>* homed = nullptr;
  std::atomic<uint8_t>* touched = nullptr;
  std::atomic<Slices*> slices{nullptr};

  // A Down code of its own, besides the member's.
  std::atomic<uint32_t> down{kUp};
  char detail[256] = {};
  // Moves when mappings were given back: threads that could not open a page wait on it.
  std::atomic<uint32_t> coalesce_turn{0};
  // Places in the app view where neighbouring pages allow different accesses: each costs the kernel a mapping.
  std::atomic<int64_t> borders{0};
  // The extent where the next giving back of mappings begins.
  uint64_t coalesce_hand = 0;
  // Threads in the handler with this region: its tables stay while there are any. The only field that is never set anew: a
  // handler that came too late counts itself for a moment, too.
  std::atomic<uint32_t> active{0};
  // Those that receive into, or send from, the service view.
  std::atomic<uint32_t> on_lanes{0};
  // Pages [from, to) had memory when they were last looked at: see data_until().
  std::atomic<uint64_t> dense_from{0}, dense_to{0};
  std::atomic<bool> released{false};
  RegionStats stats{};

  uint64_t extent_of(uint64_t page) const { return page / extent_pages; }
  void touch(uint64_t page, uint8_t what) {
    std::atomic<uint8_t>& flags = touched[extent_of(page)];
    if ((flags.load(std::memory_order_relaxed) & what) != what) flags.fetch_or(what);
  }
  // For a new region, when the one before it at this place has ended (region_release) and nobody is active.
  void renew();
  // nullptr: not known. Async-signal-safe.
  const Slices::Slice* slice_of(uint64_t page) const;
  bool homed_here(uint64_t page) const { return homed[extent_of(page)].load() == kHomed; }
};

// Why accesses can't be served now, or kUp.
uint32_t effective_down(const Region& region);

struct SystemFailure {
  const char* code = nullptr;  // nullptr: none
  const char* syscall = "";
  int error = 0;
};

struct RegionSpec {
  uint32_t id;
  std::string name;
  uint64_t size, page_size, extent_pages;
};

Region* region_create(uint32_t member_handle, const RegionSpec& spec, SystemFailure& failure);
Region* region_at(uint32_t handle);
// The same, from threads that the coordinator does not know of, with its active count raised.
Region* region_enter_handle(uint32_t handle);
// The member's region with this id in the cluster's table, with its active count raised; nullptr if there is none.
Region* region_enter_id(const Member& member, uint32_t id);
// Takes the table over; slices are sorted.
void region_set_slices(Region& region, Slices* slices);
Slices* slices_make(uint32_t count);
// kWithSystemCalls: userfaultfd, and the kernel's own accesses are served, too (proxies.h).
enum class GuardKind : uint8_t { kMprotect = 0, kUserfaultfd = 1, kWithSystemCalls = 2 };
bool region_map(Region& region, uintptr_t address, SystemFailure& failure, GuardKind kind = GuardKind::kMprotect);
void region_down(Region& region, uint32_t down, const std::string& detail);
void region_release(Region& region);
void reservation_unref(Reservation* reservation);
// Closes every app view of the member; final: the regions stay down with the member's code.
void regions_close_views(Member& member, bool final);

// For the handler: the region whose app view has this address, with its active count raised; nullptr if none.
// Async-signal-safe.
Region* region_enter(uintptr_t address);
inline void region_leave(Region& region) { region.active.fetch_sub(1); }

// What transitions leave to do: wakes sleepers, tells the coordinator that a page is free. Async-signal-safe.
void settle(Region& region, uint64_t page, After after);

#ifdef FAULTLINE_SIMULATION
// Whether mappings are short just now.
bool simulation_refuses(const Region& region, uint64_t first, uint64_t count, uint32_t wanted);
#endif

// The memfd has no byte of the page: nobody has written it. Async-signal-safe.
bool is_hole(const Region& region, uint64_t page);
// Where the memfd has bytes, or none, at or after a page; the region's end if nowhere. Async-signal-safe.
uint64_t next_data(const Region& region, uint64_t page);
uint64_t next_hole(const Region& region, uint64_t page);
// The page has memory, and so have its neighbours before this one. (The kernel looks at every page until the next hole, which may
// be the region's end: it is asked again when memory has been given back, and a hole that is taken for data costs its bytes only.)
uint64_t data_until(Region& region, uint64_t page);
// Bytes of memory (or swap) that the memfd has. Not in the handler: it asks the kernel for more than a position.
uint64_t region_memory(const Region& region);
// Pages have come whose memory counts (budget.h). Async-signal-safe.
void spend_memory(Region& region, uint64_t pages);
// Tells the coordinator that memory is short. Async-signal-safe.
void ring_memory(Region& region);
// Has the kernel make what the memfd lacks of these bytes. false: it did not (no memory, or a kernel before 5.14).
// Async-signal-safe: a bare system call.
bool make_memory(const Region& region, uint64_t offset, uint64_t bytes);

// Opens a run of BUSY pages as far as `wanted`; kAsItWas if that can't be done now.
uint32_t open_run(Region& region, uint64_t first, uint64_t count, uint32_t wanted);
// Gives pages of [first, end) that are open, from the first one to the first that is BUSY or open differently, what the guard
// has left out. Returns how many. Async-signal-safe.
uint64_t fill_run(Region& region, uint64_t first, uint64_t end);
// All that the guard has left out of an open run. Not in the handler.
void fill_holes(Region& region, uint64_t first, uint64_t count);
// Pages in equal steps that one thread has BUSY; bit i of `busy`: the i-th one is.
struct BusyPages {
  uint64_t first;
  int64_t stride;
  uint64_t busy;
  bool has(uint64_t page) const {
    const auto distance = static_cast<int64_t>(page - first);
    const int64_t i = distance / stride;
    return distance % stride == 0 && i >= 0 && i < 64 && (busy >> i & 1);
  }
};
// Closes a run of BUSY pages to `wanted` (none or read) whatever it takes; returns what is open now. If it takes more, that
// may close others that the caller has BUSY (their OPEN says so then). Not in the handler.
uint32_t close_run(Region& region, uint64_t first, uint64_t count, uint32_t wanted, const BusyPages* others = nullptr);
// Pages that were lost, or in a region that was down, are found: the next access to one is served again, not refused.
void unpoison(Region& region, uint64_t first, uint64_t count);
// M14. Gives mappings back around a page, then wakes who waits for them.
void coalesce(Region& region, uint64_t page);

}  // namespace faultline
