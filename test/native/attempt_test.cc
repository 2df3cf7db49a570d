// attempt() without JavaScript: instructions of many shapes touch lost pages; each must finish, must leave every register
// as it should, must have read ones, and must not let another thread read what stands in for the page.
#include "../../native/attempt.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "report.h"

using namespace faultline;
using test::check;

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 256;
constexpr size_t kSize = kPage * kPages;

uint8_t* view = nullptr;
int memfd = -1;
std::atomic<bool> lost{true};
std::atomic<int> terminations{0};
std::atomic<int> outside{0};

bool still_lost(const LossInfo&) { return lost.load(); }

void on_fault(int, siginfo_t* info, void* ucontext) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const auto base = reinterpret_cast<uintptr_t>(view);
  const size_t offset = address - base;
  if (offset < kSize) {
    const LossInfo loss = {"grid", base, kPage, offset / kPage, offset, memfd, 7, 42, 0, still_lost, nullptr};
    if (attempt_absorb(ucontext, loss)) return;
    outside.fetch_add(1);
#if defined(__x86_64__)
    // Outside attempt: the tests touch with `mov (%rax), %dl` only, which is two bytes long.
    static_cast<ucontext_t*>(ucontext)->uc_mcontext.gregs[REG_RIP] += 2;
    return;
#endif
  }
  static const char message[] = "an unexpected fault\n";
  (void)!write(2, message, sizeof(message) - 1);
  _exit(2);
}

struct Attempt {
  AttemptRecord record;
  Attempt() {
    record.isolate = this;
    if (bridge_port()->enter(&record) != 0) check(false, "an attempt is entered");
  }
  ~Attempt() { bridge_port()->leave(&record); }
};

bool view_is_closed() {
  // One mapping, with no access, from end to end: so every page has been taken back, and merged.
  FILE* maps = fopen("/proc/self/maps", "r");
  char line[512];
  bool closed = false;
  while (fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long long from, to;
    char access[5];
    if (sscanf(line, "%llx-%llx %4s", &from, &to, access) != 3) continue;
    if (from == reinterpret_cast<uintptr_t>(view)) closed = to - from == kSize && strcmp(access, "---s") == 0;
  }
  fclose(maps);
  return closed;
}

#if defined(__x86_64__)

uint64_t at(size_t offset) { return reinterpret_cast<uint64_t>(view) + offset; }

void test_loads() {
  Attempt attempt;
  uint64_t value = 0, address = at(8 * kPage + 64), index = 8;
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(address) : "memory");
  check(value == ~0ull, "a load reads ones");
  asm volatile("movq 16(%1,%2,4), %0" : "=r"(value) : "r"(address), "r"(index) : "memory");
  check(value == ~0ull && address == at(8 * kPage + 64), "a load with base, index and displacement");
  asm volatile("movq 0x12345(%1), %0" : "=r"(value) : "r"(address) : "memory");
  check(value == ~0ull, "a load with a long displacement");
  asm volatile("movq -64(%1), %0" : "=r"(value) : "r"(address) : "memory");
  check(value == ~0ull, "a load with a negative displacement");
  uint64_t moved = address;
  asm volatile("movq (%0), %0" : "+r"(moved) : : "memory");
  check(moved == ~0ull, "a load into the register that addresses it");
  moved = address;
  asm volatile("movl (%0), %k0" : "+r"(moved) : : "memory");
  check(moved == 0xffffffffull, "a 32-bit load into the register that addresses it");
  moved = address;
  asm volatile("movw (%0), %w0" : "+r"(moved) : : "memory");
  check(moved == (address | 0xffff), "a 16-bit load into the register that addresses it keeps the rest");
  moved = address;
  asm volatile("movb (%0), %b0" : "+r"(moved) : : "memory");
  check(moved == (address | 0xff), "an 8-bit load into the register that addresses it keeps the rest");
  moved = address;
  asm volatile("addq (%0), %0" : "+r"(moved) : : "memory");
  check(moved == address - 1, "arithmetic with the register that addresses it");
  asm volatile("movzbl (%1), %k0" : "=r"(value) : "r"(address) : "memory");
  check(value == 0xff, "a byte load that extends");
  register uint64_t high asm("r13") = address;
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(high) : "memory");
  check(value == ~0ull && high == address, "a load through r13");
  register uint64_t twelve asm("r12") = address;
  asm volatile("movq 8(%1,%2,8), %0" : "=r"(value) : "r"(twelve), "r"(high = 3) : "memory");
  check(value == ~0ull && twelve == address && high == 3, "a load through r12 and r13");
  double number = 0;
  asm volatile("movsd (%1), %0" : "=x"(number) : "r"(address) : "memory");
  check(number != number, "a floating-point load reads NaN");
  asm volatile("movq %2, %%rax; movq (%%rax,%%rax,1), %0" : "=&r"(value) : "r"(address), "r"(address / 2) : "rax", "memory");
  check(value == ~0ull, "a base that is its own index falls back to the view's page");
  check(attempt.record.losses >= 13, "every access is counted");
  check(attempt.record.page == 8 && attempt.record.offset == 8 * kPage + 64, "the first loss is kept");
  check(strcmp(attempt.record.region_name, "grid") == 0 && attempt.record.member == 7 && attempt.record.epoch == 42,
        "with its region, member and epoch");
  check(attempt.record.sacrificed_count == 0 && view_is_closed(), "nothing stays sacrificed after the step");
}

void test_straddling_load() {
  Attempt attempt;
  uint64_t value = 0;
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(at(9 * kPage - 3)) : "memory");
  check(value == ~0ull, "a load that straddles two lost pages");
  mprotect(view + 10 * kPage, kPage, PROT_READ | PROT_WRITE);
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(at(11 * kPage - 3)) : "memory");
  check(value == ~0ull, "a load that begins on a page that is there");
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(at(10 * kPage - 3)) : "memory");
  check(value == ~0ull, "a load that ends on a page that is there");
  mprotect(view + 10 * kPage, kPage, PROT_NONE);
  check(attempt.record.losses == 3, "one loss for each");
}

void test_stores() {
  uint64_t value = 5;
  {
    Attempt attempt;
    asm volatile("movq %0, (%1)" : : "r"(value), "r"(at(0)) : "memory");
    asm volatile("movq (%1), %0" : "=r"(value) : "r"(at(0)) : "memory");
    check(value == ~0ull, "a store to a lost page is not seen by a later load");
    value = 1;
    asm volatile("lock xaddq %0, (%1)" : "+r"(value) : "r"(at(8)) : "memory");
    check(value == ~0ull, "an atomic addition reads ones");
    uint64_t expected = 4, wanted = 9;
    asm volatile("lock cmpxchgq %2, (%1)" : "+a"(expected) : "r"(at(16)), "r"(wanted) : "memory");
    check(expected == ~0ull, "a compare-and-exchange reads ones");
    value = 3;
    asm volatile("xchgq %0, (%1)" : "+r"(value) : "r"(at(24)) : "memory");
    check(value == ~0ull, "an exchange reads ones");
    asm volatile("movq $77, (%0)" : : "r"(at(24)) : "memory");
    asm volatile("pushq (%0); popq %%rax" : : "r"(at(32)) : "rax", "memory");
  }
  lost = false;
  mprotect(view, kSize, PROT_READ | PROT_WRITE);
  check(*reinterpret_cast<uint64_t*>(view) == 0, "stores to a lost page never reach the region");
  mprotect(view, kSize, PROT_NONE);
  lost = true;
}

void test_string_instructions() {
  Attempt attempt;
  uint8_t here[600];
  memset(here, 1, sizeof(here));
  void* to = here;
  uint64_t from = at(3 * kPage - 100), count = 600;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
  bool ones = true;
  for (uint8_t byte : here) ones = ones && byte == 0xff;
  check(ones, "rep movsb out of lost pages copies ones");
  check(to == here + 600 && from == at(3 * kPage + 500) && count == 0, "and leaves its registers where they belong");
  uint64_t target = at(5 * kPage - 8);
  from = at(17 * kPage);
  count = 4;
  asm volatile("rep movsq" : "+D"(target), "+S"(from), "+c"(count) : : "memory");
  check(target == at(5 * kPage + 24) && from == at(17 * kPage + 32), "movs between two lost pages");
  target = at(6 * kPage);
  count = 300;
  asm volatile("rep stosb" : "+D"(target), "+c"(count) : "a"(0) : "memory");
  check(target == at(6 * kPage + 300) && count == 0, "rep stosb");
  target = at(7 * kPage);
  from = at(7 * kPage + 16);
  count = 8;
  asm volatile("repe cmpsb" : "+D"(target), "+S"(from), "+c"(count) : : "memory", "cc");
  check(count == 0 && target == at(7 * kPage + 8), "cmps of which both operands are near falls back");
  check(view_is_closed(), "nothing stays sacrificed");
}

__attribute__((target("avx2"))) void test_vectors() {
  if (!__builtin_cpu_supports("avx2")) return;
  Attempt attempt;
  uint8_t out[32] = {};
  asm volatile("vmovdqu (%0), %%ymm1; vmovdqu %%ymm1, (%1)" : : "r"(at(20 * kPage - 5)), "r"(out) : "ymm1", "memory");
  bool ones = true;
  for (uint8_t byte : out) ones = ones && byte == 0xff;
  check(ones, "a 32-byte load that straddles");
  register uint64_t base asm("r9") = at(21 * kPage);
  asm volatile("vpaddd 0x40(%0,%1,2), %%ymm2, %%ymm2" : : "r"(base), "r"(uint64_t{16}) : "ymm2", "memory");
  check(base == at(21 * kPage), "VEX with an extended base");
  // Every element on another page: eight faults of one instruction, none of them redirectable.
  int32_t indexes[8], results[8];
  for (int i = 0; i < 8; i++) indexes[i] = static_cast<int32_t>((30 + 2 * i) * kPage - 2);
  asm volatile(
      "vmovdqu (%0), %%ymm3; vpcmpeqd %%ymm4, %%ymm4, %%ymm4; vpgatherdd %%ymm4, (%1,%%ymm3,1), %%ymm5;"
      "vmovdqu %%ymm5, (%2)"
      :
      : "r"(indexes), "r"(view), "r"(results)
      : "ymm3", "ymm4", "ymm5", "memory");
  ones = true;
  for (int32_t result : results) ones = ones && result == -1;
  check(ones, "a gather of eight elements that all straddle");
  check(attempt.record.sacrificed_count == 0 && view_is_closed(), "and its pages are taken back after the step");
}

__attribute__((target("avx512f"))) void test_wide_vectors() {
  if (!__builtin_cpu_supports("avx512f")) return;
  Attempt attempt;
  uint8_t out[64] = {};
  asm volatile("vmovdqu64 64(%0), %%zmm1; vmovdqu64 %%zmm1, (%1)" : : "r"(at(22 * kPage)), "r"(out) : "xmm1", "memory");
  bool ones = true;
  for (uint8_t byte : out) ones = ones && byte == 0xff;
  check(ones, "EVEX with a scaled displacement");
}

void touch_outside(uint64_t address) {
  asm volatile("movb (%%rax), %%dl" : : "a"(address) : "rdx", "memory");
}

void test_other_threads_never_see_it() {
  std::atomic<bool> done{false};
  std::atomic<uint64_t> touches{0};
  const int before = outside.load();
  std::thread reader([&] {
    while (!done.load(std::memory_order_relaxed)) {
      touch_outside(at(40 * kPage));
      touches.fetch_add(1, std::memory_order_relaxed);
    }
  });
  {
    Attempt attempt;
    uint64_t value = 0;
    while (attempt.record.losses < 5000) {
      asm volatile("movq 8(%1), %0" : "=r"(value) : "r"(at(40 * kPage)) : "memory");
    }
  }
  done = true;
  reader.join();
  check(touches.load() > 0 && static_cast<uint64_t>(outside.load() - before) == touches.load(),
        "another thread that touches the page meanwhile always faults");
}

void test_outside() {
  const int before = outside.load();
  touch_outside(at(0));
  check(outside.load() == before + 1, "outside attempt the access is not absorbed");
  { Attempt attempt; }
  touch_outside(at(0));
  check(outside.load() == before + 2, "nor after attempt");
}

void test_many_losses() {
  Attempt attempt;
  // A native loop that nothing can stop: after many steps it goes on page by page.
  for (size_t offset = 0; offset < kSize; offset++) {
    asm volatile("movb $0, (%0)" : : "r"(at(offset)) : "memory");
  }
  check(attempt.record.losses < 30000, "a loop over lost pages is not stepped for ever");
  check(attempt.record.sacrificed_count <= kSacrificesPerAttempt, "and holds a bounded number of pages");
}

void test_restored_meanwhile() {
  {
    Attempt attempt;
    for (size_t offset = 0; offset < 20100; offset++) {
      asm volatile("movb $0, (%0)" : : "r"(at(offset)) : "memory");
    }
    for (size_t page = 0; page < 30; page++) asm volatile("movb $0, (%0)" : : "r"(at(page * kPage)) : "memory");
    check(attempt.record.sacrificed_count == 30, "pages stay sacrificed after very many losses");
    lost = false;
    check(attempt_release(at(0), kSize) == 0, "release succeeds");
    check(view_is_closed(), "release takes every page back");
    mprotect(view, kSize, PROT_READ | PROT_WRITE);
    view[5 * kPage] = 9;
  }
  check(view[5 * kPage] == 9, "an attempt that ends after a release leaves the restored pages alone");
  view[5 * kPage] = 0;
  mprotect(view, kSize, PROT_NONE);
  lost = true;
}

#endif

void test_termination() {
  const int before = terminations.load();
  {
    Attempt outer;
    Attempt inner;
    check(attempt_is_active(), "a thread knows that it is inside attempt");
    volatile uint8_t* byte = view;
    (void)*byte;
    check(inner.record.losses == 1 && outer.record.losses == 0, "the innermost attempt gets the loss");
    (void)*byte;
    (void)*byte;
  }
  check(terminations.load() == before + 1, "the JavaScript is asked to stop once");
  check(!attempt_is_active(), "and that it has left");
  check(view_is_closed(), "the view is as it was");
}

void test_threads() {
  std::thread threads[4];
  std::atomic<uint64_t> wrong{0};
  for (auto& thread : threads) {
    thread = std::thread([&] {
      for (int round = 0; round < 500; round++) {
        auto attempt = std::make_unique<Attempt>();
        volatile uint64_t* words = reinterpret_cast<volatile uint64_t*>(view);
        for (size_t i = 0; i < 4; i++) {
          if (words[i * 512] != ~0ull) wrong++;
        }
        if (attempt->record.losses != 4) wrong++;
      }
    });
  }
  for (auto& thread : threads) thread.join();
#if defined(__x86_64__)
  check(wrong.load() == 0, "four threads on the same lost pages each count every loss and read ones");
#endif
  check(view_is_closed(), "the view is as it was");
}

}  // namespace

int main() {
  memfd = static_cast<int>(syscall(SYS_memfd_create, "attempt_test", 0));
  if (ftruncate(memfd, kSize) != 0) return 2;
  view = static_cast<uint8_t*>(mmap(nullptr, kSize, PROT_NONE, MAP_SHARED | MAP_NORESERVE, memfd, 0));
  madvise(view, kSize, MADV_DONTDUMP);
  madvise(view, kSize, MADV_DONTFORK);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  bridge_port()->terminate = [](void*) { terminations.fetch_add(1); };

#if defined(__x86_64__)
  test_loads();
  test_straddling_load();
  test_stores();
  test_string_instructions();
  test_vectors();
  test_wide_vectors();
  test_outside();
  test_other_threads_never_see_it();
  test_many_losses();
  test_restored_meanwhile();
#endif
  test_termination();
  test_threads();
  return test::report("attempt");
}
