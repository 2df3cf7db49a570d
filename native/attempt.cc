#include "attempt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <mutex>

#include "operand.h"

namespace faultline {
namespace {

// How long a handler waits to hear that TerminateExecution has been called. It is not waited for without end, because
// the call may need a lock that the faulting thread itself holds: Atomics.wait loads its value under V8's process-wide
// wait-list mutex, and TerminateExecution takes that mutex. The call is then made as soon as the instruction is over.
constexpr int64_t kConfirmNanoseconds = 50 * 1000 * 1000;

// So many accesses of one attempt are stepped over, a few µs each. Whoever touches more is in a native loop that can't be
// stopped (a fill, a memcpy over a lost range) and would need minutes, instruction by instruction: from then on pages of
// the app view itself are sacrificed, and each stays until newer ones replace it.
constexpr uint64_t kSteppedLosses = 20000;

// A termination is asked for again after so many further losses, in case something that the function called (a nested
// attempt, vm with a timeout) has cancelled the first one.
constexpr uint64_t kLossesBetweenRequests = 64;

// Registers are moved by a multiple of this, so that an instruction which writes only 8 or 16 bits of the register that
// addresses its operand can be told from one that replaces it, and both leave what they should.
constexpr uintptr_t kRedirectStep = 64 * 1024;

constexpr size_t kHelperStackBytes = 256 * 1024;

enum Request : uint32_t { kIdle, kPending, kDone };

// The innermost attempt of this thread. initial-exec, because the handler reads it and the first use of any other
// thread-local storage may call malloc.
__attribute__((tls_model("initial-exec"))) thread_local AttemptRecord* current = nullptr;

void futex_wait(std::atomic<uint32_t>* word, uint32_t expected, const timespec* timeout) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected, timeout, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t>* word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

int64_t nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

// ---- the table of sacrificed pages -----------------------------------------------------------------------------------

// A lock that a signal handler may take: whoever holds it touches no guarded page, waits for no message and leaves it
// after one mapping call, so a handler that finds it taken always gets it from another thread that is running.
class HandlerLock {
 public:
  void lock() {
    uint32_t seen = 0;
    if (word_.compare_exchange_strong(seen, 1, std::memory_order_acquire)) return;
    while (word_.exchange(2, std::memory_order_acquire) != 0) futex_wait(&word_, 2, nullptr);
  }
  void unlock() {
    if (word_.exchange(0, std::memory_order_release) == 2) futex_wake(&word_, 1);
  }

 private:
  std::atomic<uint32_t> word_{0};
};

// A page of the kernel's size over which the page of ones is mapped now. Always the kernel's size: of a larger region
// page only that part needs to be sacrificed which the instruction touches.
struct Sacrifice {
  uintptr_t address;  // 0: the entry is free
  off_t file_offset;
  int memfd;
  uint32_t users;  // attempts that have it in their list; 0: taking it back has failed and is tried again
};

// Enough for 64 threads that each hold as many as they may.
constexpr uint32_t kSacrifices = 64 * kSacrificesPerAttempt;

HandlerLock table_lock;
Sacrifice table[kSacrifices];
uint32_t table_end = 0;                  // entries from here on have never been used
// Sacrificed pages, and threads that are about to add one: both 0 lets attempt_release pass without the lock.
std::atomic<uint32_t> sacrifice_count{0};
std::atomic<uint32_t> absorbing{0};
int ones_memfd = -1;
size_t kernel_page = 0;

Sacrifice* find_sacrifice(uintptr_t address) {
  for (uint32_t i = 0; i < table_end; i++) {
    if (table[i].address == address) return &table[i];
  }
  return nullptr;
}

Sacrifice* free_sacrifice() {
  for (uint32_t i = 0; i < table_end; i++) {
    if (table[i].address == 0) return &table[i];
  }
  return table_end < kSacrifices ? &table[table_end++] : nullptr;
}

// Maps what was there before. A mapping call in place of a whole mapping of its own needs no further one, so this works
// at the kernel's limit of mappings too; if it fails all the same, the page is at least closed.
int take_back(Sacrifice* sacrifice) {
  void* at = reinterpret_cast<void*>(sacrifice->address);
  const bool anonymous = sacrifice->memfd < 0;
  const int flags = MAP_FIXED | MAP_NORESERVE | (anonymous ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  if (mmap(at, kernel_page, PROT_NONE, flags, sacrifice->memfd, anonymous ? 0 : sacrifice->file_offset) == MAP_FAILED) {
    const int error = errno;
    mprotect(at, kernel_page, PROT_NONE);
    return error;
  }
  // As the rest of the app view, and so that the kernel merges the page with it again.
  madvise(at, kernel_page, MADV_DONTDUMP);
  madvise(at, kernel_page, MADV_DONTFORK);
  sacrifice->address = 0;
  sacrifice_count.fetch_sub(1, std::memory_order_relaxed);
  return 0;
}

// Under the lock.
bool sacrifice_page(uintptr_t address, const LossInfo& info, bool new_user) {
  Sacrifice* sacrifice = find_sacrifice(address);
  const bool fresh = sacrifice == nullptr;
  if (fresh && (sacrifice = free_sacrifice()) == nullptr) return false;
  // Mapped again even if it is in the table: it faulted, so somebody has closed a range around it meanwhile.
  void* at = reinterpret_cast<void*>(address);
  if (mmap(at, kernel_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, ones_memfd, 0) ==
      MAP_FAILED) {
    return false;
  }
  if (fresh) {
    *sacrifice = {address, static_cast<off_t>(address - info.app_base), info.memfd, 0};
    sacrifice_count.fetch_add(1, std::memory_order_relaxed);
  }
  if (new_user) sacrifice->users++;
  return true;
}

void let_go(uintptr_t address) {
  table_lock.lock();
  Sacrifice* sacrifice = find_sacrifice(address);
  // Not there any more: attempt_release has taken it back.
  if (sacrifice != nullptr) {
    if (sacrifice->users > 0) sacrifice->users--;
    if (sacrifice->users == 0) take_back(sacrifice);
  }
  table_lock.unlock();
}

// ---- the list of one attempt -----------------------------------------------------------------------------------------

bool has_sacrificed(const AttemptRecord* record, uintptr_t address) {
  for (uint32_t i = 0; i < record->sacrificed_count; i++) {
    if (record->sacrificed[(record->oldest + i) % kSacrificesPerAttempt] == address) return true;
  }
  return false;
}

void let_go_of_oldest(AttemptRecord* record) {
  const uintptr_t address = record->sacrificed[record->oldest];
  record->oldest = (record->oldest + 1) % kSacrificesPerAttempt;
  record->sacrificed_count--;
  let_go(address);
}

void let_go_of_all(AttemptRecord* record) {
  while (record->sacrificed_count > 0) let_go_of_oldest(record);
}

// ---- stopping the JavaScript -----------------------------------------------------------------------------------------

BridgePort port = {kBridgePortVersion, sizeof(BridgePort), nullptr, nullptr, {nullptr}, {nullptr}};

// Records that wait for the helper, newest first; it takes all at once, so there is no ABA.
std::atomic<AttemptRecord*> requests{nullptr};
std::atomic<uint32_t> helper_calls{0};

// TerminateExecution takes locks and may allocate, so it is called on a thread of its own, never in a handler.
void* run_helper(void*) {
  pthread_setname_np(pthread_self(), "faultline-stop");
  for (;;) {
    const uint32_t seen = helper_calls.load(std::memory_order_acquire);
    AttemptRecord* record = requests.exchange(nullptr, std::memory_order_acquire);
    if (record == nullptr) {
      futex_wait(&helper_calls, seen, nullptr);
      continue;
    }
    while (record != nullptr) {
      AttemptRecord* next = record->next_request;
      Terminator terminate = port.terminate.load(std::memory_order_acquire);
      if (terminate != nullptr) terminate(record->isolate);
      // The record may be gone as soon as this is stored; waking an address that nobody waits on any more is harmless.
      record->request.store(kDone, std::memory_order_release);
      futex_wake(&record->request, 1);
      record = next;
    }
  }
  return nullptr;
}

void ask_for_termination(AttemptRecord* record) {
  if (record->request.load(std::memory_order_relaxed) != kPending) {
    record->request.store(kPending, std::memory_order_relaxed);
    AttemptRecord* head = requests.load(std::memory_order_relaxed);
    do {
      record->next_request = head;
    } while (!requests.compare_exchange_weak(head, record, std::memory_order_release, std::memory_order_relaxed));
    helper_calls.fetch_add(1, std::memory_order_release);
    futex_wake(&helper_calls, 1);
  }
  const int64_t until = nanoseconds() + kConfirmNanoseconds;
  while (record->request.load(std::memory_order_acquire) == kPending) {
    const int64_t rest = until - nanoseconds();
    if (rest <= 0) return;
    const timespec timeout = {0, static_cast<long>(rest)};
    futex_wait(&record->request, kPending, &timeout);
  }
}

void note_loss(AttemptRecord* record, const LossInfo& info) {
  if (record->losses == 0) {
    size_t length = 0;
    while (length + 1 < kLossNameBytes && info.region_name != nullptr && info.region_name[length] != 0) {
      record->region_name[length] = info.region_name[length];
      length++;
    }
    record->region_name[length] = 0;
    record->page = info.page;
    record->offset = info.offset;
    record->page_size = info.page_size;
    record->member = info.member;
    record->epoch = info.epoch;
    record->down = info.down;
  }
  record->losses = record->losses + 1;
}

// ---- one instruction at a time ---------------------------------------------------------------------------------------

#if defined(__x86_64__)

constexpr greg_t kTrapFlag = 0x100;
constexpr greg_t kWriteFault = 2;  // bit 1 of the page fault's error code

struct sigaction trap_before;

greg_t* registers(void* ucontext) { return static_cast<ucontext_t*>(ucontext)->uc_mcontext.gregs; }

// Somebody else's trap: a breakpoint, or V8's way to abort.
void pass_on_trap(int signal, siginfo_t* info, void* ucontext) {
  if ((trap_before.sa_flags & SA_SIGINFO) != 0) {
    trap_before.sa_sigaction(signal, info, ucontext);
    return;
  }
  // A trap that was sent by kill() can be ignored; for one that an instruction raised the kernel doesn't honour that.
  if (trap_before.sa_handler == SIG_IGN && info->si_code <= 0) return;
  if (trap_before.sa_handler != SIG_DFL && trap_before.sa_handler != SIG_IGN) {
    trap_before.sa_handler(signal);
    return;
  }
  struct sigaction deadly = {};
  deadly.sa_handler = SIG_DFL;
  sigaction(SIGTRAP, &deadly, nullptr);
  // Delivered when this handler returns, because the signal is blocked until then.
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGTRAP);
}

void undo_redirection(AttemptRecord* record, greg_t* gregs) {
  for (uint32_t i = 0; i < record->redirected_count; i++) {
    const RedirectedRegister& redirected = record->redirected[i];
    const auto now = static_cast<uint64_t>(gregs[redirected.reg]);
    // Replaced as a whole (a load into the register that addressed it): nothing of ours is left in it.
    const bool replaced = !redirected.string_moves && (now ^ redirected.value) >= kRedirectStep;
    if (!replaced) gregs[redirected.reg] = static_cast<greg_t>(now - redirected.delta);
  }
  record->redirected_count = 0;
}

void on_trap(int signal, siginfo_t* info, void* ucontext) {
  AttemptRecord* record = current;
  greg_t* gregs = registers(ucontext);
  if (record == nullptr || !record->stepping || (gregs[REG_EFL] & kTrapFlag) == 0) {
    pass_on_trap(signal, info, ucontext);
    return;
  }
  const int saved = errno;
  gregs[REG_EFL] &= ~kTrapFlag;
  record->stepping = false;
  undo_redirection(record, gregs);
  let_go_of_all(record);
  errno = saved;
}

int install_trap_handler() {
  struct sigaction ours = {};
  ours.sa_sigaction = on_trap;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  return sigaction(SIGTRAP, &ours, &trap_before) == 0 ? 0 : errno;
}

// A trap that finds another handler, or finds the signal blocked, would end the process: then pages of the app view stay
// sacrificed until the attempt returns, as on other architectures.
bool can_step(void* ucontext) {
  struct sigaction now;
  if (sigaction(SIGTRAP, nullptr, &now) != 0 || now.sa_sigaction != on_trap) return false;
  return sigismember(&static_cast<ucontext_t*>(ucontext)->uc_sigmask, SIGTRAP) == 0;
}

void step(AttemptRecord* record, void* ucontext) {
  greg_t* gregs = registers(ucontext);
  record->stepping = true;
  record->step_at = static_cast<uintptr_t>(gregs[REG_RIP]);
  gregs[REG_EFL] |= kTrapFlag;
}

// The page before and the page after may be touched too, by an operand that straddles.
size_t window_bytes() { return kRedirectStep + 2 * kernel_page; }

// All ones again, if an earlier instruction of this attempt has stored there.
bool prepare_window(AttemptRecord* record) {
  if (record->window != 0 && !record->window_written) return true;
  const int flags = MAP_PRIVATE | MAP_NORESERVE | (record->window != 0 ? MAP_FIXED : 0);
  void* window = mmap(reinterpret_cast<void*>(record->window), window_bytes(), PROT_READ | PROT_WRITE, flags,
                      ones_memfd, 0);
  if (window == MAP_FAILED) return false;
  record->window = reinterpret_cast<uintptr_t>(window);
  record->window_written = false;
  return true;
}

// Points the instruction at this attempt's own ones, so that nothing is mapped where other threads would read it, and
// the kernel's limit of mappings doesn't matter. false: it has to be done by sacrificing a page of the app view.
bool redirect(AttemptRecord* record, void* ucontext, uintptr_t address) {
  greg_t* gregs = registers(ucontext);
  if (!record->stepping || record->step_at != static_cast<uintptr_t>(gregs[REG_RIP])) {
    // What another instruction left behind (it jumped out of a handler) is of no use any more.
    record->redirected_count = 0;
  }
  const AddressRegister found = address_register(gregs, address);
  bool possible = found.reg >= 0 && record->redirected_count < 2;
  for (uint32_t i = 0; i < record->redirected_count; i++) {
    // It faulted again although it was redirected already. Only a string instruction has two operands of this kind.
    if (!found.string_moves || record->redirected[i].reg == found.reg) possible = false;
  }
  if (!possible || !prepare_window(record)) {
    undo_redirection(record, gregs);
    return false;
  }
  if ((gregs[REG_ERR] & kWriteFault) != 0) record->window_written = true;
  const uintptr_t page = address & ~(kernel_page - 1);
  const uintptr_t first = record->window + kernel_page;
  const uintptr_t target = first + ((page - first) & (kRedirectStep - 1));
  const uint64_t delta = target - page;
  const uint64_t value = static_cast<uint64_t>(gregs[found.reg]) + delta;
  gregs[found.reg] = static_cast<greg_t>(value);
  record->redirected[record->redirected_count++] = {found.reg, found.string_moves, value, delta};
  return true;
}

void unmap_window(AttemptRecord* record) {
  if (record->window != 0) munmap(reinterpret_cast<void*>(record->window), window_bytes());
  record->window = 0;
}

#else

int install_trap_handler() { return 0; }
bool can_step(void*) { return false; }
void step(AttemptRecord*, void*) {}
size_t window_bytes() { return kernel_page; }
bool redirect(AttemptRecord*, void*, uintptr_t) { return false; }
void unmap_window(AttemptRecord*) {}

#endif

bool is_lost(const LossInfo& info) { return info.still_lost == nullptr || info.still_lost(info); }

// Maps ones over the touched page of the app view, unless it is not lost any more. Other threads that read there before
// it is taken back see them too. false: the kernel refused.
bool sacrifice(AttemptRecord* record, const LossInfo& info, uintptr_t address) {
  const bool new_user = !has_sacrificed(record, address);
  if (new_user && record->sacrificed_count == kSacrificesPerAttempt) let_go_of_oldest(record);
  // Counted before is_lost() looks, as attempt_release reads the count after its caller has changed what is_lost() looks
  // at: so at least one of the two sees the other.
  absorbing.fetch_add(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  table_lock.lock();
  const bool lost = is_lost(info);
  const bool mapped = lost && sacrifice_page(address, info, new_user);
  table_lock.unlock();
  absorbing.fetch_sub(1, std::memory_order_release);
  if (mapped && new_user) {
    record->sacrificed[(record->oldest + record->sacrificed_count) % kSacrificesPerAttempt] = address;
    record->sacrificed_count++;
  }
  return mapped || !lost;
}

// ---- once for the process --------------------------------------------------------------------------------------------

int make_ones() {
  kernel_page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const int memfd = static_cast<int>(syscall(SYS_memfd_create, "faultline-lost", MFD_CLOEXEC));
  if (memfd < 0) return errno;
  unsigned char ones[4096];
  memset(ones, 0xff, sizeof(ones));
  for (size_t at = 0; at < window_bytes();) {
    const ssize_t written = pwrite(memfd, ones, sizeof(ones), static_cast<off_t>(at));
    if (written <= 0) {
      const int error = written < 0 ? errno : ENOSPC;
      close(memfd);
      return error;
    }
    at += static_cast<size_t>(written);
  }
  ones_memfd = memfd;
  return 0;
}

int start_helper() {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kHelperStackBytes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  // It takes no signal: none of the process's handlers must run, and perhaps wait, on it.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t helper;
  const int error = pthread_create(&helper, &attributes, run_helper, nullptr);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return error;
}

// Tried again by the next attempt if something was missing, from where it failed.
int prepare() {
  static std::mutex mutex;
  static std::atomic<bool> prepared{false};
  static bool helper_runs = false;
  if (prepared.load(std::memory_order_acquire)) return 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (prepared.load(std::memory_order_relaxed)) return 0;
  if (ones_memfd < 0) {
    if (int error = make_ones()) return error;
  }
  if (!helper_runs) {
    if (int error = start_helper()) return error;
    helper_runs = true;
  }
  if (int error = install_trap_handler()) return error;
  prepared.store(true, std::memory_order_release);
  return 0;
}

int enter(AttemptRecord* record) {
  if (int error = prepare()) return error;
  record->outer = current;
  current = record;
  return 0;
}

void leave(AttemptRecord* record) {
  current = record->outer;
  record->stepping = false;
  let_go_of_all(record);
  unmap_window(record);
  // Without end, unlike the handler: this thread holds nothing that the helper may need, and a termination that arrived
  // after the attempt would stop a program that knows nothing of it.
  while (record->request.load(std::memory_order_acquire) == kPending) {
    futex_wait(&record->request, kPending, nullptr);
  }
}

}  // namespace

bool attempt_is_active() { return current != nullptr; }

bool attempt_absorb(void* ucontext, const LossInfo& info) {
  // Everything called from here is async-signal-safe: atomics, plain system calls (futex, mmap, madvise, sigaction), and
  // the vDSO's clock_gettime.
  AttemptRecord* record = current;
  if (record == nullptr) return false;
  if (!is_lost(info)) return true;
  const int saved = errno;
  const bool steps = record->losses < kSteppedLosses && can_step(ucontext);
  // Before anything is sacrificed, because it may wait.
  note_loss(record, info);
  if (record->losses % kLossesBetweenRequests == 1) ask_for_termination(record);
  const uintptr_t touched = info.app_base + info.offset;
  const bool absorbed =
      (steps && redirect(record, ucontext, touched)) || sacrifice(record, info, touched & ~(kernel_page - 1));
  if (absorbed && steps) step(record, ucontext);
  errno = saved;
  return absorbed;
}

int attempt_release(uintptr_t address, size_t length) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (absorbing.load(std::memory_order_acquire) == 0 && sacrifice_count.load(std::memory_order_acquire) == 0) return 0;
  int error = 0;
  table_lock.lock();
  for (uint32_t i = 0; i < table_end; i++) {
    Sacrifice* sacrifice = &table[i];
    if (sacrifice->address == 0 || sacrifice->address < address || sacrifice->address - address >= length) continue;
    if (int failed = take_back(sacrifice)) error = failed;
  }
  table_lock.unlock();
  return error;
}

BridgePort* bridge_port() {
  port.enter = enter;
  port.leave = leave;
  return &port;
}

}  // namespace faultline
