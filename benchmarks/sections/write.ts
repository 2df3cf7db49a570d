/** Write faults: a valid copy that becomes the only one, and a page of which there is none here. */
import { PAGE } from '../actions.js';
import type { Bench, Meter, Section } from '../bench.js';
import { faultMeter, takeAll } from '../faults.js';
import { zeromq } from '../references/zeromq.js';

async function writes(bench: Bench, lane: 'auto' | 'off'): Promise<Meter[]> {
  const path = lane === 'auto' ? '' : ', through the coordinators';
  const suffix = lane === 'auto' ? '' : '-off';
  const pair = await bench.party({ members: 2, lane });
  const five = await bench.party({ members: 5, lane });
  const upgrade = (others: number): Promise<Meter> => {
    const party = others === 0 ? pair : five;
    return faultMeter(bench, party, {
      key: `upgrade-${others}${suffix}`, what: `write upgrade, ${others} other ${others === 1 ? 'copy' : 'copies'}${path}`, access: 'write',
      prepare: async (region, pages) => {
        await party.call(1, 'actions#prefetch', { region, from: 0, count: pages, access: 'read' });
        for (let other = 2; other < 2 + others; other++) await takeAll(party, other, region, pages, 'read');
      },
    });
  };
  return [
    await faultMeter(bench, pair, { key: `read${suffix}`, what: `cold remote read, for comparison${path}`, access: 'read' }),
    await faultMeter(bench, pair, { key: `write${suffix}`, what: `cold remote write${path}`, access: 'write' }),
    await upgrade(0),
    await upgrade(1),
    await upgrade(3),
  ];
}

export const section: Section = {
  name: 'write',
  title: 'Write faults',
  about: 'write upgrade with 0, 1 and 3 other copies, cold remote write; beside a cold remote read and raw zeromq.js',
  async run(bench) {
    await bench.measure([...(await writes(bench, 'auto')), ...(await writes(bench, 'off')), await zeromq(bench, PAGE), await zeromq(bench, 0)]);
  },
};
