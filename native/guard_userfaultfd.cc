// The view is mapped readable and writable, and stays one mapping; which pages it has in the page table is what opens and
// closes them. An access to a page that is not there, or a write to one that is write-protected, comes as SIGBUS in the
// thread that made it (UFFD_FEATURE_SIGBUS), as SIGSEGV does with mprotect. docs/guards.md has the figures.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "guard.h"
#include "region.h"

// Names that the headers of older distributions lack; the kernel says below whether it knows them.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_MINOR_SHMEM
#define UFFD_FEATURE_MINOR_SHMEM (1 << 10)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFDIO_REGISTER_MODE_MINOR
#define UFFDIO_REGISTER_MODE_MINOR (static_cast<__u64>(1) << 2)
#endif
#ifndef UFFDIO_CONTINUE
struct uffdio_continue {
  struct uffdio_range range;
  __u64 mode;
  __s64 mapped;
};
#define UFFDIO_CONTINUE_MODE_DONTWAKE (static_cast<__u64>(1) << 0)
#define _UFFDIO_CONTINUE 0x07
#define UFFDIO_CONTINUE _IOWR(UFFDIO, _UFFDIO_CONTINUE, struct uffdio_continue)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP (static_cast<__u64>(1) << 1)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace faultline {
namespace {

constexpr uint64_t kFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
constexpr uint64_t kBySignal = UFFD_FEATURE_SIGBUS;
constexpr uint64_t kToProxies = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_POISON;

[[noreturn]] void broken(const char* message, size_t length) {
  ssize_t written = write(STDERR_FILENO, message, length);
  static_cast<void>(written);
  abort();
}

char* place(const Region& region, uint64_t page) { return reinterpret_cast<char*>(region.app.load() + page * region.page_size); }

// Nobody sleeps in the kernel for one of these pages, so there is nobody to wake.
bool write_protect(int uffd, const char* start, uint64_t bytes, bool on) {
  uffdio_writeprotect call{};
  call.range = {reinterpret_cast<uintptr_t>(start), bytes};
  call.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
  for (;;) {
    if (ioctl(uffd, UFFDIO_WRITEPROTECT, &call) == 0) return true;
    if (errno == EAGAIN || errno == EINTR) continue;
    if (errno == ENOMEM) return false;
    constexpr char message[] = "faultline: UFFDIO_WRITEPROTECT refused a region's view\n";
    broken(message, sizeof message - 1);
  }
}

// Maps pages that the memfd has. The parts of the run that it does not have stay out, unless `make` has the kernel make them.
bool map(const Region& region, uint64_t first, uint64_t count, bool read_only, bool make) {
  char* const start = place(region, first);
  const uint64_t bytes = count * region.page_size;
  for (uint64_t done = 0; done < bytes;) {
    uffdio_continue call{};
    call.range = {reinterpret_cast<uintptr_t>(start) + done, bytes - done};
    call.mode = UFFDIO_CONTINUE_MODE_DONTWAKE | (read_only ? UFFDIO_CONTINUE_MODE_WP : 0);
    if (ioctl(region.uffd, UFFDIO_CONTINUE, &call) == 0) return true;
    const int error = errno;
    if (call.mapped > 0) {
      done += static_cast<uint64_t>(call.mapped);
      continue;
    }
    switch (error) {
      case EAGAIN:
      case EINTR:
        continue;
      case EEXIST:
        // The kernel's page is smaller than the region's, or the page was left open: it is as writable as the rest.
        if (!write_protect(region.uffd, start + done, 4096, read_only)) return false;
        done += 4096;
        continue;
      case EFAULT: {
        // A hole. (lseek is a bare system call, and nobody uses the descriptor's position.)
        const uint64_t offset = first * region.page_size + done;
        if (make) {
          if (!make_memory(region, offset, bytes - done) && errno != EINTR && errno != EAGAIN) return false;
          continue;
        }
        const off_t data = lseek(region.memfd, static_cast<off_t>(offset), SEEK_DATA);
        if (data < 0 || static_cast<uint64_t>(data) >= first * region.page_size + bytes) return true;
        done = (static_cast<uint64_t>(data) & ~uint64_t{4095}) - first * region.page_size;
        continue;
      }
      case ENOMEM:
        return false;
      default: {
        constexpr char message[] = "faultline: UFFDIO_CONTINUE refused a region's view\n";
        broken(message, sizeof message - 1);
      }
    }
  }
  return true;
}

// One that faults of system calls can be watched with: a privilege (CAP_SYS_PTRACE, or what /proc/sys/vm/unprivileged_userfaultfd
// and the permissions of /dev/userfaultfd say).
int open_privileged() {
  const int uffd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (uffd >= 0 || errno != EPERM) return uffd;
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) {
    errno = EPERM;
    return -1;
  }
  const int made = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  const int error = errno;
  close(device);
  errno = error;
  return made;
}

class UserfaultfdGuard final : public Guard {
 public:
  bool splits() const override { return false; }
  bool leaves_holes() const override { return true; }

  bool set(const Region& region, uint64_t first, uint64_t count, uint32_t wanted) override {
    if (wanted == kOpenNone) {
      // Out of the page table; the bytes stay in the memfd. (A bare system call.)
      if (madvise(place(region, first), count * region.page_size, MADV_DONTNEED) == 0) return true;
      constexpr char message[] = "faultline: madvise refused a region's view\n";
      broken(message, sizeof message - 1);
    }
    const auto at = [&](uint64_t page) {
      const uint32_t code = open(region.pages[page].word.load(std::memory_order_relaxed));
      return code == kSacrificed ? uint32_t{kOpenNone} : code;
    };
    for (uint64_t page = first; page < first + count;) {
      const uint32_t before = at(page);
      uint64_t end = page + 1;
      while (end < first + count && at(end) == before) end++;
      if (before == kOpenNone) {
        // One page is one that somebody waits for.
        if (!map(region, page, end - page, wanted == kOpenRead, count == 1)) return undo(region, first, page);
      } else if (before != wanted && !write_protect(region.uffd, place(region, page), (end - page) * region.page_size, wanted == kOpenRead)) {
        return undo(region, first, page);
      }
      page = end;
    }
    return true;
  }

  bool fill(const Region& region, uint64_t first, uint64_t count, uint32_t allowed) override { return map(region, first, count, allowed == kOpenRead, true); }

 private:
  // Closed is always allowed: a page whose word says more is filled when it is used.
  static bool undo(const Region& region, uint64_t first, uint64_t end) {
    if (end > first) madvise(place(region, first), (end - first) * region.page_size, MADV_DONTNEED);
    return false;
  }
};

}  // namespace

Guard& guard_userfaultfd() {
  static UserfaultfdGuard guard;
  return guard;
}

int userfaultfd_watch(uintptr_t address, uint64_t size, const char*& call, bool system_calls) {
  call = "userfaultfd";
  const int uffd = system_calls ? open_privileged() : static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (uffd < 0) return -1;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures | (system_calls ? kToProxies : kBySignal);
  call = "UFFDIO_API";
  bool good = ioctl(uffd, UFFDIO_API, &api) == 0;
  if (good) {
    uffdio_register wanted{};
    wanted.range = {address, size};
    // Without MISSING a hole of the memfd would read as zeros, and nobody would hear of it.
    wanted.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
    call = "UFFDIO_REGISTER";
    good = ioctl(uffd, UFFDIO_REGISTER, &wanted) == 0;
  }
  if (good) return uffd;
  const int error = errno;
  close(uffd);
  errno = error;
  return -1;
}

const char* userfaultfd_lacks(int& error, bool system_calls) {
  // Tried, not guessed from a version: a kernel may have parts of it.
  constexpr uint64_t kSize = 1 << 16;
  const char* call = "memfd_create";
  void* view = MAP_FAILED;
  int uffd = -1;
  const int memfd = memfd_create("faultline-probe", MFD_CLOEXEC);
  bool good = memfd >= 0;
  if (good) {
    call = "ftruncate";
    good = ftruncate(memfd, kSize) == 0;
  }
  if (good) {
    call = "mmap";
    view = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
    good = view != MAP_FAILED;
  }
  if (good) {
    call = "write";
    good = write(memfd, "", 1) == 1;
  }
  if (good) {
    uffd = userfaultfd_watch(reinterpret_cast<uintptr_t>(view), kSize, call, system_calls);
    good = uffd >= 0;
  }
  if (good) {
    uffdio_continue first{};
    first.range = {reinterpret_cast<uintptr_t>(view), static_cast<uint64_t>(sysconf(_SC_PAGESIZE))};
    first.mode = UFFDIO_CONTINUE_MODE_DONTWAKE | UFFDIO_CONTINUE_MODE_WP;
    call = "UFFDIO_CONTINUE";
    good = ioctl(uffd, UFFDIO_CONTINUE, &first) == 0;
    if (good) {
      call = "UFFDIO_WRITEPROTECT";
      uffdio_writeprotect second{};
      second.range = first.range;
      second.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
      good = ioctl(uffd, UFFDIO_WRITEPROTECT, &second) == 0;
    }
  }
  error = good ? 0 : errno;
  if (uffd >= 0) close(uffd);
  if (view != MAP_FAILED) munmap(view, kSize);
  if (memfd >= 0) close(memfd);
  return good ? nullptr : call;
}

}  // namespace faultline
