// The asking end of a lane: in the fault handler, and for prefetches. It makes bare system calls (sendmsg, recvmsg, shutdown,
// write, pwrite, madvise, sched_getaffinity), reads the clock and the processor's number (clock_gettime is on POSIX's list; sched_getcpu reads
// what the kernel keeps for this thread, and takes no lock), and touches memory that exists. Nothing else.
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "futex.h"
#include "lanes.h"
#include "stamps.h"

namespace faultline {
namespace {

// A lane whose answers usually take longer to begin, ns, is not worth looking at all the while; once in so many questions it
// is tried again. (How long they go on is a matter of their bytes.)
constexpr uint32_t kWorthPolling = 60'000;
constexpr uint32_t kTryAgain = 16;
// Bytes that come at once, or not at all.
constexpr uint64_t kOnePiece = 4096;

bool has_two_processors() {
  unsigned long mask[16] = {};
  const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
  int count = 0;
  for (long i = 0; i < bytes / static_cast<long>(sizeof(unsigned long)) && count < 2; i++) count += __builtin_popcountl(mask[i]);
  return count > 1;
}

bool send_all(int fd, const void* bytes, size_t length) {
  size_t done = 0;
  while (done < length) {
    const ssize_t sent = send(fd, static_cast<const char*>(bytes) + done, length - done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    done += static_cast<size_t>(sent);
  }
  return true;
}

// Whoever holds a copy gets no bytes, nor does whoever retires one.
bool may_bring_bytes(const LaneQuestion& question) {
  return question.op != kLaneRetire && (question.op != kLaneRequest || question.version == 0);
}

// What is to be received from byte `got` on: the answer's head, then the pages, each where it belongs.
int places(const Region& region, const LaneQuestion& question, LaneAnswer& answer, uint64_t got, iovec* at) {
  const uint64_t head = lane_answer_size(question.count);
  int used = 0;
  if (got < head) at[used++] = {reinterpret_cast<char*>(&answer) + got, head - got};
  if (!may_bring_bytes(question)) return used;
  const uint64_t skip = got > head ? got - head : 0;
  const uint64_t size = region.page_size;
  if (question.stride == 1) {
    const uint64_t length = size * question.count;
    if (skip < length) at[used++] = {region.service + question.page * size + skip, length - skip};
    return used;
  }
  for (uint64_t i = skip / size; i < question.count; i++) {
    const uint64_t within = i == skip / size ? skip % size : 0;
    const uint64_t page = page_of(question, i);
    at[used++] = {region.service + page * size + within, size - within};
  }
  return used;
}

// The memory that the bytes are received into is most probably new, and costs as much as everything else on the way: the
// kernel finds and clears it while the other end works. Only if the thread would look at the socket meanwhile, and the lane
// has brought bytes last. Where it can't be made now, receiving does it.
void make_room(const Region& region, const LaneQuestion& question, const Lane& lane) {
  if (!may_bring_bytes(question) || question.count > 1 || !lane.brings_bytes.load(std::memory_order_relaxed)) return;
  make_memory(region, question.page * region.page_size, region.page_size);
}

// Pages that this member has never had have no memory yet. Received in place, each costs a page fault of the kernel's, which
// clears what is then overwritten; written to the memfd whole, neither (docs/optimisations.md). So they come by way of a place that is
// in the processor's cache already.
class Bounce {
 public:
  Bounce(const Region& region, const LaneQuestion& question, bool wanted) : region_(region), question_(question), lanes_(*region.member->lanes.load()) {
    if (!wanted || region.pages[question.page].version.load(std::memory_order_relaxed) != 0) return;
    uint32_t mask = lanes_.bounce_free.load();
    while (mask != 0) {
      const uint32_t bit = mask & (~mask + 1);
      if (!lanes_.bounce_free.compare_exchange_weak(mask, mask & ~bit)) continue;
      bit_ = bit;
      place_ = lanes_.bounce + static_cast<uint64_t>(__builtin_ctz(bit)) * kLaneBytes;
      return;
    }
  }
  ~Bounce() {
    if (place_ != nullptr) lanes_.bounce_free.fetch_or(bit_);
  }
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;

  bool used() const { return place_ != nullptr; }

  // Where byte `got` of the pages' and those after it go.
  iovec next(uint64_t got) const {
    const uint64_t here = got - put_;
    const uint64_t left = region_.page_size * question_.count - got;
    return {place_ + here, left < kLaneBytes - here ? left : kLaneBytes - here};
  }

  // So many bytes have come: what is whole of them goes where it belongs. false: there is no memory for it.
  bool put(uint64_t got) {
    constexpr uint64_t kWhole = 4096;
    const uint64_t size = region_.page_size;
    const uint64_t end = got / kWhole * kWhole;
    const uint64_t from = put_;
    while (put_ < end) {
      const uint64_t within = question_.stride == 1 ? put_ : put_ % size;
      const uint64_t page = question_.stride == 1 ? question_.page : page_of(question_, put_ / size);
      const uint64_t length = question_.stride == 1 ? end - put_ : end - put_ < size - within ? end - put_ : size - within;
      const ssize_t written = pwrite(region_.memfd, place_ + (put_ - from), length, static_cast<off_t>(page * size + within));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return false;
      put_ += static_cast<uint64_t>(written);
    }
    if (got > end && end > from) memmove(place_, place_ + (end - from), got - end);
    return true;
  }

 private:
  const Region& region_;
  const LaneQuestion& question_;
  Lanes& lanes_;
  uint32_t bit_ = 0;
  uint8_t* place_ = nullptr;
  uint64_t put_ = 0;
};

// As places(), by way of a bounce.
int bounced(const Bounce& bounce, const LaneQuestion& question, LaneAnswer& answer, uint64_t got, iovec* at) {
  const uint64_t head = lane_answer_size(question.count);
  int used = 0;
  if (got < head) at[used++] = {reinterpret_cast<char*>(&answer) + got, head - got};
  if (!may_bring_bytes(question)) return used;
  at[used++] = bounce.next(got > head ? got - head : 0);
  return used;
}

// The whole answer, or false: the lane is of no use any more. waited: ns until it began.
bool receive(const Region& region, const LaneQuestion& question, Lane& lane, LaneAnswer& answer, uint64_t asked_at, uint64_t& got, uint64_t& waited) {
  const int fd = lane.fd.load(std::memory_order_relaxed);
  const uint64_t head = lane_answer_size(question.count);
  const uint32_t cpu = static_cast<uint32_t>(sched_getcpu());
  bool polls = lane_may_poll(lane, cpu);
  iovec at[kLanePages + 1];
  got = 0;
  uint64_t whole = head;
  uint64_t looked_at = asked_at;
  if (polls) {
    make_room(region, question, lane);
    looked_at = now_ns();
  }
  // While this thread looks at the socket it has made the room for a single page.
  Bounce bounce(region, question, may_bring_bytes(question) && (!polls || question.count > 1 || region.page_size > kOnePiece));
  const uint64_t patience = uint64_t{lane_poll_us()} * 1000;
  uint64_t until = looked_at + patience;
  const bool in_pieces = question.count > 1 || region.page_size > kOnePiece;
  while (got < whole) {
    msghdr message{};
    message.msg_iov = at;
    message.msg_iovlen = static_cast<size_t>(bounce.used() ? bounced(bounce, question, answer, got, at) : places(region, question, answer, got, at));
    const ssize_t count = recvmsg(fd, &message, polls ? MSG_DONTWAIT : 0);
    if (count > 0) {
      const bool had_head = got >= head;
      if (got == 0) waited = now_ns() - looked_at;
      got += static_cast<uint64_t>(count);
      if (polls && in_pieces) until = now_ns() + patience;
      if (!had_head && got >= head) {
        if (answer.magic != kLaneMagic || answer.granted > question.count || answer.content > kLaneSame) return false;
        const bool bytes = answer.granted > 0 && answer.content == kLaneBytesFollow;
        if (bytes && !may_bring_bytes(question)) return false;
        if (answer.granted > 0 && answer.content != kLaneSame) lane.brings_bytes.store(bytes, std::memory_order_relaxed);
        if (bytes) whole = head + answer.granted * region.page_size;
      }
      if (bounce.used() && got > head && !bounce.put(got - head)) return false;
      continue;
    }
    if (count < 0 && errno == EINTR) continue;
    // EAGAIN of a socket that blocks: its longest time is over.
    if (count < 0 && errno == EAGAIN && polls) {
      polls = now_ns() < until;
      continue;
    }
    return false;
  }
  return got == whole;
}

}  // namespace

// The other end runs beside this thread, not in its place. Where it ran last tells that, also to a thread that is bound to
// one processor; before it is known, and of another machine's processors, all that tells is that this thread has a second.
bool lane_may_poll(const Lane& lane, uint32_t cpu) {
  if (lane_poll_us() == 0) return false;
  if (lane.usual.load(std::memory_order_relaxed) > kWorthPolling && lane.questions.load(std::memory_order_relaxed) % kTryAgain != 0) return false;
  const uint32_t server_cpu = lane.server_cpu.load(std::memory_order_relaxed);
  return server_cpu == UINT32_MAX || lane.far ? has_two_processors() : server_cpu != cpu;
}

uint32_t lane_poll_us() {
  static const uint32_t us = [] {
    const char* text = getenv("FAULTLINE_LANE_POLL");
    const long value = text != nullptr ? strtol(text, nullptr, 10) : 50;
    return value < 0 ? 0u : value > 10'000 ? 10'000u : static_cast<uint32_t>(value);
  }();
  return us;
}

void lanes_wake(Lanes& lanes) {
  lanes.wakers.fetch_add(1);
  const int event = lanes.event.load();
  const uint64_t one = 1;
  ssize_t written = event >= 0 ? write(event, &one, sizeof one) : 0;
  static_cast<void>(written);
  lanes.wakers.fetch_sub(1);
}

void* lane_take(Region& region, uint32_t slot) {
  Member& member = *region.member;
  if (slot >= kPeerSlots || member.handle != region.member_handle) return nullptr;
  Lanes* lanes = member.lanes.load();
  Peer* peer = lanes != nullptr ? lanes->peers[slot].load() : nullptr;
  if (peer == nullptr) return nullptr;
  uint32_t mask = peer->free.load();
  while (mask != 0) {
    const uint32_t bit = mask & (~mask + 1);
    if (!peer->free.compare_exchange_weak(mask, mask & ~bit)) continue;
    Lane* lane = &peer->lanes[__builtin_ctz(bit)];
    if (peer->up.load()) return lane;
    lane_put_back(region, lane);
    return nullptr;
  }
  return nullptr;
}

void lane_put_back(Region&, void* taken) {
  auto* lane = static_cast<Lane*>(taken);
  lane->peer->free.fetch_or(1u << lane->index);
}

namespace {

// In place of putting it back: its socket is shut, and the page server's thread makes a new one. The descriptor is closed
// there, too, so that nobody shuts one that has become somebody else's.
void lane_break(Region& region, Lane& lane) {
  Lanes& lanes = *region.member->lanes.load();
  // From the moment that the lane counts as broken its page server may end.
  lanes.wakers.fetch_add(1);
  shutdown(lane.fd.load(), SHUT_RDWR);
  lane.peer->broken.fetch_or(1u << lane.index);
  lanes_wake(lanes);
  lanes.wakers.fetch_sub(1);
}

}  // namespace

// The question is on its way; false: the lane is of no use.
bool put_question(Region& region, LaneTurn& turn, uint64_t& asked_at) {
  auto& lane = *static_cast<Lane*>(turn.lane);
  LaneQuestion& question = turn.question;
  question.cpu = static_cast<uint32_t>(sched_getcpu());
  question.reserved = 0;
  // The service view stays while somebody receives into it.
  region.on_lanes.fetch_add(1);
  region.stats.lane_messages.fetch_add(2, std::memory_order_relaxed);
  lane.questions.fetch_add(1, std::memory_order_relaxed);
  asked_at = now_ns();
  stamp(region.id, question.page, Stage::kLaneSent);
  return send_all(lane.fd.load(std::memory_order_relaxed), &question, sizeof question);
}

// The answer, and all that follows from it.
void take_answer(Region& region, LaneTurn& turn, bool asked, uint64_t asked_at) {
  auto& lane = *static_cast<Lane*>(turn.lane);
  LaneQuestion& question = turn.question;
  LaneAnswer answer;
  Lanes& lanes = *region.member->lanes.load();
  uint64_t received = 0;
  uint64_t waited = 0;
  if (asked && receive(region, question, lane, answer, asked_at, received, waited)) {
    lanes.messages_sent.fetch_add(1, std::memory_order_relaxed);
    lanes.messages_received.fetch_add(1, std::memory_order_relaxed);
    lanes.bytes_sent.fetch_add(sizeof question, std::memory_order_relaxed);
    lanes.bytes_received.fetch_add(received, std::memory_order_relaxed);
    stamp(region.id, question.page, Stage::kLaneArrived);
    // What a run takes says nothing of a single page.
    if (question.count == 1) lane.learn(waited);
    lane.server_cpu.store(answer.cpu, std::memory_order_relaxed);
    uint64_t begun = 0;
    lane_install(region, turn, answer, begun);
    if (turn.hop && begun != 0) {
      // The owner need not keep the bytes any longer. If this does not arrive it keeps them in vain.
      LaneQuestion thanks[kLanePages];
      uint32_t count = 0;
      for (uint32_t i = 0; i < question.count; i++) if (begun >> i & 1) thanks[count++] = lane_thanks(turn, answer, i);
      region.stats.lane_messages.fetch_add(1, std::memory_order_relaxed);
      lanes.messages_sent.fetch_add(1, std::memory_order_relaxed);
      lanes.bytes_sent.fetch_add(count * sizeof thanks[0], std::memory_order_relaxed);
      send_all(lane.fd.load(std::memory_order_relaxed), thanks, count * sizeof thanks[0]);
    }
    lane_finish(region, turn, answer, begun);
    stamp(region.id, question.page, Stage::kLaneInstalled);
  } else {
    turn.granted = 0;
    region.stats.lane_broken.fetch_add(1, std::memory_order_relaxed);
    lane_give_up(region, turn, [](Region& at, void* taken) { lane_break(at, *static_cast<Lane*>(taken)); });
  }
  region.on_lanes.fetch_sub(1);
}

void lane_exchange(Region& region, LaneTurn& turn) {
  uint64_t asked_at = 0;
  const bool asked = put_question(region, turn, asked_at);
  take_answer(region, turn, asked, asked_at);
}

void lane_fetch(Region& region, uint64_t first, uint64_t end, uint32_t access, uint64_t& looked_at) {
  // While one answer is received the page server makes the next.
  constexpr int kUnderWay = 2;
  LaneTurn turns[kUnderWay];
  bool asked[kUnderWay] = {};
  uint64_t asked_at[kUnderWay] = {};
  uint64_t page = first;
  bool refused = false;
  // How often it may go back for further copies of pages that this home has had retired: who reads them may do so again and again.
  uint64_t rounds = kRetiredOneByOne * ((end - first) / kLanePages + 1);
  uint32_t next = 0;
  uint32_t oldest = 0;
  for (;;) {
    // Not while questions are under way: their claims would keep others waiting.
    for (uint32_t waits = 0; oldest == next && waits < kMemoryPatience; waits++) {
      const uint32_t memory_turn = region.member->memory.turn.load();
      if (!region.member->memory.is_short()) break;
      ring_memory(region);
      futex_wait(&region.member->memory.turn, memory_turn, kMemoryWait);
    }
    while (!refused && next - oldest < kUnderWay) {
      const uint32_t at = next % kUnderWay;
      if (effective_down(region) != kUp || !lane_ask_ahead(region, page, end, access, turns[at])) break;
      asked[at] = put_question(region, turns[at], asked_at[at]);
      next++;
    }
    if (oldest == next) break;
    const uint32_t at = oldest++ % kUnderWay;
    take_answer(region, turns[at], asked[at], asked_at[at]);
    const LaneTurn& turn = turns[at];
    const uint64_t asked_from = turn.question.page;
    uint64_t again = page;
    // What a home refuses, and probably what follows it, is the coordinators'. What did not fit into its answer is asked for again, and
    // pages of which there may be more copies are looked at again.
    if (turn.granted == 0) refused = true;
    else if (turn.retire && rounds > 0) rounds--, again = asked_from;
    else if (turn.granted < turn.question.count) again = asked_from + turn.granted;
    if (again < page) page = again;
  }
  looked_at = page;
}

}  // namespace faultline
