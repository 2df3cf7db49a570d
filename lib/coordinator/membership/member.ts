/**
 * One member's stay in a cluster, served by one of its members. Here is what every member does: it takes over the
 * agreed states, keeps a channel to each other member, renews its lease, and lets through what comes from the view.
 * The member that serves has a Registrar beside it (registrar.ts).
 */
import type { Cancellation } from '../cancellation.js';
import { makeError } from '../../errors.js';
import { Inbox } from '../protocol/inbox.js';
import type { ClusterState, Envelope, MemberId, MemberInfo, Message } from '../protocol/messages.js';
import { LEASE_SHARE } from '../protocol/liveness.js';
import type { Direct, RegistrySnapshot } from '../protocol/registry.js';
import { checkCold } from '../transport/cold.js';
import { decodeJoin, encodeJoin, incompatible, isJoin, type JoinMessage } from '../transport/joining.js';
import { MalformedError } from '../transport/malformed.js';
import type { Answer, Channel, Listener, Transport } from '../transport/transport.js';
import { clusterHash, type Decoded, decode, encode } from '../transport/wire.js';
import type { Directory, Host } from './directory.js';
import { PendingCalls } from './pending.js';
import { NOT_TAKEN, Registrar, TAKE_OVER, takeOver } from './registrar.js';
import type { Session, SessionEvents, SessionOptions, SessionStats } from './session.js';

/** ms for which a closed channel still delivers what was said last: the state without the receiver, or its eviction. */
const LAST_WORDS = 1000;
/** ms after a broken connection at which the other side's lock is looked at: a dying process closes its files in some order. */
const LOOKS = [0, 3, 10, 30, 100, 200];
/** Ticks in one silence. */
const TICKS = 8;

interface Peer { channel: Channel; /** Its lock file is on this machine. */ here: boolean }

export interface Membership { clusterId: string; self: MemberId; registrar: MemberId; /** ms */ silence: number; /** This member's own endpoint. */ endpoint: string }

export class EmbeddedSession implements Session {
  readonly self: MemberId;
  state: ClusterState;
  /** What the registrar does, while it is this member. */
  registrar: Registrar | null = null;
  private readonly cluster: readonly [number, number];
  private readonly silence: number;
  private readonly peers = new Map<MemberId, Peer>();
  private view = new Map<MemberId, MemberInfo>();
  private readonly calls: PendingCalls;
  private readonly counters = { malformed: 0, fenced: 0 };
  /** µs. */
  private leaseEnds: number;
  /** Ticks since the lease was found to be over, 0 while it runs. */
  private lapsed = 0;
  /** Came while the lease was over. */
  private held: { envelope: Envelope; answer: Answer }[] = [];
  private readonly inbox: Inbox<Answer>;
  private readonly toSelf: Envelope[] = [];
  private readonly suspected = new Map<MemberId, number>();
  private readonly watchers = new Set<() => void>();
  private readonly timers = new Set<NodeJS.Timeout>();
  private readonly ticker: NodeJS.Timeout;
  private end: Error | null = null;
  private leaving = false;
  /** All that this member had is with the others. */
  private handedOver = false;
  /** The others have let this member go. */
  private isOut = false;
  private door: Listener | null = null;

  constructor(
    readonly host: Host,
    readonly options: SessionOptions,
    private readonly events: SessionEvents,
    readonly directory: Directory,
    readonly transport: Transport,
    readonly membership: Membership,
  ) {
    this.self = membership.self;
    this.silence = membership.silence;
    this.cluster = clusterHash(membership.clusterId);
    this.state = { clusterId: membership.clusterId, version: 0, epoch: 0, registrar: membership.registrar, members: [], regions: [], died: [] };
    this.inbox = new Inbox((id) => this.view.has(id), (envelope, answer) => { if (this.end === null) this.deliver(envelope, answer); });
    this.calls = new PendingCalls((message) => this.send(this.state.registrar, message));
    this.leaseEnds = host.now() + this.leaseLength;
    options.setLease(this.leaseEnds);
    this.ticker = setInterval(() => this.tick(), this.silence / TICKS);
  }

  // ---- what the coordinator asks for --------------------------------------------------------------------------------

  send(to: MemberId, message: Message, payload?: Uint8Array): void {
    if (this.end !== null) return;
    if (to === this.self) return this.sendToSelf(message, payload);
    const peer = this.peers.get(to);
    if (peer !== undefined) peer.channel.send(encode(message, this.self, this.state.version, this.cluster), payload);
  }

  call(op: string, args: unknown, signal?: Cancellation): Promise<unknown> {
    return this.end !== null ? Promise.reject(this.end) : this.calls.call(op, args, signal);
  }

  again(id: number, op: string, args: unknown, signal?: Cancellation): Promise<unknown> {
    return this.end !== null ? Promise.reject(this.end) : this.calls.call(op, args, signal, id);
  }

  direct(from: MemberId, text: string, answer: Direct): void {
    // Whoever can't be served now takes the longer way, which has the patience.
    if (this.end !== null || this.registrar === null || !this.view.has(from) || this.host.now() >= this.leaseEnds) return void answer(null);
    let message: Message;
    try {
      message = checkCold(JSON.parse(text));
      if (message.type !== 'call') throw new MalformedError(`a '${message.type}' where calls are made`);
    } catch {
      this.counters.malformed++;
      return void answer(null);
    }
    this.registrar.direct(from, message, answer);
  }

  suspect(member: MemberId): void {
    const now = this.host.now();
    // One complaint is as good as many, and the registrar remembers only so many answers.
    if (now - (this.suspected.get(member) ?? -Infinity) < this.silence * 250 || !this.view.has(member)) return;
    this.suspected.set(member, now);
    this.call('suspect', { member }).catch(() => undefined);
  }

  async leave(handOver: () => Promise<void>, timeoutMs: number): Promise<void> {
    if (this.end !== null) throw this.end;
    const deadline = this.host.now() + timeoutMs * 1000;
    this.leaving = true;
    const finished = await this.before(deadline, this.handOverPages(handOver));
    this.handedOver = finished && this.end === null;
    // The membership is handed over even without the pages: the others must not lose the cluster, too.
    if (this.end === null) {
      if (this.registrar !== null) await this.registrar.handOver(finished, deadline);
      else await this.before(Math.max(deadline, this.host.now() + this.silence * 500), this.call('left', { finished }));
    }
    if (this.end !== null && !this.isOut) throw this.end;
    this.finish(hasLeft());
    if (!finished) throw makeError('ERR_FAULTLINE_TIMEOUT', `leaving the cluster took more than ${timeoutMs} ms; what was not handed over is lost`, { timeout: timeoutMs });
  }

  stats(): SessionStats {
    return { ...this.transport.counters, ...this.counters };
  }

  async close(): Promise<void> {
    this.finish(makeError('ERR_FAULTLINE_CLOSED', 'the cluster is closed', { what: 'cluster' }));
    await this.transport.close();
    this.directory.close();
  }

  // ---- what arrives -------------------------------------------------------------------------------------------------

  /** frames of one message to this member's Router. */
  received(frames: Uint8Array[], answer: Answer): void {
    this.events.arrived?.();
    if (this.end !== null) return;
    let decoded: Decoded | JoinMessage;
    try {
      decoded = isJoin(frames[0]) ? decodeJoin(frames[0]) : this.decode(frames);
    } catch (error) {
      return this.malformed(error, answer);
    }
    if ('kind' in decoded) this.joinMessage(decoded, answer);
    else this.accept(decoded, answer);
  }

  /** What comes to the cluster's own address: whoever may come in is told where this member is really found. */
  private atTheDoor(frames: Uint8Array[], answer: Answer): void {
    try {
      const message = decodeJoin(frames[0]);
      if (message.kind !== 'hello') throw new MalformedError(`'${message.kind}' said at the cluster's address`);
      answer(encodeJoin(incompatible(message) ?? { kind: 'refused', reason: 'moved', message: `member ${this.self} serves this cluster`, endpoint: this.membership.endpoint }));
    } catch (error) {
      this.malformed(error, answer);
    }
  }

  private malformed(error: unknown, answer: Answer): void {
    if (!(error instanceof MalformedError)) throw error;
    this.counters.malformed++;
    answer(encodeJoin({ kind: 'refused', reason: 'malformed', message: error.message }));
  }

  /** The registrar's Router may answer on the connection that it was reached by. */
  receivedBack(frames: Uint8Array[]): void {
    if (isJoin(frames[0])) return;
    try {
      const { message } = this.decode(frames);
      if (message.type === 'evicted') this.evicted(message.epoch);
    } catch (error) {
      this.malformed(error, () => undefined);
    }
  }

  private decode(frames: Uint8Array[]): Decoded {
    if (frames.length > 2) throw new MalformedError(`a message of ${frames.length} frames`);
    const decoded = decode(frames[0], frames[1]);
    if (decoded.cluster[0] !== this.cluster[0] || decoded.cluster[1] !== this.cluster[1]) throw new MalformedError('a message of another cluster');
    return decoded;
  }

  private joinMessage(message: JoinMessage, answer: Answer): void {
    if (this.registrar !== null) this.registrar.joinMessage(message, answer);
    else answer(encodeJoin({ kind: 'refused', reason: 'retry', message: `member ${this.self} does not serve this cluster` }));
  }

  /** A process that was stopped must not serve first and learn afterwards that it was given up meanwhile. */
  private accept(envelope: Envelope, answer: Answer): void {
    if (this.host.now() >= this.leaseEnds && !isAboutTheLease(envelope.message)) {
      this.lapse();
      if (this.lapsed > 0) return void this.held.push({ envelope, answer });
    }
    this.order(envelope, answer);
  }

  private order(envelope: Envelope, answer: Answer): void {
    const { from, message } = envelope;
    if (message.type === 'state') return this.stateFrom(from, message.state);
    if (message.type === 'evicted') return this.evicted(message.epoch);
    if (!this.inbox.accept(envelope, answer)) this.counters.fenced++;
  }

  private deliver(envelope: Envelope, answer: Answer): void {
    const { from, message } = envelope;
    if (!this.view.has(from)) {
      this.counters.fenced++;
      this.registrar?.stranger(from, answer);
      return;
    }
    switch (message.type) {
      case 'heartbeat': return this.registrar?.heartbeat(from, message.sentAt);
      case 'call': return this.registrar?.call(from, message);
      case 'lease': return this.renew(message.sentAt + message.forMs * 1000);
      case 'tell': return this.told(from, message.topic, message.value);
      case 'reply':
        if (PendingCalls.owns(message)) return this.calls.answer(message);
    }
    this.registrar?.heard(from);
    this.events.message(envelope);
  }

  private told(from: MemberId, topic: string, value: unknown): void {
    if (topic === TAKE_OVER) {
      if (from === this.state.registrar) void takeOver(this, from, value as { snapshot: RegistrySnapshot; finished: boolean });
    } else if (topic === NOT_TAKEN) {
      this.registrar?.notTaken(from);
    } else {
      this.events.tell(topic, value);
    }
  }

  private sendToSelf(message: Message, payload?: Uint8Array): void {
    this.toSelf.push({ from: this.self, state: this.state.version, message, payload });
    if (this.toSelf.length > 1) return;
    queueMicrotask(() => {
      for (const envelope of this.toSelf.splice(0)) if (this.end === null) this.deliver(envelope, () => undefined);
    });
  }

  // ---- the agreed state ---------------------------------------------------------------------------------------------

  private stateFrom(from: MemberId, state: ClusterState): void {
    // A registrar hands over by letting the next one say so itself.
    if (from !== state.registrar || (from !== this.state.registrar && !this.view.has(from))) return void this.counters.fenced++;
    this.apply(state);
  }

  /** Opens channels to members that are new in `state`. */
  connect(state: ClusterState): void {
    for (const { id, endpoint } of state.members) {
      if (id !== this.self && !this.peers.has(id)) this.adopt(id, this.transport.connect(endpoint, { receive: (frames) => this.receivedBack(frames), broken: () => this.broken(id) }));
    }
  }

  adopt(id: MemberId, channel: Channel): void {
    this.peers.set(id, { channel, here: this.directory.isAlive(id) });
  }

  apply(state: ClusterState): void {
    if (this.end !== null || state.version <= this.state.version) return;
    const before = this.state;
    this.connect(state);
    this.state = state;
    this.view = new Map(state.members.map((member) => [member.id, member]));
    for (const [id, { channel }] of [...this.peers]) {
      if (this.view.has(id)) continue;
      this.peers.delete(id);
      void channel.close(LAST_WORDS);
    }
    if (state.registrar !== this.self && this.registrar !== null) {
      this.registrar.stop();
      this.registrar = null;
    }
    if (!this.view.has(this.self)) {
      if (!this.leaving) this.evicted(state.epoch);
    } else {
      this.events.state(state);
      if (state.registrar !== before.registrar && before.version > 0) this.calls.again();
    }
    for (const watcher of [...this.watchers]) watcher();
    this.inbox.advance(state.version);
  }

  // ---- the lease ----------------------------------------------------------------------------------------------------

  /** µs */
  get leaseLength(): number {
    return this.silence * 1000 * LEASE_SHARE;
  }

  /** until in µs of this member's clock. */
  renew(until: number): void {
    const now = this.host.now();
    if (until <= now || until <= this.leaseEnds) return;
    const wasOver = now >= this.leaseEnds;
    this.leaseEnds = until;
    this.lapsed = 0;
    this.options.setLease(until);
    if (wasOver) this.events.renewed();
    for (const { envelope, answer } of this.held.splice(0)) if (this.end === null) this.order(envelope, answer);
  }

  private lapse(): void {
    if (this.registrar !== null) return this.tick();
    if (this.lapsed > 0) return;
    this.lapsed = 1;
    this.heartbeat();
  }

  private tick(): void {
    if (this.end !== null) return;
    if (this.registrar !== null) return this.registrar.tick();
    if (this.host.now() >= this.leaseEnds && this.lapsed++ > TICKS) {
      // Counted in ticks: time in which this process was stopped itself says nothing about the registrar.
      return this.lost(`did not answer for ${this.silence} ms`);
    }
    this.heartbeat();
  }

  heartbeat(): void {
    this.send(this.state.registrar, { type: 'heartbeat', sentAt: this.host.now() });
  }

  // ---- who is gone --------------------------------------------------------------------------------------------------

  broken(member: MemberId): void {
    this.look(member, 0);
  }

  /** A connection to a member of the view broke. Is it dead, or on its way out, or only out of reach? */
  private look(member: MemberId, turn: number): void {
    this.later(LOOKS[turn] - (LOOKS[turn - 1] ?? 0), () => {
      const peer = this.peers.get(member);
      if (peer === undefined || !peer.channel.broken) return;
      const dead = peer.here && !this.directory.isAlive(member);
      const last = turn + 1 === LOOKS.length;
      if (dead || last) this.changed();
      if (this.registrar !== null) {
        if (dead) return this.registrar.died(member);
        if (last) return this.registrar.condemn(member);
      } else if (member === this.state.registrar) {
        // While the serving changes hands its lock may be free for a moment, but then somebody who lives says so.
        if (dead && !this.directory.isServed() && turn > 1) return this.lost('has died');
        // Out of reach: the lease decides. On this machine it is worth to go on looking.
        if (last && peer.here) return this.look(member, turn);
      } else if (last) {
        return this.suspect(member);
      }
      if (!last) this.look(member, turn + 1);
    });
  }

  private evicted(epoch: number): void {
    // Whoever does not know this member any more has heard that it has left. Its answer to a heartbeat comes by another
    // connection than the news of the new view, and may overtake it.
    if (this.handedOver) {
      this.isOut = true;
      return this.finish(hasLeft());
    }
    this.over(makeError('ERR_FAULTLINE_EVICTED', `the others gave up member ${this.self} of ${this.options.cluster} (epoch ${epoch}): it was silent for too long`, { cluster: this.options.cluster, member: this.self, epoch }));
  }

  private lost(why: string): void {
    const { registrar, epoch } = this.state;
    const name = this.view.get(registrar)?.name ?? '';
    this.over(makeError('ERR_FAULTLINE_CLUSTER_LOST', `member ${registrar} (${name}), which served ${this.options.cluster}, ${why}`, { cluster: this.options.cluster, member: registrar, epoch }));
  }

  over(error: Error): void {
    if (this.end !== null) return;
    this.finish(error);
    this.events.over(error);
  }

  private finish(error: Error): void {
    if (this.end !== null) return;
    this.end = error;
    clearInterval(this.ticker);
    for (const timer of this.timers) clearTimeout(timer);
    this.timers.clear();
    this.registrar?.stop();
    this.calls.fail(error);
    for (const watcher of [...this.watchers]) watcher();
  }

  // ---- helpers ------------------------------------------------------------------------------------------------------

  get ended(): Error | null {
    return this.end;
  }

  has(member: MemberId): boolean {
    return this.view.has(member);
  }

  get others(): MemberId[] {
    return [...this.view.keys()].filter((id) => id !== this.self).sort((one, other) => one - other);
  }

  /** Is that member's lock on this machine, so that it says whether it lives? */
  isHere(member: MemberId): boolean {
    return this.peers.get(member)?.here ?? false;
  }

  encode(message: Message): Uint8Array {
    return encode(message, this.self, this.state.version, this.cluster);
  }

  /** Calls back in `delay` ms, unless the session ends before. */
  later(delay: number, callback: () => void): void {
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      callback();
    }, delay);
    this.timers.add(timer);
  }

  /** Resolves with true when the condition holds after some state, false when the session ends or the deadline (µs) is over. */
  until(condition: () => boolean, deadline: number): Promise<boolean> {
    return new Promise((resolve) => {
      const done = (value: boolean): void => {
        clearTimeout(timer);
        this.watchers.delete(look);
        resolve(value);
      };
      const look = (): void => {
        if (this.end !== null) done(false);
        else if (condition()) done(true);
      };
      // setTimeout() takes an endless time for none.
      const timer = deadline === Infinity ? undefined : setTimeout(() => done(false), Math.max(0, (deadline - this.host.now()) / 1000));
      this.watchers.add(look);
      look();
    });
  }

  /** Listens at the address by which a tcp cluster is known, while this member serves it. Returns the code of the error that prevents it, or null. */
  openDoor(): string | null {
    if (!this.options.cluster.startsWith('tcp:') || this.door !== null) return null;
    try {
      this.door = this.transport.openDoor(this.options.cluster, (frames, answer) => this.atTheDoor(frames, answer));
      return null;
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? String(error);
    }
  }

  closeDoor(): void {
    if (this.door !== null) void this.transport.closeDoor(this.door);
    this.door = null;
  }

  /** Something that `until` may wait for has changed. */
  changed(): void {
    for (const watcher of [...this.watchers]) watcher();
  }

  private async handOverPages(handOver: () => Promise<void>): Promise<void> {
    const alone = (): boolean => this.others.length === 0;
    if (alone()) return;
    await this.call('leave', {});
    // Whoever was to take the pages may die, and the last member has nobody to hand over to.
    await Promise.race([handOver(), this.until(alone, Infinity)]);
  }

  /** true if it is done in time. */
  private async before(deadline: number, work: Promise<unknown>): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<boolean>((resolve) => { timer = setTimeout(() => resolve(false), Math.max(0, (deadline - this.host.now()) / 1000)); });
    try {
      return await Promise.race([work.then(() => true, () => false), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

function hasLeft(): Error {
  return makeError('ERR_FAULTLINE_CLOSED', 'this member has left the cluster', { what: 'cluster' });
}

/** What a member whose lease is over must still hear. */
function isAboutTheLease({ type }: Message): boolean {
  return type === 'lease' || type === 'evicted' || type === 'state';
}
