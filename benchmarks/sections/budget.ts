/** What memoryLimit costs: scans of more than the limit, and work on what fits into it. */
import { PAGE } from '../actions.js';
import type { Bench, Section } from '../bench.js';
import { size } from '../references/sockets.js';
import { withCold, type Pattern } from '../scans.js';

const MIB = 2 ** 20;
const LIMIT = 16 * MIB;
/** Passes over what fits, of which the first brings it. */
const PASSES = 8;

interface Stats { pages: { in: number }; faults: { local: number }; memory: { bytes: number; dropped: number; sentHome: number } }
interface Kind { key: string; what: string; pattern: Pattern; access: 'read' | 'write'; bytes: number; passes: number }

export const section: Section = {
  name: 'budget',
  title: 'A limit on a member\'s memory',
  about: 'scans of eight times memoryLimit, and passes over three quarters of it, beside the same without a limit',
  async run(bench: Bench) {
    const { quick } = bench.settings;
    const kinds: Kind[] = [
      { key: 'beyond-read', what: 'sequential read', pattern: 'sequential', access: 'read', bytes: 8 * LIMIT, passes: 1 },
      { key: 'beyond-write', what: 'sequential write', pattern: 'sequential', access: 'write', bytes: 8 * LIMIT, passes: 1 },
      { key: 'within-read', what: 'a pass over what is here, random order', pattern: 'random', access: 'read', bytes: (3 * LIMIT) / 4, passes: PASSES },
    ];
    const parties = [
      { suffix: '', what: `, limit ${size(LIMIT)}`, party: await bench.party({ members: 2, memoryLimits: [undefined, LIMIT] }) },
      { suffix: '-unlimited', what: ', no limit', party: await bench.party({ members: 2 }) },
    ];
    const times = quick ? 1 : 5;
    for (const { key, what, pattern, access, bytes, passes } of kinds) {
      const taken = parties.map((): number[] => []);
      for (let round = 0; round <= times; round++) {
        for (const [i, { suffix, party }] of parties.entries()) {
          bench.progress(`round ${round} of ${times}: ${what}${suffix}`);
          const region = `${key} ${round}`;
          await withCold(party, region, bytes / PAGE, async () => {
            for (let pass = 0; pass < passes; pass++) {
              const ns = await party.call<number>(1, 'scans#scan', { region, pages: bytes / PAGE, pattern, access });
              // The first round only warms up, and of several passes the first one does.
              if (round > 0 && (passes === 1 || pass > 0)) taken[i].push(ns);
            }
            if (round < times || suffix !== '') return;
            const { memory, pages, faults } = await party.call<Stats>(1, 'actions#regionStats', { region });
            bench.count(`${key}-memory`, `${what} of ${size(bytes)}: bytes of memory taken at the end ÷ limit`, Math.round((memory.bytes / LIMIT) * 1000) / 1000, '');
            bench.count(`${key}-given`, `${what} of ${size(bytes)}: copies dropped, and owned pages sent home, ÷ pages`, Math.round(((memory.dropped + memory.sentHome) / (bytes / PAGE)) * 1000) / 1000, '');
            if (passes > 1) bench.count(`${key}-again`, `${what} of ${size(bytes)}: pages that came, and pages that were opened again, in ${passes} passes ÷ pages`, Math.round(((pages.in + faults.local) / (bytes / PAGE)) * 1000) / 1000, '');
          });
        }
      }
      for (const [i, { suffix, what: limit }] of parties.entries()) bench.add({ key: `${key}${suffix}`, what: `${what} of ${size(bytes)}${limit}`, bytes }, taken[i]);
    }
  },
};
