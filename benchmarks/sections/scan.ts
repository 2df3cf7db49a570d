/** Scans of memory that is not here: bandwidth by pattern, and by the length of runs. */
import { PAGE } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import type { Party } from '../party.js';
import { size, stream } from '../references/sockets.js';
import { pagesOf, takers, withCold, type Pattern } from '../scans.js';

interface Stats { pages: { in: number }; lanes: { ahead: number } }
interface Kind { pattern: Pattern; access: 'read' | 'write'; what: string }

const kinds: Kind[] = [
  { pattern: 'sequential', access: 'read', what: 'sequential read' },
  { pattern: 'sequential', access: 'write', what: 'sequential write' },
  { pattern: 'strided', access: 'read', what: 'strided read, every fourth page' },
  { pattern: 'strided', access: 'write', what: 'strided write, every fourth page' },
  { pattern: 'random', access: 'read', what: 'random read' },
  { pattern: 'random', access: 'write', what: 'random write' },
];
const RUNS = [1, 2, 4, 8, 16, 32, 64, 128, 256];

let scans = 0;

async function scan(party: Party, kind: Kind, pages: number): Promise<{ ns: number; stats: Stats }> {
  const region = `scan ${++scans}`;
  return withCold(party, region, pages, async () => {
    const ns = await party.call<number>(1, 'scans#scan', { region, pages, pattern: kind.pattern, access: kind.access });
    return { ns, stats: await party.call<Stats>(1, 'actions#regionStats', { region }) };
  });
}

async function patterns(bench: Bench, pages: number, times: number): Promise<void> {
  const lanes = await bench.party({ members: 2, lane: 'auto' });
  const off = await bench.party({ members: 2, lane: 'off' });
  const taken = new Map<string, number[]>();
  const came = new Map<string, number[]>();
  const reference = await stream(bench, 'unix', pages * PAGE);
  const references: number[] = [];
  // The first round only warms up.
  for (let round = 0; round <= times; round++) {
    for (const [party, suffix] of [[lanes, ''], [off, '-off']] as const) {
      for (const kind of kinds) {
        bench.progress(`round ${round} of ${times}: ${kind.what}${suffix}`);
        const { ns, stats } = await scan(party, kind, pages);
        if (round === 0) continue;
        const key = `${kind.pattern}-${kind.access}${suffix}`;
        taken.set(key, [...(taken.get(key) ?? []), ns]);
        came.set(key, [...(came.get(key) ?? []), stats.pages.in / pagesOf(kind.pattern, pages).length]);
      }
    }
    const [ns] = Array.from(await reference.take(1));
    if (round > 0) references.push(ns);
  }
  for (const suffix of ['', '-off']) {
    for (const kind of kinds) {
      const key = `${kind.pattern}-${kind.access}${suffix}`;
      const bytes = pagesOf(kind.pattern, pages).length * PAGE;
      bench.add({ key, what: `${kind.what} of ${size(bytes)}${suffix ? ', through the coordinators' : ''}`, bytes }, taken.get(key)!);
    }
  }
  bench.add({ ...reference, key: 'c-stream' }, references);
  for (const suffix of ['', '-off']) {
    const parts = came.get(`random-read${suffix}`)!;
    const most = Math.max(...parts);
    bench.count(`random-waste${suffix}`, `random read${suffix ? ', through the coordinators' : ''}: pages that came ÷ pages that were read, at most`, Math.round(most * 1000) / 1000, '');
  }
}

async function runs(bench: Bench, pages: number, times: number): Promise<void> {
  for (const lane of ['auto', 'off'] as const) {
    const party = await bench.party({ members: 2, lane });
    for (const length of RUNS.filter((one) => one <= pages / 4)) {
      bench.progress(`runs of ${length}${lane === 'off' ? ', through the coordinators' : ''}`);
      let best = Infinity;
      for (let round = 0; round < times; round++) best = Math.min(best, (await scan(party, { pattern: length, access: 'read', what: '' }, pages)).ns);
      bench.point({ plot: 'runs', series: lane === 'auto' ? 'lane' : 'through the coordinators' }, { x: length, y: Math.round((pages * PAGE) / (best / 1000)) });
    }
  }
}

/** What another member has written to pages of the home, read by the home, and by a third. */
async function owned(bench: Bench, pages: number, times: number): Promise<void> {
  const three = await bench.party({ members: 3 });
  for (const { key, reader, writer, who } of takers) {
    await rounds(bench, three, { key: `owned-${key}`, what: `sequential read, ${who}` }, pages, times, (region) => withCold(three, region, pages, () => sequential(three, reader, region, pages, 'read'), writer));
  }
}

/** The home writes again what another member has read: its copies have to go. */
async function shared(bench: Bench, pages: number, times: number): Promise<void> {
  for (const lane of ['auto', 'off'] as const) {
    const pair = await bench.party({ members: 2, lane });
    const suffix = lane === 'auto' ? '' : '-off';
    const what = `sequential write at the home, of what another member has read${lane === 'auto' ? '' : ', through the coordinators'}`;
    await rounds(bench, pair, { key: `shared-home${suffix}`, what }, pages, times, (region) => withCold(pair, region, pages, async () => {
      await pair.call(1, 'actions#prefetch', { region, from: 0, count: pages, access: 'read' });
      return sequential(pair, 0, region, pages, 'write');
    }));
  }
}

const sequential = (party: Party, member: number, region: string, pages: number, access: 'read' | 'write'): Promise<number> =>
  party.call<number>(member, 'scans#scan', { region, pages, pattern: 'sequential', access });

/** The first round only warms up. */
async function rounds(bench: Bench, party: Party, row: { key: string; what: string }, pages: number, times: number, once: (region: string) => Promise<number>): Promise<void> {
  const taken: number[] = [];
  for (let round = 0; round <= times; round++) {
    bench.progress(`round ${round} of ${times}: ${row.what}`);
    const ns = await once(`scan ${++scans}`);
    if (round > 0) taken.push(ns);
  }
  bench.add({ key: row.key, what: `${row.what}, of ${size(pages * PAGE)}`, bytes: pages * PAGE, processes: party.size }, taken);
}

export const section: Section = {
  name: 'scan',
  title: 'Scans of cold memory, every word of each page',
  about: 'sequential, strided and random, read and write, beside a C program that receives as many bytes; bandwidth against run length',
  async run(bench) {
    const { quick } = bench.settings;
    await patterns(bench, quick ? 256 : 4096, quick ? 2 : 10);
    await owned(bench, quick ? 256 : 4096, quick ? 2 : 10);
    await shared(bench, quick ? 256 : 4096, quick ? 2 : 10);
    await runs(bench, quick ? 64 : 1024, quick ? 1 : 3);
  },
};
