#include "streams.h"

#include "directory.h"

namespace faultline {

uint32_t stream_window(Streams& streams, Region& region, uint64_t page, int64_t& stride) {
  // As near as that, a fault may belong to a stream whose stride is not known yet, or has changed.
  constexpr int64_t kNear = 64;
  streams.turn++;
  Stream* oldest = &streams.at[0];
  Stream* near = nullptr;
  for (Stream& stream : streams.at) {
    if (static_cast<int32_t>(stream.used - oldest->used) < 0) oldest = &stream;
    if (stream.region != &region) continue;
    const auto step = static_cast<int64_t>(page - stream.last);
    if (stream.stride != 0 && step == stream.stride) {
      stream.used = streams.turn;
      stream.window = stream.window == 0 ? 2 : stream.window * 2;
      stride = stream.stride;
      return stream.window;
    }
    if (step != 0 && step > -kNear && step < kNear) near = &stream;
  }
  Stream& stream = near != nullptr ? *near : *oldest;
  stream.stride = near != nullptr ? static_cast<int64_t>(page - stream.last) : 0;
  stream.region = &region;
  stream.last = page;
  stream.window = 0;
  stream.used = streams.turn;
  stride = 1;
  return 1;
}

void stream_asked(Streams& streams, Region& region, uint64_t page, uint32_t asked) {
  for (Stream& stream : streams.at) {
    if (stream.region != &region || stream.used != streams.turn) continue;
    stream.last = page + static_cast<uint64_t>(stream.stride * static_cast<int64_t>(asked > 0 ? asked - 1 : 0));
    if (stream.window > asked) stream.window = asked;
  }
}

void stream_granted(Streams& streams, const Region& region, uint64_t asked_to, uint64_t came_to, uint32_t granted) {
  for (Stream& stream : streams.at) {
    if (stream.region != &region || stream.last != asked_to) continue;
    stream.last = came_to;
    stream.window = granted;
  }
}

bool detour_take(Streams& streams, Region& region, uint32_t access) {
  Detour& detour = streams.detours[access == kWrite];
  if (detour.region != &region || detour.left == 0) return false;
  detour.left--;
  return true;
}

void detour_learn(Streams& streams, Region& region, uint32_t access, bool refused) {
  Detour& detour = streams.detours[access == kWrite];
  if (!refused) {
    if (detour.region == &region) detour = {};
    return;
  }
  const uint32_t before = detour.region == &region ? detour.length : 0;
  const uint32_t length = before == 0 ? 1 : before * 4 < kDetourLongest ? before * 4 : kDetourLongest;
  detour = {&region, length, length};
}

}  // namespace faultline
