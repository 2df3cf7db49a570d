#include "directory.h"

namespace faultline {
namespace {

// Every change that somebody may be waiting for moves the sequence, so that a sleeper's futex value is stale after it.
uint64_t bumped(uint64_t word) {
  return (word & ~kSequenceMask) | ((word + kSequenceOne) & kSequenceMask);
}

// The end of a BUSY stretch, or of a claim: sleepers look again, and who was deferred by it may try again.
uint64_t settled(uint64_t word, After& after) {
  after.wake = after.wake || (word & kSleepers) != 0;
  uint64_t next = bumped(word) & ~(kSleepers | kWantWrite);
  if (next & kDefer) {
    after.ring = true;
    next &= ~kDefer;
  }
  return next;
}

uint64_t with_open(uint64_t word, uint32_t opened) { return opened == kAsItWas ? word : (word & ~kOpenMask) | (static_cast<uint64_t>(opened) << kOpenShift); }
uint64_t with_held(uint64_t word, uint32_t held) { return (word & ~kHeldMask) | held; }

// Threads that waited for what is open here now, and have not run yet. While more is asked for (an upgrade), those who wait
// may be waiting for that, and to keep the copy for them would only make them wait longer: who gets there first has to
// close it. They run when the upgrade comes.
bool resuming(uint64_t word) {
  return (word & kUnresumedMask) != 0 && open(word) != kOpenNone && (word & kPendMask) == 0;
}

// M8: what keeps a copy from being closed now. Sets DEFER, so that whoever removes the reason rings.
bool must_wait(PageEntry& page, uint64_t word, bool to_shared, uint32_t now) {
  if (word & kBusy) return true;
  if (word & kWritePinMask) return true;
  if (!to_shared && (word & kReadPinMask)) return true;
  if (resuming(word) && !after(now, page.installed_at.load() + kResumeLimit)) return true;
  return open(word) != kOpenNone && after(page.resident_until.load(), now);
}

// Takes BUSY to close a copy, or defers. `word` is the caller's view; false: it changed, look again.
bool take_or_defer(PageEntry& page, uint64_t word, bool to_shared, uint32_t now, CloseStep& step) {
  if (must_wait(page, word, to_shared, now)) {
    if (!page.word.compare_exchange_weak(word, word | kDefer)) return false;
    step = CloseStep::kDeferred;
    return true;
  }
  if (!page.word.compare_exchange_weak(word, word | kBusy)) return false;
  step = CloseStep::kClose;
  return true;
}

// An answer that is on its way here was overtaken by what retires `version`. Only the coordinator says so.
void poison(PageEntry& page, uint32_t version) {
  uint64_t word = page.word.load();
  while (word & kPendMask) {
    // The version first: an installer that sees POISON must see what it was for. What an earlier claim was told does not
    // count any more: after the death of a home the versions may begin anew.
    if (!(word & kPoison) || after(version, page.poison.load())) page.poison.store(version);
    if (page.word.compare_exchange_weak(word, bumped(word) | kPoison)) return;
  }
}

}  // namespace

// ---- the handler ---------------------------------------------------------------------------------------------------

Decision fault(PageEntry& page, uint32_t access, bool ask_home, bool& registered) {
  uint64_t word = page.word.load();
  for (;;) {
    if (held(word) == kLost && !(word & kBusy)) return {Step::kLost, 0, 0};
    if (!(word & kBusy)) {
      if (open_allows(word) >= access) return {Step::kReturn, 0, 0};
      if (allows(held(word)) >= access) {
        if (page.word.compare_exchange_weak(word, word | kBusy)) return {Step::kReopen, 0, 0};
        continue;
      }
      if (ask_home && !(word & kPendMask)) return {Step::kHome, 0, 0};
    }
    const bool claims = !(word & (kBusy | kPendMask));
    uint64_t next = word | kSleepers;
    if (access == kWrite) next |= kWantWrite;
    if (claims) next = (next & ~(kPoison | kLane)) | (static_cast<uint64_t>(access) << kPendShift);
    if (!registered) {
      // 4,095 threads wait for one page at most; those beyond wait uncounted, and only lose the promise to run first.
      if ((word & kUnresumedMask) != kUnresumedMask) next += kUnresumedOne;
    }
    if (!page.word.compare_exchange_weak(word, next)) continue;
    if (!registered && (word & kUnresumedMask) != kUnresumedMask) registered = true;
    const uint32_t version = held(word) == kShared ? page.version.load() : 0;
    return {claims ? Step::kClaimed : Step::kSleep, static_cast<uint32_t>(next), claims ? version : 0};
  }
}

After resume(PageEntry& page, uint32_t now) {
  After after;
  page.resident_until.store(now + kResidency);
  uint64_t word = page.word.load();
  for (;;) {
    uint64_t next = word - kUnresumedOne;
    const bool last = (next & kUnresumedMask) == 0;
    if (last) next &= ~kDefer;
    if (!page.word.compare_exchange_weak(word, next)) continue;
    after.ring = last && (word & kDefer) != 0;
    return after;
  }
}

After finish(PageEntry& page, uint32_t opened) {
  After after;
  uint64_t word = page.word.load();
  for (;;) {
    after = {};
    const uint64_t next = with_open(settled(word, after), opened) & ~kBusy;
    if (page.word.compare_exchange_weak(word, next)) return after;
  }
}

HomeLock lock_home(PageEntry& page, DirectoryEntry& directory, uint32_t access, bool fresh, uint32_t& grant) {
  uint64_t entry = directory.word.load();
  if (state_of(entry) != kIdle || (entry & kDirectoryFlags)) return HomeLock::kRefused;
  if (!directory.word.compare_exchange_strong(entry, entry | kLock)) return HomeLock::kRefused;
  // The copyset changes only under LOCK or TXN.
  const bool alone = directory.copyset.load() == 0;
  uint64_t word = page.word.load();
  const bool free = !(word & (kBusy | kPendMask)) && held(word) != kLost;
  const bool wanted = fresh ? alone && held(word) == kInvalid && open(word) == kOpenNone : alone || access == kRead;
  if (free && wanted && page.word.compare_exchange_strong(word, word | kBusy)) {
    grant = alone ? kExclusive : kShared;
    return HomeLock::kLocked;
  }
  // The coordinator may have come meanwhile and have been told "locked": it must hear that the lock is gone.
  return (directory.word.fetch_and(~(kLock | kWant)) & kWant) ? HomeLock::kRefusedAndRing : HomeLock::kRefused;
}

HomeAfter unlock_home(PageEntry& page, DirectoryEntry& directory, uint32_t grant, uint32_t opened, uint32_t now) {
  HomeAfter result{};
  // Version 0 is that of bytes which nobody has ever touched: they need not be kept. No other thread changes the version
  // under LOCK, but the coordinator may set WANT.
  if (version_of(directory.word.load()) == 0) directory.word.fetch_add(uint64_t{1} << kVersionShift);
  page.version.store(version_of(directory.word.load()));
  page.installed_at.store(now);
  page.resident_until.store(now + kResidency);
  uint64_t word = page.word.load();
  for (;;) {
    result.page = {};
    const uint64_t next = with_held(with_open(settled(word, result.page), opened), grant) & ~kBusy;
    if (page.word.compare_exchange_weak(word, next)) break;
  }
  result.ring = (directory.word.fetch_and(~(kLock | kWant)) & kWant) != 0;
  return result;
}

// ---- the coordinator as a member -----------------------------------------------------------------------------------

Claimed claim(PageEntry& page, uint32_t access, bool ask_home) {
  uint64_t word = page.word.load();
  for (;;) {
    if (word & kBusy) {
      if (page.word.compare_exchange_weak(word, word | kDefer)) return Claimed::kBusy;
      continue;
    }
    if (held(word) == kLost) return Claimed::kLostPage;
    if (open_allows(word) >= access) return Claimed::kHeld;
    if (allows(held(word)) >= access) {
      if (page.word.compare_exchange_weak(word, word | kBusy)) return Claimed::kReopen;
      continue;
    }
    if (word & kPendMask) return Claimed::kPending;
    if (ask_home) return Claimed::kHome;
    const uint64_t next = (word & ~(kPoison | kLane)) | (static_cast<uint64_t>(access) << kPendShift);
    if (page.word.compare_exchange_weak(word, next)) return Claimed::kClaimed;
  }
}

InstallStep begin_install(PageEntry& page, uint32_t version, bool& was_open) {
  uint64_t word = page.word.load();
  for (;;) {
    if (!(word & kPendMask) || (word & kLane)) return InstallStep::kNotClaimed;
    if ((word & kPoison) && !after(version, page.poison.load())) return InstallStep::kDiscarded;
    if (word & kBusy) {
      if (page.word.compare_exchange_weak(word, word | kDefer)) return InstallStep::kBusyPage;
      continue;
    }
    if (!page.word.compare_exchange_weak(word, word | kBusy)) continue;
    was_open = open(word) != kOpenNone;
    return InstallStep::kBegun;
  }
}

After end_install(PageEntry& page, uint32_t version, uint32_t grant, uint32_t opened, uint32_t now) {
  page.version.store(version);
  page.installed_at.store(now);
  page.resident_until.store(now + kResidency);
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    uint64_t next = settled(word, result) & ~(kBusy | kPendMask | kPoison | kLane | kUnacked);
    next = with_held(with_open(next, opened), grant);
    if (page.word.compare_exchange_weak(word, next)) return result;
  }
}

After abandon(PageEntry& page) {
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    if (!(word & kPendMask)) return result;
    // A BUSY stretch of somebody else's goes on; only the claim ends.
    uint64_t next = bumped(word) & ~(kPendMask | kPoison | kLane | kSleepers | kWantWrite);
    if (page.word.compare_exchange_weak(word, next)) {
      result.wake = (word & kSleepers) != 0;
      return result;
    }
  }
}

bool lose(PageEntry& page, uint32_t member, uint32_t epoch, After& result) {
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    if (word & kBusy) return false;
    // A valid copy here is not lost, whatever happened elsewhere.
    if (allows(held(word)) != 0 && !(word & kPendMask)) return true;
    page.loss_member.store(member);
    page.loss_epoch.store(epoch);
    uint64_t next = settled(word, result) & ~(kPendMask | kPoison | kLane);
    next = with_held(next, kLost);
    if (page.word.compare_exchange_weak(word, next)) return true;
  }
}

After find(PageEntry& page) {
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    if (held(word) != kLost) return result;
    if (page.word.compare_exchange_weak(word, with_held(settled(word, result), kInvalid))) return result;
  }
}

CloseStep begin_invalidate(PageEntry& page, uint32_t version, uint32_t now) {
  poison(page, version);
  uint64_t word = page.word.load();
  for (;;) {
    // Only a shared copy can be stale: an owner is recalled.
    const bool stale = held(word) == kShared && !after(page.version.load(), version);
    if (!stale && !(word & kBusy)) return CloseStep::kNothing;
    CloseStep step;
    if (take_or_defer(page, word, false, now, step)) return step;
    word = page.word.load();
  }
}

CloseStep begin_recall(PageEntry& page, uint32_t version, bool& keep, bool want_bytes, uint32_t now, bool& bytes) {
  uint64_t word = page.word.load();
  for (;;) {
    const bool same = page.version.load() == version;
    // A copy from before what the home has granted here since, and which was not taken: the home does not know of it.
    if (held(word) == kShared && after(version, page.version.load())) keep = false;
    const bool close = held(word) == kExclusive ? same : held(word) == kShared && !keep;
    // "Unchanged" would be a lie while the home has not said that it has the bytes.
    bytes = same && (held(word) == kExclusive || (word & kUnacked) || (held(word) == kShared && want_bytes));
    if (!(word & kBusy) && !close) {
      if (bytes) return CloseStep::kResend;
      poison(page, version);
      return CloseStep::kNothing;
    }
    CloseStep step;
    if (take_or_defer(page, word, keep, now, step)) {
      if (step == CloseStep::kClose) poison(page, version);
      return step;
    }
    word = page.word.load();
  }
}

CloseStep begin_downgrade(PageEntry& page, bool to_shared, uint32_t now) {
  uint64_t word = page.word.load();
  for (;;) {
    const bool close = held(word) == kExclusive || (held(word) == kShared && !to_shared);
    if (!close && !(word & kBusy)) return CloseStep::kNothing;
    CloseStep step;
    if (take_or_defer(page, word, to_shared, now, step)) return step;
    word = page.word.load();
  }
}

After end_close(PageEntry& page, bool to_shared, bool unacked, uint32_t opened) {
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    uint64_t next = with_held(with_open(settled(word, result), opened), to_shared ? kShared : kInvalid) & ~kBusy;
    if (unacked) next |= kUnacked;
    if (page.word.compare_exchange_weak(word, next)) return result;
  }
}

int32_t deferral(const PageEntry& page, uint32_t now) {
  const uint64_t word = page.word.load();
  // Pins, BUSY and threads that resume are announced; what only time ends is not.
  if ((word & (kBusy | kReadPinMask | kWritePinMask)) != 0) return (word & kDefer) ? -1 : 0;
  if (resuming(word)) {
    const int32_t left = static_cast<int32_t>(page.installed_at.load() + kResumeLimit - now);
    return left > 0 ? left : 0;
  }
  const int32_t left = static_cast<int32_t>(page.resident_until.load() - now);
  return left > 0 ? left : 0;
}

void returned(PageEntry& page, uint32_t version) {
  if (page.version.load() != version) return;
  page.word.fetch_and(~kUnacked);
}

bool begin_drop(PageEntry& page) {
  uint64_t word = page.word.load();
  for (;;) {
    if ((held(word) != kShared && held(word) != kInvalid) || (word & (kBusy | kPendMask | kUnacked | kReadPinMask | kWritePinMask))) return false;
    if (page.word.compare_exchange_weak(word, word | kBusy)) return true;
  }
}

bool begin_coalesce(PageEntry& page, bool also_pinned) {
  uint64_t word = page.word.load();
  for (;;) {
    if ((word & kBusy) || open(word) == kOpenNone || open(word) == kSacrificed) return false;
    if (!also_pinned && (word & (kReadPinMask | kWritePinMask))) return false;
    if (page.word.compare_exchange_weak(word, word | kBusy)) return true;
  }
}

bool begin_closing(PageEntry& page) {
  uint64_t word = page.word.load();
  for (;;) {
    if ((word & (kBusy | kReadPinMask | kWritePinMask)) || open(word) == kSacrificed) return false;
    if (page.word.compare_exchange_weak(word, word | kBusy)) return true;
  }
}

bool pin(PageEntry& page, uint32_t access) {
  const uint64_t one = access == kWrite ? kWritePinOne : kReadPinOne;
  const uint64_t mask = access == kWrite ? kWritePinMask : kReadPinMask;
  uint64_t word = page.word.load();
  for (;;) {
    if ((word & kBusy) || open_allows(word) < access || (word & mask) == mask) return false;
    if (page.word.compare_exchange_weak(word, word + one)) return true;
  }
}

After unpin(PageEntry& page, uint32_t access) {
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    uint64_t next = word - (access == kWrite ? kWritePinOne : kReadPinOne);
    result.ring = !(next & (kReadPinMask | kWritePinMask)) && (word & kDefer);
    if (result.ring) next &= ~kDefer;
    if (page.word.compare_exchange_weak(word, next)) return result;
  }
}

// ---- the coordinator as a home -------------------------------------------------------------------------------------

Begun begin(DirectoryEntry& directory) {
  uint64_t word = directory.word.load();
  for (;;) {
    if (word & kTxn) return Begun::kRunning;
    if (word & (kLock | kHop)) {
      if (directory.word.compare_exchange_weak(word, word | kWant)) return Begun::kLocked;
      continue;
    }
    if (directory.word.compare_exchange_weak(word, word | kTxn)) return Begun::kBegun;
  }
}

void end(DirectoryEntry& directory, uint32_t state, uint32_t owner, uint32_t version, uint64_t copyset, bool keep_txn) {
  directory.copyset.store(copyset);
  const uint64_t word = state | (static_cast<uint64_t>(owner) << kOwnerShift) | (static_cast<uint64_t>(version) << kVersionShift) | (keep_txn ? kTxn : 0);
  directory.word.store(word);
}

}  // namespace faultline
