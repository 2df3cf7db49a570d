/**
 * The cluster's locks by name: first come, first served; shared requests that stand next to one another in the queue are
 * granted together, and one that comes after a waiting exclusive request waits behind it, so that nobody starves.
 */
import { makeError } from '../../errors.js';
import type { MemberId } from './messages.js';

/** Who asks: a member's client (one handle's thread), and the call that is answered when the lock is there. */
export interface Asker { member: MemberId; client: number; call: number }
export interface Grant { token: string; ownerDied: boolean }

interface Request extends Asker { shared: boolean }
interface Holder extends Request { token: string }
interface Lock { holders: Holder[]; queue: Request[]; /** An exclusive holder died, and nobody has held the lock since. */ ownerDied: boolean }

export interface LocksSnapshot { nextToken: number; locks: [string, Lock][] }

export class Locks {
  private nextToken = 1;
  private locks = new Map<string, Lock>();

  constructor(private readonly granted: (asker: Asker, grant: Grant) => void, snapshot?: LocksSnapshot) {
    if (snapshot !== undefined) {
      this.nextToken = snapshot.nextToken;
      this.locks = new Map(snapshot.locks);
    }
  }

  snapshot(): LocksSnapshot {
    return { nextToken: this.nextToken, locks: [...this.locks] };
  }

  /** Grants at once or queues; with `attempt` it does not queue, and returns false if the lock isn't free. */
  lock(name: string, asker: Asker, shared: boolean, attempt: boolean): boolean {
    const lock = this.locks.get(name) ?? { holders: [], queue: [], ownerDied: false };
    const request = { ...asker, shared };
    if (attempt && (lock.queue.length > 0 || !admits(lock, request))) return false;
    this.locks.set(name, lock);
    lock.queue.push(request);
    this.advance(name, lock);
    return true;
  }

  /** died: the holder ended without letting go. Throws ERR_FAULTLINE_CLOSED if that member does not hold it by that token. */
  unlock(name: string, member: MemberId, token: string, died: boolean): void {
    const lock = this.locks.get(name);
    if (lock === undefined || !this.release(name, lock, (holder) => holder.member === member && holder.token === token, died)) {
      throw makeError('ERR_FAULTLINE_CLOSED', `lock '${name}' is not held with token ${token}`, { what: 'lock' });
    }
  }

  /** Nobody waits for this call any more. If the lock was granted to it meanwhile it is let go again. */
  withdraw(member: MemberId, call: number): void {
    this.drop((request) => request.member === member && request.call === call, false);
  }

  clientGone(member: MemberId, client: number, died: boolean): void {
    this.drop((request) => request.member === member && request.client === client, died);
  }

  /** died: it did not leave in order, so the next holders must look after what its locks protected. */
  memberGone(member: MemberId, died: boolean): void {
    this.drop((request) => request.member === member, died);
  }

  private drop(matches: (request: Request) => boolean, died: boolean): void {
    for (const [name, lock] of [...this.locks]) {
      lock.queue = lock.queue.filter((request) => !matches(request));
      if (!this.release(name, lock, matches, died)) this.advance(name, lock);
    }
  }

  private release(name: string, lock: Lock, matches: (holder: Holder) => boolean, died: boolean): boolean {
    const released = lock.holders.filter(matches);
    if (released.length === 0) return false;
    lock.holders = lock.holders.filter((holder) => !matches(holder));
    if (died && released.some((holder) => !holder.shared)) lock.ownerDied = true;
    this.advance(name, lock);
    return true;
  }

  private advance(name: string, lock: Lock): void {
    const { ownerDied } = lock;
    while (lock.queue.length > 0 && admits(lock, lock.queue[0])) {
      const request = lock.queue.shift()!;
      const token = String(this.nextToken++);
      lock.holders.push({ ...request, token });
      // All who are granted together learn of the death: none of them is the one holder who comes next.
      lock.ownerDied = false;
      this.granted(request, { token, ownerDied });
    }
    if (lock.holders.length === 0 && lock.queue.length === 0 && !lock.ownerDied) this.locks.delete(name);
  }
}

function admits(lock: Lock, request: Request): boolean {
  return lock.holders.length === 0 || (request.shared && lock.holders.every((holder) => holder.shared));
}
