// The page server: one thread for each member that answers questions which come over lanes, and makes this member's own
// lanes to others. It never waits for a message while anything is locked, and never calls into JavaScript.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "fault.h"
#include "futex.h"
#include "lanes.h"
#include "stamps.h"

namespace faultline {
namespace {

constexpr uint32_t kHelloMagic = 0x68616c66;  // "flah"
constexpr uint32_t kHelloVersion = 1;
// s that a thread waits for an answer at the longest; then the lane is closed and the coordinator takes over.
constexpr timeval kAnswerTime{0, 200'000};
// µs before a lane that could not be made is tried again: the first time, and at the longest.
constexpr uint64_t kAgain = 20'000;
constexpr uint64_t kAgainLongest = 1'000'000;
// µs that a stranger may take to say who it is.
constexpr uint64_t kHelloTime = 1'000'000;
constexpr int kBuffer = 512 << 10;
// µs that a question waits for a third member's page: less than the asker's patience.
constexpr uint64_t kHopTime = 100'000;
// ns that a question waits for what is about to end, and between two looks.
constexpr uint64_t kParkTime = 150'000;
constexpr uint64_t kParkStep = 10'000;
// Every so many looks at the lane that was answered last there is one at everything.
constexpr uint32_t kLookAtAll = 8;

struct Hello {
  uint32_t magic, version;
  uint8_t token[kTokenBytes];
  uint32_t from, to;  // members' ids
};
struct Welcome {
  uint32_t magic, ok;
};

// Compares in a time that does not depend on where they differ.
bool same_token(const uint8_t* a, const uint8_t* b) {
  uint8_t difference = 0;
  for (uint32_t i = 0; i < kTokenBytes; i++) difference |= a[i] ^ b[i];
  return difference == 0;
}

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

// A question that is not answered yet, because its page comes from a third member.
struct Hop {
  LaneTurn turn;
  Region* region = nullptr;     // entered
  Connection* asker = nullptr;  // nullptr: has gone
  int fd = -1;                  // of the turn's lane
  uint64_t asked_at = 0;
  uint64_t until = 0;           // µs
};

struct Server {
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
  bool can_park = true;
  // µs: when lanes that are to be made, and strangers, are looked at next. Others than its thread set it under the mutex.
  std::atomic<uint64_t> look_at{0};
  // Polling: until when, ns; how worth while it has been; whom it is for.
  std::atomic<uint64_t> poll_until{0};
  int worth = 8;
  uint32_t skipped = 0;
  uint32_t looks = 0;
  // That was answered last. Others end it, too, under the mutex: without that it is only compared.
  std::atomic<Connection*> hot{nullptr};

  Server(Member& m, Lanes& l) : member(m), lanes(l) {}

  // ---- sockets ------------------------------------------------------------------------------------------------------

  void watch(Connection* connection, int fd, uint32_t events, int how) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = connection;
    epoll_ctl(epoll, how, fd, &event);
  }

  static void prepare(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on Unix sockets, which need none
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBuffer, sizeof kBuffer);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kBuffer, sizeof kBuffer);
  }

  void drop(Connection* connection) {
    if (connection->outgoing != nullptr) {
      Peer& peer = *connection->outgoing->peer;
      peer.connecting &= ~(1u << connection->outgoing->index);
      peer.attempts++;
      peer.again_at = now_us() + std::min(kAgainLongest, kAgain << std::min(peer.attempts, 6u));
    }
    if (connection->region != nullptr) let_go(connection);
    if (connection->hop != nullptr) connection->hop->asker = nullptr;
    if (connection->again_at != 0) region_leave(*unpark(connection));
    look_at = 0;
    if (hot.load(std::memory_order_relaxed) == connection) hot.store(nullptr, std::memory_order_relaxed);
    if (connection->socket != nullptr) {
      // Somebody who answers may use the descriptor for a moment longer.
      call_forget(member, connection->call);
      epoll_ctl(epoll, EPOLL_CTL_DEL, connection->fd, nullptr);
      shutdown(connection->fd, SHUT_RDWR);
    } else {
      close(connection->fd);
    }
    for (auto it = connections.begin(); it != connections.end(); ++it) {
      if (it->get() != connection) continue;
      connections.erase(it);
      return;
    }
  }

  bool end(Connection* connection) {
    drop(connection);
    return true;
  }

  static void let_go(Connection* connection) {
    connection->region->on_lanes.fetch_sub(1);
    region_leave(*connection->region);
    connection->region = nullptr;
  }

  // ---- this member's lanes to others ----------------------------------------------------------------------------------

  // Makes what is missing. Returns the µs until it should be called again, or -1.
  int64_t make_lanes() {
    int64_t next = -1;
    const uint64_t now = now_us();
    for (uint32_t slot = 0; slot < kPeerSlots; slot++) {
      Peer* peer = lanes.peers[slot].load();
      if (peer == nullptr || !peer->up.load()) continue;
      const uint32_t broken = peer->broken.exchange(0);
      for (uint32_t i = 0; i < kLanesPerPeer + kCallLanes; i++) {
        if (!(broken >> i & 1)) continue;
        end_lane(*peer, i);
        peer->connected &= ~(1u << i);
        peer->again_at = now + kAgain;
      }
      if (peer->address.empty()) continue;
      for (uint32_t i = 0; i < kLanesPerPeer + (peer->wants_calls.load() ? kCallLanes : 0); i++) {
        if ((peer->connected | peer->connecting) >> i & 1) continue;
        if (peer->again_at > now) {
          const auto wait = static_cast<int64_t>(peer->again_at - now);
          if (next < 0 || wait < next) next = wait;
          break;
        }
        connect_lane(*peer, i);
      }
    }
    return next;
  }

  // Whoever waits on a lane for calls hears of its end, and lets go of the descriptor.
  void end_lane(Peer& peer, uint32_t index) {
    if (index < kLanesPerPeer) {
      close(peer.lanes[index].fd.exchange(-1));
      return;
    }
    std::lock_guard<std::mutex> lock(lanes.calls.mutex);
    std::shared_ptr<Socket>& socket = peer.calls[index - kLanesPerPeer];
    if (socket != nullptr) shutdown(socket->fd, SHUT_RDWR);
    socket.reset();
    peer.calls_idle &= ~(1u << (index - kLanesPerPeer));
  }

  void connect_lane(Peer& peer, uint32_t index) {
    sockaddr_storage address{};
    socklen_t length = 0;
    if (!parse(peer.address, address, length)) {
      peer.address.clear();
      return;
    }
    const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
      peer.again_at = now_us() + kAgainLongest;
      return;
    }
    prepare(fd);
    auto made = std::make_unique<Connection>();
    Connection* connection = made.get();
    connection->fd = fd;
    connection->outgoing = &peer.lanes[index];
    connection->outgoing_member = peer.member.load();
    connection->since = now_us();
    connections.push_back(std::move(made));
    peer.connecting |= 1u << index;
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 && errno != EINPROGRESS) return drop(connection);
    watch(connection, fd, EPOLLOUT, EPOLL_CTL_ADD);
  }

  // "unix:NAME" (abstract), "tcp:ADDRESS:PORT"
  static bool parse(const std::string& text, sockaddr_storage& out, socklen_t& length) {
    if (text.rfind("unix:", 0) == 0) {
      auto& address = reinterpret_cast<sockaddr_un&>(out);
      const std::string name = text.substr(5);
      if (name.empty() || name.size() + 1 > sizeof address.sun_path) return false;
      address.sun_family = AF_UNIX;
      address.sun_path[0] = 0;
      memcpy(address.sun_path + 1, name.data(), name.size());
      length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
      return true;
    }
    const size_t colon = text.rfind(':');
    if (text.rfind("tcp:", 0) != 0 || colon <= 4) return false;
    return parse_ip(text.substr(4, colon - 4), static_cast<uint16_t>(strtoul(text.c_str() + colon + 1, nullptr, 10)), out, length);
  }

  static bool parse_ip(const std::string& host, uint16_t port, sockaddr_storage& out, socklen_t& length) {
    auto& four = reinterpret_cast<sockaddr_in&>(out);
    auto& six = reinterpret_cast<sockaddr_in6&>(out);
    if (inet_pton(AF_INET, host.c_str(), &four.sin_addr) == 1) {
      four.sin_family = AF_INET;
      four.sin_port = htons(port);
      length = sizeof four;
      return true;
    }
    if (inet_pton(AF_INET6, host.c_str(), &six.sin6_addr) != 1) return false;
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(port);
    length = sizeof six;
    return true;
  }

  void outgoing_ready(Connection* connection) {
    Peer& peer = *connection->outgoing->peer;
    if (!connection->connected) {
      int error = 0;
      socklen_t length = sizeof error;
      if (getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0) return drop(connection);
      connection->connected = true;
      Hello hello{kHelloMagic, kHelloVersion, {}, self, connection->outgoing_member};
      memcpy(hello.token, peer.token, kTokenBytes);
      if (send(connection->fd, &hello, sizeof hello, MSG_NOSIGNAL | MSG_DONTWAIT) != static_cast<ssize_t>(sizeof hello)) return drop(connection);
      return watch(connection, connection->fd, EPOLLIN, EPOLL_CTL_MOD);
    }
    const ssize_t got = recv(connection->fd, connection->in + connection->in_length, sizeof(Welcome) - connection->in_length, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return drop(connection);
    connection->in_length += static_cast<uint32_t>(got);
    if (connection->in_length < sizeof(Welcome)) return;
    Welcome welcome;
    memcpy(&welcome, connection->in, sizeof welcome);
    if (welcome.magic != kHelloMagic || welcome.ok != 1 || !peer.up.load() || peer.member.load() != connection->outgoing_member) return drop(connection);
    // From here on it belongs to the thread that takes it. One for faults is blocking, with a longest time.
    const int fd = connection->fd;
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, nullptr);
    Lane& lane = *connection->outgoing;
    const bool for_faults = lane.index < kLanesPerPeer;
    if (for_faults) {
      set_blocking(fd);
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kAnswerTime, sizeof kAnswerTime);
      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kAnswerTime, sizeof kAnswerTime);
    }
    const uint32_t bit = 1u << lane.index;
    peer.connecting &= ~bit;
    peer.connected |= bit;
    peer.attempts = 0;
    lane.server_cpu.store(UINT32_MAX);
    lane.usual.store(0);
    lane.far = peer.address.rfind("tcp:", 0) == 0;
    if (for_faults) lane.fd.store(fd);
    connection->outgoing = nullptr;
    for (auto it = connections.begin(); it != connections.end(); ++it) {
      if (it->get() != connection) continue;
      connections.erase(it);
      break;
    }
    if (for_faults) {
      peer.free.fetch_or(bit);
      return;
    }
    std::lock_guard<std::mutex> lock(lanes.calls.mutex);
    peer.calls[lane.index - kLanesPerPeer] = std::make_shared<Socket>(fd);
    peer.calls_idle |= bit >> kLanesPerPeer;
  }

  static void set_blocking(int fd);

  // ---- questions ------------------------------------------------------------------------------------------------------

  void accept_all(int listener) {
    for (;;) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd < 0) return;
      prepare(fd);
      auto made = std::make_unique<Connection>();
      made->fd = fd;
      made->since = now_us();
      watch(made.get(), fd, EPOLLIN, EPOLL_CTL_ADD);
      connections.push_back(std::move(made));
      look_at = 0;
    }
  }

  // Another user's process may find an abstract socket: it is not let in, whatever it says.
  static bool same_user(int fd) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    sockaddr_storage address{};
    socklen_t address_length = sizeof address;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &address_length) != 0) return false;
    if (address.ss_family != AF_UNIX) return true;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 && credentials.uid == geteuid();
  }

  bool greet(Connection* connection) {
    Hello hello;
    memcpy(&hello, connection->in, sizeof hello);
    memmove(connection->in, connection->in + sizeof hello, connection->in_length - sizeof hello);
    connection->in_length -= sizeof hello;
    if (hello.magic != kHelloMagic || hello.version != kHelloVersion || hello.to != self || !same_user(connection->fd)) return false;
    for (uint32_t slot = 0; slot < kPeerSlots; slot++) {
      Peer* peer = lanes.peers[slot].load();
      if (peer == nullptr || !peer->up.load() || peer->member.load() != hello.from) continue;
      if (!same_token(hello.token, peer->expected)) return false;
      connection->peer = peer;
      connection->member = hello.from;
      const Welcome welcome{kHelloMagic, 1};
      return send(connection->fd, &welcome, sizeof welcome, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(sizeof welcome);
    }
    return false;
  }

  // false: nothing had come.
  bool readable(Connection* connection) {
    for (;;) {
      const ssize_t got = recv(connection->fd, connection->in + connection->in_length, sizeof connection->in - connection->in_length, MSG_DONTWAIT);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EAGAIN) return false;
      if (got <= 0) return end(connection);
      connection->in_length += static_cast<uint32_t>(got);
      if (connection->peer == nullptr) {
        if (connection->in_length < sizeof(Hello)) continue;
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
  bool take_call(Connection* connection, uint32_t length) {
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

  bool answer(Connection* connection) {
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
  bool park(Connection* connection, Region& region) {
    if (!can_park || now_ns() - connection->question_at > kParkTime || !serve_again(region, connection->serving)) return false;
    connection->again_at = now_ns() + kParkStep;
    connection->again_in = &region;
    parked.push_back(connection);
    find_parked_due();
    poll_until = 0;
    return true;
  }

  void find_parked_due() {
    uint64_t first = UINT64_MAX;
    for (const Connection* connection : parked) first = std::min(first, connection->again_at);
    parked_due.store(first);
  }

  Region* unpark(Connection* connection) {
    parked.erase(std::find(parked.begin(), parked.end(), connection));
    connection->again_at = 0;
    find_parked_due();
    return connection->again_in;
  }

  void look_again() {
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

  // Events until the next of those who wait is due.
  int wait_parked(epoll_event* events, int most) {
    const uint64_t next = parked_due.load();
    const uint64_t now = now_ns();
    // None is left by now: others end them, too.
    const timespec left{0, static_cast<long>(next > now && next != UINT64_MAX ? next - now : 0)};
    const long count = syscall(SYS_epoll_pwait2, epoll, events, most, &left, nullptr, 0);
    // Kernels before 5.11 can't wait for so short a time.
    if (count < 0 && errno == ENOSYS) can_park = false;
    return count < 0 ? 0 : static_cast<int>(count);
  }

  // region: entered, or nullptr. hops: it may wait for a third member's page.
  bool serve(Connection* connection, Region* region, bool hops) {
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

  // ---- pages that a third member owns ---------------------------------------------------------------------------------

  bool begin_hop(Connection* connection, Region& region) {
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

  // Is the whole answer here, or an end of it?
  static bool arrived(const Hop& hop) {
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

  // came: its answer is here. Whoever asked is answered now, if not as it wanted.
  void end_hop_for(Hop* ending, bool came) {
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

  // Under the mutex. Those that wait for this peer.
  void end_hops(const Peer& peer) {
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

  // Sends what the socket takes. false: it is broken.
  bool push_out(Connection* connection) {
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
          const uint64_t page = question.page + static_cast<uint64_t>(static_cast<int64_t>(question.stride) * static_cast<int64_t>(i));
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

  // ---- the loop -------------------------------------------------------------------------------------------------------

  // Looking for the next question saves a wake-up if it comes soon and from another processor: a thread on this one could
  // not run meanwhile. It has to be worth while: each time that nothing came counts against it.
  // bytes: what the asker has to take, and open, before it can ask again: one in 2 ns.
  void plan_polling(Connection* connection, uint32_t asker_cpu, uint32_t cpu, uint64_t bytes) {
    hot.store(connection, std::memory_order_relaxed);
    poll_until = 0;
    if (lane_poll_us() == 0 || asker_cpu == cpu) return;
    if (worth <= 0 && ++skipped % 16 != 0) return;
    poll_until = now_ns() + uint64_t{lane_poll_us()} * 1000 + 2 * bytes;
  }

  // Looks for the next question until `poll_until`. Mostly it comes over the lane that was answered last, and a look at that
  // socket alone costs less than one at all of them, and reads it at once. The events of other sockets are for the caller.
  int look(epoll_event* events, int most) {
    int count = 0;
    bool came = false;
    while (!came && count == 0 && now_ns() < poll_until) {
      // Also while one question follows the other: nobody else, and no end, is overlooked for long.
      if (++looks % kLookAtAll == 0 || hot.load(std::memory_order_relaxed) == nullptr) {
        count = epoll_wait(epoll, events, most, 0);
        continue;
      }
      // The mutex would be free for moments only: who waits for it gets it.
      if (lanes.waiting.load() != 0) {
        sched_yield();
        continue;
      }
      std::lock_guard<std::mutex> lock(lanes.mutex);
      Connection* connection = hot.load(std::memory_order_relaxed);
      came = connection != nullptr && connection->whole == 0 && readable(connection);
    }
    worth = std::max(-8, std::min(16, worth + (came || count > 0 ? 2 : -1)));
    if (!came) poll_until = 0;
    return count;
  }

  void handle(const epoll_event& event) {
    auto* connection = static_cast<Connection*>(event.data.ptr);
    if (connection == nullptr) {
      uint64_t count;
      ssize_t got = read(lanes.event.load(), &count, sizeof count);
      static_cast<void>(got);
      look_at = 0;
      return;
    }
    for (int& listener : listeners) if (reinterpret_cast<int*>(connection) == &listener) return accept_all(listener);
    // An event before this one may have ended it.
    for (const auto& hop : hops) if (reinterpret_cast<Connection*>(hop.get()) == connection) return arrived(*hop) ? end_hop_for(hop.get(), true) : void();
    if (std::none_of(connections.begin(), connections.end(), [&](const auto& other) { return other.get() == connection; })) return;
    if (connection->outgoing != nullptr) return outgoing_ready(connection);
    if (connection->whole != 0) {
      if (!push_out(connection)) drop(connection);
      return;
    }
    readable(connection);
  }

  // Strangers that say nothing are sent away, and what others do not answer is refused.
  int64_t overdue() {
    int64_t next = -1;
    const uint64_t now = now_us();
    for (size_t i = 0; i < hops.size();) {
      if (hops[i]->until > now) {
        const auto left = static_cast<int64_t>(hops[i]->until - now);
        if (next < 0 || left < next) next = left;
        i++;
        continue;
      }
      end_hop_for(hops[i].get(), false);
      i = 0;
    }
    for (size_t i = 0; i < connections.size();) {
      Connection* connection = connections[i].get();
      const bool waits = connection->outgoing != nullptr || connection->peer == nullptr;
      if (waits && now - connection->since > kHelloTime) {
        drop(connection);
        continue;
      }
      if (waits && (next < 0 || static_cast<int64_t>(kHelloTime) < next)) next = kHelloTime;
      i++;
    }
    return next;
  }

  void run() {
    sigset_t all;
    sigfillset(&all);
    // A fault of this thread on an app view would be a bug; SIGSEGV stays deliverable so that it is seen as one.
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    fault_this_is_coordinator(true);
    // Short waits are as short as they are meant to be.
    prctl(PR_SET_TIMERSLACK, 1);
    epoll_event events[32];
    for (;;) {
      int64_t wait = -1;
      const uint64_t due = look_at.load();
      if (due != UINT64_MAX && now_us() >= due) {
        std::lock_guard<std::mutex> lock(lanes.mutex);
        if (stopping) break;
        // What fails in the meantime sets it back to 0.
        look_at.store(UINT64_MAX);
        wait = overdue();
        const int64_t other = make_lanes();
        if (other >= 0 && (wait < 0 || other < wait)) wait = other;
        if (look_at.load() == 0) wait = 0;
        else if (wait >= 0) look_at.store(now_us() + static_cast<uint64_t>(wait));
      } else if (due != UINT64_MAX) {
        wait = static_cast<int64_t>(due - now_us());
        if (wait < 0) wait = 0;
      }
      const bool waits = parked_due.load() != UINT64_MAX;
      int count = waits ? wait_parked(events, 32) : poll_until != 0 ? look(events, 32) : 0;
      if (count == 0 && !waits && poll_until == 0) count = epoll_wait(epoll, events, 32, wait < 0 ? -1 : static_cast<int>(wait / 1000 + 1));
      if (count <= 0 && !waits) continue;
      std::lock_guard<std::mutex> lock(lanes.mutex);
      if (stopping) break;
      for (int i = 0; i < count; i++) handle(events[i]);
      if (waits) look_again();
    }
    fault_this_is_coordinator(false);
  }
};

// The mutex, for others than the page server's thread.
class Control {
 public:
  explicit Control(Lanes& lanes) : lanes_(lanes) {
    lanes.waiting.fetch_add(1);
    lanes.mutex.lock();
    lanes.waiting.fetch_sub(1);
  }
  ~Control() { lanes_.mutex.unlock(); }
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

 private:
  Lanes& lanes_;
};

Server* server_of(Lanes& lanes) { return static_cast<Server*>(lanes.server); }

Peer& peer_at(Lanes& lanes, uint32_t slot) {
  Peer* peer = lanes.peers[slot].load();
  if (peer == nullptr) {
    peer = new Peer;
    peer->slot = slot;
    for (uint32_t i = 0; i < kLanesPerPeer + kCallLanes; i++) {
      peer->lanes[i].peer = peer;
      peer->lanes[i].index = i;
    }
    lanes.peers[slot].store(peer);
  }
  return *peer;
}

// Under the mutex. Waits for threads that use one of its lanes: their sockets are shut, so that they don't wait either.
void close_peer(Server& server, Peer& peer) {
  peer.up.store(false);
  server.end_hops(peer);
  // Who waited for that may be waiting for something else now, and its time is the page server's to keep.
  if (server.parked_due.load() != UINT64_MAX) lanes_wake(server.lanes);
  const uint32_t for_faults = peer.connected & kFaultLanes;
  for (uint32_t i = 0; i < kLanesPerPeer; i++) if (for_faults >> i & 1) shutdown(peer.lanes[i].fd.load(), SHUT_RDWR);
  for (uint32_t idle = 0; idle != for_faults;) {
    idle |= (peer.free.exchange(0) | peer.broken.exchange(0)) & kFaultLanes;
    if (idle != for_faults) sched_yield();
  }
  for (uint32_t i = 0; i < kLanesPerPeer + kCallLanes; i++) if (peer.connected >> i & 1) server.end_lane(peer, i);
  peer.wants_calls.store(false);
  peer.connected = 0;
  for (size_t i = 0; i < server.connections.size();) {
    Connection* connection = server.connections[i].get();
    const bool its = connection->peer == &peer || (connection->outgoing != nullptr && connection->outgoing->peer == &peer);
    if (its) server.drop(connection);
    else i++;
  }
  peer.connecting = 0;
  peer.attempts = 0;
  peer.again_at = 0;
  peer.address.clear();
  peer.member.store(0);
}

}  // namespace

void Server::set_blocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

namespace {

// Listens at the address, which is an abstract Unix socket of a random name if `host` is empty; "" and errno if it can't be.
std::string listen_at(Server& server, int& listener, const std::string& host, const char*& call) {
  sockaddr_storage address{};
  socklen_t length = 0;
  std::string text;
  if (host.empty()) {
    uint8_t random[16];
    call = "getrandom";
    if (getrandom(random, sizeof random, 0) != sizeof random) return "";
    text = "unix:faultline-lane-";
    for (const uint8_t byte : random) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    Server::parse(text, address, length);
  } else if (!Server::parse_ip(host, 0, address, length)) {
    call = "inet_pton";
    errno = EINVAL;
    return "";
  }
  call = "socket";
  listener = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return "";
  call = "bind";
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0) return "";
  call = "listen";
  if (listen(listener, 512) != 0) return "";
  server.watch(reinterpret_cast<Connection*>(&listener), listener, EPOLLIN, EPOLL_CTL_ADD);
  if (host.empty()) return text;
  call = "getsockname";
  length = sizeof address;
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  const uint16_t port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port : reinterpret_cast<sockaddr_in&>(address).sin_port);
  return "tcp:" + host + ":" + std::to_string(port);
}

}  // namespace

LaneAddresses lanes_open(Member& member, uint32_t self, const std::string& host, SystemFailure& failure) {
  if (member.lanes.load() == nullptr) member.lanes.store(new Lanes);
  Lanes& lanes = *member.lanes.load();
  const Control lock(lanes);
  if (lanes.running) return lanes.addresses;
  auto server = std::make_unique<Server>(member, lanes);
  server->self = self;
  const auto fail = [&](const char* call) {
    failure = {"ERR_SYSTEM", call, errno};
    for (const int listener : server->listeners) if (listener >= 0) close(listener);
    if (server->epoll >= 0) close(server->epoll);
    if (lanes.event.load() >= 0) close(lanes.event.exchange(-1));
    return LaneAddresses{};
  };
  server->epoll = epoll_create1(EPOLL_CLOEXEC);
  if (server->epoll < 0) return fail("epoll_create1");
  lanes.event.store(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (lanes.event.load() < 0) return fail("eventfd");
  server->watch(nullptr, lanes.event.load(), EPOLLIN, EPOLL_CTL_ADD);
  const char* call = nullptr;
  lanes.addresses.near = listen_at(*server, server->listeners[0], "", call);
  if (lanes.addresses.near.empty()) return fail(call);
  lanes.addresses.far = host.empty() ? "" : listen_at(*server, server->listeners[1], host, call);
  if (!host.empty() && lanes.addresses.far.empty()) return fail(call);
  if (lanes.bounce == nullptr) {
    void* const bounce = mmap(nullptr, kBounces * kLaneBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bounce != MAP_FAILED) {
      lanes.bounce = static_cast<uint8_t*>(bounce);
      lanes.bounce_free.store((uint32_t{1} << kBounces) - 1);
    }
  }
  lane_poll_us();  // reads the environment now, never in a handler
  if (pthread_create(&server->thread, nullptr, [](void* self) -> void* { static_cast<Server*>(self)->run(); return nullptr; }, server.get()) != 0) return fail("pthread_create");
  lanes.server = server.release();
  lanes.running = true;
  return lanes.addresses;
}

void lanes_expect(Member& member, uint32_t slot, uint32_t id, const uint8_t* token) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr || slot >= kPeerSlots) return;
  const Control lock(*lanes);
  if (!lanes->running) return;
  Peer& peer = peer_at(*lanes, slot);
  if (peer.up.load()) close_peer(*server_of(*lanes), peer);
  memcpy(peer.expected, token, kTokenBytes);
  peer.member.store(id);
  peer.up.store(true);
}

void lanes_connect(Member& member, uint32_t slot, uint32_t id, const std::string& address, const uint8_t* token) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr || slot >= kPeerSlots) return;
  const Control lock(*lanes);
  Peer* peer = lanes->peers[slot].load();
  if (!lanes->running || peer == nullptr || !peer->up.load() || peer->member.load() != id) return;
  peer->address = address;
  memcpy(peer->token, token, kTokenBytes);
  peer->again_at = 0;
  lanes_wake(*lanes);
}

void lanes_close_peer(Member& member, uint32_t slot, uint32_t id) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr || slot >= kPeerSlots) return;
  const Control lock(*lanes);
  Peer* peer = lanes->peers[slot].load();
  if (!lanes->running || peer == nullptr || peer->member.load() != id) return;
  close_peer(*server_of(*lanes), *peer);
}

uint32_t lanes_connected(Member& member) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr) return 0;
  const Control lock(*lanes);
  uint32_t count = 0;
  for (auto& at : lanes->peers) if (Peer* peer = at.load()) count += static_cast<uint32_t>(__builtin_popcount(peer->connected));
  return count;
}

LaneTraffic lanes_traffic(Member& member) {
  const Lanes* lanes = member.lanes.load();
  if (lanes == nullptr) return {};
  return {lanes->messages_sent.load(), lanes->messages_received.load(), lanes->bytes_sent.load(), lanes->bytes_received.load()};
}

void lanes_stop(Member& member) {
  Lanes* lanes = member.lanes.load();
  if (lanes == nullptr) return;
  Server* server;
  {
    const Control lock(*lanes);
    if (!lanes->running) return;
    lanes->running = false;
    server = server_of(*lanes);
    server->stopping = true;
    for (auto& at : lanes->peers) if (Peer* peer = at.load()) close_peer(*server, *peer);
    lanes_wake(*lanes);
  }
  pthread_join(server->thread, nullptr);
  const Control lock(*lanes);
  // A thread whose lane broke may just be about to write to the descriptor.
  while (lanes->wakers.load() != 0) sched_yield();
  while (!server->connections.empty()) server->drop(server->connections.front().get());
  for (const int listener : server->listeners) if (listener >= 0) close(listener);
  close(server->epoll);
  close(lanes->event.exchange(-1));
  delete server;
  lanes->server = nullptr;
}

}  // namespace faultline
