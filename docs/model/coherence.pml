/*
 * The coherence protocol of one region, for spin. README.md beside this file says how it corresponds to the code, what
 * the switches mean, and what is left out. `npm run model` builds and runs it.
 *
 * One turn of a member is one step: what a coordinator decides while it handles one event is not interleaved with
 * anything. Between turns everything is: messages of different pairs, threads, view changes.
 *
 *   -DN= members            -DP= pages              -DACCESSES= accesses of each member
 *   -DDEATH  one member is taken out of the view, at any point, and runs on without knowing it
 *   -DJOIN   the last member joins at any point
 *   -DBUSY=  how often a mapping is changed at a bad moment, at each member
 *   -DEARLY= how often a copy goes before its thread has run, at each member
 *   -DGIVE=  how often an owner gives a page back unasked, -DDROP= how often a clean copy is dropped, at each member
 *   -DSTRADDLE  every access needs all pages at once
 *   -DLANES  faults may take a lane, -DBREAKS= how often a lane breaks, for each member
 *   -DMUTANT_x  one bug (scripts/model.sh lists them)
 */
#ifndef N
#define N 3
#endif
#ifndef P
#define P 1
#endif
#ifndef ACCESSES
#define ACCESSES 1
#endif
#ifndef BUSY
#define BUSY 0
#endif
#ifndef EARLY
#define EARLY 0
#endif
#ifndef GIVE
#define GIVE 0
#endif
#ifndef DROP
#define DROP 0
#endif
#ifndef BREAKS
#define BREAKS 0
#endif
#ifdef DEATH
#define GENERATIONS 2
#else
#define GENERATIONS 1
#endif
/* Room for messages between two members, and for entries in a page's queue: asserted to be enough. */
#ifndef ROOM
#define ROOM 5
#endif
#define ENTRIES 5

/* What a member holds; also a grant. An access of 1 is a read, of 2 a write, so that HELD >= access means allowed. */
#define INVALID 0
#define SHARED 1
#define EXCLUSIVE 2
#define LOST 3
#define READ 1
#define WRITE 2
/* The states of a directory entry; GONE is the code's "lost". */
#define IDLE 0
#define OWNED 1
#define GONE 2
#define UNKNOWN 3
/* What an entry of a queue is. */
#define ASKED 0
#define GIVEN 1
#define FETCH 2
#define PUNCHED_OUT 99
#define NOBODY 9
#define NOT_YET 9

/* Assertions by name: spin prints the text of the one that fails. */
hidden byte one_writer = 1, latest_value = 1, no_lost_dirty = 1, lost_only_without_copies = 1, every_fault = 1, room = 1, own_grant = 1, rung_once = 1, lane_claim = 1;
#define ONE_WRITER(holds) assert(one_writer && (holds))
#define LATEST_VALUE(holds) assert(latest_value && (holds))
#define NO_LOST_DIRTY(holds) assert(no_lost_dirty && (holds))
#define LOST_ONLY_WITHOUT_COPIES(holds) assert(lost_only_without_copies && (holds))
#ifdef PROGRESS
/* Here the formula has to say so. */
#define EVERY_FAULT_ENDS(holds) skip
#else
#define EVERY_FAULT_ENDS(holds) assert(every_fault && (holds))
#endif
/* Channels and queues are long enough: a bound of the model, not of the code. */
#define ENOUGH_ROOM(holds) assert(room && (holds))
#define OWN_GRANT_COUNTS(holds) assert(own_grant && (holds))
#define RUNG_ONCE(holds) assert(rung_once && (holds))
/* A claim on a lane is ended by nobody but its thread. */
#define LANE_CLAIM_STANDS(holds) assert(lane_claim && (holds))
mtype = { REQUEST, DATA, RECALL, RECALLED, RETURNED, GIVE_BACK, INVALIDATE, INVALIDATED, REBUILD, HOLDINGS };

/* One channel for each pair: type, page, version, access or grant or keep, are there bytes, bytes, sender's state, generation. */
chan net[N * N] = [ROOM] of { mtype, byte, byte, byte, bit, byte, byte, bit };

typedef Copy {
  byte held, version, pend, poison, asked, value;
  bit poisoned, rung, unacked, resident, busy;
#ifdef LANES
  bit lane, voided, serverBusy; /* serverBusy: BUSY, taken by the page server */
#endif
  byte parked, parkedVersion, parkedFrom; bit parkedKeep, parkedWants, parkedGeneration;
#if BUSY > 0
  bit delayed, delayedContent; byte delayedVersion, delayedGrant, delayedValue, delayedFrom;
#endif
};
typedef Entry { byte kind, from, access, held, value };
typedef Directory {
  byte state, owner, version, copies, invalidating, awaited, length;
#ifdef DEATH
  byte keepers; /* members that keep bytes for the home that died */
#endif
  bit recalling, retired, unfetched, serving;
#ifdef LANES
  bit locked, hop;
#endif
  Entry queue[ENTRIES];
};

#ifdef LANES
/* Where a thread's question on a lane is. */
#define ON_ITS_WAY 1
#define LOCKED 2
#define GRANTED 3   /* LOCK is gone, and the bytes have not been sent yet */
#define ANSWERED 4
/* The one question that the thread of a member has on a lane; left: the thread does not wait for it any more, cut: the
   page server has closed its end. */
typedef Turn { byte state, to, page, access, version, value; bit hop, retire, keep, granted, has, closes, left, cut, generation };
Turn turn[N];
byte breaksLeft[N];
/* "returned", said over a lane: page, version. */
chan thanks[N * N] = [3] of { byte, byte };
#endif

Copy copy[N * P];
Directory directory[GENERATIONS * P];
/* The ghost: the number of the newest store to each page. */
byte newest[P];

/* Threads, one for each member: the access they wait for, and its page. */
byte wants[N], wantsPage[N], accesses[N], busyLeft[N], earlyLeft[N], giveLeft[N], dropLeft[N];
bit frozen[N];

/* The agreed state, its views, and the state that each member knows. */
byte agreed, views[3], state[N], gone = NOBODY, goneAt = NOT_YET;

/* Scratch: set before it is used within one step, so it is not part of the state. */
hidden byte i, j, k, d, from, v, a, b, s, x, y, who, kind, heldVersion, source, tell, page, first;
hidden byte has, g, same, closes, stuck, found, keeps;
hidden byte readers, writers, mayAsk;
hidden mtype type;

#define my(p) copy[m * P + (p)]
#define bit(i) (1 << (i))
#define inView(i, s) ((views[s] >> (i)) & 1)
#define known(s) (goneAt != NOT_YET && (s) >= goneAt)
/* Homes go round; a dead home's pages go to the next member. */
#ifdef SPREAD
#define firstHome(p) ((p) % N)
#else
#define firstHome(p) 0
#endif
#define changed(p, s) (known(s) && gone == firstHome(p))
#define generationOf(p, s) (changed(p, s) -> 1 : 0)
#define homeOf(p, s) (changed(p, s) -> (firstHome(p) + 1) % N : firstHome(p))
#define at(g, p) ((g) * P + (p))
#define dir(p) directory[at(generationOf(p, state[m]), p)]
#define readable(h) ((h) == SHARED || (h) == EXCLUSIVE)
#define allowed(p, access) (readable(my(p).held) && my(p).held >= (access))
#define lives(m) (state[m] != NOT_YET)
#ifdef LANES
#define isBusy(p) (my(p).busy || my(p).serverBusy)
#define byLane(p) my(p).lane
#define onLane (turn[m].state != 0 && !turn[m].left)
#define inUse(d) (directory[d].locked || directory[d].hop)
#else
#define isBusy(p) my(p).busy
#define byLane(p) 0
#define onLane 0
#define inUse(d) 0
#endif

inline send(to, type_, p, version_, access_, has_, value_, g_) {
  if
  :: inView(to, state[m]) ->
    ENOUGH_ROOM(len(net[m * N + (to)]) < ROOM);
    net[m * N + (to)]!type_(p, version_, access_, has_, value_, state[m], g_)
  :: else
  fi
}

/* ---- the home: Home ------------------------------------------------------------------------------------------------ */

/* Home.enqueue: the same question again needs one answer, to what it says now. */
inline enqueue(d_, kind_, from_, access_, held_, value_) {
  found = 0;
  if
  :: kind_ == ASKED ->
    j = 0;
    do
    :: j < directory[d_].length && !found ->
      if
      :: directory[d_].queue[j].from == from_ && directory[d_].queue[j].kind == ASKED && directory[d_].queue[j].access >= access_ ->
        directory[d_].queue[j].held = held_; found = 1
      :: else
      fi;
      j++
    :: else -> break
    od
  :: else
  fi;
  if
  :: !found ->
    ENOUGH_ROOM(directory[d_].length < ENTRIES);
    j = directory[d_].length;
    directory[d_].queue[j].kind = kind_; directory[d_].queue[j].from = from_; directory[d_].queue[j].access = access_;
    directory[d_].queue[j].held = held_; directory[d_].queue[j].value = value_;
    directory[d_].length++
  :: else
  fi
}

/* Home.finish: the head is done with. */
inline pop() {
  j = 0;
  do
  :: j + 1 < ENTRIES ->
    directory[d].queue[j].kind = directory[d].queue[j + 1].kind; directory[d].queue[j].from = directory[d].queue[j + 1].from;
    directory[d].queue[j].access = directory[d].queue[j + 1].access; directory[d].queue[j].held = directory[d].queue[j + 1].held;
    directory[d].queue[j].value = directory[d].queue[j + 1].value;
    j++
  :: else -> break
  od;
  directory[d].queue[j].kind = 0; directory[d].queue[j].from = 0; directory[d].queue[j].access = 0;
  directory[d].queue[j].held = 0; directory[d].queue[j].value = 0;
  directory[d].length--; directory[d].retired = 0
}

/* Home.passOn: the lowest other copy answers for the bytes of a rebuilt page. */
inline passOn(keeper, d_) {
  x = directory[d_].copies & views[state[m]] & ~bit(keeper);
  found = (x != 0);
  if
  :: found ->
    y = 0;
    do
    :: !(x & bit(y)) -> y++
    :: else -> break
    od;
    directory[d_].state = OWNED; directory[d_].owner = y; directory[d_].copies = directory[d_].copies & ~bit(y)
  :: else
  fi
}

/* Nobody whom this home still counts has a copy. */
inline declareLost(p) {
  j = 0;
  do
  :: j < N -> LOST_ONLY_WITHOUT_COPIES(!inView(j, state[m]) || !inView(j, agreed) || !readable(copy[j * P + (p)].held)); j++
  :: else -> break
  od;
  directory[d].state = GONE; directory[d].copies = 0
}

/* Home.takeBack. */
inline takeBack(p, owner_, grant_, has_, value_) {
  found = 0;
  if
  :: !has_ && directory[d].unfetched -> passOn(owner_, d)
  :: else
  fi;
  if
  :: found
  :: !found && !has_ && directory[d].unfetched ->
    directory[d].unfetched = 0; declareLost(p)
  :: else ->
#ifndef MUTANT_RETURNED_BYTES_DROPPED
    if
    :: has_ -> my(p).value = value_
    :: else
    fi;
#endif
    directory[d].unfetched = 0; directory[d].state = IDLE;
    if
    :: grant_ == SHARED -> directory[d].copies = directory[d].copies | bit(owner_)
    :: grant_ != SHARED && directory[d].copies == 0 -> directory[d].version++
    :: else
    fi
  fi
}

/* Home.invalidationsDone: only the asker keeps its copy, if it was in the copyset. */
inline invalidationsDone() {
  who = directory[d].queue[0].from;
  directory[d].copies = directory[d].copies & (inView(who, state[m]) -> bit(who) : 0)
}

/* begin_downgrade by Home.closeOwn: `stuck` if the home's own copy must wait. */
inline closeOwn(p, toShared) {
  if
  :: isBusy(p) -> stuck = 1
  :: !isBusy(p) && (my(p).held == EXCLUSIVE || (my(p).held == SHARED && !(toShared))) ->
    if
    :: my(p).resident && my(p).pend == 0 -> stuck = 1
    :: else ->
#ifndef MUTANT_HOME_COPY_STAYS_OPEN
      my(p).held = ((toShared) -> SHARED : INVALID); my(p).resident = 0
#endif
    fi
  :: else
  fi
}

/* Home.grantSelf: the home's claim of its own page is answered. */
inline grantSelf(p, version_, grant_) {
  if
  :: isBusy(p) && my(p).pend != 0 -> stuck = 1
  :: !isBusy(p) && my(p).pend != 0 && !byLane(p) ->
    OWN_GRANT_COUNTS(!(my(p).poisoned && version_ <= my(p).poison));
    my(p).held = grant_; my(p).version = version_; my(p).pend = 0; my(p).poisoned = 0; my(p).unacked = 0; my(p).resident = 1
  :: else
  fi
}

#define unretired() if :: directory[d].retired -> directory[d].version++ :: else fi

/* Home.serve: one step for the entry at the head. `stuck`: it must wait for this member's own copy. */
inline serve(p) {
  stuck = 0;
  kind = directory[d].queue[0].kind; who = directory[d].queue[0].from;
  a = directory[d].queue[0].access; heldVersion = directory[d].queue[0].held;
  if
  :: kind != FETCH && !inView(who, state[m]) -> unretired(); pop()
  :: kind == GIVEN && inView(who, state[m]) ->
    b = directory[d].queue[0].value;
    if
    :: directory[d].state == OWNED && directory[d].owner == who && directory[d].version == heldVersion -> takeBack(p, who, INVALID, 1, b)
    :: else
    fi;
    send(who, RETURNED, p, heldVersion, 0, 0, 0, g); pop()
  :: kind != GIVEN && (kind == FETCH || inView(who, state[m])) && directory[d].state == GONE ->
    if
    :: kind == ASKED && who == m -> my(p).held = LOST; my(p).pend = 0; my(p).poisoned = 0
    :: kind == ASKED && who != m -> send(who, DATA, p, 0, LOST, 0, 0, g)
    :: else
    fi;
    pop()
  :: kind != GIVEN && (kind == FETCH || inView(who, state[m])) && directory[d].state == OWNED ->
    directory[d].recalling = 1; tell = directory[d].owner;
    send(tell, RECALL, p, directory[d].version, (a == READ && (kind == FETCH || tell != who) -> 1 : 0), 0, 0, g)
  :: kind != GIVEN && (kind == FETCH || inView(who, state[m])) && directory[d].state == IDLE && a == READ ->
    v = (directory[d].version == 0 -> 1 : directory[d].version);
    if
    :: kind == FETCH
    :: kind == ASKED && who == m -> grantSelf(p, v, (directory[d].copies == 0 -> EXCLUSIVE : SHARED))
    :: kind == ASKED && who != m ->
      closeOwn(p, 1);
      if
      :: !stuck ->
#ifdef MUTANT_NO_HELD_VERSION
        same = ((directory[d].copies & bit(who)) != 0);
#else
        same = (heldVersion != 0 && heldVersion == directory[d].version && (directory[d].copies & bit(who)));
#endif
#ifdef MUTANT_COPYSET_FORGETS_ONE
        directory[d].copies = bit(who);
#else
        directory[d].copies = directory[d].copies | bit(who);
#endif
        send(who, DATA, p, v, SHARED, (same -> 0 : 1), (same -> 0 : my(p).value), g)
      :: else
      fi
    fi;
    if
    :: !stuck ->
      if :: kind != FETCH -> directory[d].version = v :: else fi;
      pop()
    :: else
    fi
  :: else -> /* idle, to write */
    x = directory[d].copies & views[state[m]] & ~bit(who) & ~bit(m);
    if
    :: x != 0 ->
      directory[d].invalidating = x; directory[d].retired = 1; y = 0;
      do
      :: y < N ->
        if :: x & bit(y) -> send(y, INVALIDATE, p, directory[d].version, 0, 0, 0, g) :: else fi;
        y++
      :: else -> break
      od;
      if
      :: who != m -> closeOwn(p, 0); stuck = 0
      :: else
      fi;
#ifdef MUTANT_INVALIDATION_NOT_AWAITED
      directory[d].invalidating = 0; invalidationsDone()
#endif
    :: else ->
#ifdef MUTANT_VERSION_NOT_RAISED
      v = (directory[d].version == 0 -> 1 : directory[d].version);
#else
      v = directory[d].version + 1;
#endif
      if
      :: who == m ->
        grantSelf(p, v, EXCLUSIVE);
        if :: !stuck -> directory[d].copies = 0; directory[d].version = v; pop() :: else fi
      :: else ->
        closeOwn(p, 0);
        if
        :: !stuck ->
#ifdef MUTANT_NO_HELD_VERSION
          same = ((directory[d].copies & bit(who)) != 0);
#else
#ifdef MUTANT_UPGRADE_OF_INVALIDATED
          same = (heldVersion != 0);
#else
          same = (heldVersion != 0 && heldVersion == directory[d].version && (directory[d].copies & bit(who)));
#endif
#endif
          directory[d].copies = 0; directory[d].version = v; directory[d].state = OWNED; directory[d].owner = who;
          send(who, DATA, p, v, EXCLUSIVE, (same -> 0 : 1), (same -> 0 : my(p).value), g);
          pop()
        :: else
        fi
      fi
    fi
  fi
}

/* Home.advance, at the end of a turn: as far as it goes. */
inline advance(p) {
  if
  :: lives(m) && homeOf(p, state[m]) == m && dir(p).serving ->
    g = generationOf(p, state[m]); d = at(g, p); stuck = 0;
    do
    :: directory[d].length == 0 || directory[d].recalling || directory[d].invalidating != 0 || inUse(d) || stuck -> break
    :: else -> serve(p)
    od
  :: else
  fi
}

/* ---- the member: Member, and native/directory.cc -------------------------------------------------------------------- */

/* Member.ask and Member.flush. */
inline ask(p, held_) {
  tell = homeOf(p, state[m]);
  if
  :: tell == m -> enqueue(at(generationOf(p, state[m]), p), ASKED, m, my(p).pend, held_, 0)
  :: else -> send(tell, REQUEST, p, held_, my(p).pend, 0, 0, generationOf(p, state[m]))
  fi
}

inline poisonClaim(p, version_) {
  skip;
#ifndef MUTANT_NO_POISON
  if
  :: my(p).pend != 0 ->
    if :: version_ > my(p).poison -> my(p).poison = version_ :: else fi;
    my(p).poisoned = 1
  :: else
  fi
#endif
}

/* must_wait: who waits for an upgrade waits for the close. */
#define mustWait(p) (isBusy(p) || (my(p).resident && my(p).pend == 0))

inline park(p, kind_, version_, keep_, wants_, from_, g_) {
  my(p).parked = kind_; my(p).parkedVersion = version_; my(p).parkedKeep = keep_;
  my(p).parkedWants = wants_; my(p).parkedFrom = from_; my(p).parkedGeneration = g_
}

inline invalidate(p, version_, from_, g_) {
  poisonClaim(p, version_);
  closes = (my(p).held == SHARED && my(p).version <= version_);
  if
  :: (closes || isBusy(p)) && mustWait(p) ->
#ifdef MUTANT_ACKNOWLEDGED_BEFORE_CLOSED
    send(from_, INVALIDATED, p, version_, 0, 0, 0, g_);
#endif
    park(p, 1, version_, 0, 0, from_, g_)
  :: else ->
    if :: closes -> my(p).held = INVALID; my(p).resident = 0 :: else fi;
    send(from_, INVALIDATED, p, version_, 0, 0, 0, g_)
  fi
}

/* begin_recall, and Member.recallRun. */
inline recall(p, version_, keep_, wants_, from_, g_) {
  same = (my(p).version == version_);
  keeps = keep_;
  if :: my(p).held == SHARED && version_ > my(p).version -> keeps = 0 :: else fi;
#ifdef MUTANT_RECALL_LEAVES_SHARED
  closes = (my(p).held == EXCLUSIVE && same);
#else
  closes = ((my(p).held == EXCLUSIVE && same) || (my(p).held == SHARED && !keeps));
#endif
  has = (same && (my(p).held == EXCLUSIVE || my(p).unacked || (my(p).held == SHARED && (wants_))));
  if
  :: (closes || isBusy(p)) && mustWait(p) -> park(p, 2, version_, keep_, wants_, from_, g_)
  :: else ->
    if :: closes || !has -> poisonClaim(p, version_) :: else fi;
    if
    :: closes ->
#ifdef MUTANT_RECALL_KEEPS_EXCLUSIVE
      my(p).held = (keeps -> EXCLUSIVE : INVALID);
#else
      my(p).held = (keeps -> SHARED : INVALID);
#endif
      my(p).resident = 0;
#ifndef MUTANT_NO_UNACKED
      if :: has -> my(p).unacked = 1 :: else fi
#endif
    :: else
    fi;
    keeps = (keep_) && has;
    send(from_, RECALLED, p, version_, keeps, has, (!has -> 0 : my(p).value), g_)
  fi
}

inline take(p, version_, grant_, has_, value_) {
  RUNG_ONCE(!my(p).rung);
  if :: has_ -> my(p).value = value_ :: else fi;
  my(p).held = grant_; my(p).version = version_; my(p).pend = 0; my(p).poisoned = 0; my(p).unacked = 0;
  my(p).resident = 1
}

/* Member.install: begin_install, end_install. */
inline install(p, version_, grant_, has_, value_, from_, g_) {
  if
  :: grant_ == LOST ->
    /* lose: a valid copy without a claim is not lost. */
    if
    :: readable(my(p).held) && (my(p).pend == 0 || byLane(p))
#ifdef LANES
    /* What is under way on a lane can't be called back. */
    :: !readable(my(p).held) && my(p).lane -> my(p).held = LOST; my(p).voided = 1; my(p).poisoned = 0
#endif
    :: !(readable(my(p).held) && (my(p).pend == 0 || byLane(p))) && !byLane(p) -> my(p).held = LOST; my(p).pend = 0; my(p).poisoned = 0
    fi
  :: grant_ != LOST && (my(p).pend == 0 || byLane(p)) ->
    if :: grant_ == EXCLUSIVE -> recall(p, version_, 0, 0, from_, g_) :: else fi
  :: grant_ != LOST && my(p).pend != 0 && !byLane(p) && my(p).poisoned && version_ <= my(p).poison ->
    if :: grant_ == EXCLUSIVE -> recall(p, version_, 0, 0, from_, g_) :: else fi;
#ifndef MUTANT_DISCARDED_NOT_ASKED_AGAIN
    if :: !my(p).rung -> ask(p, 0) :: else fi
#endif
  :: else ->
#if BUSY > 0
    if
    :: my(p).busy ->
      my(p).delayed = 1; my(p).delayedContent = has_; my(p).delayedVersion = version_; my(p).delayedGrant = grant_;
      my(p).delayedValue = value_; my(p).delayedFrom = from_
    :: else -> take(p, version_, grant_, has_, value_)
    fi
#else
    take(p, version_, grant_, has_, value_)
#endif
  fi
}

#if defined(LANES) && !defined(MUTANT_LANE_NO_VOID)
/* Whoever is told what this member holds builds on it: nothing that an earlier home has granted may come after it. */
#define voidLane(p) if :: my(p).lane -> my(p).voided = 1; my(p).poisoned = 0 :: else fi
#else
#define voidLane(p) skip
#endif

#define heldVersionOf(p) (my(p).held != SHARED -> 0 : my(p).version)

/* Member.claimAgain, of a claim that the coordinator knows. */
inline claimAgain(p) {
  if
  :: my(p).pend != 0 && !my(p).rung && !byLane(p) -> my(p).poisoned = 0; ask(p, heldVersionOf(p))
  :: else
  fi
}

/* ---- a home that died: Moves --------------------------------------------------------------------------------------- */

#ifdef DEATH
inline note(d_, from_, held_, version_) {
  if
  :: held_ == EXCLUSIVE ->
    directory[d_].state = OWNED; directory[d_].owner = from_; directory[d_].version = version_; directory[d_].copies = 0
  :: held_ == SHARED && (directory[d_].state == UNKNOWN || (directory[d_].state == OWNED && directory[d_].version < version_)) ->
    directory[d_].state = IDLE; directory[d_].version = version_; directory[d_].copies = bit(from_)
#ifndef MUTANT_REBUILD_FORGETS_ONE
  :: held_ == SHARED && directory[d_].state == IDLE ->
    directory[d_].version = (version_ > directory[d_].version -> version_ : directory[d_].version);
    directory[d_].copies = directory[d_].copies | bit(from_)
#endif
  :: else
  fi
}

/* Moves.complete, after all have answered and no grant waits here for a page that is BUSY. */
inline complete(p) {
  d = at(1, p);
  directory[d].copies = directory[d].copies & views[state[m]];
  if
  :: directory[d].state == OWNED && directory[d].owner == m -> directory[d].state = IDLE; directory[d].copies = 0
  :: directory[d].state == OWNED && !inView(directory[d].owner, state[m]) -> declareLost(p)
  :: directory[d].state == IDLE && (directory[d].copies & bit(m)) ->
    directory[d].copies = directory[d].copies & ~bit(m);
    directory[d].version = (directory[d].version == 0 -> 1 : directory[d].version)
  :: directory[d].state == IDLE && !(directory[d].copies & bit(m)) && directory[d].copies != 0 ->
    passOn(m, d); directory[d].unfetched = 1
  :: directory[d].state == UNKNOWN || (directory[d].state == IDLE && directory[d].copies == 0) -> declareLost(p)
  :: else
  fi;
  /* Home.settleUnacknowledged: whoever keeps bytes for the home that died need not, unless it is to answer for the page.
     Its version can't have changed since it said what it holds: nobody has granted it anything since. */
  k = 0;
  do
  :: k < N ->
    if
    :: (directory[d].keepers & bit(k)) && !(directory[d].state == OWNED && directory[d].owner == k && directory[d].version == copy[k * P + (p)].version) ->
      send(k, RETURNED, p, copy[k * P + (p)].version, 0, 0, 0, 1)
    :: else
    fi;
    k++
  :: else -> break
  od;
  directory[d].keepers = 0; directory[d].awaited = 0;
  my(p).unacked = 0; park(p, 0, 0, 0, 0, 0, 0);
  directory[d].serving = 1;
  claimAgain(p);
  if :: directory[at(1, p)].unfetched -> enqueue(at(1, p), FETCH, m, READ, 0, 0) :: else fi
}

/* Home.memberGone, for a page that stays homed here. */
inline memberGone(p) {
  d = at(generationOf(p, state[m]), p);
  if
  :: directory[d].state == OWNED && directory[d].owner == gone ->
    found = 0; j = 0;
    do
    :: j < directory[d].length && !found ->
      if
      :: directory[d].recalling && directory[d].queue[j].kind == GIVEN && directory[d].queue[j].from == gone && directory[d].queue[j].held == directory[d].version ->
        found = 1; b = directory[d].queue[j].value
      :: else
      fi;
      j++
    :: else -> break
    od;
    directory[d].recalling = 0;
    if
    :: found -> takeBack(p, gone, INVALID, 1, b)
    :: else -> declareLost(p)
    fi
  :: else
  fi;
  directory[d].copies = directory[d].copies & ~bit(gone);
  if
  :: directory[d].invalidating == bit(gone) -> directory[d].invalidating = 0; invalidationsDone()
  :: else -> directory[d].invalidating = directory[d].invalidating & ~bit(gone)
  fi
}

/* RegionProtocol.memberGone and RegionProtocol.update, for one page. */
inline newView(p) {
  if
  :: changed(p, state[m]) ->
#if BUSY > 0
    my(p).delayed = 0; my(p).delayedContent = 0; my(p).delayedVersion = 0; my(p).delayedGrant = 0; my(p).delayedValue = 0; my(p).delayedFrom = 0;
#endif
    park(p, 0, 0, 0, 0, 0, 0);
    if
    :: homeOf(p, state[m]) == m ->
      directory[at(1, p)].state = UNKNOWN; directory[at(1, p)].awaited = views[state[m]] & ~bit(m);
      voidLane(p);
      note(at(1, p), m, my(p).held, my(p).version);
#ifdef MUTANT_SERVES_BEFORE_HOLDINGS
      directory[at(1, p)].awaited = 0;
#endif
      k = 0;
      do
      :: k < N ->
        if :: k != m -> send(k, REBUILD, p, 0, 0, 0, 0, 1) :: else fi;
        k++
      :: else -> break
      od;
      if :: directory[at(1, p)].awaited == 0 -> complete(p) :: else -> claimAgain(p) fi
    :: else -> claimAgain(p)
    fi
  :: !changed(p, state[m]) && homeOf(p, state[m]) == m -> memberGone(p)
  :: else
  fi
}
#else
inline newView(p) { skip }
#endif

/* ---- lanes: native/lane_steps.cc, and serve_look's choice ------------------------------------------------------------ */

#ifdef LANES
/* Both ends have a connection. */
#define connected(to) (lives(to) && inView(to, state[m]) && inView(m, state[to]))
#ifdef MUTANT_LANE_OVER_UNACKED
#define keeps(p) 0
#else
#define keeps(p) my(p).unacked
#endif
/* would_claim, lane_to_home, fault. */
#define lanesToHome(p) (mayAsk && turn[m].state == 0 && homeOf(p, state[m]) != m && connected(homeOf(p, state[m])) && !keeps(p) && my(p).pend == 0)
/* lane_hop, begin_hop. (Where it is refused, the thread takes the ring.) */
#define lanesToOwner(p) (mayAsk && turn[m].state == 0 && homeOf(p, state[m]) == m && dir(p).serving && dir(p).state == OWNED && dir(p).owner != m \
  && dir(p).length == 0 && !inUse(at(generationOf(p, state[m]), p)) && dir(p).copies == 0 && connected(dir(p).owner) \
  && my(p).held == INVALID && !my(p).unacked && my(p).pend == 0)

/* lane_retire, begin_retire: the member with the lowest number of those that have a copy. */
#define lowest(c) ((c) & 1 -> 0 : ((c) & 2 -> 1 : ((c) & 4 -> 2 : 3)))
#define lanesToCopy(p) (mayAsk && wants[m] == WRITE && turn[m].state == 0 && homeOf(p, state[m]) == m && dir(p).serving && dir(p).state == IDLE \
  && dir(p).length == 0 && !inUse(at(generationOf(p, state[m]), p)) && dir(p).copies != 0 && !(dir(p).copies & bit(m)) && connected(lowest(dir(p).copies)) \
  && (my(p).held == INVALID || my(p).held == SHARED) && !isBusy(p) && !my(p).unacked && my(p).pend == 0)

inline endTurn(a_) {
  turn[a_].state = 0; turn[a_].to = 0; turn[a_].page = 0; turn[a_].access = 0; turn[a_].version = 0; turn[a_].value = 0; turn[a_].hop = 0; turn[a_].retire = 0;
  turn[a_].keep = 0; turn[a_].granted = 0; turn[a_].has = 0; turn[a_].closes = 0; turn[a_].left = 0; turn[a_].cut = 0; turn[a_].generation = 0
}

/* claim_to_coordinator. */
inline toCoordinator(p) {
  LANE_CLAIM_STANDS(my(p).pend != 0 && my(p).lane && !my(p).rung);
  my(p).lane = 0; my(p).voided = 0;
  if
  :: my(p).held == LOST -> my(p).pend = 0; my(p).poisoned = 0
  :: else -> my(p).rung = 1; my(p).asked = heldVersionOf(p)
  fi
}

/* lane_give_up. What was being received into the page's memory is there in part. */
inline giveUp() {
  x = turn[m].page;
  if
  :: turn[m].state == ANSWERED && turn[m].has -> my(x).value = PUNCHED_OUT
  :: else
  fi;
  toCoordinator(x);
  if :: turn[m].hop || turn[m].retire -> directory[at(turn[m].generation, x)].hop = 0 :: else fi;
  if
  :: turn[m].state == ANSWERED || turn[m].cut -> endTurn(m)
  :: else -> turn[m].left = 1
  fi
}

/* lane_install, lane_finish. The bytes are received in place, whatever becomes of the answer. */
inline answered() {
  x = turn[m].page; found = 0;
  if :: turn[m].granted && turn[m].has -> my(x).value = turn[m].value :: else fi;
  LANE_CLAIM_STANDS(my(x).pend != 0 && my(x).lane);
  if
#ifdef MUTANT_LANE_NO_POISON
  :: !turn[m].granted || my(x).voided -> toCoordinator(x)
#else
  :: !turn[m].granted || my(x).voided || (my(x).poisoned && turn[m].version <= my(x).poison) -> toCoordinator(x)
#endif
  :: else ->
    found = 1; d = at(turn[m].generation, x);
    if
    :: turn[m].retire ->
      /* end_retire; alone, the home opens the page at once. */
      directory[d].copies = directory[d].copies & ~bit(turn[m].to); directory[d].hop = 0;
      if
#ifdef MUTANT_RETIRED_BY_HALVES
      :: true ->
#else
      :: directory[d].copies == 0 ->
#endif
        directory[d].version++; my(x).held = EXCLUSIVE; my(x).version = directory[d].version; my(x).resident = 1
      :: else
      fi
    :: turn[m].hop ->
      /* end_hop */
#ifdef MUTANT_HOP_FORGETS_THE_OWNER
      directory[d].copies = 0;
#else
      directory[d].copies = (turn[m].keep -> bit(turn[m].to) : 0);
#endif
      directory[d].version = directory[d].version + (turn[m].keep -> 0 : 1);
      directory[d].state = IDLE; directory[d].hop = 0;
      my(x).held = (turn[m].keep -> SHARED : EXCLUSIVE); my(x).version = directory[d].version;
      tell = turn[m].to;
      if
      :: inView(tell, state[m]) -> ENOUGH_ROOM(len(thanks[m * N + tell]) < 3); thanks[m * N + tell]!x, turn[m].version
      :: else
      fi
    :: else -> my(x).held = (turn[m].access == WRITE -> EXCLUSIVE : SHARED); my(x).version = turn[m].version
    fi;
    my(x).pend = 0; my(x).lane = 0; my(x).voided = 0; my(x).poisoned = 0;
    if :: !turn[m].retire -> my(x).unacked = 0; my(x).resident = 1 :: else fi
  fi;
  if :: (turn[m].hop || turn[m].retire) && !found -> directory[at(turn[m].generation, x)].hop = 0 :: else fi;
  endTurn(m)
}

#ifdef MUTANT_LANE_IGNORES_TXN
#define transaction(d) 0
#else
#define transaction(d) (directory[d].length != 0)
#endif
#ifdef MUTANT_LANE_IGNORES_COPIES
#define others(d, a) 0
#else
#define others(d, a) (directory[d].copies & ~bit(a))
#endif

#ifdef MUTANT_RETIRED_BESIDE_A_CLAIM
#define claimed(p) 0
#else
#define claimed(p) (my(p).pend != 0)
#endif

/* serve_begin: lock_serve, begin_lane_recall, begin_lane_invalidate. */
inline serveBegin(a_) {
  x = turn[a_].page; v = turn[a_].version; found = 0;
  if
  :: !inView(a_, state[m]) || generationOf(x, state[m]) != turn[a_].generation
  :: inView(a_, state[m]) && generationOf(x, state[m]) == turn[a_].generation && turn[a_].retire ->
    found = (homeOf(x, state[m]) == a_ && !isBusy(x) && !claimed(x) && !my(x).unacked && (my(x).held == INVALID || (my(x).held == SHARED && !mustWait(x))));
    if :: found && my(x).held == SHARED -> my(x).serverBusy = 1; turn[a_].closes = 1 :: else fi
  :: inView(a_, state[m]) && generationOf(x, state[m]) == turn[a_].generation && turn[a_].hop ->
    found = (homeOf(x, state[m]) == a_ && my(x).held == EXCLUSIVE && my(x).version == v && my(x).pend == 0 && !mustWait(x));
    if :: found -> my(x).serverBusy = 1; turn[a_].closes = 1 :: else fi
  :: else ->
    d = at(turn[a_].generation, x);
    if
    :: homeOf(x, state[m]) == m && directory[d].serving && directory[d].state == IDLE && !transaction(d) && !inUse(d) ->
      same = (v != 0 && v == directory[d].version && (directory[d].copies & bit(a_)));
#ifdef MUTANT_LANE_SAME_UNCHECKED
      same = (v != 0);
#endif
      closes = (my(x).held == EXCLUSIVE || (my(x).held == SHARED && turn[a_].access == WRITE));
      found = (!isBusy(x) && my(x).pend == 0 && my(x).held != LOST && (turn[a_].access == READ || !others(d, a_)) && (v == 0 || same) && (!closes || !mustWait(x)));
      if
      :: found ->
        directory[d].locked = 1;
        if :: closes -> my(x).serverBusy = 1; turn[a_].closes = 1 :: else fi
      :: else
      fi
    :: else
    fi
  fi;
  if
  :: found -> turn[a_].state = LOCKED
  :: !found && turn[a_].left -> endTurn(a_)
  :: else -> turn[a_].state = ANSWERED
  fi
}

/* serve_finish: end_close, unlock_serve. */
inline serveFinish(a_) {
  x = turn[a_].page;
  if
  :: turn[a_].retire ->
    if
    :: turn[a_].closes ->
#ifndef MUTANT_RETIRED_COPY_STAYS_OPEN
      my(x).held = INVALID; my(x).resident = 0;
#endif
      my(x).serverBusy = 0
    :: else
    fi
  :: turn[a_].hop ->
    my(x).held = (turn[a_].keep -> SHARED : INVALID); my(x).resident = 0; my(x).serverBusy = 0;
#ifndef MUTANT_LANE_NO_UNACKED
    my(x).unacked = 1;
#endif
    turn[a_].has = 1
  :: else ->
    d = at(turn[a_].generation, x);
    if
    :: turn[a_].closes ->
#ifndef MUTANT_LANE_HOME_STAYS_OPEN
      my(x).held = (turn[a_].access == READ -> SHARED : INVALID); my(x).resident = 0;
#endif
      my(x).serverBusy = 0
    :: else
    fi;
    turn[a_].has = (turn[a_].version == 0);
    if
    :: turn[a_].access == WRITE -> directory[d].version++; directory[d].copies = 0; directory[d].state = OWNED; directory[d].owner = a_
    :: else -> directory[d].version = (directory[d].version == 0 -> 1 : directory[d].version); directory[d].copies = directory[d].copies | bit(a_)
    fi;
    turn[a_].version = directory[d].version; directory[d].locked = 0
  fi;
  turn[a_].granted = 1;
  if :: turn[a_].left -> endTurn(a_) :: else -> turn[a_].state = GRANTED fi
}

/* The bytes go out from where they are now, after LOCK: push_out. */
inline serveBytes(a_) {
  if
  :: turn[a_].left -> endTurn(a_)
  :: else -> turn[a_].value = (turn[a_].has -> my(turn[a_].page).value : 0); turn[a_].state = ANSWERED
  fi
}

/* lanes_close_peer, before the protocol hears of the view. */
inline closePeer() {
#ifndef MUTANT_LANE_STAYS_OPEN
  if :: onLane && turn[m].to == gone -> giveUp() :: else fi;
#endif
  if
  :: gone != m && turn[gone].to == m && (turn[gone].state == ON_ITS_WAY || turn[gone].state == GRANTED) ->
    if :: turn[gone].left -> endTurn(gone) :: else -> turn[gone].cut = 1 fi
  :: else
  fi;
  do
  :: len(thanks[gone * N + m]) > 0 -> thanks[gone * N + m]?x, y
  :: else -> break
  od
}

/* serve_returned. */
inline returned(from_) {
  if :: inView(from_, state[m]) && homeOf(page, state[m]) == from_ && my(page).version == v -> my(page).unacked = 0 :: else fi
}
#define serves(a) (lives(m) && m != (a) && turn[a].state != 0 && turn[a].to == m && !turn[a].cut)
#endif

/* ---- threads -------------------------------------------------------------------------------------------------------- */

/* The instruction runs. */
inline perform(p) {
  if
  :: wants[m] == WRITE -> newest[p]++; my(p).value = newest[p]
  :: else
  fi;
  my(p).resident = 0
}

/* The handler looks at the word of a page that is not open: the home opens it, or it is claimed. */
inline fault(p) {
  if
  :: homeOf(p, state[m]) == m && dir(p).serving && dir(p).state == IDLE && dir(p).length == 0 && !inUse(at(generationOf(p, state[m]), p)) && (dir(p).copies == 0 || wants[m] == READ) && my(p).pend == 0 ->
    d = at(generationOf(p, state[m]), p);
    directory[d].version = (directory[d].version == 0 -> 1 : directory[d].version);
    my(p).held = (directory[d].copies == 0 -> EXCLUSIVE : SHARED); my(p).version = directory[d].version; my(p).resident = 1
#ifdef LANES
  :: lanesToHome(p) ->
    my(p).pend = wants[m]; my(p).poisoned = 0; my(p).lane = 1; my(p).voided = 0;
    turn[m].state = ON_ITS_WAY; turn[m].to = homeOf(p, state[m]); turn[m].page = p; turn[m].access = wants[m];
    turn[m].version = heldVersionOf(p); turn[m].generation = generationOf(p, state[m])
  :: lanesToOwner(p) ->
    dir(p).hop = 1;
    my(p).pend = wants[m]; my(p).poisoned = 0; my(p).lane = 1; my(p).voided = 0;
    turn[m].state = ON_ITS_WAY; turn[m].to = dir(p).owner; turn[m].page = p; turn[m].access = wants[m];
    turn[m].hop = 1; turn[m].keep = (wants[m] == READ); turn[m].version = dir(p).version; turn[m].generation = generationOf(p, state[m])
  :: lanesToCopy(p) ->
    dir(p).hop = 1;
    my(p).pend = WRITE; my(p).poisoned = 0; my(p).lane = 1; my(p).voided = 0;
    turn[m].state = ON_ITS_WAY; turn[m].to = lowest(dir(p).copies); turn[m].page = p; turn[m].access = WRITE;
    turn[m].retire = 1; turn[m].generation = generationOf(p, state[m])
#endif
  :: else ->
    my(p).pend = wants[m]; my(p).poisoned = 0; my(p).rung = 1; my(p).asked = heldVersionOf(p)
  fi
}

#ifdef STRADDLE
#define all(p, access) (allowed(0, access) && allowed(1, access))
#define missing(access) (allowed(0, access) -> 1 : 0)
#else
#define all(p, access) allowed(p, access)
#define missing(access) wantsPage[m]
#endif
#define looks(p) (!onLane && (my(p).held == LOST || (!isBusy(p) && my(p).pend == 0)))

inline look() {
  page = missing(wants[m]);
  if
  :: my(page).held == LOST -> wants[m] = 0; endAccess() /* a typed error */
  :: my(page).held != LOST && all(page, wants[m]) ->
#ifdef STRADDLE
    perform(0); perform(1);
#else
    perform(page);
#endif
    wants[m] = 0; endAccess()
  :: else -> fault(page)
  fi
}

inline endAccess() {
  wantsPage[m] = 0;
  my(0).resident = 0;
#if P > 1
  my(1).resident = 0
#endif
}

/* ---- what must always be true --------------------------------------------------------------------------------------- */

/* Of whoever is in the newest view. A member that was taken out may read what is old, and write what nobody sees. */
inline invariants() {
  y = 0;
  do
  :: y < P ->
    readers = 0; writers = 0; found = (gone != NOBODY); i = 0;
    do
    :: i < N ->
      if
      :: inView(i, agreed) ->
        if :: readable(copy[i * P + y].held) -> readers++ :: else fi;
        if :: copy[i * P + y].held == EXCLUSIVE -> writers++ :: else fi;
        found = found || (copy[i * P + y].value == newest[y] && (readable(copy[i * P + y].held) || copy[i * P + y].unacked || i == firstHome(y)))
      :: else
      fi;
      i++
    :: else -> break
    od;
    ONE_WRITER(writers == 0 || readers == 1);
    i = 0;
    do
    :: i < N ->
      LATEST_VALUE(!inView(i, agreed) || !readable(copy[i * P + y].held) || copy[i * P + y].value == newest[y]);
      i++
    :: else -> break
    od;
    NO_LOST_DIRTY(found);
    y++
  :: else -> break
  od
}

/* ---- one member ------------------------------------------------------------------------------------------------------ */

#if defined(LANES) && defined(DEATH)
/* The page server is in the middle of a step for it; closing waits for that. */
#define serving(a) (state[m] + 1 == goneAt && turn[a].to == m && turn[a].state == LOCKED)
#else
#define serving(a) 0
#define closePeer() skip
#endif

/* What was claimed so far is known before the view is: Coordinator.applyState. */
inline drain(p) {
  if
#ifndef MUTANT_LANE_NOT_DRAINED
  :: my(p).rung ->
    my(p).rung = 0; v = my(p).asked; my(p).asked = 0;
    if :: homeOf(p, state[m]) != gone -> ask(p, v) :: else fi
#endif
  :: else
  fi
}

#define headIsOf(c, s) c?[_, _, _, _, _, _, s, _]
/* A message from a state that this member does not know yet waits, and with it what its sender sent later. */
#ifdef MUTANT_EARLY_MESSAGE_DROPPED
#define due(i) (len(net[(i) * N + m]) > 0)
#else
#define due(i) (headIsOf(net[(i) * N + m], 0) || (state[m] >= 1 && headIsOf(net[(i) * N + m], 1)) || (state[m] >= 2 && headIsOf(net[(i) * N + m], 2)))
#endif

inline receive(sender) {
  from = sender;
  net[from * N + m]?type, page, v, a, has, b, s, g;
  if
#ifndef MUTANT_STALE_SENDER_ACCEPTED
  :: !inView(from, state[m])
#endif
#ifdef MUTANT_EARLY_MESSAGE_DROPPED
  :: s > state[m]
#endif
  :: inView(from, state[m]) && type != RETURNED && g != generationOf(page, state[m])
  :: else ->
    d = at(g, page);
    if
    :: type == REQUEST -> enqueue(d, ASKED, from, a, v, 0)
    :: type == DATA -> source = from; install(page, v, a, has, b, source, g)
    :: type == RECALL -> recall(page, v, a, 1, from, g)
    :: type == RECALLED ->
      closes = (directory[d].state == OWNED && directory[d].owner == from && directory[d].version == v);
      send(from, RETURNED, page, v, 0, 0, 0, g);
      if
      :: closes -> directory[d].recalling = 0; takeBack(page, from, a, has, b)
      :: else
      fi
    :: type == RETURNED -> if :: my(page).version == v -> my(page).unacked = 0 :: else fi
    :: type == GIVE_BACK -> enqueue(d, GIVEN, from, READ, v, b)
    :: type == INVALIDATE -> invalidate(page, v, from, g)
    :: type == INVALIDATED ->
      if
      :: (directory[d].invalidating & bit(from)) && directory[d].version == v ->
        directory[d].invalidating = directory[d].invalidating & ~bit(from);
        if :: directory[d].invalidating == 0 -> invalidationsDone() :: else fi
      :: else
      fi
#ifdef DEATH
    :: type == REBUILD ->
      voidLane(page);
      send(from, HOLDINGS, page, my(page).version, my(page).held, my(page).unacked, 0, g)
    :: type == HOLDINGS ->
      note(d, from, a, v);
      if :: has -> directory[d].keepers = directory[d].keepers | bit(from) :: else fi;
      directory[d].awaited = directory[d].awaited & ~bit(from);
      if :: directory[d].awaited == 0 -> complete(page) :: else fi
#endif
    fi
  fi
}

#define mayBegin (lives(m) && !frozen[m] && wants[m] == 0 && accesses[m] < ACCESSES)

inline begin(p, access_, mayAsk_) {
  wants[m] = access_; wantsPage[m] = p; accesses[m]++; mayAsk = mayAsk_;
  if :: looks(missing(access_)) -> look() :: else fi
}

#define again(p) (my(p).parked && !mustWait(p))

inline retry(p) {
  kind = my(p).parked; v = my(p).parkedVersion; keeps = my(p).parkedKeep; stuck = my(p).parkedWants;
  source = my(p).parkedFrom; g = my(p).parkedGeneration;
  park(p, 0, 0, 0, 0, 0, 0);
  if
  :: kind == 1 -> invalidate(p, v, source, g)
  :: else -> found = keeps; recall(p, v, found, stuck, source, g)
  fi
}

#ifdef STRADDLE
#define GIVES_WAY || m == 1
#else
#define GIVES_WAY
#endif

proctype Member(byte m) {
end:
  do
  :: atomic {
    if
    :: d_step { mayBegin -> begin(0, READ, 0) }
    :: d_step { mayBegin -> begin(0, WRITE, 0) }
#if P > 1 && !defined(STRADDLE)
    :: d_step { mayBegin -> begin(1, READ, 0) }
    :: d_step { mayBegin -> begin(1, WRITE, 0) }
#endif
#ifdef LANES
    /* A fault that could take a lane may take the ring all the same: no lane is free, or it was refused lately. */
    :: d_step { mayBegin -> begin(0, READ, 1) }
    :: d_step { mayBegin -> begin(0, WRITE, 1) }
#if P > 1 && !defined(STRADDLE)
    :: d_step { mayBegin -> begin(1, READ, 1) }
    :: d_step { mayBegin -> begin(1, WRITE, 1) }
#endif
#endif
    /* Who sleeps on a page word looks again when it has changed. */
    :: d_step { wants[m] != 0 && looks(missing(wants[m])) -> mayAsk = 0; look() }
#ifdef LANES
    :: d_step { wants[m] != 0 && looks(missing(wants[m])) -> mayAsk = 1; look() }
    :: d_step { onLane && turn[m].state == ANSWERED && !isBusy(turn[m].page) -> answered() }
    :: d_step { onLane && (turn[m].cut || breaksLeft[m] < BREAKS) -> if :: !turn[m].cut -> breaksLeft[m]++ :: else fi; giveUp() }
    /* Nobody reads what came before the lane's end was seen. */
    :: d_step { turn[m].left && turn[m].state == ON_ITS_WAY -> endTurn(m) }
    :: d_step { serves(0) && turn[0].state == ON_ITS_WAY -> serveBegin(0) }
    :: d_step { serves(0) && turn[0].state == LOCKED -> serveFinish(0) }
    :: d_step { serves(0) && turn[0].state == GRANTED -> serveBytes(0) }
    :: d_step { serves(1) && turn[1].state == ON_ITS_WAY -> serveBegin(1) }
    :: d_step { serves(1) && turn[1].state == LOCKED -> serveFinish(1) }
    :: d_step { serves(1) && turn[1].state == GRANTED -> serveBytes(1) }
    :: d_step { lives(m) && m != 0 && len(thanks[0 * N + m]) > 0 -> thanks[0 * N + m]?page, v; returned(0) }
    :: d_step { lives(m) && m != 1 && len(thanks[1 * N + m]) > 0 -> thanks[1 * N + m]?page, v; returned(1) }
#if N > 2
    :: d_step { serves(2) && turn[2].state == ON_ITS_WAY -> serveBegin(2) }
    :: d_step { serves(2) && turn[2].state == LOCKED -> serveFinish(2) }
    :: d_step { serves(2) && turn[2].state == GRANTED -> serveBytes(2) }
    :: d_step { lives(m) && m != 2 && len(thanks[2 * N + m]) > 0 -> thanks[2 * N + m]?page, v; returned(2) }
#endif
#endif
    /* The coordinator finds what a handler has rung. */
    :: d_step { my(0).rung -> my(0).rung = 0; v = my(0).asked; my(0).asked = 0; ask(0, v) }
#ifndef MUTANT_DEFERRED_FORGOTTEN
    :: d_step { again(0) -> retry(0) }
#endif
#if P > 1
    :: d_step { my(1).rung -> my(1).rung = 0; v = my(1).asked; my(1).asked = 0; ask(1, v) }
    :: d_step { again(1) -> retry(1) }
#endif
#if BUSY > 0
    :: d_step { busyLeft[m] < BUSY && readable(my(0).held) && !isBusy(0) -> busyLeft[m]++; my(0).busy = 1 }
    :: d_step { my(0).busy -> my(0).busy = 0 }
    :: d_step { my(0).delayed && !my(0).busy ->
        v = my(0).delayedVersion; a = my(0).delayedGrant; has = my(0).delayedContent; b = my(0).delayedValue; source = my(0).delayedFrom;
        my(0).delayed = 0; my(0).delayedVersion = 0; my(0).delayedGrant = 0; my(0).delayedContent = 0; my(0).delayedValue = 0; my(0).delayedFrom = 0;
        g = generationOf(0, state[m]);
        install(0, v, a, has, b, source, g) }
#endif
#if EARLY > 0
    /* The longest time for which a copy waits for its thread is over. In pairs of members that need each other's pages the
       last one gives way for ever, which stands for the draw of the times: one of them holds longer in the end. */
    :: d_step { my(0).resident && (earlyLeft[m] < EARLY GIVES_WAY) -> if :: earlyLeft[m] < EARLY -> earlyLeft[m]++ :: else fi; my(0).resident = 0 }
#if P > 1
    :: d_step { my(1).resident && (earlyLeft[m] < EARLY GIVES_WAY) -> if :: earlyLeft[m] < EARLY -> earlyLeft[m]++ :: else fi; my(1).resident = 0 }
#endif
#endif
#if GIVE > 0
    :: d_step { lives(m) && giveLeft[m] < GIVE && wants[m] == 0 && homeOf(0, state[m]) != m && my(0).held == EXCLUSIVE && my(0).pend == 0 && !mustWait(0) ->
        giveLeft[m]++; my(0).held = INVALID;
#ifndef MUTANT_NO_UNACKED
        my(0).unacked = 1;
#endif
        tell = homeOf(0, state[m]); send(tell, GIVE_BACK, 0, my(0).version, 0, 1, my(0).value, generationOf(0, state[m])) }
#endif
#if DROP > 0
    :: d_step { lives(m) && dropLeft[m] < DROP && wants[m] == 0 && homeOf(0, state[m]) != m && my(0).held == SHARED && my(0).pend == 0 && !my(0).unacked && !isBusy(0) ->
        dropLeft[m]++; my(0).held = INVALID; my(0).resident = 0; my(0).value = PUNCHED_OUT;
        }
#endif
#if defined(DEATH) || defined(JOIN)
    :: d_step { lives(m) && state[m] < agreed && inView(m, state[m] + 1) && !serving(gone) ->
        if
        :: state[m] + 1 == goneAt ->
          closePeer();
          drain(0);
#if P > 1
          drain(1)
#endif
        :: else
        fi;
        state[m]++;
        if
        :: state[m] == goneAt ->
          newView(0);
#if P > 1
          newView(1)
#endif
        :: else
        fi }
#endif
    :: d_step { lives(m) && m != 0 && due(0) -> receive(0) }
    :: d_step { lives(m) && m != 1 && due(1) -> receive(1) }
#if N > 2
    :: d_step { lives(m) && m != 2 && due(2) -> receive(2) }
#endif
#if N > 3
    :: d_step { lives(m) && m != 3 && due(3) -> receive(3) }
#endif
    fi;
    d_step {
      advance(0);
#if P > 1
      advance(1);
#endif
      invariants();
      skip /* a d_step must not end in a loop */
    }
  }
  od
}

init {
  d_step {
    views[0] = bit(N) - 1;
#ifdef JOIN
    views[0] = bit(N - 1) - 1; state[N - 1] = NOT_YET;
#endif
    directory[0].serving = 1;
#if P > 1
    directory[1].serving = 1
#endif
  }
  atomic {
    run Member(0); run Member(1);
#if N > 2
    run Member(2);
#endif
#if N > 3
    run Member(3)
#endif
  }
#ifdef JOIN
  d_step { agreed++; views[agreed] = views[agreed - 1] | bit(N - 1); state[N - 1] = agreed }
#endif
#ifdef DEATH
  atomic {
    if
    :: gone = 0
    :: gone = 1
#if N > 2
    :: gone = 2
#endif
    fi;
    d_step { agreed++; goneAt = agreed; views[agreed] = views[agreed - 1] & ~bit(gone) }
  }
#endif
  timeout;
  d_step {
    i = 0;
    do
    :: i < N ->
      EVERY_FAULT_ENDS(!inView(i, agreed) || wants[i] == 0);
#ifdef LANES
      EVERY_FAULT_ENDS(!inView(i, agreed) || turn[i].state == 0);
#endif
      j = 0;
      do
      :: j < P ->
        EVERY_FAULT_ENDS(!inView(i, agreed) || (!copy[i * P + j].parked && !copy[i * P + j].unacked && !copy[i * P + j].pend));
        j++
      :: else -> break
      od;
      i++
    :: else -> break
    od;
    skip
  }
}

#ifdef PROGRESS
/* every-fault-ends, of member 1 (0 is the home), unless it is taken out: by weak fairness among members. */
ltl every_fault_ends { [] ((wants[1] != 0) -> <> (wants[1] == 0 || !inView(1, agreed))) }
#endif
