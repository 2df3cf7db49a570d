/** What all sections let members do. */
import { join, type JoinOptions } from '../lib/index.js';
import { shuffled } from './samples.js';
import type { State } from './state.js';

/** Of the regions that are measured here. */
export const PAGE = 4096;
const INTS = PAGE / 4;

interface Pages { region: string; from: number; count: number }

let sink = 0;
/** What is never used the compiler may never compute. */
export function use(value: number): void {
  sink ^= value;
  if (sink === 0.5) throw new Error('not reached: the value is a whole number');
}

function order(state: State, region: string): Uint32Array {
  const { size } = state.at(region).region;
  return state.keep(`order ${size}`, () => shuffled(size / PAGE));
}

function timeReads(view: Int32Array, pages: Uint32Array, from: number, expected: number, samples: Float64Array): void {
  for (let i = 0; i < samples.length; i++) {
    const at = pages[from + i] * INTS;
    const start = process.hrtime.bigint();
    const value = view[at];
    samples[i] = Number(process.hrtime.bigint() - start);
    if (value !== pages[from + i] + expected) throw new Error(`page ${pages[from + i]} holds ${value}, not ${pages[from + i] + expected}`);
  }
}

function timeWrites(view: Int32Array, pages: Uint32Array, from: number, tag: number, samples: Float64Array): void {
  for (let i = 0; i < samples.length; i++) {
    const at = pages[from + i] * INTS;
    const start = process.hrtime.bigint();
    view[at] = pages[from + i] + tag;
    samples[i] = Number(process.hrtime.bigint() - start);
  }
}

export const actions = {
  async start(state: State, { index, cluster, ...options }: { index: number; cluster?: string } & Pick<JoinOptions, 'lane' | 'guard' | 'systemCalls' | 'memoryLimit'>): Promise<void> {
    state.index = index;
    if (cluster !== undefined) state.cluster = await join({ cluster, ...options });
  },

  leave: (state: State): Promise<void> => state.cluster.close(),

  async create(state: State, { region, size }: { region: string; size: number }): Promise<void> {
    const made = await state.cluster.region(region, { mode: 'create', size, pageSize: PAGE });
    state.regions.set(region, { region: made, view: new Int32Array(made.window(0, Math.min(size, 2 ** 30))) });
  },

  async open(state: State, { region }: { region: string }): Promise<void> {
    const opened = await state.cluster.region(region, { mode: 'wait' });
    state.regions.set(region, { region: opened, view: new Int32Array(opened.window(0, Math.min(opened.size, 2 ** 30))) });
  },

  async destroy(state: State, { region }: { region: string }): Promise<void> {
    await state.at(region).region.destroy();
    state.regions.delete(region);
  },

  /** Another member has destroyed it. */
  forget(state: State, { region }: { region: string }): void {
    state.regions.delete(region);
  },

  /** Each page gets its number + tag in its first word, in ascending order. */
  fill(state: State, { region, from, count, tag }: Pages & { tag: number }): void {
    const { view } = state.at(region);
    for (let page = from; page < from + count; page++) view[page * INTS] = page + tag;
  },

  prefetch: (state: State, { region, from, count, access }: Pages & { access: 'read' | 'write' }): Promise<void> =>
    state.at(region).region.prefetch(from * PAGE, count * PAGE, { access }),

  /** ns of single reads, in the order without a pattern. */
  read(state: State, { region, from, count, tag }: Pages & { tag: number }): Float64Array {
    const samples = new Float64Array(count);
    timeReads(state.at(region).view, order(state, region), from, tag, samples);
    return samples;
  },

  write(state: State, { region, from, count, tag }: Pages & { tag: number }): Float64Array {
    const samples = new Float64Array(count);
    timeWrites(state.at(region).view, order(state, region), from, tag, samples);
    return samples;
  },

  regionStats: (state: State, { region }: { region: string }): unknown => structuredClone({ ...state.at(region).region.stats(), waits: undefined }),
  clusterStats: (state: State): unknown => ({ ...state.cluster.stats() }),

  /** ns that asking for the time twice takes: in every sample. */
  clock(): number {
    const start = process.hrtime.bigint();
    for (let i = 0; i < 10_000; i++) process.hrtime.bigint();
    return Number(process.hrtime.bigint() - start) / 10_000;
  },
};
