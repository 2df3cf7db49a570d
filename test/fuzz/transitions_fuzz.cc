// Page words and directory words under arbitrary sequences of transitions, of several threads and a coordinator. The input
// is a list of steps; a small model beside it keeps what each actor may do next (who holds BUSY, which threads sleep on
// which value, who has pinned). After every step the words must agree with the model:
//   one-busy         BUSY is set exactly while somebody holds it
//   open-held        a mapping is open no further than HELD allows
//   pinned-held      what is pinned is not taken away
//   pins, unresumed  are as many as there are pinners and counted threads
//   no-lost-wakeup   who sleeps, or is about to on the present value of a word, does so for a BUSY stretch or a claim,
//                    whose end wakes
//   told-again       a coordinator that was deferred, and given no time after which to try again, is told: DEFER stays
//                    until it rings
//   poison           an answer that is installed is newer than what has been retired since it was claimed
//   one-lane         LANE is set exactly while a thread or its reading ahead waits for an answer on a lane, and only that is
//                    installed; nothing is after the claim was made void
//   kept-bytes       UNACKED is set exactly from a close that gave bytes away until the home has them or has granted anew;
//                    until then a recall is not answered by "unchanged", and the copy is not dropped
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../native/directory.h"

using namespace faultline;

namespace {

constexpr int kThreads = 4;

enum Holder { kNobody, kThread, kHomeThread, kInstaller, kCloser, kFinisher, kLaneInstaller, kServer };
// Who waits for a lane, and for what: a thread for its page, one for what it reads ahead, one of the home for its page, one of the home
// for a copy to go.
enum OnLane { kNone, kAsks, kAhead, kHops, kRetires };

struct Thread {
  bool faulting = false;
  bool registered = false;
  bool asleep = false;   // it has decided to sleep on `futex`
  bool entered = false;  // and does: only now a wake-up reaches it
  uint32_t access = kRead;
  uint32_t futex = 0;
};

struct World {
  PageEntry page{};
  DirectoryEntry directory{};
  Thread threads[kThreads];
  uint32_t pins[2] = {};
  Holder holder = kNobody;
  int who = 0;             // kThread, kHomeThread: which
  uint32_t grant = 0;      // kHomeThread, kInstaller
  uint32_t installing = 0; // kInstaller: the version
  bool close_keeps = false, close_unacked = false;
  uint32_t version = 1;    // the newest that a home has given
  bool retired_any = false;
  uint32_t retired = 0;    // the newest that was retired since the claim
  bool kept = false;       // bytes were given away, and the home has not said that it has them
  bool deferred = false;   // a coordinator was deferred, was given no time, and so waits for a Free record
  bool home = false;
  bool transaction = false;
  OnLane lane = kNone;
  uint32_t copy = 0;       // kRetires: whose
  bool voided = false;
  bool serving = false;  // the page server has LOCK
  uint32_t serve_access = kRead, serve_slot = 0;
  uint32_t now = 0xffffff00;  // so that times and their wrap are both met
};

const char* step_name = "";

void require(bool holds, const World& w, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "transitions: %s, after %s: page word %016llx, directory word %016llx\n", what, step_name,
               static_cast<unsigned long long>(w.page.word.load()), static_cast<unsigned long long>(w.directory.word.load()));
  abort();
}

void settle(World& w, After after) {
  if (after.wake) for (Thread& thread : w.threads) thread.asleep = thread.asleep && !thread.entered;
  if (after.ring) w.deferred = false;
}

void check(const World& w) {
  const uint64_t word = w.page.word.load();
  require(((word & kBusy) != 0) == (w.holder != kNobody), w, "one-busy");
  require(open(word) != kSacrificed && open_allows(word) <= allows(held(word)), w, "open-held");
  require((w.pins[0] == 0 || allows(held(word)) >= kRead) && (w.pins[1] == 0 || allows(held(word)) >= kWrite), w, "pinned-held");
  require(read_pins(word) == w.pins[0] && write_pins(word) == w.pins[1], w, "pins");
  uint32_t registered = 0;
  for (const Thread& thread : w.threads) {
    registered += thread.registered;
    if (!thread.asleep || !(thread.entered || thread.futex == static_cast<uint32_t>(word))) continue;
    require((word & (kBusy | kPendMask)) != 0 && (word & kSleepers) != 0, w, "no-lost-wakeup");
  }
  require(unresumed(word) == registered, w, "unresumed");
  require(((word & kUnacked) != 0) == w.kept, w, "kept-bytes");
  if (w.deferred) require((word & kDefer) != 0, w, "told-again");
  const uint64_t entry = w.directory.word.load();
  require(((entry & kTxn) != 0) == w.transaction, w, "one-transaction");
  require(((entry & kLock) != 0) == (w.holder == kHomeThread || w.serving), w, "one-lock");
  require(((entry & kHop) != 0) == (w.lane == kHops || w.lane == kRetires), w, "one-hop");
  require(!((entry & kTxn) && (entry & (kLock | kHop))) && !((entry & kLock) && (entry & kHop)), w, "a home serves in one way at a time");
  require(((word & kPendMask) != 0 && (word & kLane) != 0) == (w.lane != kNone), w, "one-lane");
}

// One thread in the handler goes a step further.
void thread_step(World& w, int number, uint32_t access, bool lane) {
  Thread& thread = w.threads[number];
  if (w.holder == kThread && w.who == number) {
    step_name = "reopen";
    w.holder = kNobody;
    return settle(w, finish(w.page, open_of(held(w.page.word.load()))));
  }
  if (w.holder == kHomeThread && w.who == number) {
    step_name = "unlock_home";
    w.holder = kNobody;
    const HomeAfter after = unlock_home(w.page, w.directory, w.grant, open_of(w.grant), w.now);
    return settle(w, {after.page.wake, after.page.ring || after.ring});
  }
  // Who has not entered yet finds that the value has passed; who has looks again only if woken.
  if (thread.asleep && (thread.entered || thread.futex == static_cast<uint32_t>(w.page.word.load()))) {
    thread.entered = true;
    return;
  }
  thread.asleep = false;
  if (!thread.faulting) {
    thread.faulting = true;
    thread.access = access;
  }
  step_name = "fault";
  Decision decision = fault(w.page, thread.access, w.home, thread.registered, lane && !w.home);
  if (decision.step == Step::kHome) {
    const HomeLock locked = lock_home(w.page, w.directory, thread.access, false, w.grant);
    if (locked == HomeLock::kLocked) {
      step_name = "lock_home";
      w.holder = kHomeThread;
      w.who = number;
      return;
    }
    if (locked == HomeLock::kRefusedAndRing) settle(w, {false, true});
    if (lane) {
      step_name = "begin_hop";
      uint32_t version = 0;
      const ServeStep step = begin_hop(w.page, w.directory, thread.access, owner_of(w.directory.word.load()), thread.registered, version);
      if (step == ServeStep::kLocked) {
        require(version == version_of(w.directory.word.load()), w, "a hop asks for the owner's version");
        w.lane = kHops;
        w.voided = false;
        w.retired_any = false;
        return;
      }
      if (step == ServeStep::kRefusedAndRing) settle(w, {false, true});
      const uint64_t copies = w.directory.copyset.load();
      if (thread.access == kWrite && copies != 0) {
        step_name = "begin_retire";
        w.copy = static_cast<uint32_t>(__builtin_ctzll(copies));
        const ServeStep retires = begin_retire(w.page, w.directory, w.copy, thread.registered);
        if (retires == ServeStep::kLocked) {
          w.lane = kRetires;
          w.who = number;
          w.voided = false;
          w.retired_any = false;
          return;
        }
        if (retires == ServeStep::kRefusedAndRing) settle(w, {false, true});
      }
    }
    decision = fault(w.page, thread.access, false, thread.registered);
  }
  switch (decision.step) {
    case Step::kReturn:
      require(open_allows(w.page.word.load()) >= thread.access, w, "a thread that goes on may do so");
      [[fallthrough]];
    case Step::kLost:
      thread.faulting = false;
      if (thread.registered) {
        thread.registered = false;
        step_name = "resume";
        settle(w, resume(w.page, w.now));
      }
      return;
    case Step::kReopen:
      w.holder = kThread;
      w.who = number;
      return;
    case Step::kClaimed:
      w.retired_any = false;
      if (decision.lane) {
        w.lane = kAsks;
        w.voided = false;
        return;
      }
      [[fallthrough]];
    case Step::kSleep:
      require(decision.futex == static_cast<uint32_t>(w.page.word.load()), w, "a thread sleeps on the value that it left");
      thread.asleep = true;
      thread.entered = false;
      thread.futex = decision.futex;
      return;
    default: return;
  }
}

// What the home has retired while an answer was on its way here.
void retire(World& w, uint32_t version) {
  if ((w.page.word.load() & kPendMask) == 0) return;
  if (!w.retired_any || after(version, w.retired)) w.retired = version;
  w.retired_any = true;
}

// What comes, or does not, over the lane that somebody waits for.
void lane_step(World& w, uint8_t what, uint8_t argument) {
  const bool flag = argument & 1;
  switch (what) {
    case 0:
      step_name = "claim_ahead";
      if (claim_ahead(w.page, kRead)) {
        w.lane = kAhead;
        w.voided = false;
        w.retired_any = false;
      }
      return;
    case 1: {
      if (w.lane == kRetires) {
        step_name = "end_retire";
        const uint64_t before = w.directory.copyset.load();
        const uint32_t version = version_of(w.directory.word.load());
        const Retired result = end_retire(w.page, w.directory, w.copy, 0, flag);
        const uint64_t left = w.directory.copyset.load();
        require(left == (before & ~slot_bit(w.copy)) && !(result.locked && left != 0), w, "a home is alone when the last copy is gone");
        require((left == 0) == (version_of(w.directory.word.load()) != version), w, "with the last copy its version ends");
        w.lane = kNone;
        if (!result.locked) return settle(w, {result.after.page.wake, result.after.page.ring || result.after.ring});
        w.holder = kHomeThread;
        w.grant = kExclusive;
        return;
      }
      step_name = "begin_install on a lane";
      const uint32_t version = w.version - (argument >> 1) % 3;
      bool was_open = false;
      const InstallStep step = begin_install(w.page, version, was_open, true);
      require((step == InstallStep::kNotClaimed) == (w.lane == kNone), w, "only who waits for a lane installs what comes over it");
      if (step != InstallStep::kBegun) return;
      require(!w.voided, w, "what is void is not installed");
      require(!w.retired_any || after(version, w.retired), w, "poison");
      w.holder = kLaneInstaller;
      w.installing = version;
      w.grant = flag && w.lane != kAhead ? kExclusive : kShared;
      w.close_keeps = flag;
      return;
    }
    case 2: {
      // Not in the middle of an install: that is finished first.
      if (w.lane == kNone || w.holder == kLaneInstaller) return;
      step_name = "giving up a lane";
      uint32_t access = 0, held_version = 0;
      After result;
      if (w.lane == kAhead) release_ahead(w.page, access, held_version, result);
      else claim_to_coordinator(w.page, access, held_version, result);
      settle(w, result);
      if ((w.lane == kHops || w.lane == kRetires) && leave_hop(w.directory)) settle(w, {false, true});
      w.lane = kNone;
      return;
    }
    case 3: {
      if (w.serving || !w.home) return;
      step_name = "lock_serve";
      const ServeStep step = lock_serve(w.page, w.directory, flag ? kWrite : kRead, 1 + (argument >> 1) % 3, argument & 8 ? version_of(w.directory.word.load()) : 0, w.now);
      if (step == ServeStep::kRefusedAndRing) return settle(w, {false, true});
      if (step == ServeStep::kRefused) return;
      w.serving = true;
      w.serve_access = flag ? kWrite : kRead;
      w.serve_slot = 1 + (argument >> 1) % 3;
      if (step == ServeStep::kClose) w.holder = kServer;
      return;
    }
    case 4: {
      if (!w.serving || w.holder == kServer) return;
      step_name = "unlock_serve";
      w.serving = false;
      uint32_t version = 0;
      const uint32_t before = version_of(w.directory.word.load());
      if (flag) return settle(w, {false, unlock_unserved(w.directory)});
      settle(w, {false, unlock_serve(w.directory, w.serve_access, w.serve_slot, version)});
      require(w.serve_access == kRead ? version == (before == 0 ? 1 : before) : after(version, before), w, "a grant to write has a version of its own");
      return;
    }
    case 5:
      if (argument & 0x80) {
        step_name = "begin_lane_invalidate";
        bool closes = false;
        const uint64_t before = w.page.word.load();
        if (!begin_lane_invalidate(w.page, w.now, closes)) return;
        require((before & (kBusy | kPendMask | kUnacked)) == 0 && read_pins(before) == 0, w, "what is given up is nobody's to use, and no answer is under way");
        if (!closes) return;
        w.holder = kCloser;
        w.close_keeps = false;
        w.close_unacked = false;
        return;
      }
      step_name = "begin_lane_recall";
      if (!begin_lane_recall(w.page, w.page.version.load() - (argument >> 2) % 2, flag, w.now)) return;
      w.holder = kCloser;
      w.close_keeps = flag;
      w.close_unacked = true;
      return;
    default:
      step_name = "void_lane";
      if (!void_lane(w.page) || w.lane == kNone) return;
      w.voided = true;
      w.retired_any = false;
  }
}

void close_with(World& w, CloseStep step, bool keep, bool unacked) {
  if (step == CloseStep::kDeferred && deferral(w.page, w.now) < 0) w.deferred = true;
  if (step != CloseStep::kClose) return;
  w.holder = kCloser;
  w.close_keeps = keep;
  w.close_unacked = unacked;
}

void coordinator_step(World& w, uint8_t what, uint8_t argument) {
  const bool flag = argument & 1;
  switch (what) {
    case 0: {
      step_name = "begin_install";
      const uint32_t version = w.version - (argument >> 1) % 3;
      bool was_open = false;
      const InstallStep step = begin_install(w.page, version, was_open);
      if (step == InstallStep::kBusyPage) w.deferred = true;
      if (step != InstallStep::kBegun) return;
      require(!w.retired_any || after(version, w.retired), w, "poison");
      w.holder = kInstaller;
      w.installing = version;
      w.grant = flag ? kExclusive : kShared;
      // Whoever installs over an open mapping closes it before new bytes come.
      return;
    }
    case 1: {
      step_name = "begin_invalidate";
      const uint32_t version = w.version - (argument >> 1) % 3;
      const CloseStep step = begin_invalidate(w.page, version, w.now);
      retire(w, version);
      return close_with(w, step, false, false);
    }
    case 2: {
      step_name = "begin_recall";
      bool bytes = false;
      bool keep = flag;
      const uint32_t version = w.page.version.load() - (argument >> 2) % 2;
      const CloseStep step = begin_recall(w.page, version, keep, argument & 2, w.now, bytes);
      if (step != CloseStep::kDeferred && w.kept && version == w.page.version.load()) require(bytes, w, "kept-bytes");
      if (step == CloseStep::kNothing || step == CloseStep::kClose) retire(w, version);
      return close_with(w, step, keep, bytes);
    }
    case 3: step_name = "begin_downgrade"; return close_with(w, begin_downgrade(w.page, flag, w.now), flag, false);
    case 4:
      step_name = "begin_drop";
      if (!begin_drop(w.page)) return;
      require(!w.kept, w, "kept-bytes");
      w.holder = kCloser;
      w.close_keeps = w.close_unacked = false;
      return;
    case 5: step_name = "begin_coalesce"; if (begin_coalesce(w.page, flag)) w.holder = kFinisher; return;
    case 6: step_name = "begin_closing"; if (begin_closing(w.page)) w.holder = kFinisher; return;
    case 7: step_name = "abandon"; return settle(w, abandon(w.page));
    case 8: {
      step_name = "lose";
      const bool valid = allows(held(w.page.word.load())) != 0;
      After result;
      if (!lose(w.page, 3, 4, result)) return;
      require(valid == (held(w.page.word.load()) != kLost), w, "what is valid is not lost");
      if (w.lane != kNone && !valid) {
        w.voided = true;
        w.retired_any = false;
      }
      return settle(w, result);
    }
    case 9: step_name = "find"; return settle(w, find(w.page));
    case 10: {
      step_name = "returned";
      const uint32_t version = w.page.version.load() - argument % 2;
      w.kept = w.kept && version != w.page.version.load();
      return returned(w.page, version);
    }
    case 11: {
      step_name = "claim";
      const Claimed claimed = claim(w.page, flag ? kWrite : kRead, w.home);
      if (claimed == Claimed::kReopen) w.holder = kFinisher;
      if (claimed == Claimed::kBusy) w.deferred = true;
      if (claimed == Claimed::kClaimed) w.retired_any = false;
      return;
    }
    case 12: {
      const int kind = flag;
      step_name = "pin";
      if (w.pins[kind] < 3 && pin(w.page, kind ? kWrite : kRead)) w.pins[kind]++;
      return;
    }
    case 13: {
      const int kind = flag;
      step_name = "unpin";
      if (w.pins[kind] == 0) return;
      w.pins[kind]--;
      return settle(w, unpin(w.page, kind ? kWrite : kRead));
    }
    case 14: {
      step_name = "begin";
      const uint64_t before = w.directory.word.load();
      const Begun begun = begin(w.directory);
      require((begun == Begun::kRunning) == ((before & kTxn) != 0), w, "a transaction runs once");
      if (begun == Begun::kBegun) w.transaction = true;
      return;
    }
    case 15: {
      step_name = "end";
      if (!w.transaction) return;
      w.transaction = (argument & 4) != 0;
      end(w.directory, argument & 3, argument >> 4, ++w.version, argument & 8 ? 2 : 0, w.transaction);
      const uint64_t word = w.directory.word.load();
      require(state_of(word) == (argument & 3u) && owner_of(word) == argument >> 4u && version_of(word) == w.version, w, "a record reads as it was written");
      return;
    }
    case 16: step_name = "time"; w.now += uint32_t{argument} * argument; return;
    case 17: step_name = "home"; w.home = flag; return;
    default: w.version++; return;
  }
}

// Whoever holds BUSY lets go.
void finish_busy(World& w, bool opens) {
  const Holder holder = w.holder;
  w.holder = kNobody;
  switch (holder) {
    case kInstaller:
      step_name = "end_install";
      w.kept = false;
      return settle(w, end_install(w.page, w.installing, w.grant, opens ? open_of(w.grant) : uint32_t{kOpenNone}, w.now));
    case kCloser:
      step_name = "end_close";
      w.kept = w.kept || w.close_unacked;
      return settle(w, end_close(w.page, w.close_keeps, w.close_unacked, w.close_keeps && opens ? uint32_t{kOpenRead} : uint32_t{kOpenNone}));
    case kLaneInstaller: {
      step_name = "the end of an install on a lane";
      const bool hops = w.lane == kHops;
      w.lane = kNone;
      w.kept = false;
      const uint32_t opened = opens ? open_of(w.grant) : uint32_t{kOpenNone};
      if (!hops) return settle(w, end_install(w.page, w.installing, w.grant, opened, w.now));
      const HomeAfter after = end_hop(w.page, w.directory, kRead, w.grant == kShared, 2, opened, w.now);
      return settle(w, {after.page.wake, after.page.ring || after.ring});
    }
    case kServer:
      step_name = "the page server closes the home's copy";
      return settle(w, end_close(w.page, w.serve_access == kRead, false, w.serve_access == kRead && opens ? uint32_t{kOpenRead} : uint32_t{kOpenNone}));
    case kFinisher:
      step_name = "finish";
      return settle(w, finish(w.page, opens ? open_of(held(w.page.word.load())) : uint32_t{kOpenNone}));
    default: w.holder = holder;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  World w;
  for (size_t i = 0; i + 1 < size; i += 2) {
    const uint8_t step = data[i];
    const uint8_t argument = data[i + 1];
    if (step < 72) thread_step(w, step % kThreads, argument & 1 ? kWrite : kRead, argument & 2);
    else if (step < 96) finish_busy(w, argument & 1);
    else if (step < 128) lane_step(w, step % 7, argument);
    else coordinator_step(w, (step - 128) % 19, argument);
    check(w);
  }
  // At the end everybody finishes, and nothing is left behind: who sleeps, sleeps for a claim that nobody has answered.
  finish_busy(w, true);
  for (int i = 0; i < kThreads; i++) if (w.holder != kNobody && w.who == i) thread_step(w, i, kRead, false);
  lane_step(w, 2, 0);
  lane_step(w, 4, 0);
  check(w);
  settle(w, abandon(w.page));
  for (int i = 0; i < kThreads; i++) {
    const Thread& thread = w.threads[i];
    require(!thread.asleep || !(thread.entered || thread.futex == static_cast<uint32_t>(w.page.word.load())), w, "an abandoned claim wakes everybody");
  }
  return 0;
}
