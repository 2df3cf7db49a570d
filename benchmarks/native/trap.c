// trap segv|uffd read|write: what the guard alone costs. A memfd is mapped twice, as a region is; all of its pages have
// bytes. A sample is one access to a page that is closed in the guarded mapping: the trap, the handler, one protection
// change, the way back, and the kernel's own fault that maps the page.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "meter.h"

// Headers older than the kernel lack it.
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

#define PAGES 4096u
#define PAGE 4096u

static char* guarded;
static int descriptor = -1;
static int writes;
static uint32_t order[PAGES];
static uint32_t next = 0;

static char* page_at(const siginfo_t* info) { return (char*)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1)); }

static void open_by_mprotect(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  if (mprotect(page_at(info), PAGE, writes ? PROT_READ | PROT_WRITE : PROT_READ) != 0) _exit(1);
}

static void open_by_userfaultfd(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  struct uffdio_continue go_on = {.range = {(uintptr_t)page_at(info), PAGE}};
  go_on.mode = writes ? 0 : UFFDIO_CONTINUE_MODE_WP;
  if (ioctl(descriptor, UFFDIO_CONTINUE, &go_on) != 0) _exit(1);
}

static void close_all(void) {
  if (descriptor < 0 && mprotect(guarded, (size_t)PAGES * PAGE, PROT_NONE) != 0) fail("mprotect");
  // With userfaultfd this closes the pages; with mprotect it takes the mapping away that another sample has made.
  if (madvise(guarded, (size_t)PAGES * PAGE, MADV_DONTNEED) != 0) fail("madvise");
  next = 0;
}

static void take(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    if (next == PAGES) close_all();
    volatile char* at = guarded + (size_t)order[next++] * PAGE;
    const uint64_t start = now_ns();
    if (writes) *at = 1;
    else (void)*at;
    samples[i] = now_ns() - start;
  }
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int uffd = strcmp(argv[1], "uffd") == 0;
  writes = strcmp(argv[2], "write") == 0;
  const int memory = memfd_create("trap", MFD_CLOEXEC);
  if (memory < 0 || ftruncate(memory, (off_t)PAGES * PAGE) != 0) fail("memfd_create");
  char* service = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  guarded = mmap(NULL, (size_t)PAGES * PAGE, uffd ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_SHARED, memory, 0);
  if (service == MAP_FAILED || guarded == MAP_FAILED) fail("mmap");
  memset(service, 1, (size_t)PAGES * PAGE);
  struct sigaction action = {.sa_flags = SA_SIGINFO};
  action.sa_sigaction = uffd ? open_by_userfaultfd : open_by_mprotect;
  sigaction(uffd ? SIGBUS : SIGSEGV, &action, NULL);
  if (uffd) {
    descriptor = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (descriptor < 0) left_out("userfaultfd");
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    if (ioctl(descriptor, UFFDIO_API, &api) != 0) left_out("UFFDIO_API");
    struct uffdio_register all = {.range = {(uintptr_t)guarded, (size_t)PAGES * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP};
    if (ioctl(descriptor, UFFDIO_REGISTER, &all) != 0) left_out("UFFDIO_REGISTER");
  }
  shuffle(order, PAGES);
  return run_meter(take);
}
