/** A cold remote read of one page, in each state that its home may have it in, over a lane and through the coordinators. */
import { PAGE } from '../actions.js';
import type { Bench, Meter, Section } from '../bench.js';
import { faultMeter, takeAll } from '../faults.js';
import type { Party } from '../party.js';
import { references } from '../references/index.js';
import { COORDINATORS_WARM_UP, warmUpOf } from '../settings.js';
import { native } from '../../lib/native.js';

const HOME_AND_READER = 2;
const THIRD_TAG = 1000;

/** Members: 0 the home, 1 the reader, 2 a third, 3 one that leaves. */
async function reads(bench: Bench, lane: 'auto' | 'off'): Promise<Meter[]> {
  const path = lane === 'auto' ? '' : ', through the coordinators';
  const suffix = lane === 'auto' ? '' : '-off';
  const meter = async (key: string, what: string, party: Party, prepare?: (region: string, pages: number) => Promise<void>, tag?: number): Promise<Meter> =>
    faultMeter(bench, party, { key: key + suffix, pages: bench.settings.samples + warmUpOf(bench.settings, COORDINATORS_WARM_UP), what: `cold remote read, ${what}${path}`, access: 'read', ...(prepare ? { prepare } : {}), ...(tag ? { tag } : {}) });
  const pair = await bench.party({ members: HOME_AND_READER, lane });
  const list = [await meter('read', 'owned by its home', pair)];
  const four = await bench.party({ members: 4, lane });
  const byThird = (member: number) => async (region: string, pages: number): Promise<void> => {
    await takeAll(four, member, region, pages, 'write');
    await four.call(member, 'actions#fill', { region, from: 0, count: pages, tag: THIRD_TAG });
  };
  list.push(await meter('read-idle', 'idle (its last owner has left)', four, async (region, pages) => {
    await byThird(3)(region, pages);
    await four.leave(3);
  }, THIRD_TAG));
  list.push(await meter('read-shared', 'another member has a copy', four, (region, pages) => takeAll(four, 2, region, pages, 'read')));
  list.push(await meter('read-third', 'owned by a third', four, byThird(2), THIRD_TAG));
  if (lane === 'off') return list;
  const served = 'owned by its home, system calls served';
  const lacks = native.userfaultfdLacks(true);
  if (lacks === null) list.push(await meter('read-system-calls', served, await bench.party({ members: HOME_AND_READER, systemCalls: true })));
  else bench.leaveOut(`cold remote read, ${served}`, `${lacks.syscall}: ${lacks.message}`);
  return list;
}

export const section: Section = {
  name: 'read',
  title: 'Cold remote read of one page',
  about: 'one page of 4 KiB, read by a member that has no copy; in the same blocks the references: raw zeromq.js, node:net, C sockets, ioredis',
  async run(bench) {
    await bench.measure([...(await reads(bench, 'auto')), ...(await reads(bench, 'off')), ...(await references(bench, PAGE))], { warmUp: warmUpOf(bench.settings, COORDINATORS_WARM_UP) });
  },
};
