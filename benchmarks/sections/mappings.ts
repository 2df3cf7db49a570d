/** Every second page: the kernel allows a process 65,530 mappings, and each change of state may split one. */
import { PAGE } from '../actions.js';
import type { Section } from '../bench.js';
import type { State } from '../state.js';

const PAGES = 50_000;
const QUICK_PAGES = 500;

export const actions = {
  /** ns of reads of every second page. Those that are read ahead are as many states as those that are faulted on. */
  alternate(state: State, { region, count }: { region: string; count: number }): Float64Array {
    const { view } = state.at(region);
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const page = 2 * i;
      const start = process.hrtime.bigint();
      const value = view[(page * PAGE) / 4];
      samples[i] = Number(process.hrtime.bigint() - start);
      if (value !== page + 1) throw new Error(`page ${page} holds ${value}`);
    }
    return samples;
  },
};

export const section: Section = {
  name: 'mappings',
  title: 'Every second page: more states than the kernel allows mappings',
  about: 'reads of every second page of a region, more than half of the kernel\'s limit on mappings; how often it was met',
  only: 'free',
  async run(bench) {
    const pages = bench.settings.quick ? QUICK_PAGES : PAGES;
    const party = await bench.party({ members: 2 });
    const region = 'alternating';
    await party.call(0, 'actions#create', { region, size: 2 * pages * PAGE });
    await party.call(0, 'actions#fill', { region, from: 0, count: 2 * pages, tag: 1 });
    await party.call(1, 'actions#open', { region });
    bench.progress(`${pages} pages`);
    bench.add({ key: 'alternating', what: `read of every second page, ${pages} of them`, note: 'most are read ahead' }, await party.call<Float64Array>(1, 'sections/mappings#alternate', { region, count: pages }));
    const { protection } = await party.call<{ protection: { limitHits: number; coalesced: number; changes: number } }>(1, 'actions#regionStats', { region });
    bench.count('limit-hits', "times that the kernel's limit on mappings was met", protection.limitHits, '');
    bench.count('coalesced', 'pages that were closed because of it', protection.coalesced, '');
  },
};
