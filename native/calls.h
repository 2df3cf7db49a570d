// Blocking calls to the registrar (locks, barriers) over a lane: the thread that waits asks the registrar's process itself,
// and its coordinator answers on the same socket. Without that a call wakes four threads more, two of them in its own process.
// What a call means is the coordinators' business; here is only its way. Not for signal handlers: there are locks.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace faultline {

struct Lane;
struct Member;
struct Peer;

// Lanes to a peer that carry calls, made when the first call is wanted there: so many threads may wait at a time; more take
// the longer way.
constexpr uint32_t kCallLanes = 4;
// Bytes of a question, and of an answer; what is longer takes the longer way.
constexpr uint32_t kCallText = 1024;
constexpr uint32_t kAnswerText = 64 << 10;

// A descriptor that is closed when nobody uses it any more. To wake whoever waits on it: shutdown().
struct Socket {
  explicit Socket(int descriptor) : fd(descriptor) {}
  ~Socket() { close(fd); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  const int fd;
};

// On the wire: a LaneQuestion (kLaneCall; `version`: the length of the text) and the text; the answer is this and its text.
struct CallAnswer {
  uint32_t magic;
  uint32_t length;
  uint32_t cpu;  // where the coordinator runs
  uint32_t reserved;
};

struct ArrivedCall {
  uint64_t serial;
  uint32_t member;  // who asks
  std::string text;
};

// Of one member, both ends.
struct Calls {
  std::mutex mutex;
  std::vector<ArrivedCall> arrived;                          // for the coordinator to take
  std::map<uint64_t, std::shared_ptr<Socket>> callers;  // not answered yet, by serial
  uint64_t last = 0;
};

// The asking thread's end of one call.
class Call {
 public:
  // nullptr: there is no lane to that member, or none is free.
  static std::unique_ptr<Call> ask(Member& member, uint32_t slot, uint32_t id, const std::string& text);
  // An answer that has not been waited for is not wanted any more: the lane is made anew.
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  enum class State { kWaits, kAnswered, kGone };
  // kGone: no answer will come this way, or this member may not act on it now; whether the call was carried out is not known.
  State wait(uint32_t ms, std::string& text);

 private:
  Call(Member& member, Peer& peer, Lane& lane, std::shared_ptr<Socket> socket) : member_(member), peer_(peer), lane_(lane), socket_(std::move(socket)) {}
  State receive();
  void put_back();

  Member& member_;
  Peer& peer_;
  Lane& lane_;
  const std::shared_ptr<Socket> socket_;
  bool polls_ = true;
  bool over_ = false;
  uint64_t asked_at_ = 0;
  CallAnswer head_{};
  std::string text_;
  uint64_t got_ = 0;
};

// For the page server, under Lanes::mutex. A call has come over this socket; returns its serial.
uint64_t call_arrived(Member& member, uint32_t from, std::string text, const std::shared_ptr<Socket>& socket);
// The socket is no more: nobody waits for the answer. false: it was answered before.
bool call_forget(Member& member, uint64_t serial);

// For the coordinator: what has come since the last time, and the answers. false: nobody waits for it there any more.
std::vector<ArrivedCall> calls_take(Member& member);
bool call_answer(Member& member, uint64_t serial, const std::string& text);

}  // namespace faultline
