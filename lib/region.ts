/** Regions as a handle sees them. */
import { constants } from 'node:buffer';
import type { PageInfo } from './calls.js';
import type { Client, OpenRegion } from './client.js';
import { isOverError } from './client.js';
import { fromWire, makeError, type FaultlineError } from './errors.js';
import { bring } from './fetch.js';
import { hide } from './lock.js';
import { Access, native } from './native.js';
import {
  checkAligned, checkChoice, checkInteger, checkObject, checkPinRanges, checkRange, checkSignal, checkTimeout, invalid, MAX_PIN_MS, NOTIFY_ALL, show,
  type Range,
} from './options.js';
import { regionStats, type RegionStats } from './stats.js';

/**
 * A region of the cluster's memory, at the same virtual address in every member. It lives until destroy(), or until the
 * last member that is in the cluster has gone.
 *
 * Offsets and lengths are bytes. All calls throw or reject with ClosedError after close() of this handle or of its
 * cluster, RegionDestroyedError after destroy() by anybody, and EvictedError, ClusterLostError or CoordinatorError when
 * this member's stay is over. Arguments that make no sense are InvalidArgumentError, OutOfRangeError or MisalignedError.
 */
export interface Region extends AsyncDisposable {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly pageSize: number;
  readonly address: bigint;
  readonly consistency: 'sequential';
  readonly placement: 'creator' | 'spread';
  /** This handle, or its cluster handle, was closed. */
  readonly closed: boolean;
  /**
   * The whole region. Loads and stores are plain machine instructions; a page that is not here is fetched by a page fault.
   * It can be posted to workers of this process. An access to a page that is lost, or after the region was closed in
   * all of this process, destroyed, or given up with the member, throws inside {@link attempt} and ends the process
   * (SIGBUS, and a line on stderr) outside. System calls on absent pages fail with EFAULT: see pin().
   * @throws OutOfMemoryError if the region is larger than one buffer of this Node can be: use window()
   */
  readonly buffer: SharedArrayBuffer;
  /** A buffer over a part; `offset` is a multiple of 8, so that every element type stays aligned. */
  window(offset: number, length: number): SharedArrayBuffer;
  /**
   * Fetches pages in few messages, without blocking. They may be taken away again at any time. Default: all, to read.
   * Rejects with PageLostError if one of them is lost.
   */
  prefetch(offset?: number, length?: number, options?: { access?: 'read' | 'write'; signal?: AbortSignal }): Promise<void>;
  /**
   * Fetches the pages that the ranges touch and keeps them here, for what can't take a page fault: fs, net, native code.
   * Others who want them wait meanwhile, hence at most 5000 ms (`timeout`, also the default), from the moment that the
   * last page is here; Pin.renew() starts again. Rejects with PageLostError if one of them is lost.
   */
  pin(ranges: Range | Range[], access: 'read' | 'write', options?: { timeout?: number; signal?: AbortSignal }): Promise<Pin>;
  /**
   * Atomics.wait for the cluster: sleeps until notify() if the int32 at `byteOffset` (a multiple of 4) is `expected`.
   * @param options.timeout ms; absent or Infinity: no limit
   */
  wait(byteOffset: number, expected: number, options?: { timeout?: number; signal?: AbortSignal }): Promise<'ok' | 'not-equal' | 'timed-out'>;
  /** As wait(), but blocks this thread and its event loop. */
  waitSync(byteOffset: number, expected: number, options?: { timeout?: number }): 'ok' | 'not-equal' | 'timed-out';
  /** Wakes up to `count` waiters of the cluster in the order of their waiting (default: all); how many there were. Waiters in Atomics.wait are not seen. */
  notify(byteOffset: number, count?: number): Promise<number>;
  /** As notify(), but blocks this thread until the answer. */
  notifySync(byteOffset: number, count?: number): number;
  /** What is lost now, as far as this member has heard: whole pages, sorted, neighbours merged. Empty if all is well. */
  lost(): Range[];
  /**
   * Makes lost pages usable again, with these bytes (copied at once): whole pages. Rejects with NotLostError if one of
   * the pages is not lost; nothing is changed then. If a home dies in the middle of it that error may also mean that some
   * pages have these bytes by now: look at what is there.
   */
  restore(offset: number, bytes: Uint8Array): Promise<void>;
  /** Makes the bytes zero, and gives the memory of whole pages back everywhere. */
  discard(offset: number, length: number): Promise<void>;
  /** What is known of the page that has this byte. */
  inspect(offset: number): Promise<PageInfo>;
  /** Counters of this process. Blocks for an answer of the coordinator (well below a millisecond). */
  stats(): RegionStats;
  /**
   * Gives this handle up; idempotent. Its pins are released and what it waits for rejects with ClosedError. Buffers made
   * before stay usable as long as another handle of this process has the region open; after that an access to them ends
   * as described at `buffer`. The region itself, and what this member holds of it, stays in the cluster.
   */
  close(): Promise<void>;
  /** Ends the region for everybody; its name is free again. Accesses in any member then end as described at `buffer`. */
  destroy(): Promise<void>;
}

/** Pages that stay here. Released by release(), by disposal, when its time is over, and with its region or cluster handle. */
export interface Pin extends AsyncDisposable, Disposable {
  /** When the pages may be taken away: ms since 1970, as Date.now() counts. */
  readonly until: number;
  /** Whole pages, in address order. */
  readonly ranges: readonly Range[];
  readonly access: 'read' | 'write';
  /** Starts its time again: `timeout` ms from now (default: as at pin()). Rejects with ClosedError if it is over already: the pages may have changed. */
  renew(timeout?: number): Promise<void>;
  /** Idempotent. */
  release(): Promise<void>;
}

export class RegionHandle implements Region {
  readonly #client: Client;
  readonly #open: OpenRegion;
  readonly #forget: (region: RegionHandle) => void;
  readonly #pins = new Set<HeldPin>();
  #closing: Promise<void> | undefined;

  constructor(client: Client, open: OpenRegion, forget: (region: RegionHandle) => void) {
    this.#client = client;
    this.#open = open;
    this.#forget = forget;
  }

  get name(): string { return this.#open.info.name; }
  get size(): number { return this.#open.info.size; }
  get pageSize(): number { return this.#open.info.pageSize; }
  get address(): bigint { return BigInt(this.#open.info.address); }
  get consistency(): 'sequential' { return this.#open.info.consistency; }
  get placement(): 'creator' | 'spread' { return this.#open.info.placement; }
  get closed(): boolean { return this.#closing !== undefined; }

  get buffer(): SharedArrayBuffer {
    this.#check();
    // The limit of a typed array is what makes a larger buffer useless, and Node calls it by this name.
    if (this.size > constants.MAX_LENGTH) {
      throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `region '${this.name}' has ${this.size} bytes, and one buffer of this Node at most ${constants.MAX_LENGTH}: use window()`, { region: this.name, size: this.size, limit: constants.MAX_LENGTH });
    }
    return (this.#open.buffer ??= this.#makeBuffer(0, this.size));
  }

  window(offset: number, length: number): SharedArrayBuffer {
    this.#check();
    checkRange(offset, length, this.size);
    if (length === 0 || length > constants.MAX_LENGTH) throw invalid('length', `a window has from 1 to ${constants.MAX_LENGTH} bytes, not ${length}`);
    checkAligned(offset, 8, 'offset');
    return this.#makeBuffer(offset, length);
  }

  #makeBuffer(offset: number, length: number): SharedArrayBuffer {
    try {
      return native.regionBuffer(this.#open.handle, offset, length);
    } catch (error) {
      throw this.#fromNative(error);
    }
  }

  async prefetch(offset = 0, length?: number, options?: { access?: 'read' | 'write'; signal?: AbortSignal }): Promise<void> {
    this.#check();
    checkRange(offset, length ?? 0, this.size);
    const given = checkObject('options', options);
    const access = checkAccess(given.access ?? 'read');
    const range = { offset, length: length ?? this.size - offset };
    await this.#client.request('prefetch', { region: this.#id, ...range, access }, this, checkSignal('signal', given.signal), async (wanted) => {
      const left = await this.#bring(range, access, wanted);
      return left && { region: this.#id, ...left, access };
    });
  }

  /** Returns what is left of the range: null if all of it is here. */
  async #bring(range: Range, access: number, wanted: () => boolean): Promise<Range | null> {
    const { pageSize } = this;
    const first = Math.floor(range.offset / pageSize);
    const end = Math.ceil((range.offset + range.length) / pageSize);
    const left = await bring(this.#client.member, this.#open.handle, pageSize, [first, end - first], access, wanted);
    return left && { offset: left[0] * pageSize, length: left[1] * pageSize };
  }

  async pin(ranges: Range | Range[], access: 'read' | 'write', options?: { timeout?: number; signal?: AbortSignal }): Promise<Pin> {
    this.#check();
    const pages = checkPinRanges(ranges, this.size, this.pageSize);
    const code = checkAccess(access);
    const given = checkObject('options', options);
    const signal = checkSignal('signal', given.signal);
    const timeout = checkPinTimeout(given.timeout ?? MAX_PIN_MS);
    const args = { region: this.#id, ranges: pages, access: code, timeout };
    const { pin, until } = await this.#client.request('pin', args, this, signal, async (wanted) => {
      for (const range of pages) await this.#bring(range, code, wanted);
      return args;
    });
    const held = new HeldPin(this.#client, pin, until, pages, access, timeout, this.#pins);
    if (this.#closing) {
      await held.release();
      this.#check();
    }
    return held;
  }

  async wait(byteOffset: number, expected: number, options?: { timeout?: number; signal?: AbortSignal }): Promise<'ok' | 'not-equal' | 'timed-out'> {
    const args = this.#waitArgs(byteOffset, expected, options);
    return this.#client.request('wait', args, this, checkSignal('signal', options?.signal));
  }

  waitSync(byteOffset: number, expected: number, options?: { timeout?: number }): 'ok' | 'not-equal' | 'timed-out' {
    return this.#client.requestSync('wait', this.#waitArgs(byteOffset, expected, options));
  }

  #waitArgs(byteOffset: number, expected: unknown, options: unknown): { region: number; offset: number; expected: number; timeout?: number } {
    this.#check();
    this.#checkInt32(byteOffset);
    const { timeout } = checkObject('options', options);
    const args = { region: this.#id, offset: byteOffset, expected: checkInteger('expected', expected, -(2 ** 31), 2 ** 31 - 1) };
    const ms = checkTimeout('timeout', timeout);
    return ms === undefined ? args : { ...args, timeout: ms };
  }

  notify(byteOffset: number, count?: number): Promise<number> {
    return promised(() => this.#client.request('notify', this.#notifyArgs(byteOffset, count), this));
  }

  notifySync(byteOffset: number, count?: number): number {
    return this.#client.requestSync('notify', this.#notifyArgs(byteOffset, count));
  }

  #notifyArgs(byteOffset: number, count: number | undefined): { region: number; offset: number; count: number } {
    this.#check();
    this.#checkInt32(byteOffset);
    const all = count === undefined || count === Infinity;
    return { region: this.#id, offset: byteOffset, count: all ? NOTIFY_ALL : Math.min(NOTIFY_ALL, checkInteger('count', count, 0, Number.MAX_SAFE_INTEGER)) };
  }

  #checkInt32(byteOffset: number): void {
    checkRange(byteOffset, 4, this.size);
    checkAligned(byteOffset, 4, 'byteOffset');
  }

  lost(): Range[] {
    this.#check();
    this.#client.drain();
    return this.#open.lost.map(([first, pages]) => ({ offset: first * this.pageSize, length: pages * this.pageSize }));
  }

  async restore(offset: number, bytes: Uint8Array): Promise<void> {
    this.#check();
    if (!(bytes instanceof Uint8Array)) throw invalid('bytes', `bytes must be a Uint8Array, not ${show(bytes)}`);
    checkRange(offset, bytes.byteLength, this.size);
    checkAligned(offset, this.pageSize, 'offset');
    checkAligned(bytes.byteLength, this.pageSize, 'the number of bytes');
    if (bytes.byteLength === 0) return;
    // Copied here: the bytes may lie in a region, where the coordinator must never fault, and may change meanwhile.
    await this.#client.request('restore', { region: this.#id, offset, bytes: new Uint8Array(bytes) }, this);
  }

  async discard(offset: number, length: number): Promise<void> {
    this.#check();
    checkRange(offset, length, this.size);
    if (length > 0) await this.#client.request('discard', { region: this.#id, offset, length }, this);
  }

  async inspect(offset: number): Promise<PageInfo> {
    this.#check();
    checkRange(offset, 1, this.size);
    return this.#client.request('inspect', { region: this.#id, offset }, this);
  }

  stats(): RegionStats {
    this.#check();
    const counted = this.#client.requestSync('stats', {});
    try {
      return regionStats(native.regionStats(this.#open.handle), native.histogramBounds(), counted.regions[this.#id]);
    } catch (error) {
      throw this.#fromNative(error);
    }
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    this.#client.withdraw(this, closedError(`region '${this.name}'`));
    const pins = [...this.#pins].map((pin) => pin.release());
    const closed = this.#client.closeRegion(this.#open);
    this.#forget(this);
    await Promise.all([...pins, closed]);
  }

  async destroy(): Promise<void> {
    this.#check();
    await this.#client.request('destroy', { region: this.#id }, this);
    this.#open.destroyed = true;
    await this.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get [Symbol.toStringTag](): string { return 'Region'; }

  get #id(): number { return this.#open.info.id; }

  #check(): void {
    if (this.#closing) throw this.#open.destroyed ? destroyedError(this.name) : closedError(`region '${this.name}'`);
    this.#client.check();
    if (this.#open.destroyed) throw destroyedError(this.name);
  }

  /** The addon refuses handles that went down a moment before anybody told us; its own words are for whoever works on it. */
  #fromNative(error: unknown): unknown {
    const { code, message } = error as { code?: string; message: string };
    if (code === 'ERR_NATIVE_HANDLE') {
      this.#client.drain();
      try {
        this.#check();
      } catch (known) {
        return known;
      }
      return closedError(`region '${this.name}'`);
    }
    return code === 'ERR_OUT_OF_MEMORY' ? fromWire({ code: 'ERR_FAULTLINE_OUT_OF_MEMORY', message, fields: { region: this.name } }) : error;
  }
}

class HeldPin implements Pin {
  until: number;
  #released: Promise<void> | undefined;

  constructor(
    readonly client: Client, readonly id: number, until: number, readonly ranges: readonly Range[],
    readonly access: 'read' | 'write', readonly timeout: number, readonly pins: Set<HeldPin>,
  ) {
    this.until = until;
    pins.add(this);
    hide(this, 'client', 'id', 'pins');
  }

  async renew(timeout: number = this.timeout): Promise<void> {
    if (this.#released) throw closedError('pin');
    const { until } = await this.client.request('pin-renew', { pin: this.id, timeout: checkPinTimeout(timeout) }, this);
    this.until = until;
  }

  release(): Promise<void> {
    return (this.#released ??= this.#release());
  }

  async #release(): Promise<void> {
    this.pins.delete(this);
    try {
      await this.client.request('pin-release', { pin: this.id }, this);
    } catch (error) {
      if (!isOverError(error)) throw error;
    }
  }

  /** Nobody waits for it: the coordinator reads it before anything that this thread asks for later. */
  [Symbol.dispose](): void {
    this.release().catch(() => undefined);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }
}

function checkAccess(access: unknown): number {
  return checkChoice('access', access, ['read', 'write']) === 'write' ? Access.Write : Access.Read;
}

function checkPinTimeout(timeout: unknown): number {
  return checkInteger('timeout', timeout, 1, MAX_PIN_MS, ' ms');
}

/** Asynchronous calls reject, also for bad arguments; they never throw. */
export async function promised<T>(call: () => Promise<T>): Promise<T> {
  return call();
}

export function closedError(what: string): FaultlineError {
  return makeError('ERR_FAULTLINE_CLOSED', `this ${what} is closed`, { what });
}

function destroyedError(region: string): FaultlineError {
  return makeError('ERR_FAULTLINE_REGION_DESTROYED', `region '${region}' was destroyed`, { region });
}
