/** Locks of the cluster as a handle holds them. */
import { lockWords, type Calls } from './calls.js';
import { isOverError, type Client } from './client.js';
import type { FaultlineError } from './errors.js';

/**
 * A lock of the cluster, held by the handle that took it; it is not re-entrant. Locks are fair, and readers (`shared`)
 * that are neighbours in the queue hold it together.
 *
 * A lock passes on when it is released, when its cluster handle is closed, when its thread ends (worker.terminate()
 * included), and when its process dies or is evicted. In the last two cases the next holder sees `ownerDied`.
 */
export interface Lock extends AsyncDisposable, Disposable {
  readonly name: string;
  readonly shared: boolean;
  /** The holder before did not release it but died, or its thread ended: what the lock protects may be half changed. */
  readonly ownerDied: boolean;
  /** Grows with every grant in the cluster: send it along with effects outside, so that their receiver can refuse older ones. */
  readonly token: bigint;
  /**
   * Aborted when the lock was lost without release(): evicted (reason EvictedError), cluster lost (ClusterLostError), the
   * coordinator gone (CoordinatorError), the cluster handle closed (ClosedError). Somebody else may hold the lock from then on.
   */
  readonly signal: AbortSignal;
  /** Idempotent. Resolves when the next one can have it; at once if the lock is lost already. */
  release(): Promise<void>;
  /** As release(), but blocks this thread. */
  releaseSync(): void;
}

/** Lock scopes of this thread's running attempt() calls, innermost last. */
const scopes: Set<HeldLock>[] = [];

/** From now on locks that this thread takes by lockSync() belong to this scope. */
export function enterLockScope(): Set<HeldLock> {
  const scope = new Set<HeldLock>();
  scopes.push(scope);
  return scope;
}

/** @param lost the function was stopped: it can't release what it had taken. Otherwise its locks belong to the scope around. */
export function leaveLockScope(scope: Set<HeldLock>, lost: boolean): void {
  // A scope above this one was left behind when its own attempt() was stopped together with this one.
  const inner = scopes.splice(scopes.indexOf(scope)).flatMap((left) => [...left]);
  const around = scopes.at(-1);
  for (const lock of inner) {
    if (lost) {
      try {
        lock.releaseSync();
      } catch {
        // The loss is what the caller must hear of; a lock that can't be released passes on with this member's end.
      }
    } else around?.add(lock);
  }
}

export class HeldLock implements Lock {
  readonly ownerDied: boolean;
  readonly token: bigint;
  readonly signal: AbortSignal;
  readonly #abort = new AbortController();
  readonly #scope: Set<HeldLock> | undefined;
  #released: Promise<void> | undefined;

  /** @param forget called once, when this is no held lock of the handle any more */
  constructor(
    readonly name: string, readonly shared: boolean, grant: NonNullable<Calls['lock']['value']>,
    readonly client: Client, readonly forget: (lock: HeldLock) => void, sync: boolean,
  ) {
    this.ownerDied = grant.ownerDied;
    this.token = BigInt(grant.token);
    this.signal = this.#abort.signal;
    this.#scope = sync ? scopes.at(-1) : undefined;
    this.#scope?.add(this);
    hide(this, 'client', 'forget');
  }

  release(): Promise<void> {
    return (this.#released ??= this.#release());
  }

  async #release(): Promise<void> {
    this.#leave();
    try {
      await this.client.request('unlock', this.#args(), this);
    } catch (error) {
      // Out of the cluster nobody holds anything.
      if (!isOverError(error)) throw error;
    }
  }

  releaseSync(): void {
    if (this.#released) return;
    this.#released = Promise.resolve();
    this.#leave();
    try {
      const args = this.#args();
      this.client.directSync('unlock', { ...args, died: false }, { timeout: undefined, what: lockWords(args.name) }, () => this.client.requestSync('unlock', args));
    } catch (error) {
      if (!isOverError(error)) throw error;
    }
  }

  /** The cluster handle is closed, or the member's stay is over: who relies on the lock hears of it before anybody else can have it. */
  takeAway(reason: FaultlineError): Promise<void> {
    if (!this.#released) this.#abort.abort(reason);
    return this.release();
  }

  #leave(): void {
    for (const scope of scopes) scope.delete(this);
    this.#scope?.delete(this);
    this.forget(this);
  }

  #args(): Calls['unlock']['args'] {
    return { name: this.name, token: this.token.toString() };
  }

  [Symbol.dispose](): void {
    this.releaseSync();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }
}

/** console.log of a handle shows what it means, not its plumbing. */
export function hide(object: object, ...properties: string[]): void {
  for (const property of properties) Object.defineProperty(object, property, { enumerable: false });
}
