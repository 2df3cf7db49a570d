/** Scans of cold regions, for several sections. */
import { PAGE, use } from './actions.js';
import type { Party } from './party.js';
import { shuffled } from './samples.js';
import type { State } from './state.js';

const DOUBLES = PAGE / 8;
/** Of strided scans: every so many pages. */
export const STRIDE = 4;

export type Pattern = 'sequential' | 'strided' | 'random' | number;

/** Members that take what another one has written, with the home, which is member 0, among them or between them. */
export const takers = [
  { key: 'home', reader: 0, writer: 1, who: 'at the home, owned by another member' },
  { key: 'third', reader: 1, writer: 2, who: 'owned by a third member' },
] as const;

/** The pages of a scan, in order. A number: runs of that many neighbours, the runs in an order without a pattern. */
export function pagesOf(pattern: Pattern, pages: number): Uint32Array {
  if (pattern === 'sequential') return Uint32Array.from({ length: pages }, (_, i) => i);
  if (pattern === 'strided') return Uint32Array.from({ length: Math.floor(pages / STRIDE) }, (_, i) => i * STRIDE);
  if (pattern === 'random') return shuffled(pages);
  const runs = shuffled(Math.floor(pages / pattern));
  return Uint32Array.from({ length: runs.length * pattern }, (_, i) => runs[Math.floor(i / pattern)] * pattern + (i % pattern));
}

function readPages(view: Float64Array, list: Uint32Array): number {
  let sum = 0;
  for (let i = 0; i < list.length; i++) {
    const first = list[i] * DOUBLES;
    for (let word = first; word < first + DOUBLES; word++) sum += view[word];
  }
  return sum;
}

function writePages(view: Float64Array, list: Uint32Array): void {
  for (let i = 0; i < list.length; i++) {
    const first = list[i] * DOUBLES;
    for (let word = first; word < first + DOUBLES; word++) view[word] = i;
  }
}

export interface Scan { region: string; pattern: Pattern; pages: number; access: 'read' | 'write' }

export const actions = {
  /** Every word of these pages; ns. What is read must add up to what fill() wrote. */
  scan(state: State, { region, pattern, pages, access }: Scan): number {
    const view = new Float64Array(state.at(region).region.buffer);
    const list = state.keep(`scan ${pattern} ${pages}`, () => pagesOf(pattern, pages));
    const start = process.hrtime.bigint();
    const sum = access === 'read' ? readPages(view, list) : (writePages(view, list), 0);
    const took = Number(process.hrtime.bigint() - start);
    if (access === 'read' && sum !== list.length * DOUBLES) throw new Error(`the words of the scan add up to ${sum}`);
    use(sum);
    return took;
  },

  fillOnes(state: State, { region }: { region: string }): void {
    new Float64Array(state.at(region).region.buffer).fill(1);
  },
};

/** A region that `writer` has filled, by default its home, and the others have open; `use` is called, and then it is destroyed. */
export async function withCold<T>(party: Party, region: string, pages: number, use: () => Promise<T>, writer = 0): Promise<T> {
  const others = Array.from({ length: party.size - 1 }, (_, i) => i + 1);
  await party.call(0, 'actions#create', { region, size: pages * PAGE });
  for (const member of others) await party.call(member, 'actions#open', { region });
  await party.call(writer, 'scans#fillOnes', { region });
  try {
    return await use();
  } finally {
    await party.call(1, 'actions#destroy', { region });
    for (const member of [0, ...others.slice(1)]) await party.call(member, 'actions#forget', { region });
  }
}
