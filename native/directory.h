// Page words and directory words, and every transition that they may make. Pure: no system call, no allocation, no
// lock; the fault handler, the coordinator and the page server all decide from here. docs/transitions.md has
// the tables and the reasons.
#pragma once

#include <atomic>
#include <cstdint>

namespace faultline {

enum Held : uint32_t { kInvalid = 0, kShared = 1, kExclusive = 2, kLost = 3 };
// kAsItWas is no code of the word: the mapping could not be changed, and so OPEN must not change either.
enum Open : uint32_t { kOpenNone = 0, kOpenRead = 1, kOpenWrite = 2, kSacrificed = 3, kAsItWas = 4 };
enum Access : uint32_t { kRead = 1, kWrite = 2 };
enum DirectoryState : uint32_t { kIdle = 0, kOwned = 1, kGone = 2, kAway = 3 };

// The page word. Its low 32 bits are what sleepers wait on.
constexpr uint64_t kHeldMask = 3;
constexpr int kOpenShift = 2;
constexpr uint64_t kOpenMask = 3ull << kOpenShift;
constexpr uint64_t kBusy = 1ull << 4;
constexpr int kPendShift = 5;
constexpr uint64_t kPendMask = 3ull << kPendShift;
constexpr uint64_t kLane = 1ull << 7;
constexpr uint64_t kPoison = 1ull << 8;
constexpr uint64_t kWantWrite = 1ull << 9;
constexpr uint64_t kSleepers = 1ull << 10;
constexpr uint64_t kUnacked = 1ull << 11;
constexpr uint64_t kDefer = 1ull << 12;
// The answer that a LANE claim waits for must not be installed, whatever its version: the page was lost meanwhile.
constexpr uint64_t kVoid = 1ull << 13;
constexpr int kSequenceShift = 16;
constexpr uint64_t kSequenceOne = 1ull << kSequenceShift;
constexpr uint64_t kSequenceMask = 0xffffull << kSequenceShift;
constexpr uint64_t kReadPinOne = 1ull << 32;
constexpr uint64_t kReadPinMask = 0x3ffull << 32;
constexpr uint64_t kWritePinOne = 1ull << 42;
constexpr uint64_t kWritePinMask = 0x3ffull << 42;
constexpr uint64_t kUnresumedOne = 1ull << 52;
constexpr uint64_t kUnresumedMask = 0xfffull << 52;

// The directory word.
constexpr uint64_t kStateMask = 3;
constexpr uint64_t kLock = 1ull << 2;
constexpr uint64_t kHop = 1ull << 3;
constexpr uint64_t kTxn = 1ull << 4;
constexpr uint64_t kWant = 1ull << 5;
constexpr int kOwnerShift = 6;
constexpr uint64_t kOwnerMask = 0x3ffull << kOwnerShift;
// Two hints, which only decide whether an owner that is recalled for a reader keeps a copy: who kept one last (its slot + 1; 0:
// nobody), and whether the page migrates: one member after another reads it and then writes it.
constexpr int kWriterShift = 16;
constexpr uint64_t kWriterMask = 0x3ffull << kWriterShift;
constexpr uint64_t kMigratory = 1ull << 26;
constexpr uint64_t kHints = kWriterMask | kMigratory;
constexpr int kVersionShift = 32;
constexpr uint64_t kDirectoryFlags = kLock | kHop | kTxn | kWant;

struct PageEntry {
  std::atomic<uint64_t> word;
  std::atomic<uint32_t> version;
  std::atomic<uint32_t> poison;
  // Low 32 bits of µs of CLOCK_MONOTONIC, which wrap every 71 minutes.
  std::atomic<uint32_t> resident_until;
  std::atomic<uint32_t> installed_at;
  // Where the page went, while HELD is lost.
  std::atomic<uint32_t> loss_member;
  std::atomic<uint32_t> loss_epoch;
};
static_assert(sizeof(PageEntry) == 32, "tables are sized by it");

// Slots from here on share the last bit of a copyset.
constexpr uint32_t kCoarseSlot = 63;
inline uint64_t slot_bit(uint32_t slot) { return uint64_t{1} << (slot < kCoarseSlot ? slot : kCoarseSlot); }

struct DirectoryEntry {
  std::atomic<uint64_t> word;
  // Bit s: the member at slot s has a copy; bit 63 stands for all slots from 63 on.
  std::atomic<uint64_t> copyset;
};
static_assert(sizeof(DirectoryEntry) == 16, "tables are sized by it");

// µs that a page stays after its last waiting thread has resumed, and at the longest while threads have not.
constexpr uint32_t kResidency = 8;
constexpr uint32_t kResumeLimit = 10'000;
// µs: a stay that is over as soon as that is one of a page that has only just come.
constexpr uint32_t kSoon = 64;
// µs: no page is meant to stay for longer.
constexpr uint32_t kLongestStay = 100'000;

inline uint32_t held(uint64_t word) { return static_cast<uint32_t>(word & kHeldMask); }
inline uint32_t open(uint64_t word) { return static_cast<uint32_t>((word & kOpenMask) >> kOpenShift); }
inline uint32_t pend(uint64_t word) { return static_cast<uint32_t>((word & kPendMask) >> kPendShift); }
inline uint32_t read_pins(uint64_t word) { return static_cast<uint32_t>((word & kReadPinMask) >> 32); }
inline uint32_t write_pins(uint64_t word) { return static_cast<uint32_t>((word & kWritePinMask) >> 42); }
inline uint32_t unresumed(uint64_t word) { return static_cast<uint32_t>(word >> 52); }
// What a grant allows a mapping.
inline uint32_t open_of(uint32_t held) { return held == kExclusive ? kOpenWrite : held == kShared ? kOpenRead : kOpenNone; }
// The access that HELD suffices for: 0 none, kRead, kWrite.
inline uint32_t allows(uint32_t held) { return held == kExclusive ? uint32_t{kWrite} : held == kShared ? uint32_t{kRead} : 0u; }
inline uint32_t open_allows(uint64_t word) { const uint32_t o = open(word); return o == kOpenWrite ? uint32_t{kWrite} : o == kOpenRead ? uint32_t{kRead} : 0u; }
// a is after b, although both wrap.
inline bool after(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0; }

// What a transition leaves to its caller, who may make system calls.
struct After {
  bool wake = false;  // threads sleep on the word
  bool ring = false;  // somebody waits for a Free record
};

enum class InstallStep : uint8_t { kBegun = 0, kDiscarded = 1, kNotClaimed = 2, kBusyPage = 3 };
struct HomeAfter { After page; bool ring; };

// ---- the handler ---------------------------------------------------------------------------------------------------

enum class Step : uint8_t {
  kReturn,   // the mapping allows the access: run the instruction
  kReopen,   // BUSY was taken (M2): open to HELD, then finish()
  kSleep,    // wait while the word's low half is `futex` (M3)
  kClaimed,  // PEND was set (M4): ring, then wait as for kSleep
  kHome,     // this member is the home and has nothing: try D1
  kLost,
};

struct Decision {
  Step step;
  uint32_t futex;         // the low half of the word to sleep on
  uint32_t held_version;  // kClaimed: version of the valid copy, 0 for none
  bool lane = false;      // kClaimed: as LANE
};

// One look at a page by a thread that needs `access`. `registered` says whether this thread is counted among the
// unresumed of this page; it is counted before it first sleeps. ask_home: try D1 before claiming. lane: the caller has a
// lane to the page's home, so claim for that.
Decision fault(PageEntry& page, uint32_t access, bool ask_home, bool& registered, bool lane = false);
// Would fault() claim the page now? A hint, for whoever has to find a lane first.
bool would_claim(const PageEntry& page, uint32_t access);
// Can an instruction with this access run without a fault? A hint.
bool is_here(const PageEntry& page, uint32_t access);

// The thread leaves the handler (or turns to another page).
After resume(PageEntry& page, uint32_t now);

// BUSY -> done: HELD stays, OPEN becomes what the mapping allows now (here and below: or kAsItWas).
After finish(PageEntry& page, uint32_t opened);

// BUSY, and stays so: the mapping is closed already.
void closed_early(PageEntry& page);

// D1: may this member open a page of its own without asking anybody? Takes LOCK and the page's BUSY, both or none.
// fresh: only if the page is as nobody has used it (to open a whole extent). Sets `grant`.
enum class HomeLock : uint8_t { kLocked, kRefused, kRefusedAndRing };
HomeLock lock_home(PageEntry& page, DirectoryEntry& directory, uint32_t access, bool fresh, uint32_t& grant);
HomeAfter unlock_home(PageEntry& page, DirectoryEntry& directory, uint32_t grant, uint32_t opened, uint32_t now);

// ---- the handler on a lane -----------------------------------------------------------------------------------------

// M4 for read-ahead: claims a page that is neither here nor asked for, and whose memory nobody needs.
bool claim_ahead(PageEntry& page, uint32_t access);
// M6, M7: the claim goes on as the coordinator's, which has to be told. false: the page is lost, and the claim has ended.
bool claim_to_coordinator(PageEntry& page, uint32_t& access, uint32_t& held_version, After& result);
// M7 for pages that no thread has faulted on: the claim ends, unless threads sleep on it meanwhile (true: as above).
bool release_ahead(PageEntry& page, uint32_t& access, uint32_t& held_version, After& result);

// ---- homes on a lane -----------------------------------------------------------------------------------------------

enum class ServeStep : uint8_t {
  kRefused,         // nothing was changed: ask the coordinator
  kRefusedAndRing,  // and the coordinator must hear that LOCK is gone
  kLocked,          // LOCK is held; nothing to close here
  kClose,           // LOCK and the page's BUSY are held: close the mapping, then end_close()
};
// D4: this member is the home of a page that the member at `owner` has. kLocked: HOP is set and the page claimed as LANE;
// else neither. `version`: what is to be recalled.
ServeStep begin_hop(PageEntry& page, DirectoryEntry& directory, uint32_t access, uint32_t owner, bool& registered, uint32_t& version);
// The bytes are in the service view, and begin_install() has taken BUSY. keep: the owner at `slot` stays with a copy. Ends
// BUSY, the claim, and HOP.
HomeAfter end_hop(PageEntry& page, DirectoryEntry& directory, uint32_t access, bool keep, uint32_t slot, uint32_t opened, uint32_t now);
// D5: the coordinator goes on. true: it must hear that HOP is gone.
bool leave_hop(DirectoryEntry& directory);

// A copy is to go: this member is the home of an idle page that is to be written, and the member at `slot` has a copy. kLocked: HOP is
// set and the page claimed as LANE; else neither.
ServeStep begin_retire(PageEntry& page, DirectoryEntry& directory, uint32_t slot, bool& registered);
// The copy is gone. `writer`: the bit of the member that is to write, which may have a copy; 0: this home. When nobody else has one
// any more the version is retired with it. Ends the claim, and HOP. locks, of a home that is alone now: HOP becomes LOCK and the
// claim BUSY, as of lock_home(), if nothing is in the way; says whether.
struct Retired { bool locked; HomeAfter after; };
Retired end_retire(PageEntry& page, DirectoryEntry& directory, uint32_t slot, uint64_t writer, bool locks);

// D2, D3, first half, for the member at `slot`, which holds `held` (0: nothing). kClose: to read-only for a read.
ServeStep lock_serve(PageEntry& page, DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t held, uint32_t now);
// Second half: the directory says that the member has it, LOCK is gone. Returns whether to ring; `version` is granted.
bool unlock_serve(DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t& version);
// LOCK is gone, and nothing else has changed. Returns whether to ring.
bool unlock_unserved(DirectoryEntry& directory);
// M10 by the page server: BUSY was taken (true) of an owned page of this version that may be closed at once.
bool begin_lane_recall(PageEntry& page, uint32_t version, bool keep, uint32_t now);
// M9 by the page server: no copy is here, or BUSY was taken (`closes`) to close it. false: it can't be given up now.
bool begin_lane_invalidate(PageEntry& page, uint32_t now, bool& closes);
// After a refusal of begin_lane_recall() or begin_lane_invalidate(), or of lock_serve(), changing nothing: what is in the way is a step
// or an answer that is under way, or a page that has only just come. A guess: whoever asked is looked at again, or not.
bool ends_soon(const PageEntry& page, uint32_t now);
bool ends_soon(const PageEntry& page, const DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t now);

// ---- the coordinator as a member -----------------------------------------------------------------------------------

enum class Claimed : uint8_t { kClaimed = 0, kHeld = 1, kPending = 2, kBusy = 3, kLostPage = 4, kReopen = 5, kHome = 6 };
// M4; kReopen: BUSY was taken, open and finish(). kHome: nothing was changed, try D1 (only if ask_home).
Claimed claim(PageEntry& page, uint32_t access, bool ask_home);

// M5, M6: kBegun holds BUSY; `was_open` says whether the mapping is open now. lane: by the thread that claimed it so.
InstallStep begin_install(PageEntry& page, uint32_t version, bool& was_open, bool lane = false);
After end_install(PageEntry& page, uint32_t version, uint32_t grant, uint32_t opened, uint32_t now);
After abandon(PageEntry& page);
// Whatever a claim on a lane brings is not installed: what is held here is being told to a new home. false if BUSY.
bool void_lane(PageEntry& page);
// HELD := lost; false if BUSY (the caller tries again).
bool lose(PageEntry& page, uint32_t member, uint32_t epoch, After& result);
After find(PageEntry& page);

enum class CloseStep : uint8_t {
  kNothing,   // nothing to close: answer at once
  kClose,     // BUSY was taken: close the mapping (to read-only if `to_shared`), copy, then end_close()
  kResend,    // UNACKED: the bytes are in the service view, nothing to close
  kDeferred,  // DEFER is set
};
CloseStep begin_invalidate(PageEntry& page, uint32_t version, uint32_t now);
// bytes: they must be sent (else the answer is "unchanged"). keep: a shared copy stays; becomes false where none may.
// After kClose: end_close(keep, bytes).
CloseStep begin_recall(PageEntry& page, uint32_t version, bool& keep, bool want_bytes, uint32_t now, bool& bytes);
CloseStep begin_downgrade(PageEntry& page, bool to_shared, uint32_t now);
After end_close(PageEntry& page, bool to_shared, bool unacked, uint32_t opened);
// µs until a deferred page is worth another try, -1 if a Free record will come.
int32_t deferral(const PageEntry& page, uint32_t now);
void returned(PageEntry& page, uint32_t version);
// M15: BUSY was taken, of a clean copy or of one that is not valid any more; close, then end_close(invalid).
bool begin_drop(PageEntry& page);
// Something is about to happen with the page, or has only just: no time to take its memory away.
bool in_use(const PageEntry& page, uint64_t word, uint32_t now);
// M14: BUSY was taken if the page is open and not pinned; close, then finish(kOpenNone).
bool begin_coalesce(PageEntry& page, bool also_pinned);
// BUSY was taken, whatever OPEN is, unless the page is pinned; close, then finish().
bool begin_closing(PageEntry& page);
// BUSY was taken of a page that is closed, pinned or not: nobody opens it while the guard is told to refuse it; then finish(kOpenNone).
bool begin_refusing(PageEntry& page);
bool pin(PageEntry& page, uint32_t access);
After unpin(PageEntry& page, uint32_t access);

// ---- the coordinator as a home -------------------------------------------------------------------------------------

enum class Begun : uint8_t { kBegun = 0, kLocked = 1, kRunning = 2 };
Begun begin(DirectoryEntry& directory);
void end(DirectoryEntry& directory, uint32_t state, uint32_t owner, uint32_t version, uint64_t copyset, bool keep_txn);
// The hints become these: the slot + 1 of the writer that kept a copy, or 0.
void hint(DirectoryEntry& directory, uint32_t writer, bool migratory);
inline uint32_t state_of(uint64_t word) { return static_cast<uint32_t>(word & kStateMask); }
inline uint32_t owner_of(uint64_t word) { return static_cast<uint32_t>((word & kOwnerMask) >> kOwnerShift); }
inline uint32_t writer_of(uint64_t word) { return static_cast<uint32_t>((word & kWriterMask) >> kWriterShift); }
inline uint32_t version_of(uint64_t word) { return static_cast<uint32_t>(word >> kVersionShift); }

}  // namespace faultline
