// For the native tests that run with either guard: `TEST userfaultfd`, or `TEST` for mprotect.
#pragma once

#include <cstdio>
#include <cstring>

#include "../../native/region.h"

namespace test {

// false: the guard that is asked for does not work here, which is said.
inline bool guard_argument(int argc, char** argv, faultline::GuardKind& kind) {
  kind = argc > 1 && std::strcmp(argv[1], "userfaultfd") == 0 ? faultline::GuardKind::kUserfaultfd : faultline::GuardKind::kMprotect;
  int error = 0;
  if (kind == faultline::GuardKind::kMprotect || faultline::userfaultfd_lacks(error) == nullptr) return true;
  std::printf("%s with userfaultfd: left out, it does not work here: %s\n", argv[0], std::strerror(error));
  return false;
}

}  // namespace test
