/**
 * A thread's connection to the coordinator of one member. All handles that this thread has on that cluster share it:
 * it is attached with the first and detached with the last.
 */
import { BroadcastChannel, receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import { notHad, toClient, toCoordinator, type Answer, type Calls, type Cancel, type DirectOp, type Notice, type Op, type Request, type ToClient } from './calls.js';
import { ASK_AGAIN, directId, startDirect } from './direct.js';
import { fromWire, makeError, type FaultlineError } from './errors.js';
import { releaseSignals } from './exit.js';
import { Down, native } from './native.js';
import { SYNC_SLICE_MS } from './options.js';
import { subtract, union, type Run } from './ranges.js';
import { ENDED_CHANNEL, type Ended } from './start.js';
import type { ClusterState, MemberId, RegionInfo, ReplyMessage, WireError } from './coordinator/protocol/messages.js';

/** What a cluster handle hears of. Called in the order of the events, and never inside a call that the program made. */
export interface Listener {
  state(before: ClusterState, after: ClusterState): void;
  lost(region: string, pageSize: number, runs: Run[], member: MemberId, epoch: number): void;
  found(region: string, pageSize: number, runs: Run[]): void;
  over(error: FaultlineError): void;
}

/** A region that this thread has open, shared by its handles. */
export class OpenRegion {
  /** Handles that have it open, or are about to. */
  uses = 0;
  lost: Run[] = [];
  destroyed = false;
  /** The buffer over the whole region, made at the first use. */
  buffer: SharedArrayBuffer | undefined;
  constructor(readonly handle: number, readonly info: RegionInfo) {}
}

interface Pending {
  op: Op;
  args: unknown;
  owner: object;
  resolve(value: unknown): void;
  reject(error: unknown): void;
  /** Takes the abort listener off. */
  settled(): void;
}

/** A withdrawn request whose answer may be on its way all the same. `before`: the first request that was sent later. */
interface Withdrawn { op: Op; args: unknown; before: number }

/** ms between looks at the member's state while answers are awaited: main may be too busy to tell us of its coordinator's end. */
const STATE_CHECK_MS = 500;

/** By key: the ones that a new handle may share. */
const clients = new Map<string, Client>();
/** All that have channels open, those on their way out included. */
const live = new Set<Client>();

/** Clients of this thread, for whoever has only the code of what happened. */
export function threadClients(): Iterable<Client> {
  return live;
}

export class Client {
  readonly id: number;
  self: MemberId = 0;
  state: ClusterState = { clusterId: '', version: 0, epoch: 0, registrar: 0, members: [], regions: [], died: [] };
  /** Terminal: why nothing works any more. */
  over: FaultlineError | undefined;
  readonly listeners = new Set<Listener>();
  readonly #regions = new Map<number, OpenRegion>();
  readonly #in: BroadcastChannel;
  readonly #out: BroadcastChannel;
  readonly #pending = new Map<number, Pending>();
  readonly #withdrawn = new Map<number, Withdrawn>();
  readonly #attached: Promise<void>;
  #nextId = 1;
  #nextCall = 1;
  #holds = 0;
  #disposed = false;
  #stateCheck: NodeJS.Timeout | undefined;

  private constructor(readonly key: string, readonly member: number) {
    this.id = native.clientCreate(member);
    this.#in = new BroadcastChannel(toClient(key, this.id));
    this.#in.onmessage = (event) => this.#receive((event as { data: ToClient }).data);
    this.#in.unref();
    this.#out = new BroadcastChannel(toCoordinator(key));
    // Requests of other threads arrive here, too; they are dropped as they come.
    this.#out.onmessage = () => undefined;
    this.#out.unref();
    live.add(this);
    listenForEnds();
    this.#attached = this.request('attach', {}, this).then(({ self, state }) => {
      this.self = self;
      if (state.version >= this.state.version) this.state = state;
    });
    this.#attached.catch(() => this.#dispose());
  }

  /** Counted: every hold needs its release(). @throws whatever attaching throws; a member on its way out: see isOverError */
  static async hold(key: string, member: number): Promise<Client> {
    let client = clients.get(key);
    if (!client || client.member !== member || client.over || client.#disposed) {
      try {
        client = new Client(key, member);
      } catch {
        // The member was there a moment ago; its native side has let go of it since.
        throw downError(Down.Closed, key, {});
      }
      clients.set(key, client);
    }
    client.#holds++;
    await client.#attached;
    return client;
  }

  /** The last release detaches; when it was the last of all threads, the member leaves the cluster, and this resolves afterwards. */
  async release(): Promise<void> {
    if (--this.#holds > 0) return;
    if (clients.get(this.key) === this) clients.delete(this.key);
    try {
      if (this.over) this.#post({ client: this.id, id: this.#nextId++, op: 'detach', args: {} });
      else await this.request('detach', {}, this);
    } catch (error) {
      // The member left, or its stay ended in another way, while it was asked to leave: nothing of it is left to close.
      if (!isOverError(error)) throw error;
    } finally {
      this.#dispose();
    }
  }

  /** @throws what ended this member's stay, if anything did */
  check(): void {
    if (!this.over) {
      const down = memberDown(this.member);
      if (down === undefined) return;
      // The coordinator's own words say more than the state; they may not have been read yet.
      this.drain();
      this.#end(this.over ?? downError(down, this.key, {}));
    }
    throw this.over as FaultlineError;
  }

  /** Reads what the coordinator has sent up to now, although the event loop has not turned. */
  drain(): void {
    if (this.#disposed) return;
    for (;;) {
      const received = receiveMessageOnPort(this.#in as unknown as MessagePort);
      if (!received) break;
      this.#receive(received.message as ToClient);
    }
  }

  /**
   * @param owner the handle that asks: see withdraw()
   * @param before what this thread does itself first, as a part of the request; wanted(): it has not been withdrawn. It
   * resolves with what is left to ask, or null: then the value is null
   * @throws the signal's reason; the coordinator's error; what ended the member's stay
   */
  request<O extends Op>(op: O, args: Calls[O]['args'], owner: object, signal?: AbortSignal, before?: (wanted: () => boolean) => Promise<Calls[O]['args'] | null>): Promise<Calls[O]['value']> {
    return new Promise((resolve, reject) => {
      this.check();
      signal?.throwIfAborted();
      const id = this.#nextId++;
      const onAbort = (): void => this.#withdraw(id, (signal as AbortSignal).reason);
      signal?.addEventListener('abort', onAbort, { once: true });
      if (this.#pending.size === 0) this.#busy();
      this.#pending.set(id, {
        op, args, owner,
        resolve: resolve as (value: unknown) => void,
        reject,
        settled: () => signal?.removeEventListener('abort', onAbort),
      });
      if (before === undefined) return this.#post({ client: this.id, id, op, args });
      const wanted = (): boolean => this.#pending.has(id);
      // What fails there the coordinator says better.
      before(wanted).catch(() => args).then((left) => {
        if (!wanted()) return;
        if (left !== null) return this.#post({ client: this.id, id, op, args: left });
        this.#settle(id, this.#pending.get(id)!);
        resolve(null as Calls[O]['value']);
      });
    });
  }

  /** Blocks this thread until the answer is there. */
  requestSync<O extends Op>(op: O, args: Calls[O]['args']): Calls[O]['value'] {
    this.check();
    const id = this.#nextId++;
    // The ring is the shorter way, but what this thread has asked on the longer one comes first.
    const overtakes = this.#pending.size > 0;
    const slot = native.slotCreate(this.member, overtakes ? '' : JSON.stringify({ client: this.id, id, op, args }));
    try {
      if (overtakes) this.#post({ client: this.id, id, op, args, slot });
      return valueOf(JSON.parse(this.#block((ms) => native.slotWait(this.member, slot, ms))!) as Answer) as Calls[O]['value'];
    } finally {
      native.slotClose(this.member, slot);
    }
  }

  /**
   * @param wait blocks for so long at most; null: nothing yet, '': nothing will come
   * @param deadline of performance.now()
   * @returns null when that is over
   */
  #block(wait: (ms: number) => string | null, deadline = Infinity): string | null {
    let restoreSignals: (() => void) | undefined;
    try {
      for (;;) {
        const payload = wait(Math.ceil(Math.max(0, Math.min(SYNC_SLICE_MS, deadline - performance.now()))));
        if (payload) return payload;
        // The member's words for its end, if it has any.
        this.check();
        if (payload === '') throw downError(Down.CoordinatorDied, this.key, {});
        if (performance.now() >= deadline) return null;
        restoreSignals ??= releaseSignals();
        this.#dropForeign();
      }
    } finally {
      restoreSignals?.();
    }
  }

  /**
   * A blocking call to the registrar by the shortest way there is.
   *
   * @param args the registrar's (registry.ts)
   * @param limit how long it may take, ms, and what the TimeoutError is to call it
   * @param otherwise the same by messages
   */
  directSync<V>(op: DirectOp, args: object, limit: { timeout: number | undefined; what: string }, otherwise: () => V): V {
    this.check();
    // What this thread has asked on the longer way comes first.
    if (this.#pending.size > 0) return otherwise();
    const { timeout, what } = limit;
    const deadline = timeout === undefined ? Infinity : performance.now() + timeout;
    const id = directId(this.id, this.#nextCall++);
    const own = { ...args, client: this.id };
    const call = startDirect(this.member, this.self, this.state, JSON.stringify({ type: 'call', id, op, args: own }));
    if (!call) return otherwise();
    try {
      const payload = this.#block(call.wait, deadline);
      if (payload === null) {
        this.requestSync('withdraw', { call: id });
        throw notHad(what, timeout as number);
      }
      if (payload !== ASK_AGAIN) return valueOf(JSON.parse(payload) as ReplyMessage) as V;
    } finally {
      call.end();
    }
    const left = deadline === Infinity ? {} : { timeout: Math.max(0, deadline - performance.now()) };
    return this.requestSync('again', { call: id, op, args: own, what, ...left }) as V;
  }

  /** Rejects what this handle still waits for. */
  withdraw(owner: object, reason: FaultlineError): void {
    for (const [id, pending] of [...this.#pending]) if (pending.owner === owner) this.#withdraw(id, reason);
  }

  async openRegion(args: Calls['region']['args'], owner: object, signal: AbortSignal | undefined): Promise<OpenRegion> {
    const { info } = await this.request('region', args, owner, signal);
    return this.#regions.get(info.id) as OpenRegion;
  }

  /** The coordinator counts openings as we do, one close for each. */
  async closeRegion(region: OpenRegion): Promise<void> {
    const { id } = region.info;
    if (--region.uses === 0) {
      this.#regions.delete(id);
      region.buffer = undefined;
    }
    if (this.over || region.destroyed) return;
    try {
      await this.request('region-close', { region: id }, this);
    } catch (error) {
      if (!isOverError(error)) throw error;
    }
  }

  #receive(message: ToClient): void {
    if ('event' in message) this.#notice(message);
    else this.#answer(message);
  }

  #answer(answer: Answer): void {
    const pending = this.#pending.get(answer.id);
    if (pending) {
      this.#settle(answer.id, pending);
      if ('error' in answer) pending.reject(fromWire(answer.error));
      else {
        if (pending.op === 'region') this.#opened(answer.value as Calls['region']['value']);
        pending.resolve(answer.value);
      }
    } else {
      const withdrawn = this.#withdrawn.get(answer.id);
      if (withdrawn && 'value' in answer && answer.value !== null) this.#undo(withdrawn, answer.value);
    }
    // The coordinator has read every withdrawal that was sent before the request which it answers now.
    for (const [id, { before }] of this.#withdrawn) {
      if (before > answer.id) break;
      this.#withdrawn.delete(id);
    }
  }

  /** At once, not when the caller goes on: notices about this region may be the next thing in the channel. */
  #opened({ handle, info, lost }: Calls['region']['value']): void {
    let region = this.#regions.get(info.id);
    if (!region) this.#regions.set(info.id, (region = new OpenRegion(handle, info)));
    region.uses++;
    region.lost = union(lost);
  }

  /** The answer had left before the withdrawal arrived: what it gave is given back. */
  #undo({ op, args }: Withdrawn, value: unknown): void {
    const giveBack = (request: Promise<unknown>): void => void request.catch(() => undefined);
    if (op === 'lock') {
      giveBack(this.request('unlock', { name: (args as Calls['lock']['args']).name, token: (value as { token: string }).token }, this));
    } else if (op === 'pin') {
      giveBack(this.request('pin-release', { pin: (value as Calls['pin']['value']).pin }, this));
    } else if (op === 'region') {
      giveBack(this.request('region-close', { region: (value as Calls['region']['value']).info.id }, this));
    }
  }

  #withdraw(id: number, reason: unknown): void {
    const pending = this.#pending.get(id);
    if (!pending) return;
    this.#settle(id, pending);
    if (['lock', 'pin', 'region'].includes(pending.op)) this.#withdrawn.set(id, { op: pending.op, args: pending.args, before: this.#nextId });
    this.#post({ client: this.id, cancel: id });
    pending.reject(reason);
  }

  #settle(id: number, pending: Pending): void {
    this.#pending.delete(id);
    pending.settled();
    if (this.#pending.size === 0) this.#idle();
  }

  #notice(notice: Notice): void {
    switch (notice.event) {
      case 'view': {
        const before = this.state;
        if (notice.state.version <= before.version) return;
        this.state = notice.state;
        return this.#tell((listener) => listener.state(before, notice.state));
      }
      case 'page-lost':
      case 'page-found': {
        const { region: id, runs, member, epoch } = notice;
        const open = this.#regions.get(id);
        const info = open?.info ?? this.state.regions.find((region) => region.id === id);
        if (open) open.lost = notice.event === 'page-lost' ? union(open.lost, runs) : subtract(open.lost, runs);
        if (!info) return;
        return this.#tell((listener) => {
          if (notice.event === 'page-lost') listener.lost(info.name, info.pageSize, union(runs), member, epoch);
          else listener.found(info.name, info.pageSize, union(runs));
        });
      }
      case 'destroyed': {
        const open = this.#regions.get(notice.region);
        if (open) open.destroyed = true;
        return;
      }
      case 'over':
        return this.#end(fromWire(notice.error));
    }
  }

  /** Listeners are the program's code, so they never run inside a call such as region.lost() that made us look. */
  #tell(event: (listener: Listener) => void): void {
    for (const listener of [...this.listeners]) {
      process.nextTick(() => {
        if (this.listeners.has(listener)) event(listener);
      });
    }
  }

  /** What main says of a coordinator that could not say it itself. */
  ended(error: FaultlineError): void {
    this.drain();
    this.#end(error);
  }

  #end(error: FaultlineError): void {
    if (this.over) return;
    this.over = error;
    if (clients.get(this.key) === this) clients.delete(this.key);
    for (const [id, pending] of [...this.#pending]) {
      this.#settle(id, pending);
      pending.reject(error);
    }
    this.#tell((listener) => listener.over(error));
  }

  #post(message: Request | Cancel): void {
    if (!this.#disposed) this.#out.postMessage(message);
  }

  /** A thread that blocks for long would otherwise collect the requests of all others. */
  #dropForeign(): void {
    while (receiveMessageOnPort(this.#out as unknown as MessagePort));
  }

  #busy(): void {
    this.#in.ref();
    this.#stateCheck ??= setInterval(() => {
      if (this.#pending.size === 0) return this.#stopStateCheck();
      try {
        this.check();
      } catch {
        // check() has told everybody who waits.
      }
    }, STATE_CHECK_MS).unref();
  }

  #idle(): void {
    this.#in.unref();
  }

  #stopStateCheck(): void {
    clearInterval(this.#stateCheck);
    this.#stateCheck = undefined;
  }

  #dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.over ??= makeError('ERR_FAULTLINE_CLOSED', `this thread has closed ${this.key}`, { what: this.key }) as FaultlineError;
    if (clients.get(this.key) === this) clients.delete(this.key);
    this.#stopStateCheck();
    for (const pending of this.#pending.values()) {
      pending.settled();
      pending.reject(this.over);
    }
    this.#pending.clear();
    this.#in.close();
    this.#out.close();
    live.delete(this);
    if (live.size === 0) stopListeningForEnds();
    try {
      native.clientClose(this.member, this.id);
    } catch {
      // The member's native side is gone, and its clients with it.
    }
  }
}

function valueOf(answer: { value?: unknown; error?: WireError }): unknown {
  if (answer.error) throw fromWire(answer.error);
  return answer.value ?? null;
}

let ends: BroadcastChannel | undefined;

function listenForEnds(): void {
  if (ends) return;
  ends = new BroadcastChannel(ENDED_CHANNEL);
  ends.onmessage = (event) => {
    const { member, error } = (event as { data: Ended }).data;
    for (const client of [...live]) if (client.member === member) client.ended(fromWire(error));
  };
  ends.unref();
}

function stopListeningForEnds(): void {
  ends?.close();
  ends = undefined;
}

/** This process's stay is over, or was when we asked: a new member may still be possible. */
export function isOverError(error: unknown): boolean {
  const codes = ['ERR_FAULTLINE_CLOSED', 'ERR_FAULTLINE_EVICTED', 'ERR_FAULTLINE_CLUSTER_LOST', 'ERR_FAULTLINE_COORDINATOR'];
  return codes.includes((error as FaultlineError)?.code);
}

/** Down code of a member whose stay is over; undefined while it is up, or may be again. */
function memberDown(member: number): number | undefined {
  try {
    const state = native.memberState(member);
    return state === Down.Up || state === Down.Frozen ? undefined : state;
  } catch {
    return Down.Closed;
  }
}

/** The error of a native down code. `subject`: the cluster's address, or the region's name for Destroyed. */
export function downError(down: number, subject: string, fields: Record<string, unknown>): FaultlineError {
  switch (down) {
    case Down.Evicted:
      return makeError('ERR_FAULTLINE_EVICTED', `this member was evicted from ${subject}`, { cluster: subject, ...fields });
    case Down.ClusterLost:
      return makeError('ERR_FAULTLINE_CLUSTER_LOST', `${subject} was lost: the process that served its membership is gone`, { cluster: subject, ...fields });
    case Down.Destroyed:
      return makeError('ERR_FAULTLINE_REGION_DESTROYED', `region '${subject}' was destroyed`, { region: subject, ...fields });
    case Down.CoordinatorDied:
      return makeError('ERR_FAULTLINE_COORDINATOR', `the coordinator of ${subject} ended unexpectedly`, { cluster: subject, ...fields });
    default:
      return makeError('ERR_FAULTLINE_CLOSED', `${subject} was closed by this process`, { what: subject, ...fields });
  }
}
