/** Pointer chasing: each page says which is next. */
import { PAGE, use } from '../actions.js';
import type { Meter, Section } from '../bench.js';
import { shuffled } from '../samples.js';
import type { State } from '../state.js';

const INTS = PAGE / 4;

/** One cycle through all pages; the word of a page is the index of the next page's word. */
function link(view: Int32Array, pages: number): void {
  const order = shuffled(pages);
  for (let i = 0; i < pages; i++) view[order[i] * INTS] = order[(i + 1) % pages] * INTS;
}

function follow(view: Int32Array, from: number, steps: number): number {
  let at = from;
  for (let i = 0; i < steps; i++) at = view[at];
  return at;
}

export const actions = {
  build: (state: State, { region, pages }: { region: string; pages: number }): void => link(state.at(region).view, pages),

  /** ns of single steps, from where the last call ended. */
  steps(state: State, { region, count }: { region: string; count: number }): Float64Array {
    const { view } = state.at(region);
    const key = `chase ${region}`;
    let at = (state.kept.get(key) as number | undefined) ?? 0;
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      at = view[at];
      samples[i] = Number(process.hrtime.bigint() - start);
    }
    state.kept.set(key, at);
    return samples;
  },

  /** ns of a step in whole rounds. */
  rounds(state: State, { region, pages, count }: { region: string | null; pages: number; count: number }): Float64Array {
    const view = region === null
      ? state.keep('chase plain', () => {
        const plain = new Int32Array(new SharedArrayBuffer(pages * PAGE));
        link(plain, pages);
        return plain;
      })
      : state.at(region).view;
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      use(follow(view, 0, pages));
      samples[i] = Number(process.hrtime.bigint() - start) / pages;
    }
    return samples;
  },
};

export const section: Section = {
  name: 'chase',
  title: 'Pointer chasing: each page says which is next',
  about: 'one step to a page that is not here, over a lane and through the coordinators; then round and round what is here, beside a plain SharedArrayBuffer',
  async run(bench) {
    const pages = bench.settings.samples + bench.settings.warmUp;
    const meters: Meter[] = [];
    const warm: Meter[] = [];
    for (const lane of ['auto', 'off'] as const) {
      const party = await bench.party({ members: 2, lane });
      const region = `chase ${lane}`;
      await party.call(0, 'actions#create', { region, size: pages * PAGE });
      await party.call(0, 'sections/chase#build', { region, pages });
      await party.call(1, 'actions#open', { region });
      meters.push({
        key: lane === 'auto' ? 'cold' : 'cold-off', what: `a step to a cold page${lane === 'auto' ? '' : ', through the coordinators'}`,
        take: (count) => party.call(1, 'sections/chase#steps', { region, count }),
      });
      if (lane === 'off') continue;
      const round = (of: string | null): Meter => ({
        key: of === null ? 'plain' : 'warm', what: of === null ? 'a step in a plain SharedArrayBuffer' : 'a step to a page that is here', ...(of === null ? { reference: true } : {}),
        take: (count) => party.call(1, 'sections/chase#rounds', { region: of, pages, count }),
      });
      warm.push(round(region), round(null));
    }
    await bench.measure(meters);
    await bench.measure(warm, { samples: bench.settings.quick ? 20 : 200, warmUp: 20, block: 10 });
  },
};
