/** Does a fault cost more in a larger region, with more cached pages, with more members? */
import { PAGE } from '../actions.js';
import type { Bench, Meter, Section } from '../bench.js';
import { faultMeter } from '../faults.js';
import { size } from '../references/sockets.js';
import { shuffled } from '../samples.js';
import type { State } from '../state.js';

const MIB = 2 ** 20;
const SIZES = [MIB, 64 * MIB, 1024 * MIB, 16 * 1024 * MIB, MIB * MIB];
const CACHED = [10, 1000, 10_000, 100_000];
const MEMBERS = [2, 4, 8];

export const actions = {
  /**
   * Pages of a region that may be larger than one buffer can be: neighbours from its middle on, or, with `spread`, far
   * from one another and from those. The home writes them first.
   */
  async pages(state: State, { region, count, spread }: { region: string; count: number; spread: boolean }): Promise<void> {
    const at = await state.cluster.region(region, { mode: 'open' });
    const pages = at.size / PAGE;
    const step = spread ? Math.floor(pages / count / 2) : 1;
    const first = spread ? 0 : pages >= 2 * count ? pages / 2 : 0;
    const views = Array.from(shuffled(count), (page) => new Int32Array(at.window((first + page * step) * PAGE, PAGE)));
    if (state.index === 0) for (const view of views) view[0] = 1;
    state.kept.set(`pages ${region} ${spread}`, views);
  },

  make: async (state: State, { region, bytes }: { region: string; bytes: number }): Promise<number> => {
    const start = process.hrtime.bigint();
    await state.cluster.region(region, { mode: 'create', size: bytes, pageSize: PAGE });
    return Number(process.hrtime.bigint() - start);
  },

  touch(state: State, { region, spread, from, count }: { region: string; spread: boolean; from: number; count: number }): Float64Array {
    const views = state.kept.get(`pages ${region} ${spread}`) as Int32Array[];
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const view = views[from + i];
      const start = process.hrtime.bigint();
      const value = view[0];
      samples[i] = Number(process.hrtime.bigint() - start);
      if (value !== 1) throw new Error(`a page of ${region} holds ${value}`);
    }
    return samples;
  },
};

/** Pages of the smallest region. */
const MOST = MIB / PAGE;

async function bySize(bench: Bench): Promise<Meter[]> {
  const meters: Meter[] = [];
  const party = await bench.party({ members: 2 });
  for (const bytes of bench.settings.quick ? SIZES.slice(0, 2) : SIZES) {
    const region = `size ${bytes}`;
    const what = `cold remote read in a region of ${size(bytes)}`;
    try {
      await party.call(0, 'sections/growth#make', { region, bytes });
    } catch (error) {
      bench.leaveOut(what, String((error as Error).message).split('\n')[0]);
      continue;
    }
    // Pages far from one another need parts of all tables, the kernel's too, that nobody has touched before.
    for (const spread of bytes >= 2 * MOST * MIB ? [false, true] : [false]) {
      for (const member of [0, 1]) await party.call(member, 'sections/growth#pages', { region, count: MOST, spread });
      let from = 0;
      meters.push({
        key: `${spread ? 'spread' : 'size'}-${bytes}`, what: `${what}${spread ? ', pages far apart' : ''}`,
        async take(count) {
          const taken = await party.call<Float64Array>(1, 'sections/growth#touch', { region, spread, from, count });
          from += count;
          return taken;
        },
      });
    }
  }
  return meters;
}

async function byCached(bench: Bench): Promise<Meter[]> {
  const meters: Meter[] = [];
  for (const cached of bench.settings.quick ? CACHED.slice(0, 2) : CACHED) {
    const party = await bench.party({ members: 2 });
    bench.progress(`${cached} cached pages`);
    await party.call(0, 'actions#create', { region: 'cached', size: cached * PAGE });
    await party.call(0, 'actions#fill', { region: 'cached', from: 0, count: cached, tag: 1 });
    await party.call(1, 'actions#open', { region: 'cached' });
    await party.call(1, 'actions#prefetch', { region: 'cached', from: 0, count: cached, access: 'read' });
    meters.push(await faultMeter(bench, party, { key: `cached-${cached}`, what: `cold remote read with ${cached} cached pages`, access: 'read', pages: MOST }));
  }
  return meters;
}

async function byMembers(bench: Bench): Promise<Meter[]> {
  const meters: Meter[] = [];
  for (const members of MEMBERS) {
    const party = await bench.party({ members });
    meters.push(await faultMeter(bench, party, { key: `members-${members}`, what: `cold remote read in a cluster of ${members}`, access: 'read', pages: MOST }));
  }
  return meters;
}

export const section: Section = {
  name: 'growth',
  title: 'Does a fault cost more when there is more?',
  about: 'cold remote reads as the region grows from 1 MiB to 1 TiB, cached pages from 10 to 100,000, members from 2 to 8',
  async run(bench) {
    const samples = Math.min(bench.settings.samples, 150);
    const warmUp = Math.min(bench.settings.warmUp, MOST - samples);
    const groups = [['size', await bySize(bench)], ['cached', await byCached(bench)], ['members', await byMembers(bench)]] as const;
    await bench.measure(groups.flatMap(([, meters]) => meters), { samples, warmUp, block: 25 });
    for (const [plot, meters] of groups) {
      for (const { key } of meters) {
        const row = bench.row(key);
        if (row && key.startsWith(plot)) bench.point({ plot, series: 'median' }, { x: Number(key.split('-')[1]) / (plot === 'size' ? MIB : 1), y: row.median });
      }
    }
  },
};
