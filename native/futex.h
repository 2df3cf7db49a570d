// The futex and the monotonic clock, for the fault handler and everybody else.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace faultline {

#ifdef FAULTLINE_SIMULATION

// The simulator's time, threads and order of events: test/simulation/native/simulation.cc.
void futex_wait(const void* word, uint32_t expected, int64_t timeout_us);
void futex_wake(const void* word);
uint64_t now_us();
void wait_for_busy();

#else

// Async-signal-safe: a bare system call. Returns when woken, when the value differs, on a signal or after the time.
inline void futex_wait(const void* word, uint32_t expected, int64_t timeout_us) {
  timespec limit{static_cast<time_t>(timeout_us / 1000000), static_cast<long>((timeout_us % 1000000) * 1000)};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout_us < 0 ? nullptr : &limit, nullptr, 0);
}

// Async-signal-safe: a bare system call.
inline void futex_wake(const void* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// µs. Async-signal-safe: POSIX lists clock_gettime.
inline uint64_t now_us() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1000000u + static_cast<uint64_t>(time.tv_nsec) / 1000u;
}

// The same in ns: what lanes measure and wait for.
inline uint64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(time.tv_nsec);
}

// Another thread holds BUSY, for the time of a protection change or a copy. Not in the handler.
inline void wait_for_busy() { usleep(10); }

#endif

// The low half of now_us(), as the page words' neighbours keep it.
inline uint32_t clock32() { return static_cast<uint32_t>(now_us()); }

}  // namespace faultline
