/** What the runner, its members and their threads say to one another. */
import type { Form, Size } from './shapes.js';

/** One access of a thread, for every instance of a batch. */
export interface AccessPlan {
  kind: 'load' | 'store';
  size: Size;
  value: number;
  /** Bytes from the start of the region, for each instance. */
  addresses: Int32Array;
}

/**
 * How threads keep abreast: at each instance those of one process look for one another in memory of their own (`self` of
 * `threads`); those of several processes, which have no memory in common but the one that is tested, go by the
 * machine's clock, an instance every `period` ns.
 */
export type Pace = { by: 'looking'; self: number; threads: number } | { by: 'clock'; period: number };

/** A thread's part of a batch. */
export interface RunPlan {
  form: Form;
  accesses: AccessPlan[];
  /** Instances in the order in which the thread comes to them. */
  order: Int32Array;
  /** Before each instance of `order`: how often to go round an empty loop. */
  delays: Uint16Array;
  /** Likewise after each access of an instance; null: go on at once, while the store may still be in its buffer. */
  gaps: Uint32Array | null;
  pace: Pace;
  /** Bytes at which to read one word before the start, so that a copy of the page is here. */
  warm: Int32Array;
  /** The start: add one at `at`, then wait until it is `target`. */
  start: { at: number; target: number; within: number };
}

export type Job =
  | { do: 'run'; plan: RunPlan }
  /** Makes these pages zero. */
  | { do: 'clear'; pages: Int32Array; pageSize: number }
  /** Reads eight bytes at each address. */
  | { do: 'read'; addresses: Int32Array };

/** The loaded values of one access after the other, instance by instance; or what was read. */
export type Values = Float64Array;

export type Question =
  | { id: number; join: { cluster: string; name: string } }
  | { id: number; open: { name: string; size?: number } }
  /** The home of each of these pages. */
  | { id: number; homes: { pages: number[] } }
  | { id: number; startThread: number }
  | { id: number; thread: number; job: Job }
  | { id: number; close: true };

export type Answer = { id: number; value: unknown } | { id: number; error: string };
