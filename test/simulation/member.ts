/** One member's process: its coordinator around the production engine, its lease, its mappings, its threads. */
import { Engine } from '../../lib/coordinator/protocol/engine.js';
import { Inbox } from '../../lib/coordinator/protocol/inbox.js';
import type { CallMessage, ClusterState, Envelope, MemberId, Message, RegionInfo, ReplyMessage } from '../../lib/coordinator/protocol/messages.js';
import type { RegionMemory, Timer } from '../../lib/coordinator/protocol/ports.js';
import type { RegionProtocol } from '../../lib/coordinator/protocol/region.js';
import { SimulatedLanes } from './lanes.js';
import type { Thread } from './thread.js';
import { SERVER, type World } from './world.js';

const Down = { Up: 0, Frozen: 1, Closed: 2, Evicted: 3, ClusterLost: 4 } as const;
const Ring = { Fault: 1, Free: 2, Fatal: 3, Coalesce: 4 } as const;
const RECORD = 5;
const HEARTBEAT = 250_000;
/** Beats without a lease after which the server counts as gone. */
const BEATS = 9;

export class SimulatedMember {
  readonly threads: Thread[] = [];
  /** What the app view allows, page by page: an Open code of directory.h. */
  mapping = new Uint8Array(0);
  /** The bytes of the region here. */
  words = new Int32Array(0);
  dead = false;
  /** Out of the cluster, and knows it. */
  ended = false;
  leaving = false;
  pausedUntil = 0;
  stalled: (() => void)[] = [];
  version = 0;
  engine: Engine | null = null;
  private readonly native: World['native'];
  readonly handle: number;
  readonly lanes: SimulatedLanes;
  private region = 0;
  private state: ClusterState | null = null;
  private readonly inbox: Inbox;
  private held: Envelope[] = [];
  private leaseEnds = 0;
  private lapsed = 0;
  private frozen = false;
  private waking = false;
  private calls = new Map<number, (reply: ReplyMessage) => void>();
  private lastCall = 0;
  private readonly records = new Float64Array(64 * RECORD);

  constructor(private readonly world: World, readonly id: MemberId) {
    this.native = world.native;
    this.handle = this.native.memberCreate(`m${id}`);
    this.lanes = new SimulatedLanes(world, this);
    this.inbox = new Inbox((from) => this.state?.members.some((member) => member.id === from) ?? false, (envelope) => { if (!this.ended) this.deliver(envelope); });
  }

  /** It takes part: its threads' accesses count. */
  get up(): boolean {
    return !this.dead && !this.ended;
  }

  get regionHandle(): number {
    return this.region;
  }

  /** It need not ask anybody whether it may go on. */
  get isLeased(): boolean {
    return this.world.events.now < this.leaseEnds && !this.frozen;
  }

  get protocol(): RegionProtocol | undefined {
    return [...(this.engine?.regions.values() ?? [])][0];
  }

  start(lease: number): void {
    this.leaseEnds = this.world.events.now + lease;
    this.watch();
    this.beat();
  }

  die(): void {
    this.dead = true;
    for (const thread of this.threads) thread.end();
  }

  dispose(): void {
    this.dead = true;
    this.lanes.stop();
    if (this.region !== 0) {
      this.world.regionClosed(this.region);
      this.native.regionRelease(this.region);
    }
    this.native.memberStopped(this.handle);
  }

  // ---- the session: as lib/coordinator/membership/member.ts ---------------------------------------------------------

  send(to: MemberId, message: Message, payload?: Uint8Array): void {
    if (this.ended || (to !== SERVER && !(this.state?.members.some((member) => member.id === to) ?? false))) return;
    this.world.send(this.id, to, message, payload);
  }

  call(op: string, args: unknown, answer: (reply: ReplyMessage) => void): number {
    const message: CallMessage = { type: 'call', id: --this.lastCall, op, args };
    this.calls.set(message.id, answer);
    this.send(SERVER, message);
    return message.id;
  }

  suspect(member: MemberId): void {
    if (this.up) this.call('suspect', { member }, () => undefined);
  }

  receive(envelope: Envelope): void {
    if (this.ended) return;
    const { type } = envelope.message;
    if (this.world.events.now >= this.leaseEnds && type !== 'lease' && type !== 'evicted' && type !== 'state') {
      if (this.lapsed === 0) {
        this.lapsed = 1;
        this.heartbeat();
      }
      return void this.held.push(envelope);
    }
    this.order(envelope);
  }

  private order(envelope: Envelope): void {
    const { from, message } = envelope;
    if (message.type === 'state') return this.apply(message.state);
    if (message.type === 'evicted') return this.over('ERR_FAULTLINE_EVICTED');
    if (from === SERVER) return this.deliver(envelope);
    this.inbox.accept(envelope, undefined);
  }

  private deliver(envelope: Envelope): void {
    const { from, message } = envelope;
    if (message.type === 'lease') return this.renew(message.sentAt + message.forMs * 1000);
    if (message.type === 'reply' && message.id < 0) {
      const answer = this.calls.get(message.id);
      this.calls.delete(message.id);
      return answer?.(message);
    }
    if (!this.state!.members.some((member) => member.id === from)) return;
    this.turn(() => this.engine!.message(envelope));
  }

  private apply(state: ClusterState): void {
    if (state.version <= this.version) return;
    this.version = state.version;
    this.state = state;
    if (!state.members.some(({ id }) => id === this.id)) {
      if (!this.leaving) this.over('ERR_FAULTLINE_EVICTED');
      return;
    }
    this.engine ??= this.makeEngine();
    this.turn(() => {
      this.lanes.closeGone(state);
      this.drain();
      this.engine!.apply(state);
      this.lanes.apply(state);
    });
    if (this.frozen && state.members.length === 1 && !this.ended) this.gone();
    this.inbox.advance(state.version);
  }

  over(code: string): void {
    if (!this.up) return;
    this.world.note(() => `member ${this.id} is out: ${code}`);
    this.finish(code === 'ERR_FAULTLINE_EVICTED' ? Down.Evicted : Down.ClusterLost, code);
  }

  private finish(down: number, code: string): void {
    this.ended = true;
    this.lanes.stop();
    this.native.memberDown(this.handle, down);
    this.engine?.fail({ code, message: code });
    for (const answer of [...this.calls.values()]) answer({ type: 'reply', id: 0, error: { code, message: code } });
    this.calls.clear();
    for (const thread of this.threads) thread.end();
  }

  // ---- leaving ------------------------------------------------------------------------------------------------------

  leave(): void {
    if (this.leaving || !this.up || this.engine === null) return;
    this.leaving = true;
    this.world.note(() => `member ${this.id} wants to leave`);
    this.call('leave', {}, (reply) => {
      if (reply.error !== undefined || !this.up) return;
      this.world.note(() => `member ${this.id} hands over`);
      for (const thread of this.threads) for (const pin of thread.pins.splice(0)) this.unpin(pin);
      this.native.memberDown(this.handle, Down.Frozen);
      this.frozen = true;
      this.lanes.stop();
      this.turn(() => this.drain());
      this.turn(() => this.engine!.leave(() => this.gone()));
    });
  }

  /** All is handed over, or nobody is left to take it. */
  private gone(): void {
    if (!this.up) return;
    this.call('left', { finished: true }, () => undefined);
    this.world.note(() => `member ${this.id} has handed over, and goes`);
    this.finish(Down.Closed, 'ERR_FAULTLINE_CLOSED');
  }

  // ---- the lease ----------------------------------------------------------------------------------------------------

  private heartbeat(): void {
    this.send(SERVER, { type: 'heartbeat', sentAt: this.world.events.now });
  }

  private beat(): void {
    this.world.events.after(HEARTBEAT, this.id, () => {
      if (this.ended) return;
      if (this.world.events.now >= this.leaseEnds && this.lapsed++ > BEATS) return this.over('ERR_FAULTLINE_CLUSTER_LOST');
      this.heartbeat();
      if (this.engine !== null) this.turn(() => this.engine!.tick());
      this.beat();
    });
  }

  /** The native watchdog: closes the views when the lease is over, a moment after a stopped process goes on. */
  private watch(): void {
    this.world.events.at(this.leaseEnds, this.id, () => {
      if (this.ended) return;
      if (this.world.events.now < this.leaseEnds) return this.watch();
      if (!this.frozen) {
        this.world.note(() => `member ${this.id}: the lease is over`);
        this.native.memberDown(this.handle, Down.Frozen);
      }
    });
  }

  private renew(until: number): void {
    const { now } = this.world.events;
    if (until <= now || until <= this.leaseEnds) return;
    const wasOver = now >= this.leaseEnds;
    this.leaseEnds = until;
    this.lapsed = 0;
    this.watch();
    if (wasOver && !this.frozen) this.native.memberDown(this.handle, Down.Up);
    for (const envelope of this.held.splice(0)) if (!this.ended) this.order(envelope);
  }

  // ---- the coordinator ----------------------------------------------------------------------------------------------

  /** One turn of the coordinator's event loop. */
  turn(what: () => void): void {
    if (this.ended || this.dead) return;
    what();
    this.engine?.flush();
    this.look();
  }

  /** A thread asks the coordinator for something: it hears of it in a turn of its own. */
  post(what: () => void, gone: () => void = () => undefined): void {
    this.world.events.after(this.world.choices.skewed(5), this.id, () => {
      if (this.ended) gone();
      else this.turn(what);
    });
  }

  /** The ring may have something: the coordinator wakes some time later. */
  look(): void {
    if (this.waking || this.dead || this.ended || !this.native.ringReady(this.handle)) return;
    this.waking = true;
    this.world.events.after(this.world.choices.skewed(this.world.plan.ringLatency), this.id, () => {
      this.waking = false;
      if (this.engine === null) return;
      this.turn(() => this.drain());
    });
  }

  private drain(): void {
    const { records } = this;
    for (;;) {
      const count = this.native.drain(this.handle, records);
      if (count === 0) return;
      const region = this.protocol;
      for (let i = 0; i < count * RECORD; i += RECORD) {
        if (region === undefined) continue;
        if (records[i] === Ring.Fault) this.engine!.fault(region.info.id, records[i + 2], records[i + 3], records[i + 4]);
        else if (records[i] === Ring.Free) this.engine!.free(region.info.id, records[i + 2]);
        else if (records[i] === Ring.Coalesce) this.native.coalesce(this.region, records[i + 2]);
      }
    }
  }

  private makeEngine(): Engine {
    const { events } = this.world;
    return new Engine(
      { self: this.id, send: (to, message, payload) => this.send(to, message, payload), suspect: (member) => this.suspect(member) },
      {
        now: () => events.now,
        after: (delay, callback): Timer => {
          let cancelled = false;
          events.after(delay + this.world.choices.skewed(10), this.id, () => {
            if (cancelled) return;
            cancelled = true;
            this.turn(callback);
          });
          return { cancel: () => { cancelled = true; } };
        },
      },
      {
        openMemory: (info) => this.openMemory(info),
        closeMemory: () => undefined,
        region: () => ({ lost: (runs) => this.world.checker.lost(this, runs), found: () => undefined }),
      },
      { faultTimeout: 2_000_000 },
    );
  }

  private openMemory(info: RegionInfo): RegionMemory {
    const { native, world } = this;
    const handle = native.regionCreate(this.handle, info.id, info.size, info.pageSize, info.extentPages);
    this.region = handle;
    this.mapping = new Uint8Array(info.size / info.pageSize);
    this.words = new Int32Array(native.view(handle));
    const bind = (name: keyof typeof native): ((...args: unknown[]) => unknown) => {
      const call = native[name] as (...args: unknown[]) => unknown;
      return (...args) => {
        // Between two of the coordinator's steps other threads run.
        world.interleave(this);
        return call(handle, ...args);
      };
    };
    const memory = Object.fromEntries(CALLS.map((name) => [name, bind(name)])) as unknown as RegionMemory;
    world.regionMade(this, handle);
    world.events.after(0, this.id, () => world.regionOpened(this, handle));
    return {
      ...memory,
      pageSize: info.pageSize,
      allocate: (bytes) => new Uint8Array(bytes),
      closeGate: (drained) => {
        const wait = (): void => {
          if (native.gateDrained(this.handle)) drained();
          else world.events.after(3, this.id, () => this.turn(wait));
        };
        if (native.gateClose(this.handle)) drained();
        else world.events.after(3, this.id, () => this.turn(wait));
      },
      openGate: () => native.gateOpen(this.handle),
    };
  }

  drop(page: number): void {
    this.native.drop(this.region, page, 1);
  }

  squeeze(page: number): void {
    this.native.coalesce(this.region, page);
  }

  unpin({ first, count, access }: { first: number; count: number; access: number }): void {
    this.native.unpin(this.region, first, count, access);
  }

  isHome(page: number): boolean {
    return (this.protocol as unknown as { home: { serviceOf(page: number): { status: string } | undefined } }).home.serviceOf(page)?.status === 'open';
  }

  /** It has that page's directory, or gets it, or hands it over. */
  serves(page: number): boolean {
    return (this.protocol as unknown as { home: { serviceOf(page: number): unknown } }).home.serviceOf(page) !== undefined;
  }

  holds(page: number): number {
    return this.native.held(this.region, page);
  }

  /** What its coordinator waits for, for reports. */
  describe(): string {
    const protocol = this.protocol as unknown as { home: { services: { first: number; status: string; waiting: unknown[] }[]; works: Map<number, object>; unfetched: Map<number, object> }; member: { pending: Map<number, object>; parked: Map<number, object>; unacknowledged: Map<number, number> }; questions: { open: Map<number, object> } } | undefined;
    if (protocol === undefined) return `member ${this.id}: no region`;
    const { home, member, questions } = protocol;
    return `member ${this.id}: ${JSON.stringify({
      version: this.version, frozen: this.frozen, leaving: this.leaving, held: this.held.length,
      services: home.services.map(({ first, status, waiting }) => ({ first, status, waiting: waiting.length })),
      works: [...home.works].map(([page, work]) => ({ page, ...work, timer: undefined })), unfetched: [...home.unfetched], unacknowledged: [...member.unacknowledged],
      pending: [...member.pending], parked: [...member.parked].map(([page, parked]) => ({ page, ...parked, timer: undefined })), questions: [...questions.open.values()].map((open) => ({ ...open, payload: undefined })),
    })}`;
  }

  /** For reports. */
  page(page: number): string {
    return JSON.stringify(this.native.words(this.region, page));
  }
}

export const CALLS = ['claim', 'heldVersion', 'keptVersion', 'held', 'install', 'abandon', 'lose', 'find', 'invalidate', 'recall', 'downgrade', 'deferral', 'returned', 'drop', 'reclaim', 'pin', 'unpin', 'coalesce',
  'holdings', 'setHomed', 'setSlices', 'begin', 'directory', 'end', 'hint', 'readPages', 'writePages', 'zero', 'load32', 'sweep', 'directoryRecords'] as const;
