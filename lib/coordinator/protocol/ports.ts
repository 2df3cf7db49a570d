/**
 * The three small interfaces through which the protocol touches the world. In production they are ZeroMQ, the addon
 * and the event loop; in the simulator they are all made of one seed. Nothing else may be reached from this folder.
 */
import type { MemberId, Message } from './messages.js';

export interface Network {
  readonly self: MemberId;
  /** FIFO for each receiver; dropped if it is not in the view. `payload` is given away. Never called with `self`. */
  send(to: MemberId, message: Message, payload?: Uint8Array): void;
  /** A peer that is in the view leaves questions unanswered: the membership decides who has to go. */
  suspect(member: MemberId): void;
}

export interface Timer { cancel(): void }

export interface Timers {
  /** µs, monotonic. */
  now(): number;
  /** Calls back once, not before `delay` µs have passed. Short delays are kept precisely, long ones to a few ms. */
  after(delay: number, callback: () => void): Timer;
}

/**
 * One region's words and bytes at this member: the addon's functions (see native.ts, which documents them) without the
 * region handle. Words change only through these.
 */
export interface RegionMemory {
  readonly pageSize: number;
  allocate(bytes: number): Uint8Array;

  claim(first: number, count: number, access: number, out: Uint8Array): number;
  heldVersion(page: number): number;
  keptVersion(page: number): number;
  held(page: number): number;
  install(first: number, count: number, version: number, grant: number, content: number, bytes: Uint8Array | null, byteOffset: number, out: Uint8Array): number;
  abandon(first: number, count: number): void;
  lose(first: number, count: number, member: MemberId, epoch: number): void;
  find(first: number, count: number): void;
  invalidate(first: number, count: number, version: number, out: Uint8Array): number;
  recall(first: number, count: number, version: number, keep: boolean, wantBytes: boolean, out: Uint8Array, buffer: Uint8Array, byteOffset: number): number;
  downgrade(first: number, count: number, toShared: boolean, out: Uint8Array): number;
  deferral(page: number): number;
  returned(first: number, count: number, version: number): void;
  drop(first: number, count: number): number;
  reclaim(first: number, count: number, most: number, out: Float64Array): [next: number, records: number];
  pin(first: number, count: number, access: number): boolean;
  unpin(first: number, count: number, access: number): void;
  coalesce(page: number): void;
  holdings(first: number, count: number, out: Float64Array): [number, number];

  setHomed(firstExtent: number, count: number, homed: boolean, lost: boolean): void;
  /** Whose home the pages are, for lanes: first page, pages, slot of the home, generation of each slice. */
  setSlices(slices: Float64Array): void;
  begin(page: number): number;
  directory(page: number, out: Float64Array): void;
  end(page: number, state: number, owner: number, version: number, copysetLow: number, copysetHigh: number, keepTxn: boolean): void;
  /** The directory's hints: slot + 1 of the writer that kept a copy, or 0; whether one member after another reads and then writes the page. */
  hint(page: number, writer: number, migratory: boolean): void;
  readPages(first: number, count: number, buffer: Uint8Array, byteOffset: number, out: Uint8Array): number;
  writePages(first: number, count: number, bytes: Uint8Array, byteOffset: number): void;
  zero(offset: number, length: number): void;
  load32(byteOffset: number): number;
  sweep(first: number, count: number, slot: number, out: Float64Array): [number, number];
  directoryRecords(first: number, count: number, out: Float64Array): [number, number];
  /** Shuts out the handlers' home transitions while homes change; calls back when none is inside. */
  closeGate(drained: () => void): void;
  openGate(): void;
}

/** What the protocol tells the rest of the coordinator about a region. */
export interface RegionEvents {
  lost(runs: [first: number, count: number][], member: MemberId, epoch: number): void;
  found(runs: [first: number, count: number][]): void;
}

/** The words of native memory as numbers. They are native.ts's; kept here too so that this folder imports nothing. */
export const Held = { Invalid: 0, Shared: 1, Exclusive: 2, Lost: 3 } as const;
export const Access = { Read: 1, Write: 2 } as const;
export const DirState = { Idle: 0, Exclusive: 1, Lost: 2, Away: 3 } as const;
export const Claim = { Claimed: 0, Held: 1, Pending: 2, Busy: 3, Lost: 4 } as const;
export const Install = { Installed: 0, Discarded: 1, NotClaimed: 2, Busy: 3 } as const;
export const Close = { Done: 0, Zero: 1, Unchanged: 2, Deferred: 3 } as const;
export const Begin = { Begun: 0, Locked: 1, Running: 2 } as const;
export const Content = { Bytes: 0, Zero: 1, Same: 2 } as const;
export const HOLDING_RECORD = 5;
export const DIRECTORY_RECORD = 7;
/** What reclaim() says of owned pages: first, count, version. */
export const RECLAIM_RECORD = 3;

/** A broken assumption of the protocol: the coordinator must not go on from a state that nobody understands. */
export function invariant(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`faultline protocol invariant violated: ${message}`);
}
