/** Access to pages that are here, again and again, beside a plain SharedArrayBuffer in the same process. */
import { PAGE, use } from '../actions.js';
import type { Meter, Section } from '../bench.js';
import type { State } from '../state.js';
import { shuffled } from '../samples.js';

/** 4 MiB: more than the nearest caches hold. */
const PAGES = 1024;
const INTS = (PAGES * PAGE) / 4;

type Kind = 'read' | 'write' | 'random';
const kinds: Record<Kind, string> = { read: 'sequential reads', write: 'sequential writes', random: 'random reads' };

function readAll(view: Int32Array): number {
  let sum = 0;
  for (let i = 0; i < INTS; i++) sum = (sum + view[i]) | 0;
  return sum;
}

function writeAll(view: Int32Array, value: number): number {
  for (let i = 0; i < INTS; i++) view[i] = value;
  return value;
}

function readRandom(view: Int32Array, order: Uint32Array): number {
  let sum = 0;
  for (let i = 0; i < order.length; i++) sum = (sum + view[order[i]]) | 0;
  return sum;
}

export const actions = {
  async prepare(state: State): Promise<void> {
    const region = await state.cluster.region('access', { mode: 'create', size: PAGES * PAGE, pageSize: PAGE });
    const plain = new SharedArrayBuffer(PAGES * PAGE);
    const views = { region: new Int32Array(region.buffer), plain: new Int32Array(plain) };
    for (const view of Object.values(views)) view.fill(1);
    state.kept.set('access', { ...views, order: shuffled(INTS) });
  },

  pass(state: State, { of, kind, count }: { of: 'region' | 'plain'; kind: Kind; count: number }): Float64Array {
    const { order, ...views } = state.kept.get('access') as { region: Int32Array; plain: Int32Array; order: Uint32Array };
    const view = views[of];
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      const result = kind === 'read' ? readAll(view) : kind === 'write' ? writeAll(view, i) : readRandom(view, order);
      samples[i] = Number(process.hrtime.bigint() - start);
      use(result);
    }
    return samples;
  },
};

export const section: Section = {
  name: 'access',
  title: 'Repeated access to pages that are here: a pass over 4 MiB',
  about: "a typed array over a region beside one over a plain SharedArrayBuffer, both on pages of 4 KiB (the kernel's large pages off)",
  only: 'one',
  async run(bench) {
    const party = await bench.party({ members: 1, smallPages: true });
    await party.call(0, 'sections/access#prepare');
    const meter = (of: 'region' | 'plain', kind: Kind): Meter => ({
      key: `${of}-${kind}`, what: `${kinds[kind]}, ${of === 'region' ? 'region' : 'plain SharedArrayBuffer'}`, processes: 1, bytes: PAGES * PAGE,
      ...(of === 'plain' ? { reference: true } : {}),
      take: (count) => party.call(0, 'sections/access#pass', { of, kind, count }),
    });
    const meters = (Object.keys(kinds) as Kind[]).flatMap((kind) => [meter('region', kind), meter('plain', kind)]);
    await bench.measure(meters, { samples: bench.settings.quick ? 20 : 200, warmUp: 20, block: 10 });
  },
};
