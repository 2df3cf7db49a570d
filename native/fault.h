// The SIGSEGV handler: where a faulting thread finds its page, or waits for it.
#pragma once

#include <cstdint>

#include "region.h"

namespace faultline {

// Installs the handler, once for the process. Whatever handled SIGSEGV before gets every address that is not ours.
void fault_install();

// SIGBUS, too: for regions with userfaultfd. Once for the process.
void fault_install_bus();

// Marks the calling thread as a coordinator: a fault of its own on an app view could never be served.
void fault_this_is_coordinator(bool is);

struct Streams;
enum class Served : uint8_t { kYes, kLost, kDown };
// One fault, until the page allows the access or never will; `down` says why the region can't serve it any more. streams: of
// the thread that faulted. Async-signal-safe.
Served fault_serve(Region& region, uint64_t page, uint32_t access, Streams& streams, uint32_t& down);
// The process is about to end, and this thread, whose access can't be served any more, is to wait for that; counted below.
bool fault_waits_for_the_end(uint32_t tid);

// Threads that wait in the handler now, over all regions.
uint32_t fault_threads();

// The process is about to end: from here on a thread other than the main one whose access can't be served any more waits
// for that end, instead of being it. False: it goes on after all.
void fault_parks(bool others);
// From here on no wait ends; after the grace the process leaves by _exit(code) if threads are still in the handler.
void fault_exiting(int code, uint32_t grace_ms);

// Ends the process because of an access to this page: one line on stderr, then SIGBUS. Async-signal-safe.
[[noreturn]] void fault_die(const Region& region, uint64_t offset, bool write, uint32_t thread);

}  // namespace faultline
