// The page server's sockets: strangers that become askers, and this member's own lanes to others.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "futex.h"
#include "page_server.h"

namespace faultline {
namespace {

constexpr uint32_t kHelloMagic = 0x68616c66;  // "flah"
constexpr uint32_t kHelloVersion = 1;
// s that a thread waits for an answer at the longest; then the lane is closed and the coordinator takes over.
constexpr timeval kAnswerTime{0, 200'000};
// µs before a lane that could not be made is tried again: the first time, and at the longest.
constexpr uint64_t kAgain = 20'000;
constexpr uint64_t kAgainLongest = 1'000'000;
constexpr int kBuffer = 512 << 10;

struct Hello {
  uint32_t magic, version;
  uint8_t token[kTokenBytes];
  uint32_t from, to;  // members' ids
};
static_assert(sizeof(Hello) == kHelloBytes, "it goes over the wire");
struct Welcome {
  uint32_t magic, ok;
};

// Compares in a time that does not depend on where they differ.
bool same_token(const uint8_t* a, const uint8_t* b) {
  uint8_t difference = 0;
  for (uint32_t i = 0; i < kTokenBytes; i++) difference |= a[i] ^ b[i];
  return difference == 0;
}

void prepare(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on Unix sockets, which need none
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBuffer, sizeof kBuffer);
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kBuffer, sizeof kBuffer);
}

void set_blocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

bool parse_ip(const std::string& host, uint16_t port, sockaddr_storage& out, socklen_t& length) {
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

// "unix:NAME" (abstract), "tcp:ADDRESS:PORT"
bool parse(const std::string& text, sockaddr_storage& out, socklen_t& length) {
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

// Another user's process may find an abstract socket: it is not let in, whatever it says.
bool same_user(int fd) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  sockaddr_storage address{};
  socklen_t address_length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &address_length) != 0) return false;
  if (address.ss_family != AF_UNIX) return true;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 && credentials.uid == geteuid();
}

}  // namespace

std::string PageServer::listen_at(int& listener, const std::string& host, const char*& call) {
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
    parse(text, address, length);
  } else if (!parse_ip(host, 0, address, length)) {
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
  watch(reinterpret_cast<Connection*>(&listener), listener, EPOLLIN, EPOLL_CTL_ADD);
  if (host.empty()) return text;
  call = "getsockname";
  length = sizeof address;
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  const uint16_t port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port : reinterpret_cast<sockaddr_in&>(address).sin_port);
  return "tcp:" + host + ":" + std::to_string(port);
}

void PageServer::watch(Connection* connection, int fd, uint32_t events, int how) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = connection;
  epoll_ctl(epoll, how, fd, &event);
}


void PageServer::drop(Connection* connection) {
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


int64_t PageServer::make_lanes() {
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

void PageServer::end_lane(Peer& peer, uint32_t index) {
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

void PageServer::connect_lane(Peer& peer, uint32_t index) {
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



void PageServer::outgoing_ready(Connection* connection) {
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

void PageServer::accept_all(int listener) {
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


bool PageServer::greet(Connection* connection) {
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

}  // namespace faultline
