#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "guard.h"
#include "region.h"

namespace faultline {
namespace {

class MprotectGuard final : public Guard {
 public:
  bool set(const Region& region, uint64_t first, uint64_t count, uint32_t open) override {
    const int protection = open == kOpenWrite ? PROT_READ | PROT_WRITE : open == kOpenRead ? PROT_READ : PROT_NONE;
    char* start = reinterpret_cast<char*>(region.app.load() + first * region.page_size);
    // Async-signal-safe: a bare system call.
    if (mprotect(start, count * region.page_size, protection) == 0) return true;
    // ENOMEM: splitting a mapping would exceed the limit. EAGAIN does not occur without MAP_LOCKED limits.
    if (errno == ENOMEM || errno == EAGAIN) return false;
    constexpr char message[] = "faultline: mprotect refused a region's view\n";
    ssize_t written = write(STDERR_FILENO, message, sizeof message - 1);
    static_cast<void>(written);
    abort();
  }
};

class UnmappedGuard final : public Guard {
 public:
  bool set(const Region&, uint64_t, uint64_t, uint32_t open) override { return open == kOpenNone; }
};

}  // namespace

Guard& guard_mprotect() {
  static MprotectGuard guard;
  return guard;
}

Guard& guard_unmapped() {
  static UnmappedGuard guard;
  return guard;
}

}  // namespace faultline
