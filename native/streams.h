// What a thread faults on next, judged by its last faults: pages in equal steps, and questions that are refused. Plain data, which a
// thread has for itself; async-signal-safe.
#pragma once

#include <cstdint>

namespace faultline {

struct Region;

// What a thread faults on in equal steps, forwards or backwards, is read ahead: two at the third fault, then twice as
// many each time, until a fault comes elsewhere. Plain data.
constexpr int kStreams = 4;
struct Stream {
  Region* region;
  uint64_t last;    // the page that was faulted on, or read ahead, last
  int64_t stride;   // 0: only one fault yet
  uint32_t window;  // pages of the last request
  uint32_t used;    // when it was used last, for the choice of a victim
};
// A page that a home refused over a lane is seldom the only one of its kind (somebody has pinned them, say): after a refusal so many of the thread's faults of that kind take the ring at once, four times as many after each
// further one, until one is served. Plain data.
constexpr uint32_t kDetourLongest = 64;
struct Detour {
  Region* region;
  uint32_t left;
  uint32_t length;  // of the last one; 0: the last question was served
};
struct Streams {
  Stream at[kStreams];
  uint32_t turn;
  Detour detours[2];  // of reads, of writes: of the region that refused last
};
// Is this fault one that a home would probably refuse? Counts it.
bool detour_take(Streams& streams, Region& region, uint32_t access);
// A home has answered a question over a lane.
void detour_learn(Streams& streams, Region& region, uint32_t access, bool refused);
// A thread faults on the page: how many pages to ask for, and in which steps.
uint32_t stream_window(Streams& streams, Region& region, uint64_t page, int64_t& stride);
// So many were asked for.
void stream_asked(Streams& streams, Region& region, uint64_t page, uint32_t count);
// Fewer came than were asked for, up to this page: the stream goes on behind those.
void stream_granted(Streams& streams, const Region& region, uint64_t asked_to, uint64_t came_to, uint32_t granted);

}  // namespace faultline
