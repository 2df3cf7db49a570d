/** Faults that need no other member: the home opens what is its own to open. */
import { PAGE } from '../actions.js';
import type { Meter, Section } from '../bench.js';
import { faultMeter, takeAll } from '../faults.js';
import { round } from '../samples.js';
import type { State } from '../state.js';

/** Pages that a home opens with one fault. */
const EXTENT = 64;
/** Extents of one region: 256 MiB that nobody else has touched, and of which only touched pages take memory. */
const EXTENTS = 1024;
const WRITER_TAG = 1000;

export const actions = {
  /** One page in each extent. */
  extents(state: State, { region, from, count }: { region: string; from: number; count: number }): Float64Array {
    const { view } = state.at(region);
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const at = ((from + i) * EXTENT * PAGE) / 4;
      const start = process.hrtime.bigint();
      view[at] = 1;
      samples[i] = Number(process.hrtime.bigint() - start);
    }
    return samples;
  },
};

export const section: Section = {
  name: 'local',
  title: 'A fault that needs no other member',
  about: 'at the home: one page opened to read, an extent of new pages opened to write; beside the bare C trap with the same guard',
  async run(bench) {
    const party = await bench.party({ members: 3 });
    // The home's own view of a page is closed while a member writes it, and stays closed when another member reads it.
    const page = await faultMeter(bench, party, {
      key: 'open-page', what: 'the home opens one page to read', access: 'read', member: 0, tag: WRITER_TAG,
      prepare: async (region, pages) => {
        await takeAll(party, 1, region, pages, 'write');
        await party.call(1, 'actions#fill', { region, from: 0, count: pages, tag: WRITER_TAG });
        await takeAll(party, 2, region, pages, 'read');
      },
    });
    let from = EXTENTS;
    let made = 0;
    const extent: Meter = {
      key: 'open-extent', what: `the home opens an extent of ${EXTENT} new pages to write`, processes: 3,
      async take(count) {
        if (from + count > EXTENTS) {
          if (made > 0) await party.call(0, 'actions#destroy', { region: `extents ${made}` });
          await party.call(0, 'actions#create', { region: `extents ${++made}`, size: EXTENTS * EXTENT * PAGE });
          from = 0;
        }
        const taken = await party.call<Float64Array>(0, 'sections/local#extents', { region: `extents ${made}`, from, count });
        from += count;
        return taken;
      },
    };
    const trap = async (key: string, what: string, args: string[]): Promise<Meter> => {
      const { program } = await bench.program(0, 'trap', args);
      return { key, what, reference: true, processes: 1, take: (count) => program.take(count) };
    };
    const statsOf = (): Promise<{ faults: { read: number; write: number; local: number }; protection: { guard: string } }> => party.call(0, 'actions#regionStats', { region: page.region });
    const [how, name] = (await statsOf()).protection.guard === 'userfaultfd' ? ['uffd', 'userfaultfd + SIGBUS'] : ['segv', 'SIGSEGV + mprotect'];
    await bench.measure([page, extent, await trap('trap-read', `C: ${name}, read`, [how, 'read']), await trap('trap-write', `C: ${name}, write`, [how, 'write'])]);
    const stats = await statsOf();
    bench.count('open-page-local', 'part of those faults that no other thread served', round(stats.faults.local / (stats.faults.read + stats.faults.write)), '');
  },
};
