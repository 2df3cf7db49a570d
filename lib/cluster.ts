/** join(), and a cluster as a handle sees it. */
import { EventEmitter } from 'node:events';
import { barrierWords, lockWords, type Calls } from './calls.js';
import { Client, isOverError, type Listener } from './client.js';
import { type EvictedError, type FaultlineError } from './errors.js';
import { chooseGuard } from './guard.js';
import { HeldLock, type Lock } from './lock.js';
import {
  checkBoolean, checkInteger, checkJoin, checkName, checkObject, checkRegion, checkSignal, checkTimeout, MAX_PARTIES,
  type CheckedJoin, type JoinOptions, type Range, type RegionOptions,
} from './options.js';
import type { Run } from './ranges.js';
import { closedError, promised, RegionHandle, type Region } from './region.js';
import { findMember, hasEnded, memberEnded } from './start.js';
import { clusterStats, type ClusterStats } from './stats.js';
import type { ClusterState, MemberInfo } from './coordinator/protocol/messages.js';

/** One process in the cluster. */
export interface Member {
  /** Never used again in this cluster. */
  readonly id: number;
  readonly name: string;
  readonly pid: number;
  /** IP address, or 'local'. */
  readonly address: string;
}

/** The agreed list of members. `epoch` grows with each change. */
export interface View { readonly epoch: number; readonly members: readonly Member[] }

/** What a `'page-lost'` event says: `ranges` in bytes, whole pages, sorted. */
export interface PageLoss {
  /** The region's name. */ readonly region: string;
  readonly ranges: readonly Range[];
  /** The id of the member that died with the only copy. */ readonly member: number;
  readonly epoch: number;
}

export interface ClusterEvents {
  /** The members changed. Comes before the event that says how. */
  view: [view: View];
  'member-joined': [member: Member];
  /** It left in order. */
  'member-left': [member: Member];
  /** It died, or was given up. */
  'member-died': [member: Member];
  'page-lost': [loss: PageLoss];
  /** Lost pages were restored. */
  'page-restored': [pages: { readonly region: string; readonly ranges: readonly Range[] }];
  /** The others gave this member up: nothing works any more. A new join() makes a new member. */
  evicted: [error: EvictedError];
  /** The cluster (ClusterLostError) or this process's coordinator (CoordinatorError) is gone: nothing works any more. */
  lost: [error: FaultlineError];
}

/**
 * A thread's handle on a cluster. The handles of one process share one member; the member leaves, and hands over what it
 * holds, when the last handle of all threads is closed or its thread has ended.
 *
 * When a handle is closed: calls that are pending reject, and later ones throw or reject, with ClosedError; its locks and
 * pins are released (`Lock.signal` is aborted with ClosedError), its regions are closed. When the member's stay is over
 * they do so with EvictedError, ClusterLostError or CoordinatorError, and close() still resolves. Asynchronous calls never
 * throw, they reject; with an AbortSignal they reject with its reason, and what they asked for is withdrawn.
 */
export interface Cluster extends AsyncDisposable, EventEmitter<ClusterEvents> {
  /** The cluster's own random id: another cluster at the same address has another. */
  readonly id: string;
  /** Its normalised address, for example 'local:default'. */
  readonly address: string;
  readonly self: Member;
  /** As far as this member has heard. After the end of its stay: the last one. */
  readonly view: View;
  readonly closed: boolean;
  /**
   * Opens or creates a region. Options that are given must be those it was created with.
   * Rejects with RegionExistsError (mode 'create', or other options), RegionNotFoundError (mode 'open'), AddressTakenError
   * (something else is mapped there in this process), OutOfMemoryError.
   */
  region(name: string, options?: RegionOptions): Promise<Region>;
  /** Waits for a lock; fair. Not re-entrant: a handle that waits for its own lock waits until it releases it. */
  lock(name: string, options?: { shared?: boolean; signal?: AbortSignal }): Promise<Lock>;
  /** undefined if it can't be had at once. */
  tryLock(name: string, options?: { shared?: boolean }): Promise<Lock | undefined>;
  /** Blocks this thread and its event loop. @param options.timeout ms. @throws TimeoutError when it is over */
  lockSync(name: string, options?: { shared?: boolean; timeout?: number }): Lock;
  /**
   * Waits until `parties` calls with this name have come, from any threads. Then the name can be used for the next round.
   * Rejects with BarrierBrokenError, for all who wait, if a member dies meanwhile; with InvalidArgumentError if others
   * wait with another number of parties.
   */
  barrier(name: string, parties: number, options?: { signal?: AbortSignal }): Promise<void>;
  /** Blocks this thread and its event loop. @param options.timeout ms. @throws TimeoutError when it is over: this call counts no more then */
  barrierSync(name: string, parties: number, options?: { timeout?: number }): void;
  /** Counters of this process's member. Blocks for an answer of the coordinator (well below a millisecond). */
  stats(): ClusterStats;
  /**
   * Idempotent. Closing the last handle of the process resolves when the member has handed over all that it holds, and has
   * left; or when its stay has ended in another way, also in the middle of this ('evicted' and 'lost' say so).
   */
  close(): Promise<void>;
}

/** How often join() starts anew because the member of this process that it found was just leaving. */
const JOIN_TRIES = 5;

let warned = false;

/**
 * Joins a cluster, or forms it if nobody is there. If this process is a member already, from any thread, this is one more
 * handle on that member: options that are given then must be the member's.
 *
 * Rejects with InvalidArgumentError, KeysNeededError (an address that is not loopback), JoinRefusedError (`reason`:
 * 'protocol', 'architecture', 'full', or 'options': this process is a member with other options), JoinTimeoutError,
 * ClusterLostError (its server died, and survivors are still there), OutOfMemoryError (address space, see `ulimit -v`), NotOnMainError (in a worker whose main thread has not
 * imported the package), CoordinatorError, or the signal's reason.
 */
export async function join(options?: JoinOptions): Promise<Cluster> {
  const checked = checkJoin(options);
  chooseGuard(checked.settings);
  checked.signal?.throwIfAborted();
  if (!checked.loopback && !warned) {
    warned = true;
    process.emitWarning(`${checked.settings.key} is used without keys: everybody who can reach this address can read and change the shared memory, and pose as a member`, { code: 'FAULTLINE_INSECURE' });
  }
  return new ClusterHandle(await abortable(connect(checked), checked.signal));
}

async function connect({ settings, given }: CheckedJoin): Promise<Client> {
  let ending = 0;
  for (let tries = 1; ; tries++) {
    const member = await findMember(settings, given, ending);
    try {
      return await Client.hold(settings.key, member);
    } catch (error) {
      // This process's member is leaving, or its stay is over: when it is gone there can be another.
      if (!isOverError(error) || tries === JOIN_TRIES) throw error;
      ending = member;
    }
  }
}

/** The caller hears of the abort at once; a connection that comes about later is given up again. */
function abortable(connecting: Promise<Client>, signal: AbortSignal | undefined): Promise<Client> {
  if (!signal) return connecting;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      reject(signal.reason);
      connecting.then((client) => client.release()).catch(() => undefined);
    };
    const withoutAbort = <V>(settle: (value: V) => void) => (value: V): void => {
      signal.removeEventListener('abort', onAbort);
      settle(value);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    connecting.then(withoutAbort(resolve), withoutAbort(reject));
  });
}

class ClusterHandle extends EventEmitter<ClusterEvents> implements Cluster {
  readonly #client: Client;
  readonly #listener: Listener;
  readonly #locks = new Set<HeldLock>();
  readonly #regions = new Set<RegionHandle>();
  #closing: Promise<void> | undefined;
  #view: { state: ClusterState; view: View } | undefined;

  constructor(client: Client) {
    super();
    this.#client = client;
    this.#listener = {
      state: (before, after) => this.#stateChanged(before, after),
      lost: (region, pageSize, runs, member, epoch) => this.emit('page-lost', { region, ranges: toRanges(runs, pageSize), member, epoch }),
      found: (region, pageSize, runs) => this.emit('page-restored', { region, ranges: toRanges(runs, pageSize) }),
      over: (error) => this.#over(error),
    };
    client.listeners.add(this.#listener);
  }

  get id(): string { return this.#client.state.clusterId; }
  get address(): string { return this.#client.key; }
  get closed(): boolean { return this.#closing !== undefined; }

  get self(): Member {
    const { state, self } = this.#client;
    const info = state.members.find(({ id }) => id === self);
    if (info) this.#self = toMember(info);
    return this.#self;
  }
  #self: Member = Object.freeze({ id: 0, name: '', pid: process.pid, address: '' });

  get view(): View {
    this.#client.drain();
    const { state } = this.#client;
    if (this.#view?.state !== state) this.#view = { state, view: toView(state) };
    return this.#view.view;
  }

  async region(name: string, options?: RegionOptions): Promise<Region> {
    this.#check();
    const { args, signal } = checkRegion(name, options);
    const open = await this.#client.openRegion(args, this, signal);
    const region = new RegionHandle(this.#client, open, (closed) => this.#regions.delete(closed));
    this.#regions.add(region);
    if (this.#closing) {
      await region.close();
      this.#check();
    }
    return region;
  }

  async lock(name: string, options?: { shared?: boolean; signal?: AbortSignal }): Promise<Lock> {
    const { signal } = checkObject('options', options);
    const request = this.#lockArgs(name, options, false);
    const grant = await this.#client.request('lock', request, this, checkSignal('signal', signal));
    return this.#granted(request, grant as NonNullable<typeof grant>);
  }

  async tryLock(name: string, options?: { shared?: boolean }): Promise<Lock | undefined> {
    const request = this.#lockArgs(name, options, true);
    const grant = await this.#client.request('lock', request, this);
    return grant === null ? undefined : this.#granted(request, grant);
  }

  lockSync(name: string, options?: { shared?: boolean; timeout?: number }): Lock {
    const request = this.#lockArgs(name, options, false);
    const timeout = checkTimeout('timeout', options?.timeout);
    const otherwise = (): Calls['lock']['value'] => this.#client.requestSync('lock', timeout === undefined ? request : { ...request, timeout });
    const grant = this.#client.directSync('lock', request, { timeout, what: lockWords(request.name) }, otherwise);
    return this.#held(request, grant as NonNullable<typeof grant>, true);
  }

  #lockArgs(name: unknown, options: unknown, attempt: boolean): Calls['lock']['args'] {
    this.#check();
    return { name: checkName('lock name', name), shared: checkBoolean('shared', checkObject('options', options).shared), try: attempt };
  }

  async #granted(request: Calls['lock']['args'], grant: NonNullable<Calls['lock']['value']>): Promise<Lock> {
    const lock = this.#held(request, grant, false);
    if (this.#closing) {
      await lock.release();
      this.#check();
    }
    return lock;
  }

  #held(request: Calls['lock']['args'], grant: NonNullable<Calls['lock']['value']>, sync: boolean): HeldLock {
    const lock = new HeldLock(request.name, request.shared, grant, this.#client, (released) => this.#locks.delete(released), sync);
    this.#locks.add(lock);
    return lock;
  }

  barrier(name: string, parties: number, options?: { signal?: AbortSignal }): Promise<void> {
    return promised(async () => {
      const { signal } = checkObject('options', options);
      await this.#client.request('barrier', this.#barrierArgs(name, parties), this, checkSignal('signal', signal));
    });
  }

  barrierSync(name: string, parties: number, options?: { timeout?: number }): void {
    const args = this.#barrierArgs(name, parties);
    const timeout = checkTimeout('timeout', checkObject('options', options).timeout);
    this.#client.directSync('barrier', args, { timeout, what: barrierWords(args.name) }, () => this.#client.requestSync('barrier', timeout === undefined ? args : { ...args, timeout }));
  }

  #barrierArgs(name: unknown, parties: unknown): Calls['barrier']['args'] {
    this.#check();
    return { name: checkName('barrier name', name), parties: checkInteger('parties', parties, 1, MAX_PARTIES) };
  }

  stats(): ClusterStats {
    this.#check();
    return clusterStats(this.#client.requestSync('stats', {}));
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    const client = this.#client;
    const reason = closedError('cluster');
    client.withdraw(this, reason);
    const released = [...[...this.#locks].map((lock) => lock.takeAway(reason)), ...[...this.#regions].map((region) => region.close())];
    try {
      // One that can't be released, for whatever reason, must not keep the member from leaving: detaching lets go of all.
      await Promise.allSettled(released);
      await client.release();
      await coordinatorEnded(client);
    } finally {
      client.listeners.delete(this.#listener);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get [Symbol.toStringTag](): string { return 'Cluster'; }

  #check(): void {
    if (this.#closing) throw closedError('cluster');
    this.#client.check();
  }

  #stateChanged(before: ClusterState, after: ClusterState): void {
    if (before.epoch === after.epoch && sameMembers(before, after)) return;
    this.emit('view', toView(after));
    const old = new Set(before.members.map(({ id }) => id));
    const present = new Set(after.members.map(({ id }) => id));
    for (const member of before.members) {
      if (!present.has(member.id)) this.emit(after.died.includes(member.id) ? 'member-died' : 'member-left', toMember(member));
    }
    for (const member of after.members) if (!old.has(member.id)) this.emit('member-joined', toMember(member));
  }

  #over(error: FaultlineError): void {
    for (const lock of [...this.#locks]) void lock.takeAway(error);
    if (error.code === 'ERR_FAULTLINE_EVICTED') this.emit('evicted', error as EvictedError);
    else if (error.code !== 'ERR_FAULTLINE_CLOSED') this.emit('lost', error);
  }
}

/** Who closes and joins again and again must not pile up threads that are about to end; so this waits for that, where it can see it. */
async function coordinatorEnded(client: Client): Promise<void> {
  if (hasEnded(client.key, client.member)) await memberEnded(client.member);
}

function sameMembers(left: ClusterState, right: ClusterState): boolean {
  return left.members.length === right.members.length && left.members.every(({ id }, index) => id === right.members[index].id);
}

function toMember({ id, name, pid, address }: MemberInfo): Member {
  return Object.freeze({ id, name, pid, address });
}

function toView({ epoch, members }: ClusterState): View {
  return Object.freeze({ epoch, members: Object.freeze(members.map(toMember)) });
}

function toRanges(runs: readonly Run[], pageSize: number): Range[] {
  return runs.map(([first, pages]) => ({ offset: first * pageSize, length: pages * pageSize }));
}
