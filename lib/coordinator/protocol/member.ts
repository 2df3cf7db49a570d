/**
 * The member's side of one region: claims that were rung by faulting threads or made for prefetch and pin, the answers
 * to them, and the closing of copies that a home recalls or invalidates.
 */
import type { DataMessage, InvalidateMessage, MemberId, RecallMessage, RegionInfo, Segment } from './messages.js';
import { Access, Claim, Close, Content, Held, HOLDING_RECORD, Install, invariant, type Network, type RegionMemory, type Timer, type Timers } from './ports.js';
import type { Outbox } from './outbox.js';
import type { Placement } from './placement.js';
import { forEachStretch } from './ranges.js';

/** claim: its number, which answers name. It stays when the claim is made again or asked for once more. */
interface Pending { access: number; claim: number; askedAt: number; home: MemberId }

/** A recall or an invalidation that can't be honoured yet: pinned, resident, busy, or its threads have not resumed. */
interface Parked {
  from: MemberId;
  generation: number;
  version: number;
  recall: { keep: boolean; wantBytes: boolean } | null;
  timer: Timer | null;
}

/** An answer that found its page BUSY. */
interface Delayed { answer: Answer; segment: Segment; bytes: Uint8Array | null }
/** Whose answer, and to which claim. */
interface Answer { from: MemberId; generation: number; claim: number }

/** Longest read-ahead, pages; it doubles from one while a reader goes on sequentially. */
const READ_AHEAD_PAGES = 64;

/** The version with which a member gives back what it has not got. */
const NOTHING = 0;
/** µs until a page that could not be given back is tried again. */
const GIVE_BACK_AGAIN = 500;

export class Member {
  invalidationsReceived = 0;
  recallsReceived = 0;
  /** Owned pages that went home because memory was short. */
  sentHome = 0;
  pagesIn = 0;
  bytesIn = 0;

  private readonly pending = new Map<number, Pending>();
  private readonly parked = new Map<number, Parked>();
  private readonly delayed = new Map<number, Delayed>();
  /** Pages whose bytes went home and were not acknowledged: page -> version. */
  private readonly unacknowledged = new Map<number, number>();
  /** Pages among those that went home because memory is short: when the home has the bytes, theirs here are given back. */
  private readonly shedding = new Set<number>();
  /** What this turn will ask: access and held version by page. */
  private asks: { page: number; claim: number; access: number; held: number }[] = [];
  /** The number of what is claimed in this turn. */
  private turn = 1;
  private out = new Uint8Array(64);
  /** Where a sequential reader would fault next, and how far to read ahead then. */
  private stream = { next: -1, window: 0 };
  private emptied: (() => void) | null = null;

  constructor(
    private readonly info: RegionInfo,
    private readonly memory: RegionMemory,
    private readonly network: Network,
    private readonly timers: Timers,
    private readonly placement: Placement,
    private readonly outbox: Outbox,
    /** This member's own home side. */
    private readonly home: { request(from: MemberId, generation: number, claim: number, access: number, first: number, count: number, held: number[]): void },
    /** Looks again at a page for prefetches and pins; loss says that it is gone. */
    private readonly settled: (page: number, loss?: { member: MemberId; epoch: number }) => void,
  ) {}

  /** A thread claimed a page and waits. */
  fault(page: number, access: number, held: number): void {
    this.ask(page, access, held);
    if (access === Access.Read && held === 0) this.readAhead(page);
  }

  /** The caller has claimed the page: the question goes out at the end of the turn. */
  ask(page: number, access: number, held: number, claim = this.turn): void {
    this.pending.set(page, { access, claim, askedAt: this.timers.now(), home: this.placement.of(page).home });
    this.asks.push({ page, claim, access, held });
  }

  /** Claims a page that is wanted here; what to do with it: see native Claim. */
  claim(page: number, access: number, number?: number): number {
    this.memory.claim(page, 1, access, this.out);
    if (this.out[0] === Claim.Claimed) this.ask(page, access, this.memory.heldVersion(page), number);
    return this.out[0];
  }

  /** Sends this turn's questions, neighbours together. */
  flush(): void {
    while (this.asks.length > 0) {
      const asks = this.asks;
      this.asks = [];
      this.turn = ((this.turn + 1) >>> 0) || 1;
      if (asks.length > 1) asks.sort((a, b) => a.page - b.page);
      for (let start = 0; start < asks.length; ) {
        const { page, claim, access } = asks[start];
        const slice = this.placement.of(page);
        const stop = slice.first + slice.count;
        const held: number[] = [asks[start].held];
        let end = start + 1;
        while (end < asks.length && asks[end].access === access && asks[end].claim === claim && asks[end].page === page + held.length && asks[end].page < stop) held.push(asks[end++].held);
        start = end;
        if (slice.home === this.network.self) this.home.request(this.network.self, slice.generation, claim, access, page, held.length, held);
        else this.network.send(slice.home, { type: 'request', region: this.info.id, generation: slice.generation, claim, access, first: page, count: held.length, held });
      }
    }
  }

  data(from: MemberId, message: DataMessage, payload: Uint8Array | undefined): void {
    const { pageSize } = this.memory;
    let used = 0;
    for (const segment of message.segments) {
      if (segment.grant === Held.Lost) {
        for (let page = segment.first; page < segment.first + segment.count; page++) {
          if (!this.isLate(page, message.claim)) this.lost(page, { member: segment.content, epoch: segment.version });
        }
        continue;
      }
      const bytes = segment.content === Content.Bytes ? segment.count * pageSize : 0;
      invariant(bytes === 0 || (payload !== undefined && payload.length >= used + bytes), 'an answer has the bytes that it announces');
      this.install({ from, generation: message.generation, claim: message.claim }, segment, payload ?? null, used);
      this.pagesIn += segment.count;
      this.bytesIn += bytes;
      used += bytes;
    }
  }

  lost(page: number, loss: { member: MemberId; epoch: number }): void {
    this.pending.delete(page);
    this.memory.lose(page, 1, loss.member, loss.epoch);
    this.settled(page, loss);
  }

  /** The home role granted one of this member's own pages. */
  granted(page: number): void {
    this.pending.delete(page);
    this.settled(page);
  }

  invalidate(from: MemberId, message: InvalidateMessage): void {
    for (const run of message.runs) {
      this.invalidationsReceived += run.count;
      const out = this.results(run.count);
      this.memory.invalidate(run.first, run.count, run.version, out);
      forEachStretch(run.first, run.count, out, (first, count, result) => {
        if (result !== Close.Deferred) this.outbox.acknowledge('invalidated', from, message.generation, first, count, run.version);
        else for (let page = first; page < first + count; page++) this.park(page, { from, generation: message.generation, version: run.version, recall: null, timer: null });
      });
    }
  }

  recall(from: MemberId, message: RecallMessage): void {
    for (const run of message.runs) {
      this.recallsReceived += run.count;
      this.recallRun(from, message.generation, run.first, run.count, run.version, message.keep, message.wantBytes);
    }
  }

  returned(first: number, count: number, version: number): void {
    this.memory.returned(first, count, version);
    for (let page = first; page < first + count; page++) {
      if (this.unacknowledged.get(page) !== version) continue;
      this.unacknowledged.delete(page);
      if (this.shedding.delete(page) && this.memory.held(page) === Held.Invalid) this.memory.drop(page, 1);
    }
    if (this.unacknowledged.size === 0 && this.emptied !== null) {
      const emptied = this.emptied;
      this.emptied = null;
      emptied();
    }
  }

  /** The reason why something waited for this page is gone. */
  free(page: number): void {
    const delayed = this.delayed.get(page);
    if (delayed !== undefined) {
      this.delayed.delete(page);
      this.install(delayed.answer, delayed.segment, delayed.bytes, 0);
    }
    const parked = this.parked.get(page);
    if (parked !== undefined) {
      this.parked.delete(page);
      parked.timer?.cancel();
      this.retire(page, parked);
    }
    this.settled(page);
  }

  /**
   * These pages' home hands over in order. What it has granted still comes and counts, and the versions go on at the next
   * home, so that claims stay; but it may have left a request unanswered, so the next home is asked, too. A claim that
   * were given up here could throw away a page that the old home has already written down as this member's.
   */
  homeMoves(first: number, count: number): void {
    for (const page of [...this.pending.keys()]) if (page >= first && page < first + count) this.askAgain(page);
    for (const [page, version] of [...this.unacknowledged]) if (version === NOTHING && page >= first && page < first + count) this.giveUpClaim(page);
    // What the old home has not said that it has it may not have taken any more.
    for (const page of [...this.shedding]) if (page >= first && page < first + count) this.shed(page, 1, this.unacknowledged.get(page)!);
  }

  /**
   * These pages' home died: nothing that it said counts any more, and the versions may begin anew. Claims are made again,
   * which forgets poison; what a home before it, on its way out, has said still counts.
   */
  homeLost(first: number, count: number, alive: (member: MemberId) => boolean): void {
    const end = first + count;
    for (const [page, version] of [...this.unacknowledged]) if (version === NOTHING && page >= first && page < end) this.returned(page, 1, NOTHING);
    for (const [page, pending] of [...this.pending]) {
      if (page < first || page >= end) continue;
      if (!alive(this.delayed.get(page)?.answer.from ?? 0)) this.delayed.delete(page);
      this.claimAgain(page, pending);
    }
    for (const [page, parked] of [...this.parked]) {
      if (page < first || page >= end || alive(parked.from)) continue;
      parked.timer?.cancel();
      this.parked.delete(page);
    }
  }

  /** What this member holds in the run, for a new home's directory, in pieces of bounded size. */
  *holdings(first: number, count: number): Generator<number[]> {
    const records = new Float64Array(512 * HOLDING_RECORD);
    for (let page = first; page < first + count; ) {
      const [found, next] = this.memory.holdings(page, first + count - page, records);
      if (found > 0) yield Array.from(records.subarray(0, found * HOLDING_RECORD));
      page = next;
    }
  }

  /** This member becomes the home of these pages: are all grants of them installed? */
  settleGrants(first: number, count: number): boolean {
    let all = true;
    for (const page of [...this.delayed.keys()]) {
      if (page < first || page >= first + count) continue;
      this.free(page);
      all &&= !this.delayed.has(page);
    }
    return all;
  }

  /** This member is these pages' home now, and has what it kept for one. */
  becomesHome(first: number, count: number): void {
    this.forgetUnacknowledged(first, count);
    // Claims are made again, which forgets what the last home's invalidations have poisoned.
    for (const [page, pending] of [...this.pending]) if (page >= first && page < first + count) this.claimAgain(page, pending);
    for (const [page, parked] of [...this.parked]) {
      if (page < first || page >= first + count) continue;
      parked.timer?.cancel();
      this.parked.delete(page);
    }
  }

  /** No home asks for these bytes any more. */
  forgetUnacknowledged(first: number, count: number): void {
    for (const [page, version] of [...this.unacknowledged]) {
      if (page < first || page >= first + count) continue;
      // This member's bytes may be those that count from here on.
      this.shedding.delete(page);
      this.returned(page, 1, version);
    }
  }

  /** Sends every page that this member owns back to its home, drops its copies; calls back when the homes have the bytes. The views are closed already. */
  giveEverythingBack(done: () => void): void {
    for (const page of [...this.parked.keys()]) this.free(page);
    // What is still kept for a home is among the holdings, and goes out once more; what a newer grant has replaced is not.
    this.unacknowledged.clear();
    this.shedding.clear();
    for (const slice of this.placement.slices) {
      if (slice.home === this.network.self) continue;
      for (const records of this.holdings(slice.first, slice.count)) {
        for (let i = 0; i < records.length; i += HOLDING_RECORD) {
          const [first, count, held, version, unacknowledged] = records.slice(i, i + HOLDING_RECORD);
          if (held === Held.Exclusive || unacknowledged !== 0) this.giveBack(slice.home, slice.generation, first, count, version);
          else if (held === Held.Shared) this.memory.drop(first, count);
        }
      }
    }
    this.giveUpClaims();
    if (this.unacknowledged.size === 0) done();
    else this.emptied = done;
  }

  /** Memory is short: owned pages of one home go back to it, unless they are in use. */
  shed(first: number, count: number, version: number): void {
    const { home, generation } = this.placement.of(first);
    if (home !== this.network.self) this.giveBack(home, generation, first, count, version, true);
  }

  get sheddingPages(): number {
    return this.shedding.size;
  }

  /** A page that was granted over a lane which broke is this member's, as its home knows it, and has never come. */
  private giveUpClaims(): void {
    for (const [page, { access }] of this.pending) if (access === Access.Write && this.placement.of(page).home !== this.network.self && !this.unacknowledged.has(page)) this.giveUpClaim(page);
  }

  private giveUpClaim(page: number): void {
    const { home, generation } = this.placement.of(page);
    this.unacknowledged.set(page, NOTHING);
    this.network.send(home, { type: 'give-back', region: this.info.id, generation, segments: [{ first: page, count: 1, version: NOTHING, grant: Held.Invalid, content: Content.Same }] });
  }

  /** Homes that have owed this member an answer since before `then`. */
  *awaited(then: number): Generator<[home: MemberId, page: number]> {
    for (const [page, pending] of this.pending) if (pending.askedAt < then && pending.home !== this.network.self) yield [pending.home, page];
  }

  /** The home says that it works on this page. */
  stillWaiting(page: number): void {
    const pending = this.pending.get(page);
    if (pending !== undefined) pending.askedAt = this.timers.now();
  }

  /** The home knows nothing of a question that this member has open: it is asked again. */
  askAgain(page: number): void {
    const pending = this.pending.get(page);
    if (pending !== undefined) this.ask(page, pending.access, this.memory.heldVersion(page), pending.claim);
  }

  get pendingPages(): number {
    return this.pending.size;
  }

  // ---- within -------------------------------------------------------------------------------------------------------

  private claimAgain(page: number, { access, claim }: Pending): void {
    this.pending.delete(page);
    this.memory.abandon(page, 1);
    if (this.claim(page, access, claim) !== Claim.Claimed) this.settled(page);
  }

  private install(answer: Answer, segment: Segment, bytes: Uint8Array | null, offset: number): void {
    const { pageSize } = this.memory;
    const out = this.results(segment.count);
    const last = segment.first + segment.count;
    let late = 0;
    for (let page = segment.first; page < last; page++) if (this.isLate(page, answer.claim)) late++;
    // Without bytes, and the copy is gone: it was invalidated, and a home's death has had the claim made again since, which
    // forgets the poison.
    const gone = segment.content === Content.Same && this.anyGone(segment);
    if ((gone || late > 0) && segment.count > 1) {
      for (let page = segment.first, i = 0; page < last; page++, i++) this.install(answer, { ...segment, first: page, count: 1 }, bytes, offset + (segment.content === Content.Bytes ? i * pageSize : 0));
      return;
    }
    if (late > 0) out[0] = Install.NotClaimed;
    else if (gone) out[0] = Install.Discarded;
    const failed = late > 0 || gone ? 1 : this.memory.install(segment.first, segment.count, segment.version, segment.grant, segment.content, segment.content === Content.Bytes ? bytes : null, offset, out);
    // recallRun() uses `out`, too: hence the copy.
    const results = failed === 0 ? null : out.slice(0, segment.count);
    const ended: number[] = [];
    for (let i = 0; i < segment.count; i++) {
      const page = segment.first + i;
      const result = results === null ? Install.Installed : results[i];
      // Asked for twice, or given up meanwhile. The home counts on this member's bytes now: it must hear that there are
      // none, as after a recall, and an older copy must not stay.
      if (segment.grant === Held.Exclusive && (result === Install.Discarded || result === Install.NotClaimed)) this.recallRun(answer.from, answer.generation, page, 1, segment.version, false, false);
      if (result === Install.Discarded) {
        const pending = this.pending.get(page);
        if (pending !== undefined) this.ask(page, pending.access, 0, pending.claim);
      } else if (result === Install.Busy) {
        const copy = segment.content === Content.Bytes && bytes !== null ? bytes.slice(offset + i * pageSize, offset + (i + 1) * pageSize) : null;
        this.delayed.set(page, { answer, segment: { ...segment, first: page, count: 1 }, bytes: copy });
      } else if (late === 0) {
        this.pending.delete(page);
        ended.push(page);
      }
    }
    // Not before all of them are looked at: who waited for one may claim another one anew, and that claim has not ended.
    for (const page of ended) this.settled(page);
  }

  private retire(page: number, { from, generation, version, recall }: Parked): void {
    // The home has handed over since, and nothing is here that it could mean: the next home has asked for it and has it. As a
    // recall this would poison what that one grants since, in the same version.
    const overtaken = generation !== this.placement.of(page).generation && this.memory.keptVersion(page) === 0;
    if (recall !== null && overtaken) this.answerRecall(from, generation, [{ first: page, count: 1, version, grant: Held.Invalid, content: Content.Same }], undefined);
    else if (recall !== null) this.recallRun(from, generation, page, 1, version, recall.keep, recall.wantBytes);
    else this.invalidate(from, { type: 'invalidate', region: this.info.id, generation, requester: 0, runs: [{ first: page, count: 1, version }] });
  }

  /**
   * An answer to an earlier claim: the question was asked twice, at the home and at the next one, and the first answer has
   * ended that claim. What it brings may be older than what was here since, and went again by lanes. A claim that this coordinator
   * has not heard of yet (a thread has made it, and rung) is none that anybody could have answered.
   */
  private isLate(page: number, claim: number): boolean {
    return this.pending.get(page)?.claim !== claim;
  }

  private anyGone({ first, count }: Segment): boolean {
    for (let page = first; page < first + count; page++) if (this.memory.heldVersion(page) === 0) return true;
    return false;
  }

  private recallRun(from: MemberId, generation: number, first: number, count: number, version: number, keep: boolean, wantBytes: boolean): void {
    const { pageSize } = this.memory;
    const out = this.results(count);
    const buffer = this.memory.allocate(count * pageSize);
    this.memory.recall(first, count, version, keep, wantBytes, out, buffer, 0);
    const segments: Segment[] = [];
    let used = 0;
    forEachStretch(first, count, out, (start, length, result) => {
      if (result === Close.Deferred) {
        for (let page = start; page < start + length; page++) this.park(page, { from, generation, version, recall: { keep, wantBytes }, timer: null });
        return;
      }
      const content = result === Close.Done ? Content.Bytes : result === Close.Zero ? Content.Zero : Content.Same;
      const grant = keep && content !== Content.Same ? Held.Shared : Held.Invalid;
      segments.push({ first: start, count: length, version, grant, content });
      if (content === Content.Bytes) {
        const at = (start - first) * pageSize;
        if (at !== used) buffer.copyWithin(used, at, at + length * pageSize);
        used += length * pageSize;
      }
      if (content !== Content.Same) for (let page = start; page < start + length; page++) this.unacknowledged.set(page, version);
    });
    if (segments.length > 0) this.answerRecall(from, generation, segments, used > 0 ? buffer.subarray(0, used) : undefined);
  }

  private answerRecall(from: MemberId, generation: number, segments: Segment[], payload: Uint8Array | undefined): void {
    // Acknowledgements that were decided before go first.
    this.outbox.flush();
    this.countOut(segments, payload);
    this.network.send(from, { type: 'recalled', region: this.info.id, generation, segments }, payload);
  }

  private giveBack(home: MemberId, generation: number, first: number, count: number, version: number, sheds = false): void {
    const { pageSize } = this.memory;
    const longest = Math.max(1, Math.floor((1 << 20) / pageSize));
    for (let start = first; start < first + count; start += longest) {
      const length = Math.min(longest, first + count - start);
      const out = this.results(length);
      const buffer = this.memory.allocate(length * pageSize);
      this.memory.recall(start, length, version, false, false, out, buffer, 0);
      const segments: Segment[] = [];
      let used = 0;
      forEachStretch(start, length, out, (at, pages, result) => {
        if (result === Close.Unchanged) return;
        if (result === Close.Deferred && sheds) return;
        if (result === Close.Deferred) {
          // A thread has only just resumed, or is about to: the views are closed, so this ends soon.
          for (let page = at; page < at + pages; page++) this.unacknowledged.set(page, version);
          this.timers.after(GIVE_BACK_AGAIN, () => this.giveBack(home, generation, at, pages, version));
          return;
        }
        segments.push({ first: at, count: pages, version, grant: Held.Invalid, content: result === Close.Done ? Content.Bytes : Content.Zero });
        if (result === Close.Done) {
          const from = (at - start) * pageSize;
          if (from !== used) buffer.copyWithin(used, from, from + pages * pageSize);
          used += pages * pageSize;
        }
        for (let page = at; page < at + pages; page++) {
          this.unacknowledged.set(page, version);
          if (sheds) this.shedding.add(page);
        }
        if (sheds) this.sentHome += pages;
      });
      if (segments.length === 0) continue;
      const payload = used > 0 ? buffer.subarray(0, used) : undefined;
      this.countOut(segments, payload);
      this.network.send(home, { type: 'give-back', region: this.info.id, generation, segments }, payload);
    }
  }

  private countOut(segments: Segment[], payload: Uint8Array | undefined): void {
    this.outbox.onPages(segments.reduce((pages, { count, content }) => (content === Content.Same ? pages : pages + count), 0), payload?.byteLength ?? 0);
  }

  private park(page: number, parked: Parked): void {
    this.parked.get(page)?.timer?.cancel();
    this.parked.set(page, parked);
    const delay = this.memory.deferral(page);
    if (delay >= 0) {
      parked.timer = this.timers.after(delay, () => {
        this.free(page);
        this.flush();
        this.outbox.flush();
      });
    }
  }

  private readAhead(page: number): void {
    if (page !== this.stream.next) {
      this.stream = { next: page + 1, window: 0 };
      return;
    }
    const slice = this.placement.of(page);
    const window = Math.min(READ_AHEAD_PAGES, Math.max(1, this.stream.window * 2), slice.first + slice.count - page - 1);
    if (slice.home !== this.network.self && window > 0) {
      const out = this.results(window);
      this.memory.claim(page + 1, window, Access.Read, out);
      for (let i = 0; i < window; i++) if (out[i] === Claim.Claimed) this.ask(page + 1 + i, Access.Read, 0);
    }
    this.stream = { next: page + 1 + window, window };
  }

  /** A scratch array of results for `count` pages, valid until the next call. */
  private results(count: number): Uint8Array {
    if (this.out.length < count) this.out = new Uint8Array(Math.max(count, this.out.length * 2));
    return this.out;
  }
}
