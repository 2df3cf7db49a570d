// The mechanism that makes an access to an absent page stop. One file for each mechanism; nobody else knows which one a
// region has.
#pragma once

#include <cstdint>

namespace faultline {

struct Region;

class Guard {
 public:
  // Sets what the app view allows for a run of BUSY pages (an Open code: none, read, write), whose words still say what it
  // was. Async-signal-safe. false if the kernel refuses because mappings or memory are used up (the run is then as it
  // was); every other failure is a broken assumption and ends the process.
  virtual bool set(const Region& region, uint64_t first, uint64_t count, uint32_t open) = 0;
  // Does each place where neighbouring pages allow different accesses cost the kernel a mapping?
  virtual bool splits() const { return true; }
  // Can a page stop an access that it is said to allow? Then fill() makes it go on.
  virtual bool leaves_holes() const { return false; }
  // BUSY pages that allow `open` have stopped such an access all the same. Async-signal-safe. false: no memory.
  virtual bool fill(const Region&, uint64_t, uint64_t, uint32_t) { return true; }

 protected:
  ~Guard() = default;
};

// mprotect: one system call for a run, but each change of protection inside the view costs the kernel a mapping.
Guard& guard_mprotect();
// userfaultfd: page tables change, mappings never; the kernel reports an access as SIGBUS. region.uffd watches the view.
Guard& guard_userfaultfd();
// A region whose app view is not mapped here: nothing can be opened.
Guard& guard_unmapped();

// What this kernel and this user lack for guard_userfaultfd(): the call that failed, and its error; nullptr: nothing.
// system_calls: what proxies.h needs.
const char* userfaultfd_lacks(int& error, bool system_calls = false);
// A descriptor that watches this view, or -1 and errno; `call` failed. system_calls: accesses are reported to it, not by signal.
int userfaultfd_watch(uintptr_t address, uint64_t size, const char*& call, bool system_calls = false);

}  // namespace faultline
