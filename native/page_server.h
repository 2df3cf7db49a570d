// The page server: one thread for each member that answers questions which come over lanes, and makes this member's own
// lanes to others. It never waits for a message while anything is locked, and never calls into JavaScript. Its loop is in
// page_server.cc, its sockets in page_server_connections.cc, and what it answers in page_server_questions.cc; who starts, tells and
// stops it is in lanes.cc.
#pragma once

#include <pthread.h>
#include <sys/epoll.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "lanes.h"

namespace faultline {

// What a stranger says first, bytes, and the µs that it may take for that.
constexpr uint32_t kHelloBytes = 32;
constexpr uint64_t kHelloTime = 1'000'000;

struct Hop;

// A socket that others opened to this page server, or that is being opened to theirs.
struct Connection {
  int fd = -1;
  Lane* outgoing = nullptr;  // being opened: the lane that it will be
  uint32_t outgoing_member = 0;
  Peer* peer = nullptr;      // accepted: who it is; nullptr: has not said yet
  uint32_t member = 0;
  uint64_t since = 0;
  uint8_t in[sizeof(LaneQuestion) + kCallText];
  uint32_t in_length = 0;
  bool connected = false;
  // Accepted, once a call has come over it: the descriptor is its.
  std::shared_ptr<Socket> socket;
  uint64_t call = 0;  // the serial of the last one
  uint64_t question_at = 0;  // ns: when its question came
  Hop* hop = nullptr;        // what that waits for
  // ... or when it is looked at again (ns; 0: it does not wait), and its region, entered.
  uint64_t again_at = 0;
  Region* again_in = nullptr;
  // An answer that did not fit into the socket: what is left of the head, then of the pages.
  Serving serving;
  Region* region = nullptr;  // whose active count is raised while it is set
  uint64_t sent = 0;
  uint64_t whole = 0;
};

// A question that is not answered yet, because its page comes from a third member, or a third one gives its copy up.
struct Hop {
  LaneTurn turn;
  Region* region = nullptr;     // entered
  Connection* asker = nullptr;  // nullptr: has gone
  int fd = -1;                  // of the turn's lane
  uint64_t asked_at = 0;
  uint64_t until = 0;           // µs
};

// What others than its thread call or look at is said to be so; they hold the mutex of the lanes.
struct PageServer {
  Member& member;
  Lanes& lanes;
  int epoll = -1;
  // Unix, and TCP if the cluster is of more than one machine.
  int listeners[2] = {-1, -1};
  pthread_t thread{};
  bool stopping = false;  // under the mutex
  uint32_t self = 0;
  std::vector<std::unique_ptr<Connection>> connections;
  std::vector<std::unique_ptr<Hop>> hops;
  std::vector<Connection*> parked;
  // ns: when the first of them is looked at again; UINT64_MAX: there are none. Set under the mutex, looked at without.
  std::atomic<uint64_t> parked_due{UINT64_MAX};
  // Kernels before 5.11 have no clock that is short enough.
  std::atomic<bool> can_park{true};
  // µs: when lanes that are to be made, and strangers, are looked at next. Others than its thread set it under the mutex.
  std::atomic<uint64_t> look_at{0};
  // Polling: until when, ns; how worth while it has been; whom it is for.
  std::atomic<uint64_t> poll_until{0};
  int worth = 8;
  uint32_t skipped = 0;
  uint32_t looks = 0;
  // That was answered last. Others end it, too, under the mutex: without that it is only compared.
  std::atomic<Connection*> hot{nullptr};

  PageServer(Member& m, Lanes& l) : member(m), lanes(l) {}

  // Its thread, from its beginning to its end.
  void run();

  // ---- sockets (page_server_connections.cc) ---------------------------------------------------------------------------

  // Listens at the address, which is an abstract Unix socket of a random name if `host` is empty. Returns what to tell others, or ""
  // and errno if it can't be, with the system call that failed. Before the thread runs.
  std::string listen_at(int& listener, const std::string& host, const char*& call);
  void watch(Connection* connection, int fd, uint32_t events, int how);
  // Under the mutex, by anybody.
  void drop(Connection* connection);
  // Makes this member's lanes that are missing. Returns the µs until it should be called again, or -1.
  int64_t make_lanes();
  // Whoever waits on a lane for calls hears of its end, and lets go of the descriptor. Under the mutex, by anybody.
  void end_lane(Peer& peer, uint32_t index);
  void outgoing_ready(Connection* connection);
  void accept_all(int listener);
  bool greet(Connection* connection);

  // ---- questions (page_server_questions.cc) ---------------------------------------------------------------------------

  // false: nothing had come.
  bool readable(Connection* connection);
  // Sends what the socket takes of an answer. false: it is broken.
  bool push_out(Connection* connection);
  static void let_go(Connection* connection);
  // Those that were put off and are due.
  void look_again();
  // Puts a question off no longer; returns its region, which it has entered.
  Region* unpark(Connection* connection);
  // Is the whole answer here that a question waits for, or an end of it?
  static bool arrived(const Hop& hop);
  // came: its answer is here. Whoever asked is answered now, if not as it wanted.
  void end_hop_for(Hop* ending, bool came);
  // Those that wait for this peer. Under the mutex, by anybody.
  void end_hops(const Peer& peer);

 private:
  void connect_lane(Peer& peer, uint32_t index);
  // drop(), and something had come.
  bool end(Connection* connection);
  bool take_call(Connection* connection, uint32_t length);
  bool answer(Connection* connection);
  bool serve(Connection* connection, Region* region, bool hops);
  bool park(Connection* connection, Region& region);
  void find_parked_due();
  bool begin_hop(Connection* connection, Region& region);

  void plan_polling(Connection* connection, uint32_t asker_cpu, uint32_t cpu, uint64_t bytes);
  int look(epoll_event* events, int most);
  int wait_parked(epoll_event* events, int most);
  void handle(const epoll_event& event);
  int64_t overdue();
};

}  // namespace faultline
