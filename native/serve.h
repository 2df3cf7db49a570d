// What a thread that faulted does, one look at a time: no waiting here, no signal, no thread of its own. The handler
// (fault.cc) waits between the looks; the simulator interleaves them with everything else. Everything in it is
// async-signal-safe: atomics on memory that exists, the guard, the ring, and the futex.
#pragma once

#include "lane.h"

namespace faultline {

enum class Next : uint8_t {
  kRun,       // the mapping allows the access: run the instruction
  kLook,      // look again at once
  kWait,      // sleep while the low half of the page's word is `futex`
  kChange,    // BUSY (at the home LOCK, too) was taken: serve_change()
  kMappings,  // no mapping is left: sleep while coalesce_turn is `futex`
  kFrozen,    // sleep while the member is frozen
  kRefused,   // the region is down for good: `down` says why
  kLost,
  kLane,      // claimed for a lane: ask over it, then lane_install() and lane_finish(), or lane_give_up()
  kMemory,    // no memory is left for the page: sleep while the budget's turn is `futex`
};

// One thread's fault on one page. All but the first two fields are serve_look()'s and serve_change()'s own.
struct Turn {
  uint64_t page = 0;
  uint32_t access = 0;
  uint32_t futex = 0;
  uint32_t down = kUp;
  // How often it still waits for memory, before it goes on without.
  uint32_t patience = kMemoryPatience;
  bool waited = false;      // it had to wait for others
  bool registered = false;  // counted among the page's unresumed
  bool ask_home = true;
  bool at_home = false;     // what is BUSY is the home's own run [first, end), inside the gate
  uint32_t grant = kInvalid;
  uint64_t first = 0;
  uint64_t end = 0;
  uint32_t retired = 0;     // members that have given their copies up, over lanes
  LaneTurn lane;
  Streams* streams = nullptr;  // the thread's own; nullptr: nothing is read ahead
};

Next serve_look(Region& region, Turn& turn);
// The protection change that serve_look() took BUSY for.
Next serve_change(Region& region, Turn& turn);
// The thread was stopped although the page allows the access: the guard left a hole there.
bool serve_fill(Region& region, const Turn& turn);

// D1 for the coordinator's own claims: both steps at once. false: the page is not the home's to open now.
bool open_home(Region& region, uint64_t page, uint32_t access);

// ---- the same instruction again ------------------------------------------------------------------------------------

// One instruction needs few pages at a time: a load over a border two, a movs over borders four.
constexpr int kRemembered = 4;

// What a thread faulted on at the same instruction. Plain data.
struct Recent {
  Region* region[kRemembered];
  uint64_t page[kRemembered];
  int count;
  uint32_t hold;
};

// A single instruction may need several pages at once, and another member may take the first while the second comes.
// When a thread faults again at the same instruction, the pages of its last faults stay a while: each time longer, until
// the instruction got to run. ran: it did, since the last call. own: differs between threads, so that two that need each
// other's pages come apart.
void hold_recent(Recent& recent, Region& region, uint64_t page, bool ran, uint32_t own, uint32_t now);

}  // namespace faultline
