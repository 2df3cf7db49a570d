// What the native tests share: counting, and the line at the end.
#pragma once

#include <atomic>
#include <cstdio>

namespace test {

inline std::atomic<int> passed{0};
inline std::atomic<int> failed{0};

inline void check(bool holds, const char* what) {
  if (holds) {
    passed++;
    return;
  }
  failed++;
  std::printf("  FAILED: %s\n", what);
}

// The exit code.
inline int report(const char* name) {
  std::printf("%s: %d passed, %d failed\n", name, passed.load(), failed.load());
  return failed.load() == 0 ? 0 : 1;
}

}  // namespace test
