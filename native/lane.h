// The express lane: a faulting thread asks the one other member that can decide alone, over a socket that is open
// already, and that member's page server (a thread of its own) answers. Steps without any socket, which the simulator
// interleaves like everything else, are in lane_steps.cc and lane_serve.cc; the sockets are in lane_client.cc and page_server*.cc.
#pragma once

#include <cstdint>

#include "region.h"
#include "streams.h"

namespace faultline {

// Pages of one request; the sum of their bytes is bounded, too.
constexpr uint32_t kLanePages = 64;
constexpr uint64_t kLaneBytes = 256 << 10;
// ... of one that a page server makes for somebody: its answer is taken when the whole of it has come, so it has to fit into the
// buffers of a socket.
constexpr uint64_t kHopBytes = 64 << 10;
// Members that are asked one after the other to give their copies of a page up; of more the coordinator asks all at once.
constexpr uint32_t kRetiredOneByOne = 8;

// ---- what goes over a lane: fixed sizes, this machine's byte order (members of another are refused at the join) -------

constexpr uint32_t kLaneMagic = 0x316c6166;  // "fal1"

enum LaneOp : uint8_t {
  kLaneRequest = 1,   // member -> home: these pages, with this access
  kLaneRecall = 2,    // home -> owner: these pages back
  kLaneReturned = 3,  // home -> owner: I have your bytes; no answer
  kLaneCall = 4,      // member -> registrar: `version` bytes of text follow (calls.h)
  kLaneRetire = 5,    // home -> who has a copy: give it up
};

struct LaneQuestion {
  uint32_t magic;
  uint8_t op;
  uint8_t access;
  uint8_t keep;      // kLaneRecall: stay with a shared copy; else: all pages with this access, not the first alone
  uint8_t count;     // pages first, first + stride, ...; kLaneReturned: one
  uint32_t region;   // its id in the cluster's table
  uint32_t generation;  // of the home of the page's slice
  uint32_t version;  // kLaneRequest: of the copy that is held (one page only), 0 for none; else: of the first page
  int32_t stride;
  uint64_t page;
  uint32_t cpu;      // where the asking thread runs
  uint32_t reserved;
};
static_assert(sizeof(LaneQuestion) == 40, "it goes over the wire");

enum LaneContent : uint8_t { kLaneBytesFollow = 0, kLaneZero = 1, kLaneSame = 2 };

struct LaneAnswer {
  uint32_t magic;
  uint8_t granted;   // pages; 0: ask the coordinator
  uint8_t content;   // of all of them
  uint16_t reserved;
  uint32_t cpu;      // where the page server runs
  uint32_t reserved2;
  uint64_t received, answered;  // ns of CLOCK_MONOTONIC, if the two run on one machine
  uint32_t versions[kLanePages];  // only as many as were asked for are sent
};
constexpr uint64_t kLaneAnswerHead = 32;
inline uint64_t lane_answer_size(uint32_t count) { return kLaneAnswerHead + 4 * count; }

// Page `i` of a question, and the access that it asks for. What is read ahead unasked is only read: pages that a member owns without
// having written them would be lost with it.
inline uint64_t page_of(const LaneQuestion& question, uint64_t i) { return question.page + static_cast<uint64_t>(int64_t{question.stride} * static_cast<int64_t>(i)); }
inline uint32_t access_at(const LaneQuestion& question, uint32_t i) { return i == 0 || question.keep != 0 ? question.access : uint32_t{kRead}; }

// ---- the thread that faulted ----------------------------------------------------------------------------------------

// A claim that is to be served over a lane, from serve_look() to lane_finish() or lane_give_up().
struct LaneTurn {
  void* lane = nullptr;  // taken, by whoever provides lanes
  uint32_t slot = 0;     // of the member at the other end
  bool hop = false;      // D4: this member is the home
  bool retire = false;   // this member is the home, too, and a copy is to go; stays set when the turn is over, until somebody has seen it
  uint64_t writer = 0;   // of end_retire()
  bool ahead = false;    // no thread waits for the first page either
  bool for_asker = false;  // a hop of the page server's, for somebody who asks it
  uint32_t granted = 0;  // pages, when the answer is here
  Streams* streams = nullptr;  // the thread's own, or nullptr
  LaneQuestion question;
};

// A free lane to the member at `slot`, or nullptr; and back. Async-signal-safe.
void* lane_take(Region& region, uint32_t slot);
void lane_put_back(Region& region, void* lane);

// Does the page's home have lanes? Then takes one. Async-signal-safe, as all below.
bool lane_to_home(Region& region, uint64_t page, LaneTurn& turn);
// The page has been claimed for the lane: the question, with what is read ahead claimed as well.
void lane_ask(Region& region, uint64_t page, uint32_t access, uint32_t held_version, Streams* streams, LaneTurn& turn);
// Claims, from `page` on and before `end`, the next pages that are neither here nor asked for, takes a lane to their home (or to
// their owner, if they are homed here), and makes the question; `page` is behind them then. false: there are none, or no lane.
bool lane_ask_ahead(Region& region, uint64_t& page, uint64_t end, uint32_t access, LaneTurn& turn);
// D4, first half: the page is homed here and another member has it. What follows in those steps, and is its owner's, too, is
// fetched to be read with it, `most` pages in all. false: nothing was changed.
bool lane_hop(Region& region, uint64_t page, uint32_t access, bool& registered, uint32_t most, int64_t stride, LaneTurn& turn);
// ... by a thread with such streams.
bool lane_hop(Region& region, uint64_t page, uint32_t access, bool& registered, Streams* streams, LaneTurn& turn);
// A copy is to go, first half: the page is homed here, idle, and one of the members that have copies (but for `writer`, a bit of the
// copyset) is to give its own up. What follows in those steps, and is alike, with it, `most` pages in all. false: nothing was changed.
bool lane_retire(Region& region, uint64_t page, bool& registered, uint64_t writer, uint32_t most, int64_t stride, LaneTurn& turn);
// ... by a thread with such streams. first: else other copies of the pages of the last question, which is still in `turn`.
bool lane_retire(Region& region, uint64_t page, bool& registered, bool first, Streams* streams, LaneTurn& turn);
// What the owner is to be told when these pages have come: page `i` of them.
LaneQuestion lane_thanks(const LaneTurn& turn, const LaneAnswer& answer, uint32_t i);
// The answer is here, and the bytes are in the service view. Takes BUSY of all that can be installed ...
void lane_install(Region& region, LaneTurn& turn, const LaneAnswer& answer, uint64_t& begun);
// ... opens them, and ends the claims.
void lane_finish(Region& region, LaneTurn& turn, const LaneAnswer& answer, uint64_t begun);
// No answer: the claims become the coordinator's, or end, and then the lane is put back, or what else is to be done with it.
void lane_give_up(Region& region, LaneTurn& turn, void (*with_lane)(Region&, void*));

// ---- the page server ------------------------------------------------------------------------------------------------

// One question, from the member at `slot`. Between the two halves LOCK and BUSY are held, and the gate is entered.
struct Serving {
  LaneQuestion question;
  uint32_t slot = 0;
  uint32_t taken = 0;          // pages
  uint64_t closes = 0;         // bit i: page i is BUSY, and to be closed
  LaneAnswer answer;
  uint64_t first_byte = 0;     // kLaneBytesFollow: where the first page's bytes are in the memfd
};

bool serve_begin(Region& region, Serving& serving);
void serve_finish(Region& region, Serving& serving);
// Refused, because a third member owns the page: claims it for this home as a thread of its own would that faults on it, and
// takes a lane to the owner. When that turn has ended the question can be looked at again. false: nothing was changed.
bool serve_hop(Region& region, const Serving& serving, LaneTurn& turn);
// Refused, for a reason that will probably be over within a few µs.
bool serve_again(const Region& region, const Serving& serving);
// kLaneReturned.
void serve_returned(Region& region, uint32_t slot, const LaneQuestion& question);

}  // namespace faultline
