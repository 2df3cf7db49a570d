/** How many messages a fault takes, all members together. */
import { PAGE } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import { takeAll } from '../faults.js';
import type { Party } from '../party.js';

const PAGES = 1024;
const FAULTS = 512;
/** A scan is asked to need so few messages for so many pages. */
const SCANNED = 32;
/** Turns until the home knows that a page migrates. */
const SETTLING = 8;
const TURNS = 200;
/** Pages whose recalls and invalidations travel together. */
const RUN = 256;

async function sent(party: Party): Promise<number> {
  let sum = 0;
  for (let member = 0; member < party.size; member++) sum += (await party.call<{ messages: { sent: number } }>(member, 'actions#clusterStats')).messages.sent;
  return sum;
}

async function count(bench: Bench, party: Party, key: string, what: string, steps: { prepare?(region: string): Promise<void>; run(region: string): Promise<unknown>; of: number; unit: string }): Promise<void> {
  bench.progress(what);
  const region = `messages ${key}`;
  await party.call(0, 'actions#create', { region, size: PAGES * PAGE });
  await party.call(0, 'actions#fill', { region, from: 0, count: PAGES, tag: 1 });
  await party.call(1, 'actions#open', { region });
  await steps.prepare?.(region);
  const before = await sent(party);
  await steps.run(region);
  bench.count(key, what, Math.round(((await sent(party) - before) / steps.of) * 100) / 100, steps.unit);
}

export const section: Section = {
  name: 'messages',
  title: 'Messages',
  about: 'how many messages a read miss, a write miss with 0, 1 and 3 copies, a turn of two members that read and then write one page, a run of pages that somebody else owns, and a scan take, over lanes and through the coordinators',
  only: 'free',
  async run(bench) {
    for (const lane of ['auto', 'off'] as const) {
      const party = await bench.party({ members: 5, lane });
      const suffix = lane === 'auto' ? '' : '-off';
      const path = lane === 'auto' ? '' : ', through the coordinators';
      const each = { of: FAULTS, unit: 'messages for each' };
      const read = (region: string): Promise<unknown> => party.call(1, 'actions#read', { region, from: 0, count: FAULTS, tag: 1 });
      const write = (region: string): Promise<unknown> => party.call(1, 'actions#write', { region, from: 0, count: FAULTS, tag: 1 });
      await count(bench, party, `read${suffix}`, `read miss${path}`, { run: read, ...each });
      for (const copies of [0, 1, 3]) {
        await count(bench, party, `write-${copies}${suffix}`, `write miss, ${copies} ${copies === 1 ? 'copy' : 'copies'} elsewhere${path}`, {
          prepare: async (region) => {
            for (let member = 2; member < 2 + copies; member++) await takeAll(party, member, region, PAGES, 'read');
          },
          run: write, ...each,
        });
      }
      await count(bench, party, `migrate${suffix}`, `page that two members read and write in turns, neither its home${path}`, {
        prepare: async (region) => {
          await party.call(2, 'actions#open', { region });
          for (let turn = 0; turn < SETTLING; turn++) await party.call(1 + (turn % 2), 'sections/messages#bump', { region });
        },
        run: async (region) => {
          for (let turn = 0; turn < TURNS; turn++) await party.call(1 + (turn % 2), 'sections/messages#bump', { region });
        },
        of: TURNS, unit: 'messages for each turn',
      });
      await count(bench, party, `recall-run${suffix}`, `prefetch of ${RUN} pages that another member owns${path}`, {
        prepare: (region) => takeAll(party, 2, region, PAGES, 'write'),
        run: (region) => party.call(1, 'actions#prefetch', { region, from: 0, count: RUN, access: 'write' }), of: 1, unit: `messages for ${RUN} pages`,
      });
      await count(bench, party, `scan${suffix}`, `sequential read of ${PAGES} pages${path}`, {
        run: (region) => party.call(1, 'sections/messages#readAll', { region }), of: PAGES / SCANNED, unit: `messages for ${SCANNED} pages`,
      });
    }
  },
};

export const actions = {
  bump(state: import('../state.js').State, { region }: { region: string }): void {
    const { view } = state.at(region);
    const was = view[0];
    view[0] = was + 1;
  },

  readAll(state: import('../state.js').State, { region }: { region: string }): void {
    const { view } = state.at(region);
    for (let page = 0; page < PAGES; page++) if (view[(page * PAGE) / 4] !== page + 1) throw new Error(`page ${page} holds ${view[(page * PAGE) / 4]}`);
  },
};
