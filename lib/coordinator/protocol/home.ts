/**
 * The home's side of one region: the directory, and one transaction at a time for each page.
 *
 * After Li and Hudak (Memory Coherence in Shared Virtual Memory Systems, 1989), fixed distributed manager, but with
 * the bytes passing through the home, so that its copy is never older than the last transfer. A request waits in its
 * page's queue; the one at the head holds the directory word (TXN) until the page is in the state that it needs:
 * *idle* (the home's bytes are current) to read, *idle and alone* (no other copy) to write.
 */
import type { MemberId, RecalledMessage, GiveBackMessage, InvalidatedMessage, RegionInfo, Segment } from './messages.js';
import { Access, Begin, Close, Content, DirState, Held, Install, invariant, type Network, type RegionEvents, type RegionMemory, type Timer, type Timers } from './ports.js';
import type { Outbox } from './outbox.js';
import type { View } from './view.js';
import { appendPage, RangeMap } from './ranges.js';

export interface Loss { member: MemberId; epoch: number }

/** What is waiting for a page at its home. */
export interface Entry {
  /** Who asks; 0 for a task of the home's own. */
  from: MemberId;
  access: number;
  /** The asker's claim, which the answer names. */
  claim?: number;
  /** The version of the copy that the asker holds, 0 for none. */
  held: number;
  /** Instead of a grant: runs when the page is idle (read) or idle and alone (write), and says whether the page's bytes may stay as they are. */
  task?: { run(page: number): void; lost(page: number): 'found' | 'lost'; /** The home moves before its turn has come. */ moved(page: number): void };
  /** Instead of a grant: bytes that an owner gave back unasked. */
  given?: { segment: Segment; bytes: Uint8Array | null };
}

interface PageWork {
  queue: Entry[];
  begun: boolean;
  recall: { owner: MemberId; version: number } | null;
  invalidations: { members: Set<MemberId>; version: number } | null;
  /** The version that was invalidated for the entry at the head: it poisons whoever has a claim, so it is never granted again. */
  retired: number;
  /** LOCKed by a handler, or the home's own copy could not be closed yet. */
  blocked: boolean;
  timer: Timer | null;
  since: number;
}

/** One slice that is homed here, and how far this home has got with it. */
export interface Service {
  first: number;
  count: number;
  generation: number;
  /** receiving, rebuilding: requests wait; draining, handed: requests are dropped, their senders ask the new home. */
  status: 'open' | 'receiving' | 'rebuilding' | 'draining' | 'handed';
  waiting: (() => void)[];
  /** Drained, and all that was granted has arrived: it is being handed over. Until then, who waits for that. */
  settled: boolean;
  whenSettled: (() => void)[];
}

/** A page of a rebuilt directory whose bytes are at a member that has a copy, and not here yet. */
export interface Unfetched {
  /** [member, version of its copy]: others that have one, the newest first. */
  heirs: [MemberId, number][];
  /** The newest version that anybody may have heard of. */
  newest: number;
  /** Somebody who was asked did not have it, or had less than the newest. */
  passed: boolean;
}

export class Home {
  readonly services: Service[] = [];
  /** Pages of a rebuilt directory whose bytes are still only at their copies. */
  readonly unfetched = new Map<number, Unfetched>();
  private whenFetched: (() => void)[] = [];
  requestsServed = 0;
  invalidationsSent = 0;
  recallsSent = 0;

  private readonly works = new Map<number, PageWork>();
  private readonly word = new Float64Array(7);
  private readonly one = new Uint8Array(1);

  constructor(
    private readonly info: RegionInfo,
    private readonly memory: RegionMemory,
    private readonly network: Network,
    private readonly timers: Timers,
    private readonly view: View,
    private readonly outbox: Outbox,
    /** What is known to be lost, for the whole region. */
    private readonly losses: RangeMap<Loss>,
    private readonly events: RegionEvents,
    /** This member's own claims on its own pages. */
    private readonly local: { granted(page: number): void; lost(page: number, loss: Loss): void },
  ) {}

  serviceOf(page: number): Service | undefined {
    return this.services.find((service) => page >= service.first && page < service.first + service.count);
  }

  /** A member (or this one) wants a run of pages. */
  request(from: MemberId, generation: number, claim: number, access: number, first: number, count: number, held: number[]): void {
    const service = this.serviceOf(first);
    if (service === undefined || service.generation !== generation || service.status === 'draining' || service.status === 'handed') return;
    if (service.status !== 'open') {
      service.waiting.push(() => this.request(from, generation, claim, access, first, count, held));
      return;
    }
    if (!this.view.has(from)) return;
    for (let i = 0; i < count; i++) this.enqueue(first + i, { from, access, claim, held: held[i] ?? 0 });
  }

  /** Waits for its turn at the page. The service must be open. */
  enqueue(page: number, entry: Entry): void {
    let work = this.works.get(page);
    if (work === undefined) {
      work = { queue: [], begun: false, recall: null, invalidations: null, retired: 0, blocked: false, timer: null, since: this.timers.now() };
      this.works.set(page, work);
    } else if (entry.task === undefined && entry.given === undefined) {
      // The same question again (asked anew after a discarded answer): one answer is enough.
      const asked = work.queue.find((other) => other.from === entry.from && other.task === undefined && other.given === undefined && other.access >= entry.access);
      if (asked !== undefined) {
        asked.held = entry.held;
        asked.claim = entry.claim;
        return;
      }
    }
    work.queue.push(entry);
    if (work.queue.length === 1) this.advance(page, work);
  }

  /** Is this member's request for the page in its queue? (Answer to a probe.) */
  isQueued(page: number, from: MemberId): boolean {
    return this.works.get(page)?.queue.some((entry) => entry.from === from) ?? false;
  }

  /** A LOCK was released, or the home's own copy may be closed now. */
  free(page: number): void {
    const work = this.works.get(page);
    if (work === undefined || !work.blocked) return;
    work.blocked = false;
    work.timer?.cancel();
    work.timer = null;
    this.advance(page, work);
  }

  recalled(from: MemberId, generation: number, message: RecalledMessage, payload: Uint8Array | undefined): void {
    this.forEachReturned(message.segments, payload, (page, segment, bytes) => {
      const work = this.works.get(page);
      const expected = work?.recall?.owner === from && work.recall.version === segment.version;
      if (!expected && this.isOwned(page, from, segment.version)) {
        const service = this.serviceOf(page);
        // It gives up what it was granted. Until this page's turn comes a thread here may be asking it for the bytes.
        if (service?.status === 'open') return this.enqueue(page, { from, access: Access.Read, held: 0, given: { segment, bytes: bytes?.slice() ?? null } });
        // Its recall was broken off by draining. The directory says until the end that the owner has the bytes: it is
        // this home that takes them back, or the next one.
        if (service?.settled !== false) return;
        this.takeBack(page, from, segment, bytes);
        const [state, owner, version, low, high] = this.directory(page);
        this.memory.end(page, state, owner, version, low, high, work?.begun ?? false);
      }
      // Ours or not, the owner need not keep the bytes for us any longer.
      this.outbox.acknowledge('returned', from, generation, page, 1, segment.version);
      if (work === undefined || !expected) return;
      work.recall = null;
      this.takeBack(page, from, segment, bytes);
      this.advance(page, work);
    });
  }

  /** Unasked: the owner leaves, or has no room. It keeps the bytes until it hears 'returned'. */
  givenBack(from: MemberId, generation: number, message: GiveBackMessage, payload: Uint8Array | undefined): void {
    const service = this.services.find((candidate) => message.segments.length > 0 && candidate === this.serviceOf(message.segments[0].first));
    if (service === undefined || service.generation !== generation) return;
    const copy = payload?.slice();
    if (service.status === 'receiving' || service.status === 'rebuilding') {
      service.waiting.push(() => this.givenBack(from, generation, message, copy));
      return;
    }
    this.forEachReturned(message.segments, copy, (page, segment, bytes) => {
      this.enqueue(page, { from, access: Access.Read, held: 0, given: { segment, bytes } });
    });
  }

  invalidated(from: MemberId, message: InvalidatedMessage): void {
    for (const run of message.runs) {
      for (let page = run.first; page < run.first + run.count; page++) {
        const work = this.works.get(page);
        const waiting = work?.invalidations;
        if (!work || !waiting || waiting.version !== run.version || !waiting.members.delete(from)) continue;
        if (waiting.members.size === 0) this.invalidationsDone(page, work);
      }
    }
  }

  /** After the view went on without `member`: what only it had is lost, what it owed is not waited for. */
  memberGone(member: MemberId, slot: number, epoch: number): void {
    const loss = { member, epoch };
    const lost: [number, number][] = [];
    // Who waited for it goes on when everybody has been told of the losses: what is found again is told after that.
    const goOn: (() => void)[] = [];
    for (const page of [...this.unfetched.keys()]) this.chooseOtherKeeper(page, member, slot);
    for (const [page, work] of [...this.works]) {
      const queued = work.queue;
      const head = queued[0];
      const kept = work.queue.filter((entry, index) => entry.from !== member || (index === 0 && work.begun));
      work.queue = kept;
      if (kept.length === 0) {
        this.forget(page, work);
        continue;
      }
      if (work.recall?.owner === member) {
        work.recall = null;
        const given = queued.find((entry) => entry.from === member && entry.given !== undefined)?.given;
        this.directory(page);
        // What it gave back unasked has arrived, if only in the queue.
        if (given !== undefined && given.segment.version === this.word[2]) this.takeBack(page, member, { ...given.segment, grant: Held.Invalid }, given.bytes);
        else if (this.word[0] === DirState.Exclusive && this.word[1] === slot) {
          this.memory.end(page, DirState.Lost, 0, this.word[2], 0, 0, true);
          this.losses.set(page, 1, loss);
          appendPage(lost, page);
        }
        if (!(head.from === member)) goOn.push(() => this.advance(page, work));
      }
      if (work.invalidations?.members.delete(member) && work.invalidations.members.size === 0) goOn.push(() => this.invalidationsDone(page, work));
    }
    const found = new Float64Array(2 * 512);
    for (const service of this.services) {
      // Also what is being handed over, and perhaps more than once: somebody else may get the slot meanwhile.
      if (service.status !== 'open' && service.status !== 'draining') continue;
      const end = service.first + service.count;
      for (let page = service.first; page < end; ) {
        const [runs, next] = this.memory.sweep(page, end - page, slot, found);
        for (let i = 0; i < runs; i++) {
          this.losses.set(found[2 * i], found[2 * i + 1], loss);
          lost.push([found[2 * i], found[2 * i + 1]]);
        }
        page = next;
      }
    }
    if (lost.length > 0) this.announceLost(lost, loss);
    for (const again of goOn) again();
    // The dead member's own request, if one was being served: its entry has done its part.
    for (const [page, work] of [...this.works]) {
      if (work.begun && work.queue[0]?.from === member && work.recall === null && work.invalidations === null) this.dropHead(page, work);
    }
  }

  /** Tells everybody that these pages are gone, and this process's handles. */
  announceLost(runs: [number, number][], loss: Loss): void {
    // In the order of deciding: an answer from before must not come after what it says is out of date.
    this.outbox.flush();
    const flat = runs.flat();
    for (const member of this.view.others()) {
      this.network.send(member, { type: 'lost', region: this.info.id, generation: 0, runs: flat, member: loss.member, epoch: loss.epoch });
    }
    this.events.lost(runs, loss.member, loss.epoch);
  }

  announceFound(runs: [number, number][]): void {
    this.outbox.flush();
    const flat = runs.flat();
    for (const member of this.view.others()) this.network.send(member, { type: 'found', region: this.info.id, generation: 0, runs: flat });
    for (const [first, count] of runs) this.memory.find(first, count);
    this.events.found(runs);
  }

  /** Whatever others still keep of these pages, which were zeroed, is worth nothing. */
  announceDiscarded(runs: [number, number][]): void {
    this.outbox.flush();
    for (const member of this.view.others()) this.network.send(member, { type: 'discarded', region: this.info.id, generation: 0, runs: runs.flat() });
  }

  /** The member keeps these bytes for a home that is gone. If the directory doesn't say that they are the newest, it need not. */
  settleUnacknowledged(member: MemberId, first: number, count: number, version: number): void {
    if (member === this.network.self || !this.view.has(member)) return;
    for (let page = first; page < first + count; page++) {
      if (!this.isOwned(page, member, version)) this.outbox.acknowledge('returned', member, this.generationOf(page), page, 1, version);
    }
  }

  /** Members that a transaction has been waiting for since before `then`. */
  *awaited(then: number): Generator<MemberId> {
    for (const work of this.works.values()) {
      if (work.since > then) continue;
      if (work.recall !== null) yield work.recall.owner;
      if (work.invalidations !== null) yield* work.invalidations.members;
    }
  }

  /**
   * No transaction for this slice any more: those that run are broken off, since what they wait for may be pinned by
   * somebody who waits for another page of this home. What they have done so far does no harm: a copyset may name
   * members that have closed their copies, and an owner keeps the bytes that nobody has taken.
   */
  drain(service: Service): void {
    service.status = 'draining';
    service.waiting = [];
    for (const [page, work] of [...this.works]) {
      if (this.serviceOf(page) !== service) continue;
      for (const entry of work.queue) entry.task?.moved(page);
      if (work.begun) {
        const [state, owner, version, low, high] = this.directory(page);
        this.memory.end(page, state, owner, unretired(work, version), low, high, false);
      }
      this.forget(page, work);
    }
  }

  open(service: Service): void {
    service.status = 'open';
    const waiting = service.waiting;
    service.waiting = [];
    for (const again of waiting) again();
  }

  /** Calls back when the bytes of all rebuilt pages are here. */
  afterFetching(callback: () => void): void {
    if (this.unfetched.size === 0) callback();
    else this.whenFetched.push(callback);
  }

  private fetched(page: number): void {
    if (!this.unfetched.delete(page) || this.unfetched.size > 0) return;
    const callbacks = this.whenFetched;
    this.whenFetched = [];
    for (const callback of callbacks) callback();
  }

  /** Directory word of a page homed here: state, owner slot, version, copyset low and high; the hints: writer's slot + 1, migratory. */
  directory(page: number): Float64Array {
    this.memory.directory(page, this.word);
    return this.word;
  }

  // ---- one page's transaction ---------------------------------------------------------------------------------------

  private advance(page: number, work: PageWork): void {
    while (work.queue.length > 0) {
      if (work.blocked || work.recall !== null || work.invalidations !== null) return;
      if (!work.begun) {
        if (this.memory.begin(page) === Begin.Locked) {
          work.blocked = true;
          return;
        }
        work.begun = true;
      }
      if (!this.serve(page, work, work.queue[0])) return;
    }
  }

  /** One step for the entry at the head; true if it is done with. */
  private serve(page: number, work: PageWork, entry: Entry): boolean {
    const [state, owner, version, low, high, , migratory] = this.directory(page);
    // Who has gone meanwhile, or is on its way out, wants nothing any more: what it were given now might come after all
    // that it had to give back.
    const asker = this.view.get(entry.from);
    const goes = asker === undefined || (asker.leaving && entry.given === undefined && entry.from !== this.network.self);
    if (entry.from !== 0 && goes) return this.finish(page, work, state, owner, unretired(work, version), low, high);
    if (entry.given !== undefined) return this.serveGiven(page, work, entry.from, entry.given);
    if (state === DirState.Lost) return this.serveLost(page, work, entry);
    if (state === DirState.Exclusive) {
      const holder = this.view.atSlot(owner);
      invariant(holder !== undefined, `page ${page} is owned by slot ${owner}, which nobody has`);
      // A rebuilt page is fetched first, and its copies go after that: one that is pinned by somebody who waits for another page
      // of this slice would keep a home that leaves from handing over, and with it that other page.
      // An owner whose reader is going to write needs no copy, which would only have to be invalidated.
      const passes = migratory === 1 && entry.task === undefined;
      const keep = this.unfetched.has(page) || (entry.access === Access.Read && holder !== entry.from && !passes);
      work.recall = { owner: holder, version };
      work.since = this.timers.now();
      this.recallsSent++;
      this.outbox.recall(holder, this.generationOf(page), page, version, entry.from, keep, true);
      return false;
    }
    invariant(state === DirState.Idle, `page ${page} is served while its directory state is ${state}`);
    return entry.access === Access.Read ? this.serveRead(page, work, entry, version, low, high) : this.serveWrite(page, work, entry, version, low, high);
  }

  private serveRead(page: number, work: PageWork, entry: Entry, version: number, low: number, high: number): boolean {
    if (entry.task !== undefined) {
      entry.task.run(page);
      return this.finish(page, work, DirState.Idle, 0, version, low, high);
    }
    // Version 0 means "no copy" in requests, and "never touched" in a directory; the first grant of a page makes it 1.
    const granted = version === 0 ? 1 : version;
    const copies = this.view.copyset(low, high);
    if (copies.some((member) => member !== entry.from)) this.memory.hint(page, this.word[5], false);
    if (entry.from === this.network.self) {
      if (!this.grantSelf(page, work, granted, low === 0 && high === 0 ? Held.Exclusive : Held.Shared)) return false;
      return this.finish(page, work, DirState.Idle, 0, granted, low, high);
    }
    if (!this.closeOwn(page, work, true)) return false;
    const slot = this.view.slotOf(entry.from);
    const same = entry.held !== 0 && entry.held === version && this.view.inCopyset(slot, low, high);
    const [newLow, newHigh] = this.view.withSlot(slot, low, high);
    this.answer(entry, page, granted, Held.Shared, same ? Content.Same : Content.Bytes);
    this.requestsServed++;
    return this.finish(page, work, DirState.Idle, 0, granted, newLow, newHigh);
  }

  private serveWrite(page: number, work: PageWork, entry: Entry, version: number, low: number, high: number): boolean {
    const others = this.view.copyset(low, high).filter((member) => member !== entry.from && member !== this.network.self);
    if (work.retired === 0) this.noteWriter(page, entry, version, others);
    if (others.length > 0) {
      work.invalidations = { members: new Set(others), version };
      work.retired = version;
      work.since = this.timers.now();
      this.invalidationsSent += others.length;
      for (const member of others) this.outbox.invalidate(member, this.generationOf(page), page, version, entry.from);
      // Meanwhile the home's own copy; if that must wait it is tried again when the others have answered.
      if (entry.from !== this.network.self) this.memory.downgrade(page, 1, false, this.one);
      return false;
    }
    const next = nextVersion(version);
    if (entry.from === this.network.self) {
      if (!this.grantSelf(page, work, next, Held.Exclusive)) return false;
      return this.finish(page, work, DirState.Idle, 0, next, 0, 0);
    }
    if (!this.closeOwn(page, work, false)) return false;
    if (entry.task !== undefined) {
      entry.task.run(page);
      return this.finish(page, work, DirState.Idle, 0, next, 0, 0);
    }
    const slot = this.view.slotOf(entry.from);
    const same = entry.held !== 0 && entry.held === version && this.view.inCopyset(slot, low, high);
    this.answer(entry, page, next, Held.Exclusive, same ? Content.Same : Content.Bytes);
    this.requestsServed++;
    return this.finish(page, work, DirState.Exclusive, slot, next, 0, 0);
  }

  /** The page migrates if it has been read by whoever writes it now, and by nobody else since the last one has written it. */
  private noteWriter(page: number, entry: Entry, version: number, others: MemberId[]): void {
    const [, , , , , writer, migratory] = this.word;
    const hasRead = entry.task === undefined && entry.held !== 0 && entry.held === version;
    const fromWriter = others.length === 1 && writer === this.view.slotOf(others[0]) + 1;
    this.memory.hint(page, 0, hasRead && (fromWriter || (others.length === 0 && migratory === 1)));
  }

  private serveLost(page: number, work: PageWork, entry: Entry): boolean {
    const [state, owner, version, low, high] = this.word;
    if (entry.task?.lost(page) === 'found') {
      this.losses.delete(page, 1);
      return this.finish(page, work, DirState.Idle, 0, nextVersion(version), 0, 0);
    }
    if (entry.task === undefined) {
      const loss = this.lossOf(page);
      if (entry.from === this.network.self) this.local.lost(page, loss);
      else this.answer(entry, page, loss.epoch, Held.Lost, loss.member);
    }
    return this.finish(page, work, state, owner, version, low, high);
  }

  private answer({ from, claim = 0 }: Entry, page: number, version: number, grant: number, content: number): void {
    this.outbox.data(from, this.generationOf(page), claim, page, version, grant, content);
  }

  private serveGiven(page: number, work: PageWork, from: MemberId, given: NonNullable<Entry['given']>): boolean {
    const [state, owner, version, low, high] = this.word;
    // Version 0: it has nothing, whatever it was granted last.
    const ours = this.isOwned(page, from, given.segment.version === 0 ? version : given.segment.version);
    if (ours) this.takeBack(page, from, given.segment, given.bytes);
    this.outbox.acknowledge('returned', from, this.generationOf(page), page, 1, given.segment.version);
    if (!ours) return this.finish(page, work, state, owner, version, low, high);
    const now = this.directory(page);
    return this.finish(page, work, now[0], now[1], now[2], now[3], now[4]);
  }

  private isOwned(page: number, by: MemberId, version: number): boolean {
    const [state, owner, current] = this.directory(page);
    return state === DirState.Exclusive && this.view.atSlot(owner) === by && current === version;
  }

  lossOf(page: number): Loss {
    return this.losses.get(page) ?? { member: 0, epoch: 0 };
  }

  /** The owner's bytes become the home's, and the page idle; TXN stays. */
  private takeBack(page: number, owner: MemberId, segment: Segment, bytes: Uint8Array | null): void {
    const [, , version, low, high] = this.directory(page);
    const unfetched = this.unfetched.get(page);
    if (segment.content === Content.Same && unfetched !== undefined && this.passOn(page, owner)) return;
    if (segment.content === Content.Bytes) {
      invariant(bytes !== null, `page ${page} came back without its bytes`);
      this.memory.writePages(page, 1, bytes, 0);
    } else if (segment.content === Content.Zero) {
      this.memory.zero(page * this.memory.pageSize, this.memory.pageSize);
    } else if (unfetched !== undefined) {
      // Neither the home nor any keeper has the bytes.
      this.fetched(page);
      const loss = { member: this.lossOf(page).member, epoch: this.view.epoch };
      this.losses.set(page, 1, loss);
      this.memory.end(page, DirState.Lost, 0, unfetched.newest, 0, 0, true);
      this.announceLost([[page, 1]], loss);
      return;
    }
    this.fetched(page);
    // A keeper that had nothing throws away what it may be granted up to the version that it was asked for: were that the
    // version of the next grant, it would ask for ever.
    const next = unfetched?.passed === true ? nextVersion(unfetched.newest) : version;
    if (segment.grant === Held.Shared) {
      this.memory.hint(page, this.view.slotOf(owner) + 1, false);
      const [newLow, newHigh] = this.view.withSlot(this.view.slotOf(owner), low, high);
      this.memory.end(page, DirState.Idle, 0, next, newLow, newHigh, true);
    } else {
      this.memory.end(page, DirState.Idle, 0, low === 0 && high === 0 && next === version ? nextVersion(version) : next, low, high, true);
    }
  }

  private invalidationsDone(page: number, work: PageWork): void {
    work.invalidations = null;
    const [state, owner, version, low, high] = this.directory(page);
    const from = work.queue[0]?.from ?? 0;
    const slot = this.view.has(from) ? this.view.slotOf(from) : -1;
    const [keptLow, keptHigh] = slot >= 0 && this.view.inCopyset(slot, low, high) ? this.view.withSlot(slot, 0, 0) : [0, 0];
    this.memory.end(page, state, owner, version, keptLow, keptHigh, true);
    this.advance(page, work);
  }

  private grantSelf(page: number, work: PageWork, version: number, grant: number): boolean {
    this.memory.install(page, 1, version, grant, Content.Same, null, 0, this.one);
    if (this.one[0] === Install.Busy) {
      work.blocked = true;
      return false;
    }
    invariant(this.one[0] !== Install.Discarded, `this member's own grant of page ${page} is poisoned`);
    this.local.granted(page);
    return true;
  }

  /** The home's own copy down to read-only or closed; false if that must wait. */
  private closeOwn(page: number, work: PageWork, toShared: boolean): boolean {
    if (this.memory.downgrade(page, 1, toShared, this.one) === 0) return true;
    invariant(this.one[0] === Close.Deferred, 'downgrade says done or deferred');
    work.blocked = true;
    const delay = this.memory.deferral(page);
    if (delay >= 0) work.timer = this.timers.after(delay, () => this.freeAndFlush(page));
    return false;
  }

  /** Timers call from outside of a turn. */
  private freeAndFlush(page: number): void {
    this.free(page);
    this.outbox.flush();
  }

  private finish(page: number, work: PageWork, state: number, owner: number, version: number, low: number, high: number): true {
    work.queue.shift();
    work.retired = 0;
    const more = work.queue.length > 0;
    this.memory.end(page, state, owner, version, low, high, more);
    if (!more) {
      work.begun = false;
      this.forget(page, work);
    }
    return true;
  }

  private dropHead(page: number, work: PageWork): void {
    const [state, owner, version, low, high] = this.directory(page);
    work.blocked = false;
    work.timer?.cancel();
    this.finish(page, work, state, owner, unretired(work, version), low, high);
    this.advance(page, work);
  }

  private forget(page: number, work: PageWork): void {
    work.timer?.cancel();
    this.works.delete(page);
  }

  /** A rebuilt page whose keeper has it no more is kept by another of its copies, if there is one. */
  private passOn(page: number, keeper: MemberId): boolean {
    const [, , , low, high] = this.directory(page);
    const unfetched = this.unfetched.get(page)!;
    unfetched.passed = true;
    let heir = unfetched.heirs.shift();
    while (heir !== undefined && (heir[0] === keeper || !this.view.has(heir[0]))) heir = unfetched.heirs.shift();
    if (heir === undefined) return false;
    const [member, version] = heir;
    const slot = this.view.slotOf(member);
    const [others, othersHigh] = this.view.withoutSlot(slot, low, high);
    this.memory.end(page, DirState.Exclusive, slot, version, others, othersHigh, this.works.get(page)?.begun ?? false);
    return true;
  }

  private chooseOtherKeeper(page: number, gone: MemberId, slot: number): void {
    const [state, owner] = this.directory(page);
    if (state !== DirState.Exclusive || owner !== slot) return;
    const work = this.works.get(page);
    if (!this.passOn(page, gone)) {
      this.fetched(page);
      return;
    }
    if (work !== undefined && work.recall !== null) {
      work.recall = null;
      this.advance(page, work);
    }
  }

  private generationOf(page: number): number {
    const service = this.serviceOf(page);
    invariant(service !== undefined, `page ${page} is not homed here`);
    return service.generation;
  }

  private forEachReturned(segments: Segment[], payload: Uint8Array | undefined, callback: (page: number, segment: Segment, bytes: Uint8Array | null) => void): void {
    const { pageSize } = this.memory;
    let used = 0;
    for (const segment of segments) {
      for (let i = 0; i < segment.count; i++) {
        let bytes: Uint8Array | null = null;
        if (segment.content === Content.Bytes) {
          invariant(payload !== undefined && payload.length >= used + pageSize, 'a returned page has its bytes');
          bytes = payload.subarray(used, used + pageSize);
          used += pageSize;
        }
        callback(segment.first + i, segment, bytes);
      }
    }
  }
}

/** The version with which a page goes on whose head entry is dropped. */
function unretired(work: PageWork, version: number): number {
  return work.retired === version ? nextVersion(version) : version;
}

/** Versions only grow; 0 means "no copy". */
export function nextVersion(version: number): number {
  return ((version + 1) >>> 0) || 1;
}
