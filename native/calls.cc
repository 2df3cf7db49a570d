#include "calls.h"

#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include <cerrno>

#include "futex.h"
#include "lanes.h"
#include "member.h"

namespace faultline {
namespace {

// Both parts at once, or not at all: they are small, and nothing else is under way on the socket.
bool send_both(int fd, void* head, size_t head_length, const std::string& text) {
  iovec parts[2] = {{head, head_length}, {const_cast<char*>(text.data()), text.size()}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  for (;;) {
    const ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    return sent == static_cast<ssize_t>(head_length + text.size());
  }
}

}  // namespace

// ---- the thread that waits ------------------------------------------------------------------------------------------

std::unique_ptr<Call> Call::ask(Member& member, uint32_t slot, uint32_t id, const std::string& text) {
  Lanes* lanes = member.lanes.load();
  Peer* peer = lanes != nullptr && slot < kPeerSlots ? lanes->peers[slot].load() : nullptr;
  if (peer == nullptr || text.size() > kCallText) return nullptr;
  std::unique_ptr<Call> call;
  bool wanted = false;
  {
    std::lock_guard<std::mutex> lock(lanes->calls.mutex);
    if (!peer->up.load() || peer->member.load() != id) return nullptr;
    if (peer->calls_idle == 0) {
      wanted = !peer->wants_calls.exchange(true);
    } else {
      const auto index = static_cast<uint32_t>(__builtin_ctz(peer->calls_idle));
      peer->calls_idle &= ~(1u << index);
      call.reset(new Call(member, *peer, peer->lanes[kLanesPerPeer + index], peer->calls[index]));
    }
  }
  if (call == nullptr) {
    if (wanted) lanes_wake(*lanes);
    return nullptr;
  }
  LaneQuestion question{};
  question.magic = kLaneMagic;
  question.op = kLaneCall;
  question.count = 1;
  question.version = static_cast<uint32_t>(text.size());
  question.cpu = static_cast<uint32_t>(sched_getcpu());
  call->lane_.questions.fetch_add(1, std::memory_order_relaxed);
  call->asked_at_ = now_ns();
  // Half a question is never carried out.
  if (!send_both(call->socket_->fd, &question, sizeof question, text)) return nullptr;
  lanes->messages_sent.fetch_add(1, std::memory_order_relaxed);
  lanes->bytes_sent.fetch_add(sizeof question + text.size(), std::memory_order_relaxed);
  return call;
}

Call::~Call() {
  if (over_) return;
  Lanes& lanes = *member_.lanes.load();
  {
    std::lock_guard<std::mutex> lock(lanes.calls.mutex);
    const uint32_t index = lane_.index - kLanesPerPeer;
    // The peer may be gone meanwhile, and another in its place.
    if (peer_.calls[index] != socket_) return;
    shutdown(socket_->fd, SHUT_RDWR);
    peer_.broken.fetch_or(1u << lane_.index);
  }
  lanes_wake(lanes);
}

void Call::put_back() {
  Lanes& lanes = *member_.lanes.load();
  lanes.messages_received.fetch_add(1, std::memory_order_relaxed);
  lanes.bytes_received.fetch_add(got_, std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(lanes.calls.mutex);
  const uint32_t index = lane_.index - kLanesPerPeer;
  if (peer_.calls[index] == socket_) peer_.calls_idle |= 1u << index;
  over_ = true;
}

// What has come of the answer, without waiting.
Call::State Call::receive() {
  for (;;) {
    const bool in_head = got_ < sizeof head_;
    char* const place = in_head ? reinterpret_cast<char*>(&head_) + got_ : &text_[got_ - sizeof head_];
    const size_t room = in_head ? sizeof head_ - got_ : text_.size() - (got_ - sizeof head_);
    const ssize_t count = recv(socket_->fd, place, room, MSG_DONTWAIT);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return State::kWaits;
    if (count <= 0) return State::kGone;
    got_ += static_cast<uint64_t>(count);
    if (in_head && got_ == sizeof head_) {
      if (head_.magic != kLaneMagic || head_.length == 0 || head_.length > kAnswerText) return State::kGone;
      text_.resize(head_.length);
    }
    if (got_ >= sizeof head_ && got_ == sizeof head_ + text_.size()) return State::kAnswered;
  }
}

Call::State Call::wait(uint32_t ms, std::string& text) {
  State state = State::kWaits;
  if (polls_) {
    polls_ = false;
    if (lane_may_poll(lane_, static_cast<uint32_t>(sched_getcpu()))) {
      const uint64_t until = asked_at_ + uint64_t{lane_poll_us()} * 1000;
      do state = receive();
      while (state == State::kWaits && now_ns() < until);
    }
  }
  if (state == State::kWaits) {
    pollfd ready{socket_->fd, POLLIN, 0};
    poll(&ready, 1, static_cast<int>(ms));
    state = receive();
  }
  if (state != State::kAnswered) return state;
  lane_.learn(now_ns() - asked_at_);
  lane_.server_cpu.store(head_.cpu, std::memory_order_relaxed);
  put_back();
  // A member whose lease is over must not act on what it is given before it knows that it is still in: its coordinator asks
  // again when it does. By the clock, too: after a stop of the process nobody may have seen it yet.
  const uint64_t lease = member_.lease.load();
  if (member_.down.load() != kUp || (lease != 0 && now_us() >= lease)) return State::kGone;
  text = std::move(text_);
  return State::kAnswered;
}

// ---- the registrar --------------------------------------------------------------------------------------------------

uint64_t call_arrived(Member& member, uint32_t from, std::string text, const std::shared_ptr<Socket>& socket) {
  Calls& calls = member.lanes.load()->calls;
  uint64_t serial;
  {
    std::lock_guard<std::mutex> lock(calls.mutex);
    serial = ++calls.last;
    calls.callers.emplace(serial, socket);
    calls.arrived.push_back({serial, from, std::move(text)});
  }
  member.ring.push({kRingLaneCall, 0, 0, 0, 0});
  return serial;
}

bool call_forget(Member& member, uint64_t serial) {
  Calls& calls = member.lanes.load()->calls;
  std::lock_guard<std::mutex> lock(calls.mutex);
  return calls.callers.erase(serial) > 0;
}

std::vector<ArrivedCall> calls_take(Member& member) {
  std::vector<ArrivedCall> arrived;
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr) return arrived;
  std::lock_guard<std::mutex> lock(lanes->calls.mutex);
  arrived.swap(lanes->calls.arrived);
  return arrived;
}

bool call_answer(Member& member, uint64_t serial, const std::string& text) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr) return false;
  std::shared_ptr<Socket> socket;
  {
    std::lock_guard<std::mutex> lock(lanes->calls.mutex);
    const auto found = lanes->calls.callers.find(serial);
    if (found == lanes->calls.callers.end()) return false;
    socket = std::move(found->second);
    lanes->calls.callers.erase(found);
  }
  CallAnswer head{kLaneMagic, static_cast<uint32_t>(text.size()), static_cast<uint32_t>(sched_getcpu()), 0};
  if (text.empty() || text.size() > kAnswerText || !send_both(socket->fd, &head, sizeof head, text)) {
    // Part of it may have gone: whoever waits must not take it for the whole.
    shutdown(socket->fd, SHUT_RDWR);
    return false;
  }
  lanes->messages_sent.fetch_add(1, std::memory_order_relaxed);
  lanes->bytes_sent.fetch_add(sizeof head + text.size(), std::memory_order_relaxed);
  return true;
}

}  // namespace faultline
