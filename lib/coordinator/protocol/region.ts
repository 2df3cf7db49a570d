/** The protocol of one region at one member: its home side, its member side, and what belongs to both. */
import type { AskMessage, CoherenceMessage, Envelope, MemberId, RegionInfo, ReplyMessage, Slice } from './messages.js';
import { RECLAIM_RECORD, type Network, type RegionEvents, type RegionMemory, type Timers } from './ports.js';
import { Home, type Loss, type Service } from './home.js';
import { Member } from './member.js';
import { Moves } from './moves.js';
import { Outbox } from './outbox.js';
import { Placement } from './placement.js';
import { Answers, lostError, Questions, type Reply } from './questions.js';
import { pairs, RangeMap } from './ranges.js';
import type { View } from './view.js';
import { Wants } from './wants.js';

export interface Traffic {
  pagesIn: number; pagesOut: number; bytesIn: number; bytesOut: number;
  invalidationsSent: number; invalidationsReceived: number; recallsSent: number; recallsReceived: number; requestsServed: number;
  sentHome: number;
}

/** No member's slot. */
const NO_SLOT = 0xffff_ffff;
/** Bytes of owned pages that may be on their way home because memory is short, and runs of them that one step finds. */
const MOST_SHED = 8 << 20;
const SHED_RUNS = 64;

export class RegionProtocol {
  readonly losses = new RangeMap<Loss>((a, b) => a.member === b.member && a.epoch === b.epoch);
  readonly wants: Wants;
  readonly questions: Questions;
  private readonly placement: Placement;
  private readonly outbox: Outbox;
  private readonly home: Home;
  private readonly member: Member;
  private readonly answers: Answers;
  private readonly moves: Moves;
  private readonly owned = new Float64Array(SHED_RUNS * RECLAIM_RECORD);
  /** The page where the next step of reclaim() begins. */
  private hand = 0;
  private pagesOut = 0;
  private bytesOut = 0;

  constructor(
    public info: RegionInfo,
    private readonly memory: RegionMemory,
    private readonly network: Network,
    timers: Timers,
    private readonly view: View,
    private readonly events: RegionEvents,
    nextId: () => number,
  ) {
    this.placement = new Placement(info);
    this.outbox = new Outbox(info.id, memory, network, (pages, bytes) => {
      this.pagesOut += pages;
      this.bytesOut += bytes;
    });
    this.home = new Home(info, memory, network, timers, view, this.outbox, this.losses, events, {
      granted: (page) => this.member.granted(page),
      lost: (page, loss) => this.member.lost(page, loss),
    });
    this.member = new Member(info, memory, network, timers, this.placement, this.outbox, this.home, (page, loss) => this.wants.settled(page, loss));
    this.wants = new Wants(memory, timers, network.self, (page, access) => this.member.claim(page, access), (page) => this.home.lossOf(page), () => this.flush());
    this.answers = new Answers(info, memory, view, this.home, this.losses);
    this.questions = new Questions(info, network, this.placement, nextId, (message, payload, reply) => this.ask(network.self, message, payload, reply));
    this.moves = new Moves(info, memory, network, timers, view, this.home, this.member, this.losses, () => this.flush());
    this.tellSlices();
    for (const slice of info.slices) {
      if (slice.home !== network.self) continue;
      if (slice.from === 0 && slice.lostHome === 0) this.moves.adopt(slice);
      else this.moves.take(slice);
    }
  }

  // ---- events -------------------------------------------------------------------------------------------------------

  fault(page: number, access: number, held: number): void {
    this.member.fault(page, access, held);
  }

  free(page: number): void {
    this.member.free(page);
    this.home.free(page);
  }

  coalesce(page: number): void {
    this.memory.coalesce(page);
  }

  message({ from, message: any, payload }: Envelope): void {
    const message = any as CoherenceMessage;
    switch (message.type) {
      case 'request': return this.home.request(from, message.generation, message.claim, message.access, message.first, message.count, message.held);
      case 'data': if (this.fromHome(from, message.segments[0]?.first, message.generation)) this.member.data(from, message, payload); return;
      case 'recall': if (this.fromHome(from, message.runs[0]?.first, message.generation)) this.member.recall(from, message); return;
      case 'invalidate': if (this.fromHome(from, message.runs[0]?.first, message.generation)) this.member.invalidate(from, message); return;
      case 'recalled': if (this.isServed(message.segments[0]?.first, message.generation)) this.home.recalled(from, message.generation, message, payload); return;
      case 'give-back': return this.home.givenBack(from, message.generation, message, payload);
      case 'invalidated': if (this.isServed(message.runs[0]?.first, message.generation)) this.home.invalidated(from, message); return;
      // Whichever home says it: it has the bytes of that version.
      case 'returned': for (const run of message.runs) this.member.returned(run.first, run.count, run.version); return;
      case 'rebuild': return this.moves.answerRebuild(from, message);
      case 'holdings': return this.moves.holdings(from, message);
      case 'handover': return this.moves.received(from, this.placement.of(message.first), message, payload);
      case 'handover-ack': return this.moves.handoverAck(from, message.first, message.generation, message.done);
      case 'handed': return this.moves.handed(message.first, message.generation);
      case 'lost': return this.lost(message.runs, { member: message.member, epoch: message.epoch });
      case 'found': return this.found(message.runs);
      case 'discarded': return this.discarded(message.runs);
      case 'ask': return this.ask(from, message, payload, (value, error) => this.network.send(from, { type: 'reply', id: message.id, value, error }));
    }
  }

  reply(message: ReplyMessage): boolean {
    return this.questions.reply(message);
  }

  /** Says all that this turn has to say. */
  flush(): void {
    this.member.flush();
    this.outbox.flush();
  }

  // ---- the view and the homes ---------------------------------------------------------------------------------------

  memberGone(member: MemberId, slot: number): void {
    this.answers.memberGone(member);
    this.home.memberGone(member, slot, this.view.epoch);
    this.moves.memberGone(member);
  }

  /** The agreed slices, perhaps with new homes. */
  update(info: RegionInfo): void {
    const old = this.placement.slices;
    this.info = info;
    this.placement.update(info.slices);
    this.tellSlices();
    const changed: Slice[] = [];
    for (const [index, slice] of info.slices.entries()) {
      // A home that dies while it hands over leaves the same new home behind, but with another task.
      if (slice.generation === old[index].generation && slice.lostHome === old[index].lostHome) continue;
      changed.push(slice);
      // The last home, if it was this member, is drained by leave().
      if (slice.home === this.network.self && slice.generation !== old[index].generation) this.moves.take(slice);
    }
    for (const slice of changed) {
      if (slice.lostHome === 0) this.member.homeMoves(slice.first, slice.count);
      else this.member.homeLost(slice.first, slice.count, (member) => this.view.has(member));
    }
    this.questions.homesChanged((member) => this.view.has(member));
  }

  /** For lanes: a home that is not in the view has no slot, and is asked by nobody. */
  private tellSlices(): void {
    const { slices } = this.info;
    const table = new Float64Array(4 * slices.length);
    for (const [i, { first, count, home, generation }] of slices.entries()) table.set([first, count, this.view.has(home) ? this.view.slotOf(home) : NO_SLOT, generation], 4 * i);
    this.memory.setSlices(table);
  }

  /** Leaving, first step: nothing is served any more. The views are closed. */
  drain(): void {
    for (const service of this.home.services) {
      if (service.status !== 'open') continue;
      this.answers.move(service.first, service.count);
      this.home.drain(service);
    }
  }

  /** Is anything here that has to arrive before this member may leave? */
  get isReceiving(): boolean {
    return this.home.services.some((service) => service.status === 'receiving' || service.status === 'rebuilding') || this.home.unfetched.size > 0;
  }

  /** Leaving, second step (what was granted has arrived): directory and bytes to the new homes, owned pages to theirs. */
  handOver(done: () => void): void {
    const services = this.home.services.filter((service) => service.status === 'draining');
    let left = services.length + 2;
    const one = (): void => void (--left === 0 && done());
    for (const service of services) {
      service.settled = true;
      for (const handOver of service.whenSettled.splice(0)) handOver();
      const slice = this.placement.of(service.first);
      if (slice.home === this.network.self) one();
      else this.moves.handOver(service, slice.home, slice.generation, one);
    }
    this.settleHomes(() => this.member.giveEverythingBack(one));
    one();
    this.flush();
  }

  /** What died here is not waited for: the region goes down. */
  fail(error: { code: string; message: string; fields?: Record<string, unknown> }): void {
    this.wants.clear();
    this.questions.fail(error);
  }

  // ---- memory -------------------------------------------------------------------------------------------------------

  /**
   * Memory is short: one step of a clock's hand over the pages that are homed elsewhere. Whether it has come round. What a
   * home has it keeps: even a page that somebody else owns may turn out never to have reached its owner.
   */
  reclaim(most: number): boolean {
    const slice = this.placement.of(this.hand);
    const end = slice.first + slice.count;
    // Nothing of a slice whose directory this member has, gets, or hands over.
    let next = end;
    if (slice.home !== this.network.self && this.home.serviceOf(this.hand) === undefined) {
      const full = this.member.sheddingPages * this.info.pageSize >= MOST_SHED;
      const [at, records] = this.memory.reclaim(this.hand, end - this.hand, most, full ? this.owned.subarray(0, 0) : this.owned);
      next = at;
      for (let i = 0; i < records * RECLAIM_RECORD; i += RECLAIM_RECORD) this.member.shed(this.owned[i], this.owned[i + 1], this.owned[i + 2]);
    }
    const round = next >= this.info.size / this.info.pageSize;
    this.hand = round ? 0 : next;
    return round;
  }

  /** Whether owned pages are on their way home because memory is short. */
  get sheds(): boolean {
    return this.member.sheddingPages > 0;
  }

  // ---- what is asked of it ------------------------------------------------------------------------------------------

  lostRuns(): [first: number, count: number, loss: Loss][] {
    return [...this.losses.entries()];
  }

  homeOf(page: number): MemberId {
    return this.placement.of(page).home;
  }

  /** [first, count] for each slice that the run touches. */
  slicesOf(first: number, count: number): [first: number, count: number][] {
    return [...this.placement.split(first, count)].map(([, start, length]) => [start, length]);
  }

  held(page: number): number {
    return this.memory.held(page);
  }

  lostError(page: number): ReturnType<typeof lostError> {
    return lostError(this.info, page, this.home.lossOf(page));
  }

  traffic(): Traffic {
    const { home, member } = this;
    return {
      pagesIn: member.pagesIn, bytesIn: member.bytesIn, pagesOut: this.pagesOut, bytesOut: this.bytesOut,
      invalidationsSent: home.invalidationsSent, invalidationsReceived: member.invalidationsReceived,
      recallsSent: home.recallsSent, recallsReceived: member.recallsReceived, requestsServed: home.requestsServed,
      sentHome: member.sentHome,
    };
  }

  /** Peers that have owed this member something since before `then`, with a page that it is about. */
  *awaited(then: number): Generator<[MemberId, number]> {
    yield* this.member.awaited(then);
    for (const member of this.home.awaited(then)) yield [member, -1];
  }

  /** The answer of a home that was asked whether it is there. */
  probed(page: number, queued: boolean): void {
    if (page < 0) return;
    if (queued) this.member.stillWaiting(page);
    else this.member.askAgain(page);
  }

  /** Knows of these losses from another member. */
  learnLosses(flat: number[]): void {
    for (let i = 0; i < flat.length; i += 4) this.losses.set(flat[i], flat[i + 1], { member: flat[i + 2], epoch: flat[i + 3] });
  }

  // ---- within -------------------------------------------------------------------------------------------------------

  /** Is this the page's home, or one that hands it over? */
  private fromHome(from: MemberId, page: number | undefined, generation: number): boolean {
    if (page === undefined) return false;
    return this.placement.spokeAsHome(from, page, generation);
  }

  private isServed(page: number | undefined, generation: number): boolean {
    if (page === undefined) return false;
    const service = this.home.serviceOf(page);
    return service !== undefined && service.generation === generation && service.status !== 'handed';
  }

  private ask(from: MemberId, message: AskMessage, payload: Uint8Array | undefined, reply: Reply): void {
    const [a, b] = message.args;
    if (message.op === 'losses') return reply(this.lostRuns().flatMap(([first, count, loss]) => [first, count, loss.member, loss.epoch]));
    if (message.op === 'probe') {
      const service = a < 0 ? undefined : this.home.serviceOf(a);
      // While its directory comes in, requests wait without being in a queue.
      return reply(service !== undefined && (service.status !== 'open' || this.home.isQueued(a, from)));
    }
    const byOffset = message.op === 'wait' || message.op === 'notify' || message.op === 'discard';
    const page = message.op === 'wait-cancel' ? b : byOffset ? Math.floor(a / this.info.pageSize) : a;
    const service: Service | undefined = this.home.serviceOf(page);
    // Not (or no longer) the home: the asker will hear of the new one and ask there.
    if (service === undefined || service.generation !== message.generation) return;
    this.answers.ask(from, service, message, payload, reply);
  }

  private lost(flat: number[], loss: Loss): void {
    const runs = pairs(flat);
    for (const [first, count] of runs) this.losses.set(first, count, loss);
    this.events.lost(runs, loss.member, loss.epoch);
  }

  private found(flat: number[]): void {
    const runs = pairs(flat);
    for (const [first, count] of runs) {
      this.losses.delete(first, count);
      this.memory.find(first, count);
    }
    this.events.found(runs);
  }

  /** A home's own pages are nobody's copies. Homes may have changed since the message was sent. */
  private discarded(flat: number[]): void {
    for (const [first, count] of pairs(flat)) {
      for (const [slice, start, length] of this.placement.split(first, count)) if (slice.home !== this.network.self && this.home.serviceOf(start) === undefined) this.memory.drop(start, length);
    }
  }

  /** Homes that rebuild take what this member holds as the pages' only bytes: they must have fetched them before it goes. */
  private settleHomes(done: () => void): void {
    const slices = this.placement.slices.filter((slice) => slice.home !== this.network.self);
    let left = slices.length + 1;
    const one = (): void => void (--left === 0 && done());
    for (const slice of slices) this.questions.ask('settled', slice.first, [slice.first], undefined, one);
    one();
  }
}
