/** prefetch() and pin() of cold memory. */
import { PAGE } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import type { Party } from '../party.js';
import { size, stream } from '../references/sockets.js';
import { takers, withCold } from '../scans.js';
import type { State } from '../state.js';

const KIB = 1024;
const SIZES = [64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, 16384 * KIB, 65536 * KIB];
const QUICK_SIZES = [64 * KIB, 1024 * KIB];
const OWNED = 16384 * KIB;

type Call = 'prefetch' | 'pin';
let regions = 0;

export const actions = {
  /** ns until the promise is resolved. A pin is released outside. */
  async fetch(state: State, { region, call }: { region: string; call: Call }): Promise<number> {
    const { region: at } = state.at(region);
    const start = process.hrtime.bigint();
    const pin = call === 'pin' ? await at.pin({ offset: 0, length: at.size }, 'read') : await at.prefetch();
    const took = Number(process.hrtime.bigint() - start);
    if (pin) await pin.release();
    return took;
  },
};

async function once(party: Party, call: Call, bytes: number, reader = 1, writer = 0): Promise<number> {
  const region = `${call} ${++regions}`;
  return withCold(party, region, bytes / PAGE, () => party.call<number>(reader, 'sections/prefetch#fetch', { region, call }), writer);
}

async function measure(bench: Bench, party: Party, bytes: number): Promise<void> {
  const times = bench.settings.quick ? 2 : bytes > 4 << 20 ? 5 : 15;
  const reference = await stream(bench, 'unix', bytes);
  const taken: Record<Call, number[]> = { prefetch: [], pin: [] };
  const references: number[] = [];
  // The first round only warms up.
  for (let round = 0; round <= times; round++) {
    bench.progress(`${size(bytes)}, round ${round} of ${times}`);
    for (const call of ['prefetch', 'pin'] as const) {
      const ns = await once(party, call, bytes);
      if (round > 0) taken[call].push(ns);
    }
    const [ns] = Array.from(await reference.take(1));
    if (round > 0) references.push(ns);
  }
  for (const call of ['prefetch', 'pin'] as const) bench.add({ key: `${call}-${bytes}`, what: `${call}() of ${size(bytes)}`, bytes }, taken[call]);
  bench.add(reference, references);
}

/** What another member has written to pages of the home: fetched by the home, and by a third. */
async function measureOwned(bench: Bench, bytes: number): Promise<void> {
  const party = await bench.party({ members: 3 });
  for (const { key, reader, writer, who } of takers) {
    const taken: number[] = [];
    for (let round = 0; round <= (bench.settings.quick ? 1 : 5); round++) {
      bench.progress(`${who}, round ${round}`);
      const ns = await once(party, 'prefetch', bytes, reader, writer);
      if (round > 0) taken.push(ns);
    }
    bench.add({ key: `prefetch-${key}`, what: `prefetch() of ${size(bytes)}, ${who}`, bytes, processes: party.size }, taken);
  }
}

export const section: Section = {
  name: 'prefetch',
  title: 'prefetch() and pin() of cold memory',
  about: '64 KiB to 64 MiB, beside a C program that receives as many bytes into new memory',
  async run(bench) {
    const party = await bench.party({ members: 2 });
    for (const bytes of bench.settings.quick ? QUICK_SIZES : SIZES) await measure(bench, party, bytes);
    await measureOwned(bench, OWNED);
  },
};
