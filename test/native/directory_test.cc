// Every transition of directory.cc from every page word that the guards allow, and a small explicit-state search in which
// a handler, the member's coordinator and a home take turns, step by step, over one page.
#include "../../native/directory.h"

#include <array>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "report.h"

using namespace faultline;

namespace {

void set(PageEntry& page, uint64_t word, uint32_t version, uint32_t poison) {
  page.word = word;
  page.version = version;
  page.poison = poison;
  page.resident_until = 0;
  page.installed_at = 0;
}

// All words that can occur: OPEN <= HELD, poison only with a claim, a lost page is neither open nor claimed.
std::vector<uint64_t> words() {
  std::vector<uint64_t> all;
  for (uint32_t h = 0; h < 4; h++)
    for (uint32_t o = 0; o < 3; o++) {
      if (o > (h == kLost ? 0u : open_of(h))) continue;
      for (uint64_t p = 0; p < 3; p++) {
        if (h == kLost && p != 0) continue;
        for (uint32_t bits = 0; bits < 64; bits++) {
          const uint64_t flags = ((bits & 1) ? kBusy : 0) | ((bits & 2) ? kPoison : 0) | ((bits & 4) ? kWantWrite : 0) | ((bits & 8) ? kSleepers : 0) | ((bits & 16) ? kUnacked : 0) | ((bits & 32) ? kDefer : 0);
          if ((flags & kPoison) && p == 0) continue;
          for (uint64_t pins = 0; pins < 3; pins++)
            for (uint64_t waiting = 0; waiting < 2; waiting++) {
              // A pin is held only on a page that is held and open.
              if (pins != 0 && o < pins) continue;
              all.push_back(h | (uint64_t{o} << kOpenShift) | (p << kPendShift) | flags | (pins == 1 ? kReadPinOne : pins == 2 ? kWritePinOne : 0) | (waiting ? kUnresumedOne : 0));
            }
        }
      }
    }
  return all;
}

bool well_formed(uint64_t word) {
  const uint32_t h = held(word);
  if (h == kLost) return open(word) == kOpenNone;
  return open(word) <= open_of(h);
}

constexpr uint64_t kPins = kReadPinMask | kWritePinMask;

void every_word() {
  const uint32_t now = 1'000'000;  // long after every residency
  int looked = 0;
  for (const uint64_t word : words()) {
    for (uint32_t version = 4; version <= 6; version++) {
      PageEntry page{};
      const auto start = [&] { set(page, word, 5, 5); };
      const bool busy = word & kBusy;
      const std::string where = "word " + std::to_string(word) + " version " + std::to_string(version);
      const auto hold = [&](bool holds, const char* what) {
        looked++;
        if (!holds) test::check(false, (where + ": " + what).c_str());
      };

      for (const uint32_t access : {uint32_t{kRead}, uint32_t{kWrite}}) {
        start();
        bool registered = false;
        const Decision decision = fault(page, access, false, registered);
        const uint64_t after = page.word;
        hold(well_formed(after), "fault keeps OPEN <= HELD");
        hold((after & kPins) == (word & kPins), "fault leaves pins alone");
        if (busy) hold(decision.step == Step::kSleep, "a fault on a BUSY page sleeps");
        if (decision.step == Step::kReturn) hold(!busy && open_allows(word) >= access && after == word, "returns only if the mapping allows it");
        if (decision.step == Step::kReopen) hold(!busy && allows(held(word)) >= access && (after & kBusy), "reopens only what is held, under BUSY");
        if (decision.step == Step::kClaimed) hold(!busy && !(word & kPendMask) && pend(after) == access && !(after & kPoison), "claims what nobody has claimed, free of poison");
        if (decision.step == Step::kClaimed || decision.step == Step::kSleep) hold(registered && (after & kSleepers) && unresumed(after) == unresumed(word) + 1, "a sleeper is counted before it sleeps");
        if (decision.step == Step::kLost) hold(held(word) == kLost, "lost only if it is");

        start();
        const Claimed claimed = claim(page, access, false);
        hold(well_formed(page.word), "claim keeps OPEN <= HELD");
        if (busy) hold(claimed == Claimed::kBusy && (page.word & kDefer), "a claim of a BUSY page defers");
        if (claimed == Claimed::kClaimed) hold(pend(page.word) == access && !(page.word & (kPoison | kLane)), "the coordinator claims free of poison");

        start();
        if (pin(page, access)) hold(!busy && open_allows(word) >= access, "pins only what is open for it");
        else hold(page.word == word, "a pin that fails changes nothing");
      }

      start();
      if (begin_refusing(page)) hold(!busy && open(word) == kOpenNone && page.word == (word | kBusy), "refuses only what is closed, under BUSY, pinned or not");
      else hold((busy || open(word) != kOpenNone) && page.word == word, "what is not refused is as it was");

      start();
      bool was_open = false;
      const InstallStep install = begin_install(page, version, was_open);
      if (!(word & kPendMask)) hold(install == InstallStep::kNotClaimed && page.word == word, "installs only what was claimed");
      else if ((word & kPoison) && version <= 5) hold(install == InstallStep::kDiscarded, "an answer that was overtaken is discarded");
      else if (busy) hold(install == InstallStep::kBusyPage && (page.word & kDefer), "an install defers to BUSY");
      else {
        hold(install == InstallStep::kBegun && (page.word & kBusy), "installs under BUSY");
        const After after = end_install(page, version, kShared, kOpenRead, now);
        const uint64_t done = page.word;
        hold(held(done) == kShared && open(done) == kOpenRead && !(done & (kBusy | kPendMask | kPoison | kUnacked | kSleepers | kDefer)), "an install ends the claim");
        hold(after.wake == ((word & kSleepers) != 0) && after.ring == ((word & kDefer) != 0), "an install wakes sleepers, and rings for the deferred");
        hold((done & kSequenceMask) != (word & kSequenceMask) && page.version == version, "an install moves the sequence and the version");
      }

      start();
      CloseStep close = begin_invalidate(page, version, now);
      hold(!(word & kPendMask) || ((page.word & kPoison) && page.poison >= version), "an invalidation poisons the claim");
      if (close == CloseStep::kClose) {
        hold(!busy && !(word & kPins) && held(word) == kShared && version >= 5, "invalidates only a free copy that is stale");
        end_close(page, false, false, kOpenNone);
        hold(held(page.word) == kInvalid && open(page.word) == kOpenNone && !(page.word & kBusy), "invalid and closed");
      }
      if (held(word) == kShared && version >= 5 && (busy || (word & kPins))) hold(close == CloseStep::kDeferred && (page.word & kDefer), "what is held back is deferred");
      if (held(word) == kShared && version < 5 && !busy) hold(close == CloseStep::kNothing && held(page.word) == kShared, "a newer copy stays");

      for (const bool keep : {false, true}) {
        start();
        bool bytes = false;
        bool stays = keep;
        close = begin_recall(page, version, stays, false, now, bytes);
        const bool older = held(word) == kShared && version > 5;
        hold(stays == (keep && !older), "only a copy from before the recalled one does not stay");
        if (older && !busy && !(word & kPins)) hold(close == CloseStep::kClose, "a copy from before the recalled one is closed");
        const bool owner = held(word) == kExclusive && version == 5;
        if (bytes) hold(version == 5 && (owner || (word & kUnacked)), "bytes of that version only");
        if ((word & kUnacked) && version == 5 && close != CloseStep::kDeferred) hold(bytes, "never 'unchanged' while the home has not said that it has the bytes");
        if (close == CloseStep::kClose) {
          hold(!busy && !(word & kWritePinMask), "closes nothing that is BUSY or pinned to be written");
          if (!stays) hold(!(word & kPins), "closes nothing that is pinned");
          end_close(page, stays, bytes, stays ? open_of(kShared) : kOpenNone);
          hold(held(page.word) == (stays ? kShared : kInvalid) && well_formed(page.word), "closed as far as was asked");
          hold(!bytes || (page.word & kUnacked), "bytes that went out are kept until they are acknowledged");
        }
        if (!owner && close == CloseStep::kNothing && (word & kPendMask)) hold(page.word & kPoison, "a recall of what is not here yet poisons the claim");
      }

      start();
      close = begin_downgrade(page, false, now);
      if (close == CloseStep::kNothing) hold(allows(held(word)) == 0 && !busy, "nothing to close only where nothing is held");
      if (busy || (allows(held(word)) != 0 && (word & kPins))) hold(close == CloseStep::kDeferred, "the home's own copy is deferred as any other");

      start();
      if (begin_drop(page)) hold((held(word) == kShared || held(word) == kInvalid) && !(word & (kBusy | kPendMask | kUnacked | kPins)), "drops only clean copies and what is not valid any more, and nothing that anybody needs");
      start();
      returned(page, 4);
      hold(page.word == word, "an acknowledgement of another version is ignored");
      start();
      returned(page, 5);
      hold(!(page.word & kUnacked), "an acknowledgement ends UNACKED");
      start();
      After after{};
      if (lose(page, 1, 2, after)) hold(!busy && !(page.word & kPendMask) && held(page.word) == (allows(held(word)) != 0 ? held(word) : uint32_t{kLost}), "what is valid is not lost, and all else is; a claim ends");
      else hold(busy && page.word == word, "losing waits for BUSY");
      start();
      after = abandon(page);
      hold(!(page.word & kPendMask) && (page.word & kBusy) == (word & kBusy), "abandoning ends the claim, not somebody's BUSY");
    }
  }
  test::check(looked > 100'000, "enough was looked at");
  test::check(true, "every transition from every word");
}

// ---- one page at a home and at a member: all interleavings of their steps, with messages in order --------------------

// The world: the member's page word, the home's own word and directory, channels both ways, and which value each holds.
struct World {
  uint64_t home_word = 0, member_word = 0, directory = 0, copyset = 0;
  uint32_t home_version = 0, member_version = 0, member_poison = 0;
  uint8_t home_value = 0, member_value = 0, last = 0;
  // Messages: kind, version, value. Home to member: 1 data shared, 2 data exclusive, 3 recall, 4 invalidate, 5 returned.
  // Member to home: 1 read, 2 write, 3 recalled with bytes, 4 recalled unchanged, 5 invalidated.
  std::vector<std::array<uint32_t, 3>> down, up;
  uint8_t want = 0;  // what the home's transaction is for: 0 none, 1 member reads, 2 member writes, 3 home reads, 4 home writes
  uint8_t pending = 0;  // a second request in the home's queue
  uint8_t writes = 0;

  auto key() const { return std::tie(home_word, member_word, directory, copyset, home_version, member_version, member_poison, home_value, member_value, last, down, up, want, pending, writes); }
  bool operator<(const World& other) const { return key() < other.key(); }
};

struct Machine {
  PageEntry home{}, member{};
  DirectoryEntry directory{};
  void load(const World& w) {
    set(home, w.home_word, w.home_version, 0);
    set(member, w.member_word, w.member_version, w.member_poison);
    directory.word = w.directory;
    directory.copyset = w.copyset;
  }
  void store(World& w) const {
    // What only tells sleepers apart, or whom to wake, decides nothing here; without it equal states are equal.
    constexpr uint64_t kIdleBits = kSequenceMask | kSleepers | kWantWrite | kDefer;
    w.home_word = home.word & ~kIdleBits;
    w.member_word = member.word & ~kIdleBits;
    w.home_version = home.version;
    w.member_version = member.version;
    w.member_poison = member.poison;
    w.directory = directory.word;
    w.copyset = directory.copyset;
  }
};

constexpr uint32_t kNow = 50'000'000;
constexpr uint8_t kWrites = 3;
// The search ends where versions go beyond this: every kind of transition has happened by then, several times.
constexpr uint32_t kVersions = 5;

bool interleavings(size_t& states, std::string& why) {
  std::set<World> seen;
  std::vector<World> todo{World{}};
  seen.insert(todo[0]);
  const auto visit = [&](World w, const Machine& m) {
    m.store(w);
    if (w.down.size() > 3 || w.up.size() > 3 || version_of(w.directory) > kVersions) return;
    if (seen.insert(w).second) todo.push_back(w);
  };
  while (!todo.empty()) {
    const World w = todo.back();
    todo.pop_back();
    // one-writer, latest-value: what is open shows the last write.
    const uint32_t home_open = open_allows(w.home_word), member_open = open_allows(w.member_word);
    if ((home_open == kWrite && member_open != 0) || (member_open == kWrite && home_open != 0)) { why = "one-writer"; return false; }
    if (home_open != 0 && w.home_value != w.last) { why = "latest-value at the home"; return false; }
    if (member_open != 0 && w.member_value != w.last) { why = "latest-value at the member"; return false; }

    const auto step = [&](const std::function<bool(World&, Machine&)>& act) {
      World next = w;
      Machine m;
      m.load(w);
      if (act(next, m)) visit(next, m);
    };
    // Threads: read or write, at the member.
    for (const uint32_t access : {uint32_t{kRead}, uint32_t{kWrite}}) {
      step([&](World& n, Machine& m) {
        bool registered = true;
        const Decision d = fault(m.member, access, false, registered);
        if (d.step == Step::kReturn) {
          if (access == kRead || n.writes == kWrites) return false;
          n.writes++;
          n.member_value = n.last = n.writes;
          return true;
        }
        if (d.step == Step::kReopen) { finish(m.member, open_of(held(m.member.word))); return true; }
        if (d.step == Step::kClaimed) { n.up.push_back({access, d.held_version, 0}); return true; }
        return false;
      });
      // At the home: D1, or the queue.
      step([&](World& n, Machine& m) {
        bool registered = true;
        const Decision d = fault(m.home, access, true, registered);
        if (d.step == Step::kReturn) {
          if (access == kRead || n.writes == kWrites) return false;
          n.writes++;
          n.home_value = n.last = n.writes;
          return true;
        }
        if (d.step == Step::kReopen) { finish(m.home, open_of(held(m.home.word))); return true; }
        if (d.step != Step::kHome) return false;
        uint32_t grant = 0;
        if (lock_home(m.home, m.directory, access, false, grant) == HomeLock::kLocked) {
          unlock_home(m.home, m.directory, grant, open_of(grant), kNow);
          return true;
        }
        if (n.want != 0) return false;
        if (claim(m.home, access, false) != Claimed::kClaimed) return false;
        n.want = access == kRead ? 3 : 4;
        return true;
      });
    }
    // A mapping may be closed at any time (M14).
    step([&](World&, Machine& m) { if (!begin_coalesce(m.member, false)) return false; finish(m.member, kOpenNone); return true; });
    // A clean copy may be dropped at any time (M15).
    step([&](World&, Machine& m) { if (!begin_drop(m.member)) return false; end_close(m.member, false, false, kOpenNone); return true; });
    // The member's coordinator takes a message.
    if (!w.down.empty()) {
      step([&](World& n, Machine& m) {
        const auto [kind, version, value] = n.down.front();
        n.down.erase(n.down.begin());
        if (kind == 1 || kind == 2) {
          bool was_open;
          const InstallStep result = begin_install(m.member, version, was_open);
          if (result == InstallStep::kBegun) {
            if (value != 255) n.member_value = static_cast<uint8_t>(value);
            const uint32_t grant = kind == 1 ? kShared : kExclusive;
            end_install(m.member, version, grant, open_of(grant), 0);
          } else if (result == InstallStep::kDiscarded) {
            n.up.push_back({pend(m.member.word), 0, 0});
          }
          return true;
        }
        if (kind == 3) {
          bool bytes;
          bool keep = false;
          const CloseStep result = begin_recall(m.member, version, keep, true, kNow, bytes);
          if (result == CloseStep::kDeferred) return false;
          if (result == CloseStep::kClose) end_close(m.member, false, bytes, kOpenNone);
          n.up.push_back({bytes ? 3u : 4u, version, bytes ? n.member_value : 0u});
          return true;
        }
        if (kind == 4) {
          const CloseStep result = begin_invalidate(m.member, version, kNow);
          if (result == CloseStep::kDeferred) return false;
          if (result == CloseStep::kClose) end_close(m.member, false, false, kOpenNone);
          n.up.push_back({5, version, 0});
          return true;
        }
        returned(m.member, version);
        return true;
      });
    }
    // The home's coordinator takes a message.
    if (!w.up.empty()) {
      step([&](World& n, Machine& m) {
        const auto [kind, version, value] = n.up.front();
        n.up.erase(n.up.begin());
        const uint64_t word = m.directory.word;
        if (kind == 1 || kind == 2) {
          if (n.want != 0) { if (n.pending != 0) return false; n.pending = static_cast<uint8_t>(kind | (version << 2)); return true; }
          n.want = static_cast<uint8_t>(kind);
          n.pending = 0;
          // The held version matters for leaving bytes out: carried in home_version of the request.
          n.directory = word;
          if (version != 0) n.pending = static_cast<uint8_t>(version << 2);
          return true;
        }
        if (kind == 5) {
          if (m.directory.copyset == 0) return true;
          end(m.directory, kIdle, 0, version_of(word), 0, word & kTxn);
          return true;
        }
        n.down.push_back({5, version, 0});
        if (state_of(word) != kOwned || version_of(word) != version) return true;
        if (kind == 3) n.home_value = static_cast<uint8_t>(value);
        end(m.directory, kIdle, 0, version_of(word) + 1, 0, word & kTxn);
        return true;
      });
    }
    // The home's transaction goes a step further.
    if (w.want != 0) {
      step([&](World& n, Machine& m) {
        if (!(m.directory.word & kTxn) && begin(m.directory) != Begun::kBegun) return false;
        const uint64_t word = m.directory.word;
        const uint32_t version = version_of(word);
        const auto asked = [&](uint32_t kind) {
          for (const auto& message : n.down) if (message[0] == kind && message[1] == version) return true;
          for (const auto& message : n.up) if ((kind == 3 && (message[0] == 3 || message[0] == 4) && message[1] == version) || (kind == 4 && message[0] == 5 && message[1] == version)) return true;
          return false;
        };
        const auto done = [&](uint32_t state, uint32_t next, uint64_t copyset) {
          end(m.directory, state, 1, next, copyset, false);
          n.want = 0;
          if ((n.pending & 3) != 0) { n.want = n.pending & 3; n.pending &= ~3; } else n.pending = 0;
          return true;
        };
        if (state_of(word) == kOwned) {
          if (asked(3)) return false;
          n.down.push_back({3, version, 0});
          return true;
        }
        const bool writes = n.want == 2 || n.want == 4;
        if (n.want == 4 && m.directory.copyset != 0) {
          if (asked(4)) return false;
          n.down.push_back({4, version, 0});
          return true;
        }
        if (n.want >= 3) {
          bool was_open;
          const uint32_t next = writes ? version + 1 : version;
          if (begin_install(m.home, next, was_open) == InstallStep::kBegun) {
            const uint32_t grant = writes || m.directory.copyset == 0 ? kExclusive : kShared;
            end_install(m.home, next, grant, open_of(grant), 0);
          }
          return done(kIdle, next, writes ? 0 : m.directory.copyset.load());
        }
        const CloseStep close = begin_downgrade(m.home, n.want == 1, kNow);
        if (close == CloseStep::kDeferred) return false;
        if (close == CloseStep::kClose) end_close(m.home, n.want == 1, false, n.want == 1 ? open_of(kShared) : kOpenNone);
        const uint32_t held_version = n.pending >> 2;
        const bool same = held_version != 0 && held_version == version && m.directory.copyset != 0;
        const uint32_t granted = n.want == 1 ? (version == 0 ? 1 : version) : version + 1;
        n.down.push_back({n.want, granted, same ? 255u : n.home_value});
        n.pending &= 3;
        return done(n.want == 1 ? kIdle : kOwned, granted, n.want == 1 ? 2 : 0);
      });
    }
    if (seen.size() > 3'000'000) { why = "too many states"; return false; }
  }
  states = seen.size();
  return true;
}

}  // namespace

// The clock's low half wraps every 71 minutes: who last used a page long ago keeps nobody from it, however long ago that is.
void old_pages() {
  for (const bool waited : {false, true}) {
    for (uint64_t age = 0; age < uint64_t{1} << 32; age += age < 200 ? 1 : age < 20'000 ? 97 : 9'999'991) {
      PageEntry page{};
      const uint32_t then = 4'000'000'000u;
      set(page, kExclusive | (uint64_t{kOpenWrite} << kOpenShift) | (waited ? kUnresumedOne : 0), 5, 0);
      page.installed_at = then;
      page.resident_until = then + kResidency;
      bool stays = false;
      bool bytes = false;
      const CloseStep step = begin_recall(page, 5, stays, true, then + static_cast<uint32_t>(age), bytes);
      const uint64_t most = waited ? kResumeLimit : kResidency;
      test::check((step == CloseStep::kDeferred) == (age < most), ("a page that came " + std::to_string(age) + " us ago" + (waited ? ", and whose thread never resumed," : "") + " can be taken, or not yet").c_str());
      if (step == CloseStep::kDeferred) test::check(deferral(page, then + static_cast<uint32_t>(age)) == static_cast<int32_t>(most - age), "and says when");
      if (step == CloseStep::kDeferred && in_use(page, page.word & ~kDefer, then + static_cast<uint32_t>(age)) == false) test::check(false, "what is not to be taken yet is in use");
      if (step == CloseStep::kClose) {
        page.word = page.word & ~kBusy;
        test::check(!in_use(page, page.word, then + static_cast<uint32_t>(age)), "what can be taken is not in use");
      }
    }
  }
}

// WRITER and MIGRATORY of the directory word, as threads and the page server leave them.
void hints() {
  constexpr uint32_t kSlot = 3, kOther = 4;
  const uint64_t own = uint64_t{1} << kSlot, others = uint64_t{1} << kOther;
  const auto is = [](uint64_t word, uint32_t writer, bool migratory) { return writer_of(word) == writer && ((word & kMigratory) != 0) == migratory; };

  const auto served = [&](uint32_t access, uint64_t copies, bool migratory) {
    DirectoryEntry directory{};
    end(directory, kIdle, 0, 7, copies, false);
    hint(directory, 9, migratory);
    directory.word.fetch_or(kLock);
    uint32_t version = 0;
    unlock_serve(directory, access, kSlot, version);
    return directory.word.load();
  };
  test::check(is(served(kRead, 0, true), 9, true), "the only reader of a page that migrates leaves it so");
  test::check(is(served(kRead, others, true), 9, false), "a reader beside another copy ends it");
  test::check(is(served(kWrite, own, true), 0, true), "it goes on when its reader writes it");
  test::check(is(served(kWrite, 0, true), 0, false), "and ends with a writer that has not read it");
  test::check(is(served(kWrite, own, false), 0, false), "a write alone does not begin it");

  const auto hopped = [&](uint32_t access, bool keep, bool migratory) {
    DirectoryEntry directory{};
    PageEntry page{};
    end(directory, kOwned, kSlot, 7, 0, false);
    hint(directory, 0, migratory);
    bool registered = false, was_open = false;
    uint32_t version = 0;
    test::check(begin_hop(page, directory, access, kSlot, registered, version) == ServeStep::kLocked, "the home asks the owner");
    test::check(begin_install(page, version, was_open, true) == InstallStep::kBegun, "and has its answer");
    const uint32_t grant = keep ? kShared : kExclusive;
    end_hop(page, directory, access, keep, kSlot, open_of(grant), 0);
    test::check(directory.copyset.load() == (keep ? own : 0) && held(page.word.load()) == grant, "a copy that the owner keeps is written down, and the home does not own the page beside it");
    return directory.word.load();
  };
  test::check(is(hopped(kRead, true, false), kSlot + 1, false), "an owner that keeps a copy is the writer");
  test::check(is(hopped(kRead, false, true), 0, true), "one that keeps none leaves the page migrating");
  test::check(is(hopped(kWrite, false, true), 0, false), "a home that writes without having read ends it");

  DirectoryEntry directory{};
  PageEntry page{};
  uint32_t grant = 0;
  end(directory, kIdle, 0, 7, others, false);
  hint(directory, kOther + 1, true);
  test::check(lock_home(page, directory, kRead, false, grant) == HomeLock::kLocked && grant == kShared, "the home reads beside a copy");
  unlock_home(page, directory, grant, kOpenRead, 0);
  test::check(is(directory.word, kOther + 1, false), "which ends it");
  hint(directory, 1023, true);
  directory.word.fetch_or(kTxn | kWant);
  end(directory, kOwned, 1022, 0xffffffff, 0, true);
  const uint64_t word = directory.word.load();
  test::check(is(word, 1023, true) && state_of(word) == kOwned && owner_of(word) == 1022 && version_of(word) == 0xffffffff && (word & kTxn) && (word & kWant), "hints and the rest of the word leave one another alone");
}

// A copy that is given up over a lane, at both ends, from every word; and what the directory says then.
void retiring() {
  constexpr uint32_t kSlot = 3, kOther = 4, now = 1'000'000;
  const uint64_t own = uint64_t{1} << kSlot, other = uint64_t{1} << kOther;
  for (const uint64_t word : words()) {
    const bool plain = !(word & (kBusy | kPendMask | kUnacked)) && (held(word) == kInvalid || held(word) == kShared);
    PageEntry page{};
    set(page, word, 7, 0);
    bool closes = false;
    const bool given = begin_lane_invalidate(page, now, closes);
    test::check(given == (plain && !(word & kPins)), "a copy is given up unless it is pinned, in use, owned, or asked for");
    test::check(page.word.load() == (given && closes ? word | kBusy : word) && (!given || closes == (held(word) == kShared)), "and what has to be closed is BUSY then");

    for (const bool locks : {false, true}) {
      for (const uint64_t copies : {own, own | other}) {
        DirectoryEntry directory{};
        set(page, word, 7, 0);
        end(directory, kIdle, 0, 7, copies, false);
        bool registered = false;
        const ServeStep step = begin_retire(page, directory, kSlot, registered);
        test::check((step == ServeStep::kLocked) == plain, "a home has a copy retired when its own page is free");
        if (step != ServeStep::kLocked) {
          test::check(page.word.load() == word && (directory.word.load() & kDirectoryFlags) == 0, "else nothing is changed");
          continue;
        }
        test::check(pend(page.word.load()) == kWrite && (page.word.load() & kLane) && (directory.word.load() & kHop) && registered, "it has claimed its page");
        directory.word.fetch_or(kWant);
        const Retired result = end_retire(page, directory, kSlot, 0, locks);
        const uint64_t after = page.word.load(), entry = directory.word.load();
        const bool alone = copies == own;
        test::check(pend(after) == 0 && !(after & kLane) && held(after) == held(word) && directory.copyset.load() == copies - own && state_of(entry) == kIdle && !(entry & kHop), "then that copy is gone, and the claim");
        test::check(version_of(entry) == (alone ? 8u : 7u), "with the last copy its version ends");
        test::check(result.locked == (locks && alone), "and the home goes on by itself if it is alone");
        if (result.locked) test::check((after & kBusy) && (entry & kLock) && (entry & kWant), "as lock_home() leaves it");
        else test::check(!(after & kBusy) && !(entry & kDirectoryFlags) && result.after.ring && result.after.page.wake == ((word & kSleepers) != 0), "or whoever waits is told");
      }
    }
  }
  DirectoryEntry directory{};
  PageEntry page{};
  bool registered = true;
  for (const uint64_t flag : {kLock, kHop, kTxn}) {
    end(directory, kIdle, 0, 7, own, false);
    directory.word.fetch_or(flag);
    test::check(begin_retire(page, directory, kSlot, registered) == ServeStep::kRefused, "not beside another step");
    directory.word.store(0);
  }
  end(directory, kIdle, 0, 7, other, false);
  test::check(begin_retire(page, directory, kSlot, registered) == ServeStep::kRefused && directory.word.load() == uint64_t{7} << kVersionShift, "nor of a copy that is none");

  const auto migrates = [&](uint64_t copies, uint64_t writer, uint32_t wrote, uint32_t home_holds) {
    DirectoryEntry at{};
    PageEntry its{};
    set(its, home_holds, 7, 0);
    end(at, kIdle, 0, 7, copies, false);
    hint(at, wrote, false);
    bool counted = true;
    test::check(begin_retire(its, at, kSlot, counted) == ServeStep::kLocked, "it begins");
    end_retire(its, at, kSlot, writer, false);
    return (at.word.load() & kMigratory) != 0;
  };
  test::check(migrates(own, 0, kSlot + 1, kShared), "a home that has read what the other wrote, and writes it: the page migrates");
  test::check(!migrates(own, 0, kSlot + 1, kInvalid), "not if it has not read it");
  test::check(!migrates(own, 0, kOther + 1, kShared) && !migrates(own, 0, 0, kShared), "nor if another wrote it, or nobody knows");
  test::check(migrates(own | other, other, kSlot + 1, kShared) && !migrates(own, other, kSlot + 1, kShared), "likewise for a member that is to write");
  test::check(!migrates(own | other | 32, other, kSlot + 1, kShared), "and not while more have read it");
}

int main() {
  every_word();
  retiring();
  old_pages();
  hints();
  size_t states = 0;
  std::string why;
  const bool right = interleavings(states, why);
  test::check(right, ("interleavings of a home and a member: " + why).c_str());
  test::check(!right || states > 1000, "the search reached enough states");
  std::printf("directory: %zu states of a home and a member over one page\n", states);
  return test::report("directory");
}
