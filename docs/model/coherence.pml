/*
 * The coherence protocol as lib/coordinator/protocol/{member,home,moves}.ts and native/directory.cc carry it out.
 * README.md says how this corresponds to the code, and what is left out.
 *
 * -DN members, -DP pages, -DFAULTS accesses of each member, -DDEATH one eviction, -DJOIN the last member joins late,
 * -DGIVE owners give pages back unasked, -DBUSY_ONCE each member changes one mapping at a bad moment. -DMUTANT_x: one bug.
 *
 * Every access is budgeted, so the state graph must be finite and without a cycle; then every run ends, and
 * "every-fault-ends" is that it ends with no thread waiting (the check in World).
 */
#ifndef N
#define N 3
#endif
#ifndef P
#define P 1
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#define INVALID 0
#define SHARED 1
#define EXCLUSIVE 2
#define LOST 3
#define IDLE 0
#define OWNED 1
#define GONE 2
#define UNKNOWN 3
#define NOBODY 7

mtype = { REQUEST, DATA, RECALL, RECALLED, RETURNED, GIVEBACK, INVALIDATE, INVALIDATED, REBUILD, HOLDINGS };

/* One first-in-first-out channel for each pair: type, page, version, grant/access/keep, has bytes, bytes, state, generation. */
chan net[N * N] = [6] of { mtype, byte, byte, byte, bit, byte, byte, bit };

/* The agreed state: version `agreed`, and what each version says. Generation 1 exists once the first home is gone. */
byte agreed, views[3], gone = NOBODY;
byte deathAt = 9;
byte latest[P];

/* Members. */
byte state[N], budget[N], wants[N], wantsPage[N], busyLeft[N];
#define M(p) (m * P + (p))
byte held[N * P], version[N * P], pend[N * P], poison[N * P], bytes[N * P];
bit poisoned[N * P], unacked[N * P], resident[N * P], busy[N * P];
byte parked[N * P], parkedVersion[N * P], parkedKeep[N * P], parkedTo[N * P];
bit parkedGeneration[N * P];
bit delayed[N * P], delayedContent[N * P], frozen[N];
byte delayedVersion[N * P], delayedGrant[N * P], delayedBytes[N * P], delayedFrom[N * P];

/* Homes: entry (generation, page). A rebuilt page's bytes are not here yet while it is unfetched. */
#define D(g, p) ((g) * P + (p))
byte dir[2 * P], owner[2 * P], dversion[2 * P], copyset[2 * P], invalidating[2 * P], awaited[2 * P];
byte asked[4 * P];
bit recalling[2 * P], unfetched[2 * P], serving[2 * P];
/* kind (0 request, 1 given back, 2 the home's own fetch), from, access, held version, bytes */
chan queue[2 * P] = [6] of { byte, byte, byte, byte, byte };

#define FIRST_HOME(p) ((p) % N)
#define bitOf(i) (1 << (i))
#define inView(i, s) ((views[s] >> (i)) & 1)
#define changed(p, s) ((s) >= deathAt && gone == FIRST_HOME(p))
#define generation(p, s) (changed(p, s) -> 1 : 0)
/* The next home of a dead one's pages is the next member. */
#define homeOf(p, s) (changed(p, s) -> (FIRST_HOME(p) + 1) % N : FIRST_HOME(p))
#define allows(h) ((h) == LOST -> 0 : (h))

inline send(to, kind, p, v, a, has, b, g) {
  if
  :: inView(to, state[m]) -> assert(nfull(net[m * N + to])); net[m * N + to]!kind(p, v, a, has, b, state[m], g)
  :: else
  fi
}

/* Home.enqueue: the same question again needs one answer. */
inline enqueue(g, p, kind, who, want, v, b) {
  if
  :: kind == 0 && (asked[2 * D(g, p) + 1] & bitOf(who)) -> skip
  :: kind == 0 && want == 1 && (asked[2 * D(g, p)] & bitOf(who)) -> skip
  :: else ->
    if
    :: kind == 0 -> asked[2 * D(g, p) + want - 1] = asked[2 * D(g, p) + want - 1] | bitOf(who)
    :: else
    fi;
    assert(nfull(queue[D(g, p)])); queue[D(g, p)]!kind, who, want, v, b
  fi
}

inline ask(q, hv) {
  w = pend[M(q)]; h = homeOf(q, state[m]); e = generation(q, state[m]);
  if
  :: h == m -> enqueue(e, q, 0, m, w, hv, 0)
  :: else -> send(h, REQUEST, q, hv, w, 0, 0, e)
  fi;
  w = 0; h = 0; e = 0
}

inline askWithHeld(p) {
#ifdef MUTANT_NO_HELD_VERSION
  /* The asker says that it has a copy, not which. */
  ask(p, 99)
#else
  if
  :: held[M(p)] == SHARED -> ask(p, version[M(p)])
  :: else -> ask(p, 0)
  fi
#endif
}

inline poisonClaim(p, v) {
#ifndef MUTANT_NO_POISON
  if
  :: pend[M(p)] != 0 ->
    if
    :: !poisoned[M(p)] || v > poison[M(p)] -> poison[M(p)] = v
    :: else
    fi;
    poisoned[M(p)] = 1
  :: else
  fi
#endif
}

#ifdef MUTANT_CLOSE_WHILE_RESIDENT
#define mustWait(p) busy[M(p)]
#else
#define mustWait(p) (busy[M(p)] || resident[M(p)])
#endif

inline invalidate(p, v, to, g) {
  poisonClaim(p, v);
  if
  :: (held[M(p)] == SHARED && version[M(p)] <= v && mustWait(p)) || busy[M(p)] ->
#ifdef MUTANT_ACKNOWLEDGED_BEFORE_CLOSED
    send(to, INVALIDATED, p, v, 0, 0, 0, g);
#endif
    parked[M(p)] = 1; parkedVersion[M(p)] = v; parkedTo[M(p)] = to; parkedGeneration[M(p)] = g
  :: else ->
    if
    :: held[M(p)] == SHARED && version[M(p)] <= v -> held[M(p)] = INVALID
    :: else
    fi;
    send(to, INVALIDATED, p, v, 0, 0, 0, g)
  fi
}

/* begin_recall and Member.recallRun. wanted: a shared copy's bytes are asked for, too. */
inline recall(p, v, keepIt, wanted, to, g) {
  k = keepIt;
  if
  :: held[M(p)] == SHARED && v > version[M(p)] -> k = 0
  :: else
  fi;
#ifdef MUTANT_RECALL_LEAVES_SHARED
  x = (held[M(p)] == EXCLUSIVE && version[M(p)] == v -> 1 : 0);
#else
  x = ((held[M(p)] == EXCLUSIVE && version[M(p)] == v) || (held[M(p)] == SHARED && !k) -> 1 : 0);
#endif
  y = (version[M(p)] == v && (held[M(p)] == EXCLUSIVE || unacked[M(p)] || (held[M(p)] == SHARED && wanted)) -> 1 : 0);
  if
  :: busy[M(p)] || (x && mustWait(p)) ->
    parked[M(p)] = (wanted -> 2 : 3); parkedVersion[M(p)] = v; parkedKeep[M(p)] = k; parkedTo[M(p)] = to; parkedGeneration[M(p)] = g
  :: else ->
    if
    :: x || !y -> poisonClaim(p, v)
    :: else
    fi;
    if
    :: x -> held[M(p)] = (k -> SHARED : INVALID)
    :: else
    fi;
#ifndef MUTANT_NO_UNACKED
    if
    :: x && y -> unacked[M(p)] = 1
    :: else
    fi;
#endif
    k = (k && y -> SHARED : INVALID);
    send(to, RECALLED, p, v, k, y, bytes[M(p)], g)
  fi
}

inline install(pg, vn, gr, has, by, source, gn) {
  if
  :: gr == LOST ->
    pend[M(pg)] = 0; poisoned[M(pg)] = 0;
    if
    :: !inView(m, agreed) || allows(held[M(pg)]) == 0 || wants[m] -> held[M(pg)] = LOST
    :: else
    fi
  :: gr != LOST && pend[M(pg)] == 0 ->
    if
    :: gr == EXCLUSIVE -> recall(pg, vn, 0, 0, source, gn)
    :: else
    fi
  :: gr != LOST && pend[M(pg)] != 0 && poisoned[M(pg)] && vn <= poison[M(pg)] ->
    if
    :: gr == EXCLUSIVE -> recall(pg, vn, 0, 0, source, gn)
    :: else
    fi;
#ifndef MUTANT_DISCARDED_NOT_ASKED_AGAIN
    ask(pg, 0)
#endif
  :: gr != LOST && pend[M(pg)] != 0 && !(poisoned[M(pg)] && vn <= poison[M(pg)]) ->
    if
    :: busy[M(pg)] ->
      delayed[M(pg)] = 1; delayedVersion[M(pg)] = vn; delayedGrant[M(pg)] = gr; delayedContent[M(pg)] = has; delayedBytes[M(pg)] = by; delayedFrom[M(pg)] = source
    :: else ->
      if
      :: has -> bytes[M(pg)] = by
      :: else
      fi;
      held[M(pg)] = gr; version[M(pg)] = vn; pend[M(pg)] = 0; poisoned[M(pg)] = 0; unacked[M(pg)] = 0; resident[M(pg)] = 1
    fi
  fi
}

/* The lowest member of the copyset answers for the bytes from now on. */
inline keeper(g, p) {
  x = 0;
  do
  :: (copyset[D(g, p)] & views[state[m]]) & bitOf(x) -> break
  :: else -> x++
  od;
  dir[D(g, p)] = OWNED; owner[D(g, p)] = x; copyset[D(g, p)] = copyset[D(g, p)] & ~bitOf(x)
}

/* Home.takeBack. */
inline takeBack(g, p, from, grant, has, b) {
  if
  :: !has && unfetched[D(g, p)] && (copyset[D(g, p)] & views[state[m]]) != 0 -> keeper(g, p)
  :: !has && unfetched[D(g, p)] && (copyset[D(g, p)] & views[state[m]]) == 0 -> unfetched[D(g, p)] = 0; dir[D(g, p)] = GONE
  :: has || !unfetched[D(g, p)] ->
#ifdef MUTANT_RETURNED_BYTES_DROPPED
    skip;
#else
    if
    :: has -> bytes[M(p)] = b
    :: else
    fi;
#endif
    unfetched[D(g, p)] = 0; dir[D(g, p)] = IDLE;
    if
    :: grant == SHARED -> copyset[D(g, p)] = copyset[D(g, p)] | bitOf(from)
    :: grant != SHARED && copyset[D(g, p)] == 0 -> dversion[D(g, p)]++
    :: else
    fi;
  fi
}


inline invalidationsDone(g, p) {
  queue[D(g, p)]?<kind, who, a, v, b>;
  copyset[D(g, p)] = copyset[D(g, p)] & (inView(who, state[m]) -> bitOf(who) : 0)
}

/* Home.closeOwn can go on. */
#define ownFree(p) (held[M(p)] != SHARED && held[M(p)] != EXCLUSIVE && !busy[M(p)] || !mustWait(p))

inline pop() {
  if
  :: kind == 0 -> asked[2 * d + a - 1] = asked[2 * d + a - 1] & ~bitOf(who)
  :: else
  fi;
  queue[d]?_, _, _, _, _
}

/* Home.serve: one step for the entry at the head. Its page has TXN for as long as the queue is not empty. */
inline serve(g, p) {
  d = D(g, p);
  queue[d]?<kind, who, a, v, b>;
  if
  :: !inView(who, state[m]) -> pop()
  :: inView(who, state[m]) && kind == 1 ->
    if
    :: dir[d] == OWNED && owner[d] == who && dversion[d] == v -> takeBack(g, p, who, INVALID, 1, b)
    :: else
    fi;
    send(who, RETURNED, p, v, 0, 0, 0, g); pop()
  :: inView(who, state[m]) && kind != 1 && dir[d] == GONE ->
    if
    :: kind == 2
    :: kind == 0 && who == m -> install(p, 0, LOST, 0, 0, m, g)
    :: kind == 0 && who != m -> send(who, DATA, p, 0, LOST, 0, 0, g)
    fi;
    pop()
  :: inView(who, state[m]) && kind != 1 && dir[d] == OWNED ->
    recalling[d] = 1;
    send(owner[d], RECALL, p, dversion[d], (a == 1 && owner[d] != who -> 1 : 0), 0, 0, g)
  :: inView(who, state[m]) && kind != 1 && dir[d] == IDLE && a == 1 ->
    if
    :: kind == 2
    :: kind == 0 && who == m ->
      dversion[d] = (dversion[d] == 0 -> 1 : dversion[d]);
      if
      :: pend[M(p)] != 0 -> install(p, dversion[d], (copyset[d] == 0 -> EXCLUSIVE : SHARED), 0, 0, m, g)
      :: else
      fi
    :: kind == 0 && who != m ->
#ifndef MUTANT_HOME_COPY_STAYS_OPEN
      held[M(p)] = (held[M(p)] == EXCLUSIVE -> SHARED : held[M(p)]);
#endif
      x = (v != 0 && v == dversion[d] && (copyset[d] & bitOf(who)) -> 0 : 1);
#ifdef MUTANT_NO_HELD_VERSION
      x = (v != 0 && (copyset[d] & bitOf(who)) -> 0 : 1);
#endif
      dversion[d] = (dversion[d] == 0 -> 1 : dversion[d]);
#ifdef MUTANT_COPYSET_FORGETS_ONE
      copyset[d] = bitOf(who);
#else
      copyset[d] = copyset[d] | bitOf(who);
#endif
      send(who, DATA, p, dversion[d], SHARED, x, bytes[M(p)], g)
    fi;
    pop()
  :: inView(who, state[m]) && kind != 1 && dir[d] == IDLE && a == 2 ->
    x = copyset[d] & views[state[m]] & ~bitOf(who) & ~bitOf(m);
    if
    :: x != 0 ->
      invalidating[d] = x; y = 0;
      do
      :: y < N -> if :: x & bitOf(y) -> send(y, INVALIDATE, p, dversion[d], 0, 0, 0, g) :: else fi; y++
      :: else -> break
      od;
#ifdef MUTANT_INVALIDATION_NOT_AWAITED
      invalidating[d] = 0; invalidationsDone(g, p)
#endif
    :: else ->
      x = (v != 0 && v == dversion[d] && (copyset[d] & bitOf(who)) -> 0 : 1);
#ifdef MUTANT_NO_HELD_VERSION
      x = (v != 0 && (copyset[d] & bitOf(who)) -> 0 : 1);
#endif
#ifdef MUTANT_UPGRADE_OF_INVALIDATED
      x = (v != 0 -> 0 : 1);
#endif
#ifndef MUTANT_VERSION_NOT_RAISED
      dversion[d]++;
#endif
      copyset[d] = 0;
      if
      :: who == m ->
        if
        :: pend[M(p)] != 0 -> install(p, dversion[d], EXCLUSIVE, 0, 0, m, g)
        :: else
        fi
      :: else ->
        held[M(p)] = (held[M(p)] == LOST -> LOST : INVALID);
        dir[d] = OWNED; owner[d] = who;
        send(who, DATA, p, dversion[d], EXCLUSIVE, x, bytes[M(p)], g)
      fi;
      pop()
    fi
  fi;
  d = 0; kind = 0; who = 0; a = 0; v = 0; b = 0; x = 0; y = 0; k = 0
}

inline claimAgain(p) { poisoned[M(p)] = 0; askWithHeld(p) }

/* Moves.note. */
inline note(p, from, h, v) {
  d = D(1, p);
  if
  :: h == EXCLUSIVE -> dir[d] = OWNED; owner[d] = from; dversion[d] = v; copyset[d] = 0
  :: h == SHARED && (dir[d] == UNKNOWN || dversion[d] < v) -> dir[d] = IDLE; dversion[d] = v; copyset[d] = bitOf(from)
  :: h == SHARED && dir[d] == IDLE && dversion[d] == v && !(copyset[d] & bitOf(from)) -> copyset[d] = copyset[d] | bitOf(from)
  :: else
  fi
}

/* Moves.complete. */
inline complete(p) {
  d = D(1, p);
  if
  :: dir[d] == UNKNOWN -> dir[d] = GONE
  :: dir[d] == OWNED && owner[d] == m -> dir[d] = IDLE; copyset[d] = 0
  :: dir[d] == IDLE && (copyset[d] & bitOf(m)) -> copyset[d] = copyset[d] & ~bitOf(m); dversion[d] = (dversion[d] == 0 -> 1 : dversion[d])
  :: dir[d] == IDLE && !(copyset[d] & bitOf(m)) -> keeper(1, p); unfetched[d] = 1; enqueue(1, p, 2, m, 1, 0, 0)
  :: else
  fi;
  unacked[M(p)] = 0; parked[M(p)] = 0; serving[d] = 1;
  if
  :: pend[M(p)] != 0 -> claimAgain(p)
  :: else
  fi
}


/* Home.memberGone for one page that stays homed here. */
inline memberGone(p, who) {
  d = D(generation(p, state[m]), p);
  if
  :: dir[d] == OWNED && owner[d] == who ->
    recalling[d] = 0; dir[d] = GONE
  :: else
  fi;
  if
  :: invalidating[d] == bitOf(who) -> invalidating[d] = 0; invalidationsDone(generation(p, state[m]), p)
  :: else -> invalidating[d] = invalidating[d] & ~bitOf(who)
  fi;
  copyset[d] = copyset[d] & ~bitOf(who)
}

inline access(p) {
  if
  :: wants[m] == 2 ->
    i = 0;
    do
    :: i < N ->
      /* one-writer: what is out of the view is out of the cluster. */
      assert(i == m || !inView(i, agreed) || !inView(m, agreed) || allows(held[i * P + p]) == 0);
      i++
    :: else -> break
    od;
    i = 0; assert(!inView(m, agreed) || bytes[M(p)] == latest[p]); /* latest-value, of what the write leaves of the page */
    latest[p]++; bytes[M(p)] = latest[p]
  :: else -> assert(!inView(m, agreed) || bytes[M(p)] == latest[p]) /* latest-value */
  fi;
  wants[m] = 0; resident[M(p)] = 0
}

#define FROM(c, s) c?[_, _, _, _, _, _, s, _]
#define due(i) (state[m] != 9 && (FROM(net[(i) * N + m], 0) || state[m] >= 1 && FROM(net[(i) * N + m], 1) || state[m] >= 2 && FROM(net[(i) * N + m], 2)))

proctype Member(byte m) {
  byte i, p, v, a, b, s, d, x, y, k, kind, who, from;
  byte w, h;
  bit has, g, e;
  mtype type;
end:
  do
  /* A thread wants a page. */
  :: atomic { state[m] != 9 && !frozen[m] && budget[m] > 0 && wants[m] == 0 ->
      budget[m]--;
      if :: wants[m] = 1 :: wants[m] = 2 fi;
      if :: wantsPage[m] = 0
#if P > 1
      :: wantsPage[m] = 1
#endif
      fi }
  /* It looks at the page word: runs on, opens as a home's handler, or claims. */
  :: atomic { wants[m] != 0 && !busy[M(wantsPage[m])] && (allows(held[M(wantsPage[m])]) >= wants[m] || held[M(wantsPage[m])] == LOST || pend[M(wantsPage[m])] == 0) ->
      p = wantsPage[m]; d = D(generation(p, state[m]), p);
      if
      :: allows(held[M(p)]) >= wants[m] -> access(p)
      :: held[M(p)] == LOST -> wants[m] = 0; resident[M(p)] = 0
      :: allows(held[M(p)]) < wants[m] && held[M(p)] != LOST && homeOf(p, state[m]) == m && serving[d] && dir[d] == IDLE && len(queue[d]) == 0 && (copyset[d] == 0 || wants[m] == 1) ->
        dversion[d] = (dversion[d] == 0 -> 1 : dversion[d]);
        held[M(p)] = (copyset[d] == 0 -> EXCLUSIVE : SHARED); version[M(p)] = dversion[d]; resident[M(p)] = 1
      :: else -> pend[M(p)] = wants[m]; poisoned[M(p)] = 0; askWithHeld(p)
      fi;
      p = 0; d = 0; i = 0 }
#ifdef BUSY_ONCE
  :: atomic { busyLeft[m] > 0 && !busy[M(0)] && held[M(0)] == SHARED -> busyLeft[m]--; busy[M(0)] = 1 }
  :: atomic { busy[M(0)] -> busy[M(0)] = 0 }
#endif
#ifdef GIVE
  /* The views are closed; what this member owns goes home. */
  :: atomic { state[m] != 9 && !frozen[m] && wants[m] == 0 && homeOf(0, state[m]) != m && held[M(0)] == EXCLUSIVE && pend[M(0)] == 0 && !mustWait(0) ->
      frozen[m] = 1; held[M(0)] = INVALID; unacked[M(0)] = 1;
#ifdef MUTANT_NO_UNACKED
      unacked[M(0)] = 0;
#endif
      send(homeOf(0, state[m]), GIVEBACK, 0, version[M(0)], 0, 1, bytes[M(0)], generation(0, state[m])) }
#endif
  /* What was deferred. */
#if P > 1
  :: atomic { p == 0 && delayed[M(1)] && !busy[M(1)] -> p = 1; goto again }
  :: atomic { p == 0 && !delayed[M(1)] && parked[M(1)] && !mustWait(1) -> p = 1; goto freed }
#endif
  :: atomic { delayed[M(0)] && !busy[M(0)] -> p = 0;
again:
      delayed[M(p)] = 0;
      v = delayedVersion[M(p)]; a = delayedGrant[M(p)]; has = delayedContent[M(p)]; b = delayedBytes[M(p)]; from = delayedFrom[M(p)];
      delayedVersion[M(p)] = 0; delayedGrant[M(p)] = 0; delayedContent[M(p)] = 0; delayedBytes[M(p)] = 0; delayedFrom[M(p)] = 0;
      install(p, v, a, has, b, from, generation(p, state[m]));
      p = 0; v = 0; a = 0; has = 0; b = 0; from = 0; x = 0; y = 0; k = 0 }
  :: atomic { !delayed[M(0)] && parked[M(0)] && !mustWait(0) -> p = 0;
freed:
      a = parked[M(p)]; v = parkedVersion[M(p)]; b = parkedKeep[M(p)]; from = parkedTo[M(p)]; g = parkedGeneration[M(p)];
      parked[M(p)] = 0; parkedVersion[M(p)] = 0; parkedKeep[M(p)] = 0; parkedTo[M(p)] = 0; parkedGeneration[M(p)] = 0;
      if
      :: a == 1 -> invalidate(p, v, from, g)
      :: else -> recall(p, v, b, (a == 2), from, g)
      fi;
      p = 0; v = 0; a = 0; b = 0; from = 0; g = 0; x = 0; y = 0; k = 0 }
  /* The home serves the head of a queue. */
#define canServe(p) (homeOf(p, state[m]) == m && serving[D(generation(p, state[m]), p)] && nempty(queue[D(generation(p, state[m]), p)]) && !recalling[D(generation(p, state[m]), p)] && invalidating[D(generation(p, state[m]), p)] == 0 && ownFree(p))
  :: atomic { state[m] != 9 && canServe(0) -> serve(generation(0, state[m]), 0) }
#if P > 1
  :: atomic { state[m] != 9 && canServe(1) -> serve(generation(1, state[m]), 1) }
#endif
  /* The next agreed state: gone members first, then homes (RegionProtocol.update). */
  :: atomic { state[m] < agreed && inView(m, agreed) ->
      state[m]++;
      if
      :: state[m] == deathAt ->
        p = 0;
        do
        :: p < P ->
          if
          :: !changed(p, state[m]) && homeOf(p, state[m]) == m -> memberGone(p, gone)
          :: changed(p, state[m]) ->
            delayed[M(p)] = 0; parked[M(p)] = 0;
            if
            :: homeOf(p, state[m]) == m ->
              dir[D(1, p)] = UNKNOWN; awaited[D(1, p)] = views[state[m]] & ~bitOf(m);
              note(p, m, held[M(p)], version[M(p)]);
              i = 0;
              do
              :: i < N -> if :: i != m -> send(i, REBUILD, p, 0, 0, 0, 0, 1) :: else fi; i++
              :: else -> break
              od;
              if :: awaited[D(1, p)] == 0 -> complete(p) :: else fi
            :: else
            fi;
            if
            :: pend[M(p)] != 0 -> claimAgain(p)
            :: else
            fi
          :: else
          fi;
          p++
        :: else -> break
        od
      :: else
      fi;
      p = 0; i = 0; d = 0; x = 0; a = 0; b = 0; v = 0; who = 0; kind = 0 }
  /* A message. One from a state that this member does not have yet waits; one from outside of the view is dropped. */
  :: atomic { due(0) -> from = 0; goto receive }
  :: atomic { due(1) -> from = 1; goto receive }
#if N > 2
  :: atomic { due(2) -> from = 2; goto receive }
#endif
#if N > 3
  :: atomic { due(3) -> from = 3; goto receive }
#endif
  :: atomic { false ->
receive:
      net[from * N + m]?<type, p, v, a, has, b, s, g>;
      net[from * N + m]?_, _, _, _, _, _, _, _;
      if
#ifndef MUTANT_STALE_SENDER_ACCEPTED
      :: !inView(from, state[m]) || g != generation(p, state[m]) -> goto done
#endif
      :: else
      fi;
      if
      :: type == REQUEST -> enqueue(g, p, 0, from, a, v, 0)
      :: type == DATA -> install(p, v, a, has, b, from, g)
      :: type == RECALL -> recall(p, v, a, 1, from, g)
      :: type == RECALLED ->
        if
        :: recalling[D(g, p)] && owner[D(g, p)] == from && dversion[D(g, p)] == v -> recalling[D(g, p)] = 0; takeBack(g, p, from, a, has, b)
        :: else
        fi;
        send(from, RETURNED, p, v, 0, 0, 0, g)
      :: type == RETURNED -> if :: version[M(p)] == v -> unacked[M(p)] = 0 :: else fi
      :: type == GIVEBACK -> enqueue(g, p, 1, from, 1, v, b)
      :: type == INVALIDATE -> invalidate(p, v, from, g)
      :: type == INVALIDATED ->
        if
        :: (invalidating[D(g, p)] & bitOf(from)) && dversion[D(g, p)] == v ->
          invalidating[D(g, p)] = invalidating[D(g, p)] & ~bitOf(from);
          if :: invalidating[D(g, p)] == 0 -> invalidationsDone(g, p) :: else fi
        :: else
        fi
      :: type == REBUILD ->
        unacked[M(p)] = 0; send(from, HOLDINGS, p, version[M(p)], held[M(p)], 0, 0, g)
      :: type == HOLDINGS ->
        note(p, from, a, v); awaited[D(1, p)] = awaited[D(1, p)] & ~bitOf(from);
        if :: awaited[D(1, p)] == 0 -> complete(p) :: else fi
      fi;
done:
      type = 0; from = 0; p = 0; v = 0; a = 0; has = 0; b = 0; s = 0; g = 0; d = 0; x = 0; y = 0; k = 0; kind = 0; who = 0; i = 0 }
  od
}

init {
  byte i, j;
  atomic {
    views[0] = (1 << N) - 1;
#ifdef JOIN
    views[0] = (1 << (N - 1)) - 1; state[N - 1] = 9;
#endif
    do
    :: i < P -> serving[D(0, i)] = 1; i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < N -> budget[i] = FAULTS; busyLeft[i] = 1; run Member(i); i++
    :: else -> break
    od;
    i = 0
  }
#ifdef DEATH
  /* Whoever is taken out of the view runs on (a zombie), which is a death, too: it may do nothing more at any point. */
  atomic {
    if
    :: gone = 0
    :: gone = 1
#if N > 2
    :: gone = 2
#endif
    fi;
    agreed++; deathAt = agreed; views[agreed] = views[agreed - 1] & ~bitOf(gone)
  }
#endif
#ifdef JOIN
  atomic { agreed++; views[agreed] = views[agreed - 1] | bitOf(N - 1); if :: gone != N - 1 -> state[N - 1] = agreed :: else -> views[agreed] = views[agreed - 1] fi }
#endif
  atomic {
    timeout;
    /* every-fault-ends */
    do
    :: i < N ->
      assert(!inView(i, agreed) || wants[i] == 0);
      j = 0;
      do
      :: j < P -> assert(!inView(i, agreed) || !unacked[i * P + j]); j++
      :: else -> break
      od;
      i++
    :: else -> break
    od
  }
}
