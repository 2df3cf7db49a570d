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

// Versions only grow; 0 means "no copy".
uint32_t next_version(uint32_t version) { return version + 1 != 0 ? version + 1 : 1; }

// Threads that waited for what is open here now, and have not run yet. While more is asked for (an upgrade), those who wait
// may be waiting for that, and to keep the copy for them would only make them wait longer: who gets there first has to
// close it. They run when the upgrade comes.
bool resuming(uint64_t word) {
  return (word & kUnresumedMask) != 0 && open(word) != kOpenNone && (word & kPendMask) == 0;
}

// µs. The clock's low half wraps every 71 minutes: a time that is farther ahead than it can be meant to be is long past.
int32_t ahead(uint32_t time, uint32_t now, uint32_t most) {
  const uint32_t left = time - now;
  return left <= most ? static_cast<int32_t>(left) : 0;
}

// For how long the page still stays for who has only just got it; for threads that have not resumed. (What is installed by
// others while this one decides may be later than its `now`.)
int32_t stay_left(const PageEntry& page, uint32_t now) { return ahead(page.resident_until.load(), now, kLongestStay); }
int32_t resume_left(const PageEntry& page, uint32_t now) { return ahead(page.installed_at.load() + kResumeLimit, now, kLongestStay); }

// M8: what keeps a copy from being closed now.
bool waits(PageEntry& page, uint64_t word, bool to_shared, uint32_t now) {
  if (word & kBusy) return true;
  if (word & kWritePinMask) return true;
  if (!to_shared && (word & kReadPinMask)) return true;
  if (resuming(word) && resume_left(page, now) > 0) return true;
  return open(word) != kOpenNone && stay_left(page, now) > 0;
}

// Takes BUSY to close a copy, or defers. `word` is the caller's view; false: it changed, look again.
bool take_or_defer(PageEntry& page, uint64_t word, bool to_shared, uint32_t now, CloseStep& step) {
  // DEFER: whoever removes the reason rings.
  if (waits(page, word, to_shared, now)) {
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

Decision fault(PageEntry& page, uint32_t access, bool ask_home, bool& registered, bool lane) {
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
    // Bytes that the home may still ask for stay until the new ones are whole: a lane receives them in place.
    const bool by_lane = claims && lane && !(word & kUnacked);
    // A thread with a lane of its own sleeps on that.
    uint64_t next = by_lane ? word : word | kSleepers;
    if (access == kWrite && !by_lane) next |= kWantWrite;
    if (claims) next = (next & ~(kPoison | kLane | kVoid)) | (static_cast<uint64_t>(access) << kPendShift) | (by_lane ? kLane : 0);
    if (!registered) {
      // 4,095 threads wait for one page at most; those beyond wait uncounted, and only lose the promise to run first.
      if ((word & kUnresumedMask) != kUnresumedMask) next += kUnresumedOne;
    }
    if (!page.word.compare_exchange_weak(word, next)) continue;
    if (!registered && (word & kUnresumedMask) != kUnresumedMask) registered = true;
    const uint32_t version = held(word) == kShared ? page.version.load() : 0;
    return {claims ? Step::kClaimed : Step::kSleep, static_cast<uint32_t>(next), claims ? version : 0, by_lane};
  }
}

bool would_claim(const PageEntry& page, uint32_t access) {
  const uint64_t word = page.word.load();
  return !(word & (kBusy | kPendMask | kUnacked)) && held(word) != kLost && allows(held(word)) < access;
}

bool is_here(const PageEntry& page, uint32_t access) {
  const uint64_t word = page.word.load();
  return !(word & kBusy) && held(word) != kLost && open_allows(word) >= access;
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

void closed_early(PageEntry& page) {
  uint64_t word = page.word.load();
  while (!page.word.compare_exchange_weak(word, with_open(word, kOpenNone))) {}
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
  // Beside copies of others: it is read by more than the one who writes it next.
  const uint64_t over = kLock | kWant | (grant == kShared ? kMigratory : 0);
  result.ring = (directory.word.fetch_and(~over) & kWant) != 0;
  return result;
}

// ---- the handler on a lane -----------------------------------------------------------------------------------------

bool claim_ahead(PageEntry& page, uint32_t access) {
  uint64_t word = page.word.load();
  if ((word & (kBusy | kPendMask | kUnacked | kOpenMask)) || held(word) != kInvalid) return false;
  return page.word.compare_exchange_strong(word, (word & ~(kPoison | kVoid)) | kLane | (static_cast<uint64_t>(access) << kPendShift));
}

bool claim_to_coordinator(PageEntry& page, uint32_t& access, uint32_t& held_version, After& result) {
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    access = pend(word);
    held_version = held(word) == kShared ? page.version.load() : 0;
    const bool lost = held(word) == kLost;
    // POISON stays: what comes next must be newer than what was retired meanwhile.
    const uint64_t next = lost ? settled(word, result) & ~(kPendMask | kLane | kVoid | kPoison) : word & ~(kLane | kVoid);
    if (page.word.compare_exchange_weak(word, next)) return !lost;
  }
}

bool release_ahead(PageEntry& page, uint32_t& access, uint32_t& held_version, After& result) {
  uint64_t word = page.word.load();
  for (;;) {
    if (word & kSleepers) return claim_to_coordinator(page, access, held_version, result);
    result = {};
    if (page.word.compare_exchange_weak(word, settled(word, result) & ~(kPendMask | kLane | kVoid | kPoison))) return false;
  }
}

namespace {

// HOP is set. Claims the home's page as LANE, if it is free and no more than `holds` is held; else HOP ends.
ServeStep claim_under_hop(PageEntry& page, DirectoryEntry& directory, uint32_t access, bool may, Held holds, bool& registered) {
  uint64_t word = page.word.load();
  while (may && !(word & (kBusy | kPendMask | kUnacked)) && held(word) <= holds) {
    uint64_t next = (word & ~(kPoison | kVoid)) | kLane | (static_cast<uint64_t>(access) << kPendShift);
    const bool counts = !registered && (word & kUnresumedMask) != kUnresumedMask;
    if (counts) next += kUnresumedOne;
    if (!page.word.compare_exchange_weak(word, next)) continue;
    registered = registered || counts;
    return ServeStep::kLocked;
  }
  return leave_hop(directory) ? ServeStep::kRefusedAndRing : ServeStep::kRefused;
}

}  // namespace

ServeStep begin_hop(PageEntry& page, DirectoryEntry& directory, uint32_t access, uint32_t owner, bool& registered, uint32_t& version) {
  uint64_t entry = directory.word.load();
  if (state_of(entry) != kOwned || owner_of(entry) != owner || (entry & kDirectoryFlags)) return ServeStep::kRefused;
  if (!directory.word.compare_exchange_strong(entry, entry | kHop)) return ServeStep::kRefused;
  version = version_of(entry);
  // Copies beside an owner: the directory was rebuilt, and it is not the owner alone who has the bytes.
  const bool whole = directory.copyset.load() == 0;
  return claim_under_hop(page, directory, access, whole, kInvalid, registered);
}

HomeAfter end_hop(PageEntry& page, DirectoryEntry& directory, uint32_t access, bool keep, uint32_t slot, uint32_t opened, uint32_t now) {
  HomeAfter result{};
  const uint32_t before = version_of(directory.word.load());
  const uint32_t version = keep ? before : next_version(before);
  // The owner alone had it, so it alone can have a copy.
  if (keep) directory.copyset.store(slot_bit(slot));
  result.page = end_install(page, version, keep ? kShared : kExclusive, opened, now);
  uint64_t entry = directory.word.load();
  for (;;) {
    // Only WANT may have come meanwhile.
    result.ring = (entry & kWant) != 0;
    const uint64_t hints = keep ? static_cast<uint64_t>(slot + 1) << kWriterShift : access == kRead ? entry & kMigratory : 0;
    if (directory.word.compare_exchange_weak(entry, kIdle | hints | (static_cast<uint64_t>(version) << kVersionShift))) return result;
  }
}

bool leave_hop(DirectoryEntry& directory) { return (directory.word.fetch_and(~(kHop | kWant)) & kWant) != 0; }

ServeStep begin_retire(PageEntry& page, DirectoryEntry& directory, uint32_t slot, bool& registered) {
  uint64_t entry = directory.word.load();
  if (state_of(entry) != kIdle || (entry & kDirectoryFlags)) return ServeStep::kRefused;
  if (!directory.word.compare_exchange_strong(entry, entry | kHop)) return ServeStep::kRefused;
  // The copyset gains members under LOCK or TXN only.
  const bool has = (directory.copyset.load() & slot_bit(slot)) != 0;
  return claim_under_hop(page, directory, kWrite, has, kShared, registered);
}

Retired end_retire(PageEntry& page, DirectoryEntry& directory, uint32_t slot, uint64_t writer, bool locks) {
  Retired result{};
  const uint64_t left = directory.copyset.fetch_and(~slot_bit(slot)) & ~slot_bit(slot);
  uint64_t entry = directory.word.load();
  uint64_t word = page.word.load();
  const bool has_read = writer != 0 ? (left & writer) != 0 : held(word) == kShared;
  // Bytes that others had in one version are never written in it.
  const uint32_t version = left == 0 ? next_version(version_of(entry)) : version_of(entry);
  const bool last = (left & ~writer) == 0;
  const uint64_t hints = !last ? entry & kHints : has_read && writer_of(entry) == slot + 1 ? kMigratory : 0;
  const auto becomes = [&](uint64_t flags) { return kIdle | hints | flags | (static_cast<uint64_t>(version) << kVersionShift); };
  if (locks && left == 0) {
    while (!(word & kBusy)) {
      const uint64_t next = (word & ~(kPendMask | kLane | kVoid | kPoison)) | kBusy;
      if (!page.word.compare_exchange_weak(word, next)) continue;
      result.locked = true;
      // Only WANT may have come meanwhile.
      while (!directory.word.compare_exchange_weak(entry, becomes(kLock | (entry & kWant)))) {}
      return result;
    }
  }
  for (;;) {
    result.after.ring = (entry & kWant) != 0;
    if (directory.word.compare_exchange_weak(entry, becomes(0))) break;
  }
  for (;;) {
    result.after.page = {};
    if (page.word.compare_exchange_weak(word, settled(word, result.after.page) & ~(kPendMask | kLane | kVoid | kPoison))) return result;
  }
}

// ---- the page server -----------------------------------------------------------------------------------------------

ServeStep lock_serve(PageEntry& page, DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t held_version, uint32_t now) {
  uint64_t entry = directory.word.load();
  if (state_of(entry) != kIdle || (entry & kDirectoryFlags)) return ServeStep::kRefused;
  if (!directory.word.compare_exchange_strong(entry, entry | kLock)) return ServeStep::kRefused;
  // The copyset gains members under LOCK or TXN only; a sweep may take a dead one out at any time.
  const uint64_t copies = directory.copyset.load();
  const uint64_t bit = slot_bit(slot);
  // Slots that share a bit can't be told apart: theirs are the coordinator's.
  const bool own = slot < kCoarseSlot;
  const bool alone = copies == 0 || (own && copies == bit);
  // Whoever says what it holds has no room for other bytes in place.
  const bool same = held_version != 0 && held_version == version_of(entry) && own && (copies & bit) != 0;
  uint64_t word = page.word.load();
  const bool free = !(word & (kBusy | kPendMask)) && held(word) != kLost;
  if (free && (access == kRead || alone) && (held_version == 0 || same)) {
    const bool closes = held(word) == kExclusive || (held(word) == kShared && access == kWrite);
    if (!closes) return ServeStep::kLocked;
    if (!waits(page, word, access == kRead, now) && page.word.compare_exchange_strong(word, word | kBusy)) return ServeStep::kClose;
  }
  return unlock_unserved(directory) ? ServeStep::kRefusedAndRing : ServeStep::kRefused;
}

bool unlock_serve(DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t& version) {
  uint64_t entry = directory.word.load();
  const uint32_t before = version_of(entry);
  version = access == kWrite ? next_version(before) : before == 0 ? 1 : before;
  const uint64_t copies = directory.copyset.load();
  // Whoever writes without having read it does not belong to the members that it migrates between; nor does a second reader.
  const bool migrates = access == kWrite ? (copies & slot_bit(slot)) != 0 : (copies & ~slot_bit(slot)) == 0;
  const uint64_t hints = (access == kWrite ? 0 : kWriterMask) | (migrates ? kMigratory : 0);
  if (access == kWrite) directory.copyset.store(0);
  else directory.copyset.fetch_or(slot_bit(slot));
  const uint64_t granted = access == kWrite ? kOwned | (static_cast<uint64_t>(slot) << kOwnerShift) : uint64_t{kIdle};
  for (;;) {
    const bool ring = (entry & kWant) != 0;
    if (directory.word.compare_exchange_weak(entry, granted | (entry & hints) | (static_cast<uint64_t>(version) << kVersionShift))) return ring;
  }
}

bool unlock_unserved(DirectoryEntry& directory) { return (directory.word.fetch_and(~(kLock | kWant)) & kWant) != 0; }

bool begin_lane_recall(PageEntry& page, uint32_t version, bool keep, uint32_t now) {
  uint64_t word = page.word.load();
  for (;;) {
    if (held(word) != kExclusive || page.version.load() != version || (word & kPendMask) || waits(page, word, keep, now)) return false;
    if (page.word.compare_exchange_weak(word, word | kBusy)) return true;
  }
}

bool begin_lane_invalidate(PageEntry& page, uint32_t now, bool& closes) {
  uint64_t word = page.word.load();
  for (;;) {
    // An answer that is under way would have to be poisoned, up to a version that the home may grant again.
    if ((word & (kBusy | kPendMask | kUnacked)) || (held(word) != kInvalid && held(word) != kShared)) return false;
    closes = held(word) == kShared;
    if (!closes) return true;
    if (waits(page, word, false, now)) return false;
    if (page.word.compare_exchange_weak(word, word | kBusy)) return true;
  }
}

bool ends_soon(const PageEntry& page, uint32_t now) {
  const uint64_t word = page.word.load();
  if (word & (kWritePinMask | kReadPinMask)) return false;
  if (word & kPendMask) return (word & kLane) != 0;
  const int32_t stay = open(word) != kOpenNone ? stay_left(page, now) : 0;
  return (word & kBusy) || (resuming(word) && resume_left(page, now) > 0) || (stay > 0 && stay <= static_cast<int32_t>(kSoon));
}

bool ends_soon(const PageEntry& page, const DirectoryEntry& directory, uint32_t access, uint32_t slot, uint32_t now) {
  const uint64_t word = directory.word.load();
  // What the coordinators are at stays theirs; and copies elsewhere have to be invalidated first.
  if (word & kTxn) return false;
  if (word & (kLock | kHop)) return true;
  const bool alone = access == kRead || (directory.copyset.load() & ~slot_bit(slot)) == 0;
  return state_of(word) == kIdle && alone && ends_soon(page, now);
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
    if (word & kPendMask) {
      // What a lane brings the coordinator does not see: it hears by DEFER that it is here.
      if ((word & (kLane | kDefer)) == kLane && !page.word.compare_exchange_weak(word, word | kDefer)) continue;
      return Claimed::kPending;
    }
    if (ask_home) return Claimed::kHome;
    const uint64_t next = (word & ~(kPoison | kLane | kVoid)) | (static_cast<uint64_t>(access) << kPendShift);
    if (page.word.compare_exchange_weak(word, next)) return Claimed::kClaimed;
  }
}

InstallStep begin_install(PageEntry& page, uint32_t version, bool& was_open, bool lane) {
  uint64_t word = page.word.load();
  for (;;) {
    if (!(word & kPendMask) || ((word & kLane) != 0) != lane) return InstallStep::kNotClaimed;
    if (word & kVoid) return InstallStep::kDiscarded;
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
    uint64_t next = settled(word, result) & ~(kBusy | kPendMask | kPoison | kLane | kVoid | kUnacked);
    next = with_held(with_open(next, opened), grant);
    if (page.word.compare_exchange_weak(word, next)) return result;
  }
}

After abandon(PageEntry& page) {
  After result;
  uint64_t word = page.word.load();
  for (;;) {
    result = {};
    // The claim of a thread on a lane ends with its lane.
    if (!(word & kPendMask) || (word & kLane)) return result;
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
    // A valid copy here is not lost, whatever happened elsewhere. Who wants more of it asks again.
    if (allows(held(word)) != 0) {
      if (!(word & kPendMask) || (word & kLane)) return true;
      const uint64_t next = settled(word, result) & ~(kPendMask | kPoison);
      if (page.word.compare_exchange_weak(word, next)) return true;
      continue;
    }
    page.loss_member.store(member);
    page.loss_epoch.store(epoch);
    uint64_t next = settled(word, result);
    // An answer that is under way on a lane can't be called back: its claim stays until it is here, and nobody else's
    // can be taken for it.
    if (word & kLane) next = (next | kVoid) & ~kPoison;
    else next &= ~(kPendMask | kPoison);
    next = with_held(next, kLost);
    if (page.word.compare_exchange_weak(word, next)) return true;
  }
}

bool void_lane(PageEntry& page) {
  uint64_t word = page.word.load();
  while ((word & kPendMask) && (word & kLane)) {
    if (word & kBusy) return false;
    if (page.word.compare_exchange_weak(word, (word | kVoid) & ~kPoison)) break;
  }
  return true;
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
      // A thread on a lane may install meanwhile what is recalled: not after it is poisoned, and before that it shows.
      if (!bytes) poison(page, version);
      const uint64_t seen = word;
      word = page.word.load();
      const bool stands = bytes ? word == seen : held(word) == held(seen) && !(word & kBusy);
      if (stands) return bytes ? CloseStep::kResend : CloseStep::kNothing;
      continue;
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
  return resuming(word) ? resume_left(page, now) : stay_left(page, now);
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

bool in_use(const PageEntry& page, uint64_t word, uint32_t now) {
  if (word & (kBusy | kPendMask | kUnacked | kDefer | kReadPinMask | kWritePinMask)) return true;
  return allows(held(word)) != 0 && (stay_left(page, now) > 0 || ((word & kUnresumedMask) != 0 && resume_left(page, now) > 0));
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

bool begin_refusing(PageEntry& page) {
  uint64_t word = page.word.load();
  for (;;) {
    if ((word & kBusy) || open(word) != kOpenNone) return false;
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
  const uint64_t next = state | (static_cast<uint64_t>(owner) << kOwnerShift) | (static_cast<uint64_t>(version) << kVersionShift) | (keep_txn ? kTxn : 0);
  uint64_t word = directory.word.load();
  // Without TXN, somebody may have HOP for a moment, to find that it is refused; and who waits for that must be told.
  while (!directory.word.compare_exchange_weak(word, next | (word & (kLock | kHop | kWant | kHints)))) {
  }
}

void hint(DirectoryEntry& directory, uint32_t writer, bool migratory) {
  const uint64_t hints = (static_cast<uint64_t>(writer) << kWriterShift & kWriterMask) | (migratory ? kMigratory : 0);
  uint64_t word = directory.word.load();
  while (!directory.word.compare_exchange_weak(word, (word & ~kHints) | hints)) {
  }
}

}  // namespace faultline
