/** Where the time of a fault goes: stamps of all who take part, put together page by page. */
import { native } from '../../lib/native.js';
import { HOME_TAG, prepareFaults, takeAll } from '../faults.js';
import type { Bench, Section } from '../bench.js';
import type { Party } from '../party.js';
import { shuffled } from '../samples.js';
import { COORDINATORS_WARM_UP, warmUpOf } from '../settings.js';
import type { State } from '../state.js';
import { stagesOf, type Access, type StampTuple } from '../stamps.js';

/** Of each process: enough for the faults of one path, and what comes before them. */
const STAMPS = 2_000_000;
const INTS = 1024;
const STAMP_FIELDS = 4;

export const actions = {
  /** [page, start, end] of each access, flattened. */
  touch(state: State, { region, from, count, access }: { region: string; from: number; count: number; access: 'read' | 'write' }): Float64Array {
    const { region: { size, pageSize }, view } = state.at(region);
    const order = state.keep(`order ${size}`, () => shuffled(size / pageSize));
    const accesses = new Float64Array(3 * count);
    for (let i = 0; i < count; i++) {
      const page = order[from + i];
      const start = process.hrtime.bigint();
      if (access === 'read') {
        if (view[page * INTS] !== page + HOME_TAG) throw new Error(`page ${page} holds ${view[page * INTS]}`);
      } else view[page * INTS] = page + HOME_TAG;
      const end = process.hrtime.bigint();
      accesses.set([page, Number(start), Number(end)], 3 * i);
    }
    return accesses;
  },

  stamps: (): Float64Array => native.takeStamps(),
};

async function allStamps(party: Party): Promise<StampTuple[]> {
  const list: StampTuple[] = [];
  for (let member = 0; member < party.size; member++) {
    const stamps = await party.call<Float64Array>(member, 'sections/stages#stamps');
    for (let i = 0; i < stamps.length; i += STAMP_FIELDS) list.push([stamps[i], stamps[i + 1], stamps[i + 2], stamps[i + 3]]);
  }
  return list;
}

interface Path { name: string; access: 'read' | 'write'; member?: number; prepare?(region: string, pages: number): Promise<void> }

async function measure(bench: Bench, party: Party, { name, access, member = 1, prepare }: Path, warmUp: number): Promise<void> {
  const { samples } = bench.settings;
  const pages = samples + warmUp;
  const region = `stages ${name}`;
  await prepareFaults(bench, party, { what: name, region, pages, member, ...(prepare ? { prepare } : {}) });
  if (warmUp > 0) await party.call(member, 'sections/stages#touch', { region, from: 0, count: warmUp, access });
  await allStamps(party);
  bench.progress(name);
  const flat = await party.call<Float64Array>(member, 'sections/stages#touch', { region, from: warmUp, count: samples, access });
  const accesses: Access[] = Array.from({ length: samples }, (_, i) => ({ page: flat[3 * i], start: flat[3 * i + 1], end: flat[3 * i + 2] }));
  bench.stages(name, stagesOf(accesses, await allStamps(party)));
}

async function paths(bench: Bench, lane: 'auto' | 'off'): Promise<void> {
  const suffix = lane === 'auto' ? '' : ' (off)';
  const party = await bench.party({ members: 3, lane, stamps: STAMPS });
  const own = (member: number) => async (region: string, pages: number): Promise<void> => {
    await takeAll(party, member, region, pages, 'write');
  };
  const list: Path[] = [
    { name: `read${suffix}`, access: 'read' },
    // The home has closed its own page before: what closing costs is the difference.
    { name: `read, shared${suffix}`, access: 'read', prepare: (region, pages) => takeAll(party, 2, region, pages, 'read') },
    { name: `write${suffix}`, access: 'write' },
    { name: `upgrade${suffix}`, access: 'write', prepare: (region, pages) => takeAll(party, 1, region, pages, 'read') },
    { name: `home reads${suffix}`, access: 'read', member: 0, prepare: own(1) },
    { name: `read, third owns${suffix}`, access: 'read', prepare: own(2) },
    { name: `write, third has copy${suffix}`, access: 'write', prepare: (region, pages) => takeAll(party, 2, region, pages, 'read') },
  ];
  const warmUp = lane === 'auto' ? bench.settings.warmUp : warmUpOf(bench.settings, COORDINATORS_WARM_UP);
  for (const path of list) await measure(bench, party, path, warmUp);
}

export const section: Section = {
  name: 'stages',
  title: 'Where the time goes: see below',
  about: 'the steps of a fault, by stamps of all who take part: over a lane, through the coordinators (off), with a third member',
  async run(bench) {
    await paths(bench, 'auto');
    await paths(bench, 'off');
  },
};
