// floors copy|copy-fresh|map|zero|mprotect [BYTES]: what nothing can be faster than.
//   copy        BYTES copied to memory that is there
//   copy-fresh  BYTES copied into the pages of a new memfd
//   map         the kernel's fault on a page of a memfd that has bytes but is not mapped
//   zero        the kernel's fault on a page that nobody has touched
//   mprotect    one page of a mapping opened, no fault
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "meter.h"

#define PAGE 4096u
#define PAGES 4096u

static size_t bytes;
static char *from, *to;
static uint32_t order[PAGES];
static uint32_t next = PAGES;

static char* shared(size_t length, int protection) {
  const int memory = memfd_create("floors", MFD_CLOEXEC);
  if (memory < 0 || ftruncate(memory, (off_t)length) != 0) fail("memfd_create");
  char* at = mmap(NULL, length, protection, MAP_SHARED, memory, 0);
  if (at == MAP_FAILED) fail("mmap");
  close(memory);
  return at;
}

static void take_copy(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    const uint64_t start = now_ns();
    memcpy(to, from, bytes);
    samples[i] = now_ns() - start;
    __asm__ volatile("" : : "r"(to) : "memory");
  }
}

static void take_copy_fresh(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    char* fresh = shared(bytes, PROT_READ | PROT_WRITE);
    const uint64_t start = now_ns();
    memcpy(fresh, from, bytes);
    samples[i] = now_ns() - start;
    munmap(fresh, bytes);
  }
}

static void touch(uint64_t* samples, long count, int advice) {
  for (long i = 0; i < count; i++) {
    if (next == PAGES) {
      if (madvise(to, (size_t)PAGES * PAGE, advice) != 0) fail("madvise");
      next = 0;
    }
    volatile char* at = to + (size_t)order[next++] * PAGE;
    const uint64_t start = now_ns();
    *at = 1;
    samples[i] = now_ns() - start;
  }
}

static void take_map(uint64_t* samples, long count) { touch(samples, count, MADV_DONTNEED); }
static void take_zero(uint64_t* samples, long count) { touch(samples, count, MADV_REMOVE); }

static void take_mprotect(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    if (next == PAGES) {
      if (mprotect(to, (size_t)PAGES * PAGE, PROT_NONE) != 0) fail("mprotect");
      next = 0;
    }
    char* at = to + (size_t)order[next++] * PAGE;
    const uint64_t start = now_ns();
    if (mprotect(at, PAGE, PROT_READ) != 0) fail("mprotect");
    samples[i] = now_ns() - start;
  }
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  if (strncmp(argv[1], "copy", 4) == 0) {
    if (argc != 3) return 2;
    bytes = strtoull(argv[2], NULL, 10);
    from = shared(bytes, PROT_READ | PROT_WRITE);
    to = shared(bytes, PROT_READ | PROT_WRITE);
    memset(from, 7, bytes);
    memset(to, 1, bytes);
    return run_meter(strcmp(argv[1], "copy") == 0 ? take_copy : take_copy_fresh);
  }
  to = shared((size_t)PAGES * PAGE, PROT_READ | PROT_WRITE);
  memset(to, 1, (size_t)PAGES * PAGE);
  shuffle(order, PAGES);
  return run_meter(strcmp(argv[1], "map") == 0 ? take_map : strcmp(argv[1], "zero") == 0 ? take_zero : take_mprotect);
}
