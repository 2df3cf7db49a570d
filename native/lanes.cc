// Lanes as the coordinator sees them: it starts the page server, tells it who is there, and stops it.
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "page_server.h"

namespace faultline {
namespace {

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

PageServer* server_of(Lanes& lanes) { return static_cast<PageServer*>(lanes.server); }

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
void close_peer(PageServer& server, Peer& peer) {
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

LaneAddresses lanes_open(Member& member, uint32_t self, const std::string& host, SystemFailure& failure) {
  if (member.lanes.load() == nullptr) member.lanes.store(new Lanes);
  Lanes& lanes = *member.lanes.load();
  const Control lock(lanes);
  if (lanes.running) return lanes.addresses;
  auto server = std::make_unique<PageServer>(member, lanes);
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
  lanes.addresses.near = server->listen_at(server->listeners[0], "", call);
  if (lanes.addresses.near.empty()) return fail(call);
  lanes.addresses.far = host.empty() ? "" : server->listen_at(server->listeners[1], host, call);
  if (!host.empty() && lanes.addresses.far.empty()) return fail(call);
  if (lanes.bounce == nullptr) {
    void* const bounce = mmap(nullptr, kBounces * kLaneBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bounce != MAP_FAILED) {
      lanes.bounce = static_cast<uint8_t*>(bounce);
      lanes.bounce_free.store((uint32_t{1} << kBounces) - 1);
    }
  }
  lane_poll_us();  // reads the environment now, never in a handler
  if (pthread_create(&server->thread, nullptr, [](void* self) -> void* { static_cast<PageServer*>(self)->run(); return nullptr; }, server.get()) != 0) return fail("pthread_create");
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
  PageServer* server;
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
