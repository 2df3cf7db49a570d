// The page server's loop: what it waits for, and how.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "fault.h"
#include "futex.h"
#include "page_server.h"

namespace faultline {
namespace {

// Every so many looks at the lane that was answered last there is one at everything.
constexpr uint32_t kLookAtAll = 8;

}  // namespace

// Events until the next of those who wait is due.
int PageServer::wait_parked(epoll_event* events, int most) {
  const uint64_t next = parked_due.load();
  const uint64_t now = now_ns();
  // None is left by now: others end them, too.
  const timespec left{0, static_cast<long>(next > now && next != UINT64_MAX ? next - now : 0)};
  const long count = syscall(SYS_epoll_pwait2, epoll, events, most, &left, nullptr, 0);
  if (count < 0 && errno == ENOSYS) can_park = false;
  return count < 0 ? 0 : static_cast<int>(count);
}

// Looking for the next question saves a wake-up if it comes soon and from another processor: a thread on this one could
// not run meanwhile. It has to be worth while: each time that nothing came counts against it.
// bytes: what the asker has to take, and open, before it can ask again: one in 2 ns.
void PageServer::plan_polling(Connection* connection, uint32_t asker_cpu, uint32_t cpu, uint64_t bytes) {
  hot.store(connection, std::memory_order_relaxed);
  poll_until = 0;
  if (lane_poll_us() == 0 || asker_cpu == cpu) return;
  if (worth <= 0 && ++skipped % 16 != 0) return;
  poll_until = now_ns() + uint64_t{lane_poll_us()} * 1000 + 2 * bytes;
}

// Looks for the next question until `poll_until`. Mostly it comes over the lane that was answered last, and a look at that
// socket alone costs less than one at all of them, and reads it at once. The events of other sockets are for the caller.
int PageServer::look(epoll_event* events, int most) {
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

void PageServer::handle(const epoll_event& event) {
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
int64_t PageServer::overdue() {
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

void PageServer::run() {
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

}  // namespace faultline
