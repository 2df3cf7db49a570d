// The lanes of one member: sockets to the page servers of the others, and its own page server. Lanes are made and ended
// by the page server's thread and the coordinator; the fault handler only takes one that is free, and puts it back.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "calls.h"
#include "lane.h"

namespace faultline {

// Lanes to one peer: as many threads may have a fault under way there at a time; more take the ring.
constexpr uint32_t kLanesPerPeer = 4;
// As many threads may receive new pages in the fast way at a time; more receive them in place.
constexpr uint32_t kBounces = 16;
constexpr uint32_t kFaultLanes = (1u << kLanesPerPeer) - 1;
constexpr uint32_t kPeerSlots = 1023;
constexpr uint32_t kTokenBytes = 16;

struct Peer;

struct Lane {
  Peer* peer = nullptr;
  uint32_t index = 0;
  std::atomic<int> fd{-1};
  // To another machine, or as if it were. Set before the lane can be taken.
  bool far = false;
  // Where the page server at the other end ran when it answered last.
  std::atomic<uint32_t> server_cpu{UINT32_MAX};
  // ns until an answer usually begins: a moving average.
  std::atomic<uint32_t> usual{0};
  void learn(uint64_t ns) {
    const uint32_t before = usual.load(std::memory_order_relaxed);
    usual.store(before - before / 8 + static_cast<uint32_t>((ns < 1'000'000 ? ns : 1'000'000) / 8), std::memory_order_relaxed);
  }
  std::atomic<uint32_t> questions{0};
  // Its last answer had bytes, or would have had.
  std::atomic<bool> brings_bytes{true};
};

// What this member knows of another, for lanes. Kept for the next one in the same slot: a handler may look at it.
struct Peer {
  uint32_t slot = 0;
  std::atomic<uint32_t> member{0};  // its id; 0: nobody
  std::atomic<bool> up{false};
  // Bit i: lane i can be taken by a fault; is to be made anew.
  std::atomic<uint32_t> free{0};
  std::atomic<uint32_t> broken{0};
  // Those for faults, then those for calls.
  Lane lanes[kLanesPerPeer + kCallLanes];

  // Under Calls::mutex: the sockets of the lanes for calls; those that can be taken. Somebody has wanted one (for anybody to read).
  std::shared_ptr<Socket> calls[kCallLanes];
  uint32_t calls_idle = 0;
  std::atomic<bool> wants_calls{false};

  // Under Lanes::mutex.
  uint32_t connected = 0;   // bit i: lane i has an open socket
  uint32_t connecting = 0;
  std::string address;             // where its page server listens; empty: not known yet
  uint8_t token[kTokenBytes] = {};     // that it wants to hear
  uint8_t expected[kTokenBytes] = {};  // that it must say here
  uint64_t again_at = 0;           // µs: when to connect again
  uint32_t attempts = 0;
};

// Where a page server listens: for members on this machine (a Unix socket), and for others (TCP; "" if there are none).
struct LaneAddresses {
  std::string near, far;
};

struct Lanes {
  std::atomic<Peer*> peers[kPeerSlots] = {};
  // One message written to it makes the page server look at `broken`, at new peers, or at `stopping`.
  std::atomic<int> event{-1};
  std::atomic<uint32_t> wakers{0};  // threads that are about to
  std::mutex mutex;
  std::atomic<uint32_t> waiting{0};  // for the mutex, others than the page server
  bool running = false;
  // Places through which pages come that have no memory yet, kBounces of kLaneBytes each; bit i: place i is free. nullptr: there
  // was no memory for them. Kept, like all of this.
  uint8_t* bounce = nullptr;
  std::atomic<uint32_t> bounce_free{0};
  LaneAddresses addresses;
  void* server = nullptr;
  Calls calls;
  // All messages over lanes, of both ends.
  std::atomic<uint64_t> messages_sent{0}, messages_received{0}, bytes_sent{0}, bytes_received{0};
};

// Starts the member's page server. `host`: an address to listen at by TCP, too, or empty. Returns where it can be reached,
// or `failure`.
LaneAddresses lanes_open(Member& member, uint32_t self, const std::string& host, SystemFailure& failure);
// Somebody is in the view: the token that it must say when it connects.
void lanes_expect(Member& member, uint32_t slot, uint32_t id, const uint8_t* token);
// It listens there, and wants this token.
void lanes_connect(Member& member, uint32_t slot, uint32_t id, const std::string& address, const uint8_t* token);
// It is out of the view. When this returns no question to or from it is under way, and none will be.
void lanes_close_peer(Member& member, uint32_t slot, uint32_t id);
// The page server ends, and all lanes; waits for threads that use one (they find its socket shut). Any number of times.
void lanes_stop(Member& member);

// Lanes that are open to others now.
uint32_t lanes_connected(Member& member);

// What went over lanes since the member joined.
struct LaneTraffic {
  uint64_t messages_sent, messages_received, bytes_sent, bytes_received;
};
LaneTraffic lanes_traffic(Member& member);

// For the handler: asks, installs, ends the claims. Async-signal-safe.
void lane_exchange(Region& region, LaneTurn& turn);

// The same in two halves, for whoever does not want to wait in between; take_answer waits for what is not here yet. asked:
// what put_question said.
bool put_question(Region& region, LaneTurn& turn, uint64_t& asked_at);
void take_answer(Region& region, LaneTurn& turn, bool asked, uint64_t asked_at);

// Brings pages of [first, end) that are not here, as far as lanes can, run by run; `looked_at`: everything before it was
// tried. What is not here then is the coordinators'. Not in the handler: it waits for answers.
void lane_fetch(Region& region, uint64_t first, uint64_t end, uint32_t access, uint64_t& looked_at);

// From any thread, a signal handler included: the page server looks at what is broken or wanted. Between adding to and taking
// from `wakers` its descriptor stays.
void lanes_wake(Lanes& lanes);

// Is looking at the lane's socket better than sleeping, for a thread on this processor? Async-signal-safe.
bool lane_may_poll(const Lane& lane, uint32_t cpu);

// µs that both ends look at a socket before they sleep (FAULTLINE_LANE_POLL); 0: they sleep at once.
uint32_t lane_poll_us();

}  // namespace faultline
