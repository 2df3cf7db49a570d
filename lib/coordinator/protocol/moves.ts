/**
 * Homes that change: a leaving home hands its directory and bytes to the next one; the next one of a home that died
 * asks all members what they hold, and declares lost what nobody has.
 */
import type { HandoverMessage, HoldingsMessage, MemberId, RebuildMessage, RegionInfo, Segment, Slice } from './messages.js';
import { Access, Content, DirState, DIRECTORY_RECORD, Held, HOLDING_RECORD, type Network, type RegionMemory, type Timers } from './ports.js';
import { appendBytes } from './outbox.js';
import type { Home, Service, Unfetched } from './home.js';
import type { Member } from './member.js';
import type { View } from './view.js';
import { appendPage, type RangeMap } from './ranges.js';
import type { Loss } from './home.js';

/** What is known of one page whose home comes here. holders: members with a valid copy, and which version of it; handed: the last home said so, and sent the bytes that it had. */
interface Known { state: number; owner: MemberId; version: number; holders: Map<MemberId, number>; handed: boolean }

interface Incoming {
  service: Service;
  slice: Slice;
  known: Map<number, Known>;
  /** Members that have not said yet what they hold (rebuild), and for which time they are asked. */
  awaited: Set<MemberId>;
  round: number;
  /** [member, first, count, version] of bytes that members keep until a home acknowledges them. */
  unacknowledged: [MemberId, number, number, number][];
  /** The last home has said all that there is. */
  handedOver: boolean;
}

interface Outgoing { service: Service; to: MemberId; generation: number; batches: Generator<Batch>; done: (() => void)[] }
interface Batch { records: number[]; copies: MemberId[][]; payload: Uint8Array | undefined }

/** Bytes of pages in one handover message. */
const BATCH_BYTES = 1 << 20;
/** µs between looks at a page that could not be closed yet. */
const CLOSE_AGAIN = 200;

export class Moves {
  private readonly incoming = new Map<number, Incoming>();
  private readonly outgoing = new Map<number, Outgoing>();
  /** Who waits for handovers whose receiver died. */
  private readonly stranded = new Map<number, (() => void)[]>();

  constructor(
    private readonly info: RegionInfo,
    private readonly memory: RegionMemory,
    private readonly network: Network,
    private readonly timers: Timers,
    private readonly view: View,
    private readonly home: Home,
    private readonly member: Member,
    private readonly losses: RangeMap<Loss>,
    /** After what a timer has done. */
    private readonly flush: () => void,
  ) {}

  /** A region's first slices: whoever is their home has them, all zero. */
  adopt(slice: Slice): void {
    const { extentPages } = this.info;
    this.memory.setHomed(slice.first / extentPages, Math.ceil(slice.count / extentPages), true, false);
    this.home.services.push({ first: slice.first, count: slice.count, generation: slice.generation, status: 'open', waiting: [], settled: false, whenSettled: [] });
  }

  /** The slice's home is this member from now on: from a leaving one, or instead of a dead one. */
  take(slice: Slice): void {
    const service: Service = { first: slice.first, count: slice.count, generation: slice.generation, status: 'receiving', waiting: [], settled: false, whenSettled: [] };
    const before = this.home.services.findIndex((candidate) => candidate.first === slice.first);
    if (before >= 0) this.home.services.splice(before, 1);
    this.home.services.push(service);
    const incoming: Incoming = { service, slice, known: new Map(), awaited: new Set(), round: 0, unacknowledged: [], handedOver: false };
    this.incoming.set(slice.first, incoming);
    if (slice.from === 0 || !this.view.has(slice.from)) this.rebuild(incoming);
  }

  memberGone(member: MemberId): void {
    for (const incoming of [...this.incoming.values()]) {
      if (incoming.service.status === 'receiving' && incoming.slice.from === member) {
        if (incoming.handedOver) this.complete(incoming);
        else this.rebuild(incoming, member);
      }
      // It may have been the home before the one that died, which went on granting until now: what the others have said
      // that they hold is out of date.
      else if (incoming.awaited.has(member)) this.rebuild(incoming);
    }
    for (const [first, outgoing] of [...this.outgoing]) {
      if (outgoing.to !== member) continue;
      // The receiver is gone; the next one asks by a rebuild.
      this.outgoing.delete(first);
      this.stranded.set(first, outgoing.done);
    }
  }

  // ---- handing over -------------------------------------------------------------------------------------------------

  /** The service is drained and its grants have arrived: its pages go to the slice's new home. */
  handOver(service: Service, to: MemberId, generation: number, done: () => void): void {
    const running = this.outgoing.get(service.first);
    if (running !== undefined && running.to === to && running.generation === generation) {
      running.done.push(done);
      return;
    }
    const waiting = running?.done ?? this.stranded.get(service.first) ?? [];
    this.stranded.delete(service.first);
    // From now on: the same may be asked for again (by a rebuild) while the gate closes.
    const outgoing: Outgoing = { service, to, generation, batches: this.batches(service), done: [...waiting, done] };
    this.outgoing.set(service.first, outgoing);
    this.memory.closeGate(() => {
      // Nothing opens a page here any more because it is homed here.
      const { extentPages } = this.info;
      this.memory.setHomed(service.first / extentPages, Math.ceil(service.count / extentPages), false, false);
      this.closeOwn(service, () => {
        this.memory.openGate();
        // The receiver may be gone by now.
        if (this.outgoing.get(service.first) === outgoing) this.sendNext(outgoing);
      });
    });
  }

  handoverAck(from: MemberId, first: number, generation: number, done: boolean): void {
    const outgoing = [...this.outgoing.values()].find((candidate) => candidate.to === from && candidate.generation === generation && candidate.service.first === first);
    if (outgoing === undefined) return;
    if (!done) return this.sendNext(outgoing);
    this.outgoing.delete(outgoing.service.first);
    outgoing.service.status = 'handed';
    this.network.send(from, { type: 'handed', region: this.info.id, generation, first });
    for (const done of outgoing.done) done();
  }

  received(from: MemberId, slice: Slice, message: HandoverMessage, payload: Uint8Array | undefined): void {
    const incoming = this.incoming.get(slice.first);
    if (incoming === undefined || incoming.service.generation !== message.generation) {
      // Nobody waits for it here any more; whoever sends it must not wait either.
      this.network.send(from, { type: 'handover-ack', region: this.info.id, generation: message.generation, first: message.first, done: message.done });
      return;
    }
    const { pageSize } = this.memory;
    let used = 0;
    for (let i = 0; i < message.records.length; i += 7) {
      const [first, count, state, owner, version, content, copies] = message.records.slice(i, i + 7);
      // What is here of that version is as good, or newer if this member owns it. That the directory says so is not enough.
      const stale: [number, number][] = [];
      if (state !== DirState.Lost) for (let page = first; page < first + count; page++) if (this.memory.keptVersion(page) !== version) appendPage(stale, page);
      for (const [start, length] of stale) {
        if (content === Content.Bytes) this.memory.writePages(start, length, payload!, used + (start - first) * pageSize);
        else if (content === Content.Zero) this.memory.zero(start * pageSize, length * pageSize);
      }
      if (content === Content.Bytes) used += count * pageSize;
      for (let page = first; page < first + count; page++) {
        incoming.known.set(page, { state, owner, version, holders: new Map(message.copies[copies].map((member) => [member, version])), handed: true });
        if (state === DirState.Lost) this.losses.get(page) ?? this.losses.set(page, 1, { member: owner, epoch: this.view.epoch });
      }
    }
    this.network.send(from, { type: 'handover-ack', region: this.info.id, generation: message.generation, first: slice.first, done: message.done });
    // It serves when the last home has said that it does not any more ('handed'), or is gone. If it served at once and
    // died before its answer arrived, the last home would hand the same over again, from before what was served.
    if (message.done) incoming.handedOver = true;
  }

  handed(first: number, generation: number): void {
    const incoming = this.incoming.get(first);
    if (incoming !== undefined && incoming.service.generation === generation && incoming.handedOver && incoming.service.status === 'receiving') this.complete(incoming);
  }

  private sendNext(outgoing: Outgoing): void {
    const { value, done } = outgoing.batches.next();
    const batch = done || value === undefined ? { records: [], copies: [], payload: undefined } : value;
    this.network.send(outgoing.to, { type: 'handover', region: this.info.id, generation: outgoing.generation, records: batch.records, copies: batch.copies, first: outgoing.service.first, done: done ?? false }, batch.payload);
  }

  /** This member's own copies of the pages that it homes are closed; the views are frozen, so nothing opens them again. */
  private closeOwn(service: Service, done: () => void): void {
    let deferred = 0;
    for (const records of this.member.holdings(service.first, service.count)) {
      for (let i = 0; i < records.length; i += HOLDING_RECORD) {
        const out = new Uint8Array(records[i + 1]);
        deferred += this.memory.downgrade(records[i], records[i + 1], false, out);
      }
    }
    if (deferred === 0) done();
    else this.timers.after(CLOSE_AGAIN, () => this.closeOwn(service, done));
  }

  private *batches(service: Service): Generator<Batch> {
    const { pageSize } = this.memory;
    const most = Math.max(1, Math.floor(BATCH_BYTES / pageSize));
    const words = new Float64Array(256 * DIRECTORY_RECORD);
    let batch: Batch & { payload: Uint8Array | undefined } = { records: [], copies: [], payload: undefined };
    let room = most;
    let buffer = this.memory.allocate(most * pageSize);
    let used = 0;
    const finish = (): Batch => {
      const full = { ...batch, payload: used > 0 ? buffer.subarray(0, used) : undefined };
      batch = { records: [], copies: [], payload: undefined };
      buffer = this.memory.allocate(most * pageSize);
      room = most;
      used = 0;
      return full;
    };
    const end = service.first + service.count;
    for (let page = service.first; page < end; ) {
      const [found, next] = this.memory.directoryRecords(page, end - page, words);
      page = next;
      for (let i = 0; i < found; i++) {
        const [start, length, state, owner, version, low, high] = words.slice(i * DIRECTORY_RECORD, (i + 1) * DIRECTORY_RECORD);
        for (let first = start; first < start + length; ) {
          const count = Math.min(start + length - first, room);
          const copies = batch.copies.push(this.view.copyset(low, high)) - 1;
          const holder = state === DirState.Exclusive ? (this.view.atSlot(owner) ?? 0) : state === DirState.Lost ? this.home.lossOf(first).member : 0;
          if (state !== DirState.Lost) {
            // Of a page that somebody owns, too: what was granted over a lane that broke has never arrived there.
            const segments: Segment[] = [];
            used = appendBytes(this.memory, { first, count, version, grant: Held.Shared, content: Content.Bytes }, buffer, used, segments);
            for (const segment of segments) batch.records.push(segment.first, segment.count, state, holder, version, segment.content, copies);
          } else {
            batch.records.push(first, count, state, holder, version, Content.Same, copies);
          }
          first += count;
          room -= count;
          if (room === 0) yield finish();
        }
      }
    }
    if (batch.records.length > 0) yield finish();
  }

  // ---- rebuilding ---------------------------------------------------------------------------------------------------

  /** A new home asks what this member holds. */
  answerRebuild(from: MemberId, message: RebuildMessage): void {
    const answer = (records: number[], done: boolean): void =>
      this.network.send(from, { type: 'holdings', region: this.info.id, generation: message.generation, first: message.first, count: message.count, round: message.round, records, done });
    // The home before the one that died is still here, on its way out: it hands over to this one instead, when it can.
    // (A home that is to get the slice after the asker has nothing yet; its answer must not wait for the asker's.)
    const service = this.home.services.find((candidate) => candidate.first === message.first && candidate.status !== 'handed' && candidate.generation < message.generation);
    if (service !== undefined) {
      const handOver = (): void => this.handOver(service, from, message.generation, () => answer([], true));
      if (service.settled) handOver();
      else service.whenSettled.push(handOver);
      return;
    }
    for (const records of this.member.holdings(message.first, message.count)) answer(records, false);
    answer([], true);
  }

  holdings(from: MemberId, message: HoldingsMessage): void {
    const incoming = this.incoming.get(message.first);
    if (incoming === undefined || incoming.service.generation !== message.generation || incoming.round !== message.round || !incoming.awaited.has(from)) return;
    this.note(incoming, from, message.records);
    if (!message.done) return;
    incoming.awaited.delete(from);
    this.checkComplete(incoming);
  }

  private rebuild(incoming: Incoming, died?: MemberId): void {
    const { service, slice } = incoming;
    service.status = 'rebuilding';
    if (died !== undefined && slice.lostHome === 0) incoming.slice = { ...slice, lostHome: died };
    incoming.awaited = new Set(this.view.others());
    incoming.round++;
    incoming.unacknowledged = [];
    for (const [page, { handed }] of incoming.known) if (!handed) incoming.known.delete(page);
    for (const records of this.member.holdings(service.first, service.count)) this.note(incoming, this.network.self, records);
    for (const member of incoming.awaited) this.network.send(member, { type: 'rebuild', region: this.info.id, generation: service.generation, first: service.first, count: service.count, round: incoming.round });
    this.checkComplete(incoming);
  }

  private note(incoming: Incoming, from: MemberId, records: number[]): void {
    for (let i = 0; i < records.length; i += HOLDING_RECORD) {
      const [first, count, held, version, unacknowledged] = records.slice(i, i + HOLDING_RECORD);
      if (unacknowledged !== 0) incoming.unacknowledged.push([from, first, count, version]);
      // Bytes that were only kept for a home which died may be older than those that it lost.
      if (held !== Held.Shared && held !== Held.Exclusive) continue;
      for (let page = first; page < first + count; page++) {
        const known = incoming.known.get(page);
        if (known?.handed) continue;
        if (held === Held.Exclusive) incoming.known.set(page, { state: DirState.Exclusive, owner: from, version, holders: new Map(), handed: false });
        else if (known === undefined || (known.state !== DirState.Idle && known.version < version)) incoming.known.set(page, { state: DirState.Idle, owner: 0, version, holders: new Map([[from, version]]), handed: false });
        else if (known.state === DirState.Idle) {
          // Copies of different versions are all valid: a home that leaves breaks off an invalidation, and has counted the
          // version up by then. Nobody was granted it to write, since not all had confirmed, so the bytes are the same.
          known.version = Math.max(known.version, version);
          known.holders.set(from, version);
        }
      }
    }
  }

  private checkComplete(incoming: Incoming): void {
    if (incoming.service.status === 'rebuilding' && incoming.awaited.size === 0) this.complete(incoming);
  }

  private completeLater(incoming: Incoming): void {
    if (this.incoming.get(incoming.slice.first) !== incoming || (incoming.service.status === 'rebuilding' && incoming.awaited.size > 0)) return;
    this.complete(incoming);
    this.flush();
  }

  /** Writes the directory and opens the service. Rebuilt, the bytes are where the copies are, and what nobody holds is lost. */
  private complete(incoming: Incoming): void {
    const { service, slice, known } = incoming;
    // What has been granted here counts, and may still wait for a page that is BUSY.
    if (!this.member.settleGrants(service.first, service.count)) return void this.timers.after(CLOSE_AGAIN, () => this.completeLater(incoming));
    const rebuilt = !incoming.handedOver;
    const { extentPages } = this.info;
    this.incoming.delete(slice.first);
    const setHomed = (): void => this.memory.setHomed(service.first / extentPages, Math.ceil(service.count / extentPages), true, rebuilt);
    if (rebuilt) setHomed();
    const lost: [number, number][] = [];
    const loss = { member: slice.lostHome, epoch: this.view.epoch };
    const fetch = new Map<number, Unfetched>();
    for (const [page, { state, owner, version, holders, handed }] of known) {
      if (state === DirState.Lost) this.memory.end(page, DirState.Lost, 0, version, 0, 0, false);
      else if (state === DirState.Exclusive) this.setOwned(page, owner, version, [], lost);
      else {
        const here = [...holders].filter(([member]) => this.view.has(member) && member !== this.network.self).sort(([, a], [, b]) => b - a);
        const members = here.map(([member]) => member);
        const mine = handed || holders.has(this.network.self);
        // Whatever was handed over has been touched, and must be handed on.
        if (mine) this.memory.end(page, DirState.Idle, 0, version === 0 ? 1 : version, ...this.mask(members), false);
        else {
          const [keeper, kept] = here[0] ?? [0, version];
          if (this.setOwned(page, keeper, kept, members.slice(1), lost)) fetch.set(page, { heirs: here.slice(1), newest: version, passed: kept !== version });
        }
      }
    }
    // This member's threads may open what the directory says is idle: not before all of it is written.
    if (!rebuilt) setHomed();
    if (rebuilt) this.findUnknown(service, known, lost);
    for (const [first, count] of lost) this.losses.set(first, count, loss);
    if (lost.length > 0) this.home.announceLost(lost, loss);
    for (const [page, unfetched] of fetch) this.home.unfetched.set(page, unfetched);
    for (const [member, first, count, version] of incoming.unacknowledged) this.home.settleUnacknowledged(member, first, count, version);
    this.member.becomesHome(service.first, service.count);
    this.home.open(service);
    for (const page of fetch.keys()) {
      this.home.enqueue(page, { from: 0, access: Access.Read, held: 0, task: { run: () => undefined, lost: () => 'lost', moved: () => undefined } });
    }
  }

  private setOwned(page: number, owner: MemberId, version: number, others: MemberId[], lost: [number, number][]): boolean {
    if (owner === this.network.self) {
      this.memory.end(page, DirState.Idle, 0, version, 0, 0, false);
      return false;
    }
    if (!this.view.has(owner)) {
      this.memory.end(page, DirState.Lost, 0, version, 0, 0, false);
      appendPage(lost, page);
      return false;
    }
    this.memory.end(page, DirState.Exclusive, this.view.slotOf(owner), version, ...this.mask(others), false);
    return true;
  }

  /** Appends the stretches of the slice of which nobody said anything. */
  private findUnknown(service: Service, known: Map<number, Known>, lost: [number, number][]): void {
    const pages = [...known.keys()].sort((a, b) => a - b);
    let next = service.first;
    for (const page of [...pages, service.first + service.count]) {
      if (page > next) lost.push([next, page - next]);
      next = page + 1;
    }
  }

  private mask(members: MemberId[]): [number, number] {
    let mask: [number, number] = [0, 0];
    for (const member of members) if (this.view.has(member)) mask = this.view.withSlot(this.view.slotOf(member), mask[0], mask[1]);
    return mask;
  }
}
