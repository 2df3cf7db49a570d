// The kernel queues an event for each access that a page does not allow, and puts the thread to sleep. A proxy reads it,
// serves it as the handler would, and wakes the thread, which tries again. What can't be served is poisoned: the thread gets
// SIGBUS, for which the handler (fault.cc) finds the reason; a system call returns EFAULT.
//
// These are ordinary threads: they may lock and allocate. What they call of the handler's does neither.
#include "proxies.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "fault.h"
#include "futex.h"
#include "serve.h"

// Names that the headers of older distributions lack.
#ifndef UFFDIO_POISON
struct uffdio_poison {
  struct uffdio_range range;
  __u64 mode;
  __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

namespace faultline {
namespace {

constexpr uint64_t kKernelPage = 4096;
// One that serves may have to wait for as long as another member takes, so there is always one more that listens; beyond
// so many, threads whose pages could come at once wait for those whose pages can't.
constexpr uint32_t kMostThreads = 256;
// ms that a thread listens before it goes, if it is not the only one.
constexpr int kIdle = 5'000;
constexpr auto kStopping = std::chrono::seconds(5);

// Threads whose last faults are remembered.
constexpr uint32_t kThreads = 256;
// µs: who faults again so soon after it was woken may be at the same instruction still.
constexpr uint32_t kSameInstruction = 2'000;
// µs that a page stays for a thread that has to wake up first, at least.
constexpr uint32_t kStay = 200;

// What is known of a thread that faults. `tid`: 0 for nobody yet; while `busy` it is some proxy's own.
struct Faulting {
  uint32_t tid = 0;
  bool busy = false;
  uint32_t woken = 0;
  Recent recent{};
  Streams streams{};
};

}  // namespace

struct Proxies {
  int uffd = -1;
  int stop = -1;
  std::mutex mutex;
  std::condition_variable changed;
  uint32_t threads = 0;
  uint32_t listening = 0;
  bool stopping = false;
  Faulting faulting[kThreads];
};

namespace {

void wake(int uffd, uintptr_t address) {
  uffdio_range range{address & ~(kKernelPage - 1), kKernelPage};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

// The next access to the page is answered by SIGBUS, or EFAULT, until the page is opened or closed again.
void poison(int uffd, Region& region, uint64_t page, uintptr_t address) {
  PageEntry& entry = region.pages[page];
  // It is open, or about to be: the thread tries again.
  if (!begin_refusing(entry)) return wake(uffd, address);
  const uffdio_range range{address & ~(kKernelPage - 1), kKernelPage};
  // A page that was closed while it was read-only has left a mark in the page table, which the kernel does not overwrite.
  uffdio_writeprotect clear{};
  clear.range = range;
  clear.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  ioctl(uffd, UFFDIO_WRITEPROTECT, &clear);
  uffdio_poison call{};
  call.range = range;
  // Poisoned already, or the view is being replaced: the thread finds that.
  if (ioctl(uffd, UFFDIO_POISON, &call) != 0) wake(uffd, address);
  // It may have been found, or the region opened again, in between.
  const bool stands = effective_down(region) != kUp || held(entry.word.load()) == kLost;
  if (!stands) madvise(reinterpret_cast<void*>(static_cast<uintptr_t>(range.start)), kKernelPage, MADV_DONTNEED);
  settle(region, page, finish(entry, kOpenNone));
}

void serve(Proxies& proxies, const uffd_msg& message) {
  const auto address = static_cast<uintptr_t>(message.arg.pagefault.address);
  const uint32_t tid = message.arg.pagefault.feat.ptid;
  const bool writes = message.arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
  Region* region = region_enter(address);
  // Its view is being replaced; then the descriptor is closed, which wakes.
  if (region == nullptr) return;
  const uint64_t page = (address - region->app.load()) >> region->page_shift;
  // A thread faults once at a time; that it seems to do so twice comes from a signal that made it try again.
  Faulting passing;
  Faulting* thread = &proxies.faulting[tid % kThreads];
  {
    std::lock_guard<std::mutex> lock(proxies.mutex);
    if (thread->busy) {
      thread = &passing;
    } else if (thread->tid != tid) {
      *thread = {};
      thread->tid = tid;
    }
    thread->busy = true;
  }
  const uint32_t now = clock32();
  if (effective_down(*region) == kUp) hold_recent(thread->recent, *region, page, now - thread->woken > kSameInstruction, tid, now);
  uint32_t down = kUp;
  const Served served = fault_serve(*region, page, writes ? kWrite : kRead, thread->streams, down);
  if (served == Served::kYes) {
    thread->woken = clock32();
    const uint32_t stay = thread->recent.hold > kStay ? thread->recent.hold : kStay;
    region->pages[page].resident_until.store(thread->woken + stay);
  }
  // Before the thread runs: another proxy may have its next fault at once.
  if (thread != &passing) {
    std::lock_guard<std::mutex> lock(proxies.mutex);
    thread->busy = false;
  }
  if (served == Served::kYes) {
    wake(proxies.uffd, address);
  } else {
    // The handler counts it, if it was user code.
    (writes ? region->stats.write_faults : region->stats.read_faults).fetch_sub(1, std::memory_order_relaxed);
    if (served == Served::kLost || !fault_waits_for_the_end(tid)) poison(proxies.uffd, *region, page, address);
  }
  region_leave(*region);
}

void* run(void* argument);

// With the mutex. false: the kernel gives no more threads.
bool add_thread(Proxies& proxies) {
  // Signals of the process are for the threads that know what to do with them.
  sigset_t all, before;
  sigfillset(&all);
  for (const int own : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) sigdelset(&all, own);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const int error = pthread_create(&thread, nullptr, run, &proxies);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) {
    errno = error;
    return false;
  }
  pthread_setname_np(thread, "faultline-proxy");
  pthread_detach(thread);
  proxies.threads++;
  proxies.listening++;
  return true;
}

// An event, if there is one before it is time to go.
bool listen(Proxies& proxies, uffd_msg& message) {
  for (;;) {
    pollfd wanted[] = {{proxies.uffd, POLLIN, 0}, {proxies.stop, POLLIN, 0}};
    const int ready = poll(wanted, 2, kIdle);
    if (ready < 0 && errno != EINTR) return false;
    if (wanted[1].revents != 0) return false;
    if (ready == 0) {
      std::lock_guard<std::mutex> lock(proxies.mutex);
      if (proxies.listening > 1) return false;
      continue;
    }
    // Another one may have taken it: the descriptor does not block.
    if (read(proxies.uffd, &message, sizeof message) == sizeof message && message.event == UFFD_EVENT_PAGEFAULT) return true;
  }
}

void* run(void* argument) {
  Proxies& proxies = *static_cast<Proxies*>(argument);
  uffd_msg message;
  while (listen(proxies, message)) {
    {
      std::lock_guard<std::mutex> lock(proxies.mutex);
      if (--proxies.listening == 0 && !proxies.stopping && proxies.threads < kMostThreads) add_thread(proxies);
    }
    serve(proxies, message);
    std::lock_guard<std::mutex> lock(proxies.mutex);
    proxies.listening++;
  }
  std::lock_guard<std::mutex> lock(proxies.mutex);
  proxies.listening--;
  proxies.threads--;
  proxies.changed.notify_all();
  return nullptr;
}

}  // namespace

Proxies* proxies_start(Region& region, SystemFailure& failure) {
  auto* proxies = new Proxies;
  proxies->uffd = region.uffd;
  proxies->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (proxies->stop < 0) {
    failure = {"ERR_SYSTEM", "eventfd", errno};
    delete proxies;
    return nullptr;
  }
  std::unique_lock<std::mutex> lock(proxies->mutex);
  if (add_thread(*proxies)) return proxies;
  failure = {"ERR_SYSTEM", "pthread_create", errno};
  lock.unlock();
  close(proxies->stop);
  delete proxies;
  return nullptr;
}

bool proxies_stop(Proxies* proxies) {
  std::unique_lock<std::mutex> lock(proxies->mutex);
  proxies->stopping = true;
  // It stays readable, for each of them.
  const uint64_t one = 1;
  ssize_t written = write(proxies->stop, &one, sizeof one);
  static_cast<void>(written);
  if (!proxies->changed.wait_for(lock, kStopping, [&] { return proxies->threads == 0; })) return false;
  lock.unlock();
  close(proxies->stop);
  delete proxies;
  return true;
}

}  // namespace faultline
