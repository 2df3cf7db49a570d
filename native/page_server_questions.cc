// What the page server does with a question: it serves it, has the owner of the page asked or a copy retired first, puts it off for
// some µs, or refuses it; and calls go to the coordinator.
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "futex.h"
#include "page_server.h"
#include "stamps.h"

namespace faultline {
namespace {

// µs that a question waits for a third member's page, or for a copy to be given up: less than the asker's patience.
constexpr uint64_t kHopTime = 100'000;
// ns that a question waits for what is about to end, and between two looks.
constexpr uint64_t kParkTime = 150'000;
constexpr uint64_t kParkStep = 10'000;

}  // namespace

bool PageServer::end(Connection* connection) {
  drop(connection);
  return true;
}

bool PageServer::readable(Connection* connection) {
  for (;;) {
    const ssize_t got = recv(connection->fd, connection->in + connection->in_length, sizeof connection->in - connection->in_length, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return false;
    if (got <= 0) return end(connection);
    connection->in_length += static_cast<uint32_t>(got);
    if (connection->peer == nullptr) {
      if (connection->in_length < kHelloBytes) continue;
      if (!greet(connection)) return end(connection);
    }
    while (connection->in_length >= sizeof(LaneQuestion)) {
      // Whoever asks again before it has its answer breaks the rules.
      if (connection->whole != 0 || connection->hop != nullptr || connection->again_at != 0) return end(connection);
      LaneQuestion& question = connection->serving.question;
      memcpy(&question, connection->in, sizeof question);
      const uint32_t length = question.op == kLaneCall ? question.version : 0;
      if (length > kCallText) return end(connection);
      if (connection->in_length < sizeof question + length) break;
      if (!(question.op == kLaneCall ? take_call(connection, length) : answer(connection))) return end(connection);
      connection->in_length -= static_cast<uint32_t>(sizeof question) + length;
      memmove(connection->in, connection->in + sizeof question + length, connection->in_length);
    }
    // One question at a time comes over a lane: there is seldom more to read.
    return true;
  }
}

// The coordinator answers it. This thread is not wanted then, and does not look for more.
bool PageServer::take_call(Connection* connection, uint32_t length) {
  if (connection->serving.question.magic != kLaneMagic) return false;
  // Whoever asks again before it has its answer breaks the rules.
  if (connection->call != 0 && call_forget(member, connection->call)) return false;
  lanes.messages_received.fetch_add(1, std::memory_order_relaxed);
  lanes.bytes_received.fetch_add(sizeof(LaneQuestion) + length, std::memory_order_relaxed);
  if (connection->socket == nullptr) connection->socket = std::make_shared<Socket>(connection->fd);
  connection->call = call_arrived(member, connection->member, std::string(reinterpret_cast<const char*>(connection->in) + sizeof(LaneQuestion), length), connection->socket);
  poll_until = 0;
  return true;
}

bool PageServer::answer(Connection* connection) {
  Serving& serving = connection->serving;
  const LaneQuestion& question = serving.question;
  if (question.magic != kLaneMagic || question.count == 0 || question.count > kLanePages) return false;
  const uint64_t received = now_ns();
  if (question.op != kLaneReturned) stamp(question.region, question.page, Stage::kLaneReceived);
  lanes.messages_received.fetch_add(1, std::memory_order_relaxed);
  lanes.bytes_received.fetch_add(sizeof question, std::memory_order_relaxed);
  serving.slot = connection->peer->slot;
  Region* region = region_enter_id(member, question.region);
  if (question.op == kLaneReturned) {
    if (region != nullptr) {
      serve_returned(*region, serving.slot, question);
      region_leave(*region);
    }
    // The next question may come as soon as after any other message.
    plan_polling(connection, question.cpu, static_cast<uint32_t>(sched_getcpu()), 0);
    return true;
  }
  if (question.op != kLaneRequest && question.op != kLaneRecall && question.op != kLaneRetire) return false;
  connection->question_at = received;
  return serve(connection, region, true);
}

// Two that want one page ask for it while it is still on its way to the other. A question that is looked at again a few µs
// later is served on its lane; refused, it would be the coordinators', and cost ten times as much. (The thread that has
// to finish meanwhile may need this processor: between two looks this one sleeps.)
bool PageServer::park(Connection* connection, Region& region) {
  if (!can_park || now_ns() - connection->question_at > kParkTime || !serve_again(region, connection->serving)) return false;
  connection->again_at = now_ns() + kParkStep;
  connection->again_in = &region;
  parked.push_back(connection);
  find_parked_due();
  poll_until = 0;
  return true;
}

void PageServer::find_parked_due() {
  uint64_t first = UINT64_MAX;
  for (const Connection* connection : parked) first = std::min(first, connection->again_at);
  parked_due.store(first);
}

Region* PageServer::unpark(Connection* connection) {
  parked.erase(std::find(parked.begin(), parked.end(), connection));
  connection->again_at = 0;
  find_parked_due();
  return connection->again_in;
}

void PageServer::look_again() {
  const uint64_t now = now_ns();
  for (size_t i = 0; i < parked.size();) {
    Connection* const connection = parked[i];
    if (connection->again_at > now) {
      i++;
      continue;
    }
    if (!serve(connection, unpark(connection), true)) drop(connection);
    i = 0;
  }
}

// region: entered, or nullptr. hops: it may wait for a third member.
bool PageServer::serve(Connection* connection, Region* region, bool hops) {
  Serving& serving = connection->serving;
  const LaneQuestion& question = serving.question;
  memset(&serving.answer, 0, kLaneAnswerHead);
  serving.answer.magic = kLaneMagic;
  const bool able = region != nullptr && serve_begin(*region, serving);
  if (able) serve_finish(*region, serving);
  else if (region != nullptr && ((hops && begin_hop(connection, *region)) || park(connection, *region))) return true;
  LaneAnswer& answer = serving.answer;
  const uint32_t cpu = static_cast<uint32_t>(sched_getcpu());
  answer.cpu = cpu;
  answer.received = connection->question_at;
  answer.answered = now_ns();
  connection->region = region;
  if (region != nullptr) region->on_lanes.fetch_add(1);
  connection->sent = 0;
  connection->whole = lane_answer_size(question.count);
  if (answer.granted > 0 && answer.content == kLaneBytesFollow) connection->whole += answer.granted * region->page_size;
  stamp(question.region, question.page, Stage::kLaneAnswered);
  if (!push_out(connection)) return false;
  plan_polling(connection, question.cpu, cpu, connection->whole);
  return true;
}

bool PageServer::begin_hop(Connection* connection, Region& region) {
  auto hop = std::make_unique<Hop>();
  if (!serve_hop(region, connection->serving, hop->turn)) return false;
  const Lane& lane = *static_cast<Lane*>(hop->turn.lane);
  hop->region = &region;
  hop->fd = lane.fd.load(std::memory_order_relaxed);
  hop->until = now_us() + kHopTime;
  if (!put_question(region, hop->turn, hop->asked_at)) {
    take_answer(region, hop->turn, false, hop->asked_at);
    return false;
  }
  const uint64_t due = look_at.load();
  if (hop->until < due) look_at.store(hop->until);
  hop->asker = connection;
  connection->hop = hop.get();
  watch(reinterpret_cast<Connection*>(hop.get()), hop->fd, EPOLLIN, EPOLL_CTL_ADD);
  poll_until = 0;
  if (lane_may_poll(lane, static_cast<uint32_t>(sched_getcpu()))) {
    // Whatever comes next, and not the lane that was answered last alone.
    hot.store(nullptr, std::memory_order_relaxed);
    poll_until = now_ns() + uint64_t{lane_poll_us()} * 1000;
  }
  hops.push_back(std::move(hop));
  return true;
}

bool PageServer::arrived(const Hop& hop) {
  LaneAnswer head;
  const uint64_t least = lane_answer_size(hop.turn.question.count);
  const ssize_t got = recv(hop.fd, &head, least, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) return errno != EAGAIN && errno != EINTR;
  if (got == 0) return true;
  if (static_cast<uint64_t>(got) < least) return false;
  int there = 0;
  if (ioctl(hop.fd, FIONREAD, &there) != 0) return true;
  const bool bytes = head.granted > 0 && head.content == kLaneBytesFollow;
  return static_cast<uint64_t>(there) >= least + (bytes ? head.granted * hop.region->page_size : 0);
}

void PageServer::end_hop_for(Hop* ending, bool came) {
  const auto at = std::find_if(hops.begin(), hops.end(), [&](const auto& other) { return other.get() == ending; });
  const std::unique_ptr<Hop> hop = std::move(*at);
  hops.erase(at);
  // Before the lane is another's.
  epoll_ctl(epoll, EPOLL_CTL_DEL, hop->fd, nullptr);
  take_answer(*hop->region, hop->turn, came, hop->asked_at);
  Connection* const asker = hop->asker;
  if (asker == nullptr) return region_leave(*hop->region);
  asker->hop = nullptr;
  // There may be more copies than one.
  if (!serve(asker, hop->region, hop->turn.retire && hop->turn.granted > 0)) drop(asker);
}

void PageServer::end_hops(const Peer& peer) {
  for (size_t i = 0; i < hops.size();) {
    Hop* const hop = hops[i].get();
    if (static_cast<Lane*>(hop->turn.lane)->peer != &peer) {
      i++;
      continue;
    }
    end_hop_for(hop, false);
    i = 0;
  }
}

bool PageServer::push_out(Connection* connection) {
  const LaneQuestion& question = connection->serving.question;
  const uint64_t head = lane_answer_size(question.count);
  const bool waited = connection->sent > 0;
  while (connection->sent < connection->whole) {
    iovec at[kLanePages + 1];
    int used = 0;
    const uint64_t sent = connection->sent;
    if (sent < head) at[used++] = {reinterpret_cast<char*>(&connection->serving.answer) + sent, head - sent};
    if (connection->whole > head) {
      const Region& region = *connection->region;
      const uint64_t skip = sent > head ? sent - head : 0;
      const uint64_t size = region.page_size;
      const uint64_t pages = (connection->whole - head) / size;
      for (uint64_t i = skip / size; i < pages; i++) {
        const uint64_t page = page_of(question, i);
        const uint64_t within = i == skip / size ? skip % size : 0;
        // Neighbours in one piece.
        if (question.stride == 1) {
          at[used++] = {region.service + page * size + within, (pages - i) * size - within};
          break;
        }
        at[used++] = {region.service + page * size + within, size - within};
      }
    }
    msghdr message{};
    message.msg_iov = at;
    message.msg_iovlen = static_cast<size_t>(used);
    const ssize_t count = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      if (!waited) watch(connection, connection->fd, EPOLLOUT, EPOLL_CTL_MOD);
      return true;
    }
    if (count <= 0) return false;
    connection->sent += static_cast<uint64_t>(count);
  }
  if (connection->region != nullptr) let_go(connection);
  lanes.messages_sent.fetch_add(1, std::memory_order_relaxed);
  lanes.bytes_sent.fetch_add(connection->whole, std::memory_order_relaxed);
  connection->whole = 0;
  if (waited) watch(connection, connection->fd, EPOLLIN, EPOLL_CTL_MOD);
  return true;
}

void PageServer::let_go(Connection* connection) {
  connection->region->on_lanes.fetch_sub(1);
  region_leave(*connection->region);
  connection->region = nullptr;
}

}  // namespace faultline
