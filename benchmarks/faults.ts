/** Meters of remote faults: regions whose pages are in a certain state, and a member that accesses one after the other. */
import { PAGE } from './actions.js';
import type { Bench, Meter } from './bench.js';
import type { Party } from './party.js';

export interface FaultMeter {
  key: string;
  what: string;
  access: 'read' | 'write';
  /** Who faults. */
  member?: number;
  /** Default: as many as are measured, and those before. */
  pages?: number;
  /** Brings the pages, which the home has filled with their numbers, into the state that is measured. */
  prepare?(region: string, pages: number): Promise<void>;
  /** What the pages hold then, beyond their numbers. */
  tag?: number;
  note?: string;
}

/** What the home puts into a page's first word, beyond the page's number. */
export const HOME_TAG = 1;
let regions = 0;

export async function prepareFaults(bench: Bench, party: Party, { what, region, pages, member, prepare }: Pick<FaultMeter, 'what' | 'prepare'> & { region: string; pages: number; member: number }): Promise<void> {
  bench.progress(`preparing ${what}`);
  await party.call(0, 'actions#create', { region, size: pages * PAGE });
  await party.call(0, 'actions#fill', { region, from: 0, count: pages, tag: HOME_TAG });
  if (member !== 0) await party.call(member, 'actions#open', { region });
  await prepare?.(region, pages);
}

/** Member 0 is the home, and has written every page. */
export async function faultMeter(bench: Bench, party: Party, options: FaultMeter): Promise<Meter & { region: string }> {
  const { key, what, access, member = 1, prepare, tag = HOME_TAG, note } = options;
  const { samples, warmUp } = bench.settings;
  const pages = options.pages ?? samples + warmUp;
  const region = `${key} ${++regions}`;
  await prepareFaults(bench, party, { what, region, pages, member, ...(prepare ? { prepare } : {}) });
  let from = 0;
  return {
    key, what, region, processes: party.size, ...(note === undefined ? {} : { note }),
    async take(count) {
      if (from + count > pages) throw new Error(`${what}: only ${pages} pages were prepared`);
      const taken = await party.call<Float64Array>(member, `actions#${access}`, { region, from, count, tag: access === 'read' ? tag : -1 });
      from += count;
      return taken;
    },
  };
}

/** All pages of a region, for another member than the home, in few messages. */
export async function takeAll(party: Party, member: number, region: string, pages: number, access: 'read' | 'write'): Promise<void> {
  await party.call(member, 'actions#open', { region });
  await party.call(member, 'actions#prefetch', { region, from: 0, count: pages, access });
}
