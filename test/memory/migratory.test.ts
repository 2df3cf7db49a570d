/** Pages that one member after another reads and then writes: a counter, a record under a lock, the head of a queue. */
import assert from 'node:assert/strict';
import { startMembers, type Member } from '../support/members.js';

const PAGE = 4096;
const WARM = 4;
const ROUNDS = 40;

const sum = (numbers: number[]): number => numbers.reduce((total, number) => total + number, 0);

/** A load, and then a store that needs what was loaded: two faults wherever the page is not. */
const increment = (member: Member): Promise<number> => member.run(({ region }) => {
  const view = new Int32Array(region.buffer);
  const was = view[0];
  view[0] = was + 1;
  return was;
});

const counts = async (members: Member[]): Promise<{ sent: number; invalidations: number; recalls: number }> => {
  const each = await Promise.all(members.map((member) => member.run(({ cluster, region }) => {
    const { invalidations, recalls } = region.stats();
    return { sent: cluster.stats().messages.sent, invalidations: invalidations.sent, recalls: recalls.sent };
  })));
  return { sent: sum(each.map((one) => one.sent)), invalidations: sum(each.map((one) => one.invalidations)), recalls: sum(each.map((one) => one.recalls)) };
};

/** The writers take turns; what a turn costs all members together, after the home has had time to see what happens. */
async function cost(members: Member[], writers: Member[], between: () => Promise<unknown> = () => Promise.resolve()): Promise<{ sent: number; invalidations: number; recalls: number }> {
  let next = 0;
  const turn = async (): Promise<void> => {
    assert.equal(await increment(writers[next % writers.length]), next);
    next++;
    await between();
  };
  for (let i = 0; i < WARM * writers.length; i++) await turn();
  const before = await counts(members);
  for (let i = 0; i < ROUNDS; i++) await turn();
  const after = await counts(members);
  return { sent: (after.sent - before.sent) / ROUNDS, invalidations: after.invalidations - before.invalidations, recalls: after.recalls - before.recalls };
}

describe('the memory: pages that migrate', () => {
  it('move from writer to writer without an invalidation', async () => {
    const members = await startMembers(3, { size: 64 * PAGE }, { join: { lane: 'off' } });
    const seen = await cost(members, members.slice(1));
    assert.deepEqual([seen.invalidations, seen.recalls], [0, ROUNDS]);
    // read: request, recall, recalled, data, returned; write: request, data. Two more without it, and there are heartbeats.
    assert.ok(seen.sent >= 7 && seen.sent < 8.5, `${seen.sent} messages for each`);
  });

  it('cost the home nothing but the recall', async () => {
    const members = await startMembers(2, { size: 64 * PAGE }, { join: { lane: 'off' } });
    const seen = await cost(members, members);
    assert.deepEqual([seen.invalidations, seen.recalls], [0, ROUNDS / 2]);
  });

  it('move on lanes in the same way', async () => {
    const members = await startMembers(3, { size: 64 * PAGE });
    // Lanes are made in the background; what goes through the coordinators meanwhile has the same hints.
    const seen = await cost(members, members.slice(1));
    assert.equal(seen.invalidations, 0);
  });

  it('stay at their readers, too, where others read what is written', async () => {
    const members = await startMembers(4, { size: 64 * PAGE }, { join: { lane: 'off' } });
    const [, first, second, reader] = members;
    let expected = 0;
    const read = async (): Promise<void> => assert.equal(await reader.run(({ region }) => new Int32Array(region.buffer)[0]), ++expected);
    const seen = await cost(members, [first, second], read);
    // The copies of the one who wrote last and of the one who only reads: both are kept until the next one writes.
    assert.equal(seen.invalidations, 2 * ROUNDS);
  });

  it('are pages like others again when somebody only reads them', async () => {
    const members = await startMembers(4, { size: 64 * PAGE }, { join: { lane: 'off' } });
    const [, first, second, reader] = members;
    await cost(members, [first, second]);
    const value = await reader.run(({ region }) => new Int32Array(region.buffer)[0]);
    assert.equal(await first.run(({ region }) => new Int32Array(region.buffer)[0]), value);
    assert.equal(await second.run(({ region }) => new Int32Array(region.buffer)[0]), value);
    const faults = (member: Member): Promise<number> => member.run(({ region }) => { void new Int32Array(region.buffer)[0]; return region.stats().faults.read; });
    const before = await Promise.all([first, second, reader].map(faults));
    assert.deepEqual(await Promise.all([first, second, reader].map(faults)), before, 'each has a copy that stays');
  });
});
