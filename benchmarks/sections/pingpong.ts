/** A page that goes to and fro between two writers. */
import { PAGE } from '../actions.js';
import type { Meter, Section } from '../bench.js';
import { faultMeter } from '../faults.js';
import type { Party } from '../party.js';
import { round } from '../samples.js';
import type { State } from '../state.js';

/** So many that pages which are used together are far from one another: nothing is read ahead. */
const PAGES = 4096;
const TURNS_MS = 30_000;

export const actions = {
  /** Two call this, with parity 0 and 1: each waits for its turn in the page and ends it; ns between two turns of its own. */
  turns(state: State, { region, parity, first, turns }: { region: string; parity: 0 | 1; first: number; turns: number }): Float64Array {
    const { view } = state.at(region);
    const samples = new Float64Array(turns);
    let last = process.hrtime.bigint();
    const until = Date.now() + TURNS_MS;
    for (let i = 0; i < turns; i++) {
      const turn = first + 2 * i + parity;
      for (let tries = 1; Atomics.compareExchange(view, 0, turn, turn + 1) !== turn; tries++) {
        if (tries % 1024 === 0 && Date.now() > until) throw new Error(`the other writer does not move: turn ${turn}, the page says ${view[0]}`);
      }
      const now = process.hrtime.bigint();
      samples[i] = Number(now - last);
      last = now;
    }
    return samples;
  },
};

/** Blocks of pages: one member writes each of them, then the other does. What is timed is a write to a page that the other owns. */
async function blocks(party: Party, [one, other]: [number, number], key: string, what: string): Promise<Meter> {
  const region = `blocks ${key}`;
  await party.call(0, 'actions#create', { region, size: PAGES * PAGE });
  for (const member of [one, other]) if (member !== 0) await party.call(member, 'actions#open', { region });
  return {
    key, what, processes: party.size,
    async take(count) {
      const half = Math.ceil(count / 2);
      await party.call(other, 'actions#write', { region, from: 0, count: half, tag: 0 });
      const first = await party.call<Float64Array>(one, 'actions#write', { region, from: 0, count: half, tag: 0 });
      const second = await party.call<Float64Array>(other, 'actions#write', { region, from: 0, count: count - half, tag: 0 });
      return [...first, ...second];
    },
  };
}

interface Stats { faults: { read: number; write: number }; lanes: { faults: number } }

interface Contended extends Meter {
  /** What the two members counted in the region, together. */
  counted(): Promise<{ faults: number; lanes: number; handOvers: number }>;
}

/** One page, as fast as it goes. */
async function contended(party: Party, members: [number, number], key: string, what: string): Promise<Contended> {
  const region = `one page ${key}`;
  await party.call(0, 'actions#create', { region, size: PAGE });
  for (const member of members) if (member !== 0) await party.call(member, 'actions#open', { region });
  let first = 0;
  return {
    key, what, processes: party.size, note: 'both spin',
    async counted() {
      const all = await Promise.all(members.map((member) => party.call<Stats>(member, 'actions#regionStats', { region })));
      const sum = (of: (stats: Stats) => number): number => all.reduce((total, stats) => total + of(stats), 0);
      return { faults: sum((stats) => stats.faults.read + stats.faults.write), lanes: sum((stats) => stats.lanes.faults), handOvers: first };
    },
    async take(count) {
      const turns = Math.ceil(count / 2) + 1;
      const taken = await Promise.all(members.map((member, parity) => party.call<Float64Array>(member, 'sections/pingpong#turns', { region, parity, first, turns })));
      first += 2 * turns;
      // The first of each is the time until the other was there at all. Two hand-overs lie between two turns of one's own.
      return taken.flatMap((samples) => Array.from(samples.subarray(1), (sample) => sample / 2)).slice(0, count);
    },
  };
}

export const section: Section = {
  name: 'pingpong',
  title: 'Ping-pong: a page goes from one writer to the other',
  about: 'hand-over between the home and one member, and between two that are not the home; many pages in turn, and one page as fast as it goes',
  async run(bench) {
    const pair = await bench.party({ members: 2 });
    const three = await bench.party({ members: 3 });
    const off = await bench.party({ members: 2, lane: 'off' });
    await bench.measure([
      await faultMeter(bench, pair, { key: 'read', what: 'cold remote read, for comparison', access: 'read' }),
      await blocks(pair, [1, 0], 'home', 'hand-over, the home and a member'),
      await blocks(off, [1, 0], 'home-off', 'hand-over, the home and a member, through the coordinators'),
      await blocks(three, [1, 2], 'members', 'hand-over, two members that are not the home'),
    ]);
    const few = { samples: Math.min(bench.settings.samples, bench.placement.name === 'one' ? 100 : 1000), warmUp: Math.min(bench.settings.warmUp, 50) };
    const spinning = [
      await contended(pair, [0, 1], 'home-contended', 'one contended page, the home and a member'),
      await contended(three, [1, 2], 'members-contended', 'one contended page, two members that are not the home'),
    ];
    await bench.measure(spinning, few);
    for (const { key, what, counted } of spinning) {
      const { faults, lanes, handOvers } = await counted();
      bench.count(`${key}-faults`, `${what}: faults for each hand-over`, round(faults / handOvers), '');
      bench.count(`${key}-lanes`, `${what}: part of them that a lane served`, round(lanes / faults), '');
    }
  },
};
