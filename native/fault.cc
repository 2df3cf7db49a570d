#include "fault.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "attempt.h"
#include "futex.h"
#include "lanes.h"
#include "serve.h"
#include "stamps.h"

// Everything from handle() downwards runs in a signal handler that may have interrupted anything: malloc, V8, a lock
// holder. So it uses atomics on memory that is mapped before the handler can see it, bare system calls (futex, write,
// mprotect, madvise, ioctl, lseek, sched_yield, gettid), and clock_gettime, which POSIX lists as async-signal-safe. It
// allocates nothing, takes no lock, throws nothing, and calls nothing of V8 or Node-API.

namespace faultline {
namespace {

// How long a thread waits for the coordinator's last words before it ends the process by itself, µs.
constexpr int64_t kLastWords = 5'000'000;
// A sleeper looks again at least this often, µs: only a safety net, every change of a word wakes.
constexpr int64_t kLookAgain = 1'000'000;
// How long a thread waits for mappings to be given back before it tries again, µs.
constexpr int64_t kCoalesceWait = 20'000;

// ns: the coordinator's time slice.
constexpr uint64_t kSlice = 100'000;
// µs that a waiter looks at its word before it sleeps.
constexpr uint32_t kSpin = 600;
std::atomic<uint32_t> usual_wait{kSpin};

// Tells the threads of different processes apart. Set before the first fault.
uint32_t process_salt = 0;
// Who handled the two signals before.
struct sigaction previous_segv, previous_bus;
std::atomic<bool> in_child{false};
// Whether threads whose access can't be served wait for the end of the process, instead of being that end themselves.
// While the main thread is still to bring that end about (its 'exit' event has not come) it must not wait itself.
enum Parking : int { kNobodyParks, kOthersPark, kEverybodyParks };
std::atomic<int> parking{kNobodyParks};
std::atomic<uint32_t> threads_waiting{0};

#if defined(__x86_64__)
// The general registers and the instruction pointer, which are the first of gregs.
constexpr int kRegisters = REG_RIP + 1;
#else
// The general registers; the stack pointer; the instruction pointer.
constexpr int kRegisters = 33;
#endif

// What this thread faulted on last, and where. Plain data, in storage that exists before the first fault (initial-exec):
// the first use of any other thread-local storage might call malloc.
thread_local uintptr_t registers[kRegisters];
thread_local Recent recent;
thread_local Streams streams;
thread_local bool is_coordinator;

struct Fault {
  Region& region;
  uintptr_t address;
  uint64_t page;
  uint32_t access;
  void* context;
};

bool is_write(const void* context) {
#if defined(__x86_64__)
  // Bit 1 of the page fault's error code: the access was a write.
  return static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
#elif defined(__aarch64__)
  // The exception syndrome is a record after the registers; WnR is its bit 6.
  const auto* machine = &static_cast<const ucontext_t*>(context)->uc_mcontext;
  const uint8_t* record = reinterpret_cast<const uint8_t*>(machine->__reserved);
  const uint8_t* end = record + sizeof machine->__reserved;
  while (record + sizeof(_aarch64_ctx) <= end) {
    const auto* head = reinterpret_cast<const _aarch64_ctx*>(record);
    if (head->magic == 0 || head->size == 0) break;
    if (head->magic == ESR_MAGIC) return reinterpret_cast<const esr_context*>(head)->esr & (1u << 6);
    record += head->size;
  }
  return true;
#else
#error "faultline reads the kind of an access on x86-64 and arm64 only"
#endif
}

// One register of the interrupted thread, as kRegisters numbers them.
uintptr_t register_of(const void* context, int number) {
#if defined(__x86_64__)
  return static_cast<uintptr_t>(static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[number]);
#else
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
  return static_cast<uintptr_t>(number < 31 ? machine.regs[number] : number == 31 ? machine.sp : machine.pc);
#endif
}

// Has this thread run since its last fault? An instruction that could not finish is met again with
// every register as it was. The same instruction in the next turn of a loop differs in at least the address that it
// wants; were it taken for the former, a loop over two contended pages would hold on to each of them for longer and longer.
bool has_run_since(const void* context) {
  bool same = true;
  for (int i = 0; i < kRegisters; i++) {
    const uintptr_t value = register_of(context, i);
    same = same && registers[i] == value;
    registers[i] = value;
  }
  return !same;
}

// ---- text without printf, which is not async-signal-safe -----------------------------------------------------------

class Line {
 public:
  Line& operator<<(const char* text) {
    while (*text != 0 && length_ < sizeof text_ - 1) text_[length_++] = *text++;
    return *this;
  }
  Line& operator<<(uint64_t number) {
    char digits[20];
    int count = 0;
    do digits[count++] = static_cast<char>('0' + number % 10);
    while ((number /= 10) != 0);
    while (count > 0 && length_ < sizeof text_ - 1) text_[length_++] = digits[--count];
    return *this;
  }
  void print() {
    text_[length_++] = '\n';
    ssize_t written = write(STDERR_FILENO, text_, length_);
    static_cast<void>(written);
  }

 private:
  char text_[1024];
  size_t length_ = 0;
};

bool parks(long tid) {
  const int who = parking.load();
  return who == kEverybodyParks || (who == kOthersPark && tid != getpid());
}

bool parks() { return parks(syscall(SYS_gettid)); }

[[noreturn]] void park() {
  // The process is on its way out; the watchdog or the kernel ends this thread.
  threads_waiting.fetch_add(1);
  for (;;) pause();
}

// ---- the ends of an access that can't be served --------------------------------------------------------------------

bool still_lost(const LossInfo& info) {
  const auto* region = static_cast<const Region*>(info.context);
  if (info.down != 0) return true;
  return held(region->pages[info.page].word.load()) == kLost;
}

// The access can't be served: inside attempt() it is absorbed (the caller returns from the handler), else the process
// ends. A lost page lets the coordinator hand over first what only this member has.
void refuse(const Fault& fault, uint32_t down) {
  Region& region = fault.region;
  region.stats.lost_faults.fetch_add(1, std::memory_order_relaxed);
  LossInfo info{};
  info.region_name = region.name;
  info.app_base = region.app.load();
  info.page_size = region.page_size;
  info.page = fault.page;
  info.offset = fault.address - info.app_base;
  info.memfd = region.memfd;
  info.down = down;
  if (down == 0) {
    info.member = region.pages[fault.page].loss_member.load();
    info.epoch = region.pages[fault.page].loss_epoch.load();
  }
  info.still_lost = still_lost;
  info.context = &region;
  if (attempt_absorb(fault.context, info)) return;
  if (parks()) park();
  if (down == 0 && region.member->handle == region.member_handle && region.member->attached) {
    Member& member = *region.member;
    if (!member.dying.exchange(true)) {
      member.dying_offset = info.offset;
      member.dying_write = fault.access == kWrite;
      member.dying_thread = static_cast<uint32_t>(syscall(SYS_gettid));
      member.ring.push({kRingFatal, region.handle, fault.page, fault.access, 0});
    }
    const uint64_t until = now_us() + kLastWords;
    const uint32_t never = 0;
    while (now_us() < until) futex_wait(&never, 0, kLookAgain);
  }
  fault_die(region, info.offset, fault.access == kWrite, static_cast<uint32_t>(syscall(SYS_gettid)));
}

// ---- spinning ------------------------------------------------------------------------------------------------------

// Is there another processor for those who serve the fault? (sched_getaffinity is a bare system call.)
bool may_use_two_processors() {
  unsigned long mask[16] = {};
  const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof mask, mask);
  int count = 0;
  for (long i = 0; i < bytes / static_cast<long>(sizeof(unsigned long)) && count < 2; i++) count += __builtin_popcountl(mask[i]);
  return count > 1;
}

// A thread that sleeps costs a wake-up of an idle processor, which may be the greater part of a fault; so the first
// waiter of a process looks at its word for a while before it sleeps, as long as faults are usually served within that
// time. Where they are not (the processors are busy, the page is far away) it sleeps at once.
void spin(const PageEntry& entry, uint32_t expected) {
  if (usual_wait.load(std::memory_order_relaxed) > kSpin || !may_use_two_processors()) return;
  const uint64_t until = now_us() + kSpin;
  while (now_us() < until) {
    for (int i = 0; i < 16; i++) {
      if (static_cast<uint32_t>(entry.word.load(std::memory_order_relaxed)) != expected) return;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
}

// A moving average over about eight faults.
void learn_wait(uint64_t us) {
  const uint32_t seen = us < 100'000 ? static_cast<uint32_t>(us) : 100'000;
  const uint32_t usual = usual_wait.load(std::memory_order_relaxed);
  usual_wait.store(usual - usual / 8 + seen / 8, std::memory_order_relaxed);
}

// ---- one fault -----------------------------------------------------------------------------------------------------

void serve(const Fault& fault) {
  // A region that is down may have no tables any more. (Where a thread's own storage is tells it from the others of its
  // process; asking the kernel for its number costs a system call.)
  const auto own = process_salt ^ static_cast<uint32_t>(reinterpret_cast<uintptr_t>(&recent) >> 6);
  if (effective_down(fault.region) == kUp) hold_recent(recent, fault.region, fault.page, has_run_since(fault.context), own, static_cast<uint32_t>(now_us()));
  uint32_t down = kUp;
  const Served served = fault_serve(fault.region, fault.page, fault.access, streams, down);
  if (served == Served::kYes) return;
  if (served == Served::kDown && parks()) park();
  refuse(fault, down);
}

void chain(int signal, siginfo_t* info, void* context) {
  const struct sigaction& previous = signal == SIGBUS ? previous_bus : previous_segv;
  if (previous.sa_flags & SA_SIGINFO) {
    if (previous.sa_sigaction != nullptr) return previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_IGN && info->si_code <= 0) {
    return;  // sent by a process, and ignored before us
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    return previous.sa_handler(signal);
  }
  // Nobody wanted it: the default action. For a real fault the instruction runs again and meets it; a signal that was
  // sent is sent again. (A kernel fault can't be ignored, whatever was set.)
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
  if (info->si_code <= 0) raise(signal);
}

void handle(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  // Only the kernel's own faults have an address that means anything.
  if (info->si_code > 0 && !in_child) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    if (Region* region = region_enter(address)) {
      if (is_coordinator) {
        Line line;
        line << "faultline: the coordinator's thread touched the app view of region '" << region->name << "' at offset " << (address - region->app.load()) << ": this is a bug in faultline";
        line.print();
        abort();
      }
      serve({*region, address, (address - region->app.load()) >> region->page_shift, is_write(context) ? uint32_t{kWrite} : uint32_t{kRead}, context});
      region_leave(*region);
      errno = error;
      return;
    }
  }
  errno = error;
  chain(signal, info, context);
}

void install(int signal, struct sigaction& previous) {
  struct sigaction ours {};
  ours.sa_sigaction = handle;
  // On the alternate stack where a thread has one: the fault may be the stack's own.
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(signal, &ours, &previous);
}

}  // namespace

Served fault_serve(Region& region, uint64_t page, uint32_t access, Streams& streams, uint32_t& down) {
  const uint64_t start = now_us();
  stamp(region.id, page, Stage::kTrapped);
  (access == kWrite ? region.stats.write_faults : region.stats.read_faults).fetch_add(1, std::memory_order_relaxed);
  bool changed = false;
  Turn turn;
  turn.page = page;
  turn.access = access;
  turn.streams = &streams;
  bool slept = false;
  for (;;) {
    Next next = serve_look(region, turn);
    if (next == Next::kChange) {
      changed = true;
      next = serve_change(region, turn);
    }
    switch (next) {
      case Next::kRun:
        // A hole that gets memory: with mprotect the kernel does that by itself. Counted apart.
        if (!turn.waited && !changed && region.guard->leaves_holes() && serve_fill(region, turn)) {
          (access == kWrite ? region.stats.write_faults : region.stats.read_faults).fetch_sub(1, std::memory_order_relaxed);
        }
        if (turn.waited) {
          const uint64_t wait = now_us() - start;
          if (slept) learn_wait(wait);
          region.stats.waits[histogram_bucket(wait)].fetch_add(1, std::memory_order_relaxed);
        }
        stamp(region.id, page, Stage::kResumed);
        return Served::kYes;
      case Next::kLane:
        turn.waited = true;
        lane_exchange(region, turn.lane);
        break;
      case Next::kWait: {
        slept = true;
        const PageEntry& entry = region.pages[page];
        if (threads_waiting.fetch_add(1) == 0) spin(entry, turn.futex);
        futex_wait(&entry.word, turn.futex, kLookAgain);
        threads_waiting.fetch_sub(1);
        break;
      }
      case Next::kMappings:
        futex_wait(&region.coalesce_turn, turn.futex, kCoalesceWait);
        break;
      case Next::kMemory:
        turn.waited = true;
        futex_wait(&region.member->memory.turn, turn.futex, kMemoryWait);
        break;
      case Next::kFrozen:
        threads_waiting.fetch_add(1);
        futex_wait(&region.member->down, kFrozen, kLookAgain);
        threads_waiting.fetch_sub(1);
        break;
      case Next::kRefused:
        down = turn.down;
        return Served::kDown;
      case Next::kLost:
        return Served::kLost;
      default:
        break;
    }
  }
}

bool fault_waits_for_the_end(uint32_t tid) {
  if (!parks(tid)) return false;
  threads_waiting.fetch_add(1);
  return true;
}

void fault_install() {
  static std::once_flag once;
  std::call_once(once, [] {
    // The guards and the port exist before the first fault: building a static takes a lock.
    guard_mprotect();
    guard_userfaultfd();
    guard_unmapped();
    lane_poll_us();
    process_salt = static_cast<uint32_t>(getpid()) * 0x9e3779b1u ^ static_cast<uint32_t>(now_us());
    pthread_atfork(nullptr, nullptr, [] { in_child = true; });
    install(SIGSEGV, previous_segv);
  });
}

void fault_install_bus() {
  static std::once_flag once;
  std::call_once(once, [] { install(SIGBUS, previous_bus); });
}

void fault_this_is_coordinator(bool is) {
  is_coordinator = is;
  if (!is) return;
  // All other threads wait for this one, so it should not wait for a whole time slice of a busy thread when it wakes. A
  // short slice of its own makes the scheduler (EEVDF, Linux 6.12 and later) run it soon; an older kernel ignores it.
  // The threads that ZeroMQ starts from here inherit it. No privilege is needed.
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  attributes.size = sizeof attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != 0) return;
  attributes.runtime = kSlice;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

uint32_t fault_threads() { return threads_waiting.load(); }

void fault_parks(bool others) { parking = others ? kOthersPark : kNobodyParks; }

void fault_exiting(int code, uint32_t grace_ms) {
  parking = kEverybodyParks;
  struct Last {
    int code;
    uint32_t grace_ms;
  };
  auto* last = new Last{code, grace_ms};
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    const Last what = *static_cast<Last*>(argument);
    usleep(what.grace_ms * 1000);
    // Node would join a thread that waits in a fault for ever.
    for (;;) {
      if (fault_threads() > 0) _exit(what.code);
      usleep(50'000);
    }
  };
  if (pthread_create(&thread, nullptr, run, last) == 0) pthread_detach(thread);
}

void fault_die(const Region& region, uint64_t offset, bool write, uint32_t thread) {
  Line line;
  const uint32_t down = effective_down(region);
  const uint64_t page = offset >> region.page_shift;
  if (is_final(down) || region.pages == nullptr) {
    line << "faultline: region '" << region.name << "' was accessed at offset " << offset << " after ";
    switch (down) {
      case kEvicted: line << "this member was evicted from the cluster"; break;
      case kClusterLost: line << "the cluster was lost"; break;
      case kDestroyed: line << "the region was destroyed"; break;
      case kCoordinatorDied: line << "the coordinator ended"; break;
      default: line << "close()"; break;
    }
  } else {
    const PageEntry& entry = region.pages[page];
    line << "faultline: page " << page << " (offset " << page * region.page_size << ") of region '" << region.name << "' is lost: the only copy was at member "
         << entry.loss_member.load() << ", which was gone in epoch " << entry.loss_epoch.load();
  }
  line << " (" << (write ? "write" : "read") << " by thread " << uint64_t{thread} << " outside attempt())";
  line.print();
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  sigaction(SIGBUS, &standard, nullptr);
  sigset_t bus;
  sigemptyset(&bus);
  sigaddset(&bus, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &bus, nullptr);
  kill(getpid(), SIGBUS);
  for (;;) pause();
}

}  // namespace faultline
