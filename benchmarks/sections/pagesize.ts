/** What a larger page costs, and what it brings. */
import { use } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import type { Party } from '../party.js';
import { size } from '../references/sockets.js';
import { shuffled } from '../samples.js';
import type { State } from '../state.js';

const KIB = 1024;
const MIB = KIB * KIB;
const SIZES = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 2 * MIB];
const QUICK_SIZES = [4 * KIB, 64 * KIB];
const SCANNED = 16 * MIB;
const QUICK_SCANNED = MIB;
/** Bytes of a region whose pages are read in an order without a pattern. */
const MOST = 64 * MIB;

export const actions = {
  async make(state: State, { region, bytes, pageSize }: { region: string; bytes: number; pageSize: number }): Promise<void> {
    const made = await state.cluster.region(region, { mode: 'create', size: bytes, pageSize });
    const view = new Float64Array(made.buffer);
    view.fill(1);
    state.regions.set(region, { region: made, view: new Int32Array(made.buffer) });
  },

  /** ns of a read of one word in each page. */
  touch(state: State, { region, from, count }: { region: string; from: number; count: number }): Float64Array {
    const at = state.at(region).region;
    const view = new Float64Array(at.buffer);
    const order = state.keep(`pages ${at.size / at.pageSize}`, () => shuffled(at.size / at.pageSize));
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const word = (order[from + i] * at.pageSize) / 8;
      const start = process.hrtime.bigint();
      const value = view[word];
      samples[i] = Number(process.hrtime.bigint() - start);
      if (value !== 1) throw new Error(`page ${order[from + i]} holds ${value}`);
    }
    return samples;
  },

  /** ns of a read of every word. */
  scan(state: State, { region }: { region: string }): number {
    const view = new Float64Array(state.at(region).region.buffer);
    const start = process.hrtime.bigint();
    let sum = 0;
    for (let i = 0; i < view.length; i++) sum += view[i];
    const took = Number(process.hrtime.bigint() - start);
    if (sum !== view.length) throw new Error(`the words add up to ${sum}`);
    use(sum);
    return took;
  },
};

async function make(party: Party, region: string, bytes: number, pageSize: number): Promise<void> {
  await party.call(0, 'sections/pagesize#make', { region, bytes, pageSize });
  await party.call(1, 'actions#open', { region });
}

async function measure(bench: Bench, party: Party, pageSize: number): Promise<void> {
  const { quick, samples } = bench.settings;
  const pages = Math.min(samples, Math.floor(MOST / pageSize));
  bench.progress(`pages of ${size(pageSize)}`);
  const region = `pages of ${pageSize}`;
  await make(party, region, pages * pageSize, pageSize);
  const taken = await party.call<Float64Array>(1, 'sections/pagesize#touch', { region, from: 0, count: pages });
  // The first ones only warm up.
  bench.add({ key: `read-${pageSize}`, what: `cold remote read of a page of ${size(pageSize)}`, bytes: pageSize }, taken.subarray(Math.floor(pages / 4)));
  await party.call(1, 'actions#destroy', { region });
  const bytes = quick ? QUICK_SCANNED : SCANNED;
  const times = quick ? 2 : 5;
  const scans: number[] = [];
  for (let round = 0; round <= times; round++) {
    const scanned = `scan ${pageSize} ${round}`;
    await make(party, scanned, bytes, pageSize);
    const ns = await party.call<number>(1, 'sections/pagesize#scan', { region: scanned });
    if (round > 0) scans.push(ns);
    await party.call(1, 'actions#destroy', { region: scanned });
  }
  bench.add({ key: `scan-${pageSize}`, what: `sequential read of ${size(bytes)} in pages of ${size(pageSize)}`, bytes }, scans);
}

export const section: Section = {
  name: 'pagesize',
  title: 'Page sizes',
  about: 'a cold read of one page, and a sequential scan, with pages of 4 KiB to 2 MiB',
  async run(bench) {
    const party = await bench.party({ members: 2 });
    for (const pageSize of bench.settings.quick ? QUICK_SIZES : SIZES) await measure(bench, party, pageSize);
  },
};
