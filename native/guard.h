// The mechanism that makes an access to an absent page stop. One file for each mechanism; nobody else knows which one a
// region has.
#pragma once

#include <cstdint>

namespace faultline {

struct Region;

class Guard {
 public:
  // Sets what the app view allows for a run of pages (an Open code: none, read, write). Async-signal-safe. false if the
  // kernel refuses because mappings are used up (the run is then as it was); every other failure is a broken assumption
  // and ends the process.
  virtual bool set(const Region& region, uint64_t first, uint64_t count, uint32_t open) = 0;

 protected:
  ~Guard() = default;
};

// mprotect: one system call for a run, but each change of protection inside the view costs the kernel a mapping.
Guard& guard_mprotect();
// A region whose app view is not mapped here: nothing can be opened.
Guard& guard_unmapped();

}  // namespace faultline
