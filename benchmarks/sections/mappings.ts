/** Every second page: the kernel allows a process 65,530 mappings, and each change of state may split one. */
import { chooseGuard } from '../../lib/guard.js';
import { GuardKind } from '../../lib/native.js';
import { PAGE } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import type { State } from '../state.js';

/** Read pages: with mprotect more than the kernel's limit allows for; with userfaultfd the limit means nothing. */
const PAGES = { mprotect: 50_000, userfaultfd: 1_000_000 } as const;
const QUICK_PAGES = 500;

/** Pages of one buffer: a region may be larger than one can be. */
const WINDOW = 1 << 17;

function eachSecond(state: State, name: string, count: number, use: (view: Int32Array, at: number, page: number) => void): void {
  const { region } = state.at(name);
  for (let first = 0; first < 2 * count; first += WINDOW) {
    const pages = Math.min(WINDOW, 2 * count - first);
    const view = new Int32Array(region.window(first * PAGE, pages * PAGE));
    for (let page = 0; page < pages; page += 2) use(view, (page * PAGE) / 4, first + page);
  }
}

export const actions = {
  /** The first word of every second page becomes its number + 1. */
  fillSecond(state: State, { region, count }: { region: string; count: number }): void {
    eachSecond(state, region, count, (view, at, page) => { view[at] = page + 1; });
  },

  /** ns of reads of every second page. Those that are read ahead are as many states as those that are faulted on. */
  alternate(state: State, { region, count }: { region: string; count: number }): Float64Array {
    const samples = new Float64Array(count);
    eachSecond(state, region, count, (view, at, page) => {
      const start = process.hrtime.bigint();
      const value = view[at];
      samples[page / 2] = Number(process.hrtime.bigint() - start);
      if (value !== page + 1) throw new Error(`page ${page} holds ${value}`);
    });
    return samples;
  },
};

async function alternate(bench: Bench, guard: keyof typeof PAGES): Promise<void> {
  const pages = bench.settings.quick ? QUICK_PAGES : PAGES[guard];
  const party = await bench.party({ members: 2, guard });
  const region = `alternating ${guard}`;
  await party.call(0, 'actions#create', { region, size: 2 * pages * PAGE });
  bench.progress(`${pages} pages, ${guard}`);
  await party.call(0, 'sections/mappings#fillSecond', { region, count: pages });
  await party.call(1, 'actions#open', { region });
  bench.add({ key: `alternating-${guard}`, what: `read of every second page, ${pages} of them, ${guard}`, note: 'most are read ahead' }, await party.call<Float64Array>(1, 'sections/mappings#alternate', { region, count: pages }));
  const { protection } = await party.call<{ protection: { limitHits: number; coalesced: number } }>(1, 'actions#regionStats', { region });
  bench.count(`limit-hits-${guard}`, `times that the kernel's limit on mappings was met, ${guard}`, protection.limitHits, '');
  bench.count(`coalesced-${guard}`, `pages that were closed because of it, ${guard}`, protection.coalesced, '');
}

export const section: Section = {
  name: 'mappings',
  title: 'Every second page: more states than the kernel allows mappings',
  about: 'reads of every second page of a region with either guard: 50,000 with mprotect, more than half of the kernel\'s limit on mappings, a million with userfaultfd; how often the limit was met',
  only: 'free',
  async run(bench) {
    await alternate(bench, 'mprotect');
    if (chooseGuard({ guard: 'auto', systemCalls: false }) === GuardKind.Userfaultfd) await alternate(bench, 'userfaultfd');
    else bench.leaveOut('alternating page states with userfaultfd', 'it does not work here');
  },
};
