// What happens when a thread touches a page that can't be served any more, and the contract between the main addon and
// the V8 bridge. Inside attempt() such an access must not end the process: the JavaScript around it is stopped, and the
// one instruction that is under way finishes on a sacrificial page. This header names no V8 type, so that the main addon
// stays on Node-API alone.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

// As node_api.h declares them: the tests of the native parts are built without Node's headers.
typedef struct napi_env__* napi_env;
typedef struct napi_value__* napi_value;

namespace faultline {

// What the fault handler knows about an access that can't be served.
struct LossInfo {
  const char* region_name;  // ends with a zero byte; copied
  uintptr_t app_base;       // first byte of the region's app view
  size_t page_size;         // bytes; the region's page, a multiple of the kernel's
  uint64_t page;            // counted from 0 within the region
  uint64_t offset;          // byte of the region that was touched: si_addr - app_base
  int memfd;                // what the app view maps; -1 if the region has been released and only its addresses are left
  uint32_t member;          // the member that had the only copy; 0 if the region is down
  uint32_t epoch;           // the epoch in which it died; 0 if the region is down
  uint32_t down;            // a Down code of lib/native.ts; 0: only this page is lost
  // Is it still so? Asked under the lock that attempt_release takes, because the page may have been restored since the
  // handler looked. Must be async-signal-safe. nullptr: it can't change any more.
  bool (*still_lost)(const LossInfo& info);
  const void* context;  // for still_lost
};

// For the fault handler. true: the thread is inside attempt() and everything is prepared (the loss is noted, the
// JavaScript is being stopped, the instruction will find a sacrificial page), so the handler simply returns. Also
// true if still_lost() says no: the instruction is then tried again. false: this thread is not inside attempt(), or the
// kernel refused the mapping: the access can't be absorbed. Async-signal-safe; preserves errno.
bool attempt_absorb(void* ucontext, const LossInfo& info);

// Takes back every sacrificial page in [address, address + length): what the app view was, PROT_NONE, is mapped there
// again. Must be called
//  - by find(), after the words have left "lost" and before anything is opened there;
//  - before a region's memfd is closed, and before anything else is mapped over its addresses.
// A thread that is just stepping over such a page faults again and looks again. Not for the handler. Cheap if no page is
// sacrificed. Returns 0 or an errno (the page is then PROT_NONE, but still not the memfd's).
int attempt_release(uintptr_t address, size_t length);

// true if this thread is inside attempt(). Async-signal-safe.
bool attempt_is_active();

// The longest region name that a loss carries; a longer one is cut.
constexpr size_t kLossNameBytes = 256;

// Sacrificed pages that one attempt may hold at a time. One instruction touches at most 2 x 16 pages (a gather of 16
// unaligned elements), so twice that never evicts a page which the present instruction needs.
constexpr uint32_t kSacrificesPerAttempt = 64;

// A register that addresses private memory until the present instruction has been stepped.
struct RedirectedRegister {
  int reg;            // an index into gregs
  bool string_moves;  // the instruction adds to it
  uint64_t value;     // what the instruction starts with
  uint64_t delta;     // to subtract after the step
};

// One running attempt(fn), on the stack of the bridge's native function. Records of one thread are linked, innermost
// first. Everything but `request` and `next_request` belongs to the thread itself (its handlers included).
struct AttemptRecord {
  AttemptRecord* outer = nullptr;
  void* isolate = nullptr;  // for BridgePort::terminate

  // The losses that this attempt has absorbed; the first one is kept below. Counted, because a short function may return
  // before V8 notices that it has been stopped.
  volatile uint64_t losses = 0;
  char region_name[kLossNameBytes] = {};
  uint64_t page = 0;
  uint64_t offset = 0;
  uint64_t page_size = 0;
  uint32_t member = 0;
  uint32_t epoch = 0;
  uint32_t down = 0;

  // x86-64: memory of this attempt's own, all ones, at which the faulting instruction is pointed for one step.
  uintptr_t window = 0;
  bool window_written = false;
  bool stepping = false;
  uintptr_t step_at = 0;  // RIP of the instruction that is being stepped
  RedirectedRegister redirected[2];
  uint32_t redirected_count = 0;

  // Where that can't be done: pages of the app view itself that are sacrificed (addresses), oldest first from `oldest`.
  uintptr_t sacrificed[kSacrificesPerAttempt] = {};
  uint32_t sacrificed_count = 0;
  uint32_t oldest = 0;

  // Termination asked of the helper thread: a futex, and a link of the helper's list.
  std::atomic<uint32_t> request{0};
  AttemptRecord* next_request = nullptr;
};

// As node_api_create_external_sharedarraybuffer, which Node 20 lacks; returns a napi_status.
using SharedBufferMaker = int (*)(napi_env env, void* data, size_t byte_length,
                                  void (*finalize)(void* data, void* hint), void* hint, napi_value* result);

// Stops the JavaScript of an isolate; called on the helper thread, never in a handler.
using Terminator = void (*)(void* isolate);

constexpr uint32_t kBridgePortVersion = 2;

// One for the process, in the main addon; bridgePort() gives its address to the bridge.
struct BridgePort {
  uint32_t version;  // kBridgePortVersion of the main addon's build; the bridge refuses another
  uint32_t bytes;    // sizeof(BridgePort)

  // Links the record into the calling thread. 0, or an errno if the process can't be prepared (the helper thread, the
  // sacrificial page).
  int (*enter)(AttemptRecord* record);
  // Unlinks it, takes back its pages and waits for a termination that is still on its way: none arrives later.
  void (*leave)(AttemptRecord* record);

  // Filled in by the bridge when it is installed; nullptr until then.
  std::atomic<Terminator> terminate;
  std::atomic<SharedBufferMaker> make_shared_buffer;
};

BridgePort* bridge_port();

}  // namespace faultline
