import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { arrived, codeOf, tellEvents } from '../support/steps.js';

const MEBI = 1 << 20;

/** From here on the process may map only so many bytes more than it has now, as under `ulimit -v`; Infinity: no limit. */
async function limit(member: Member, more: number): Promise<void> {
  await member.run(({ require }, given) => {
    const { execFileSync } = require('node:child_process') as typeof import('node:child_process');
    const status = (require('node:fs') as typeof import('node:fs')).readFileSync('/proc/self/status', 'utf8');
    const now = Number(/VmSize:\s+(\d+) kB/.exec(status)![1]) * 1024;
    // The soft limit only, so that it can be taken back.
    execFileSync('prlimit', ['--pid', String(process.pid), `--as=${given === Infinity ? 'unlimited' : now + given}:`]);
  }, more);
}

describe('hazards: a limit of the address space (ulimit -v)', () => {
  it('too low for join(): a typed error, nothing is left behind, and without the limit it works', async () => {
    const member = await Member.start({ join: false });
    const address = uniqueCluster();
    const held = (): Promise<number[]> => member.run(({ require }) =>
      ['task', 'fd'].map((kind) => (require('node:fs') as typeof import('node:fs')).readdirSync(`/proc/self/${kind}`).length));
    const before = await held();
    for (const more of [64 * MEBI, 300 * MEBI, 700 * MEBI, 1200 * MEBI]) {
      await limit(member, more);
      await assert.rejects(member.run(async ({ join }, cluster) => { await join({ cluster }); }, address), { name: 'OutOfMemoryError', code: 'ERR_FAULTLINE_OUT_OF_MEMORY', cluster: address });
      await limit(member, Infinity);
    }
    assert.deepEqual(await held(), before);
    assert.equal(await member.run(() => process.listenerCount('SIGTERM')), 0);
    await member.run(async (state, cluster) => { state.cluster = await state.join({ cluster }); }, address);
    await member.open('memory', { size: MEBI });
    await member.leave();
  });

  it('enough for join(): the member works under it', async () => {
    const address = uniqueCluster();
    const [a, b] = [await Member.start({ cluster: address }), await Member.start({ join: false })];
    await limit(b, 1600 * MEBI);
    await b.run(async (state, cluster) => { state.cluster = await state.join({ cluster }); }, address);
    await a.open('memory', { size: 16 * MEBI });
    await b.open('memory');
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(1); });
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer).reduce((total, word) => total + word, 0)), 4 * MEBI);
    await b.leave();
  });

  it('too low for a region that a member creates: a typed error, no region is left behind, and the member goes on', async () => {
    const [a, b] = await startMembers(2, { name: 'memory', size: MEBI });
    await limit(b, 200 * MEBI);
    for (const size of [160 * MEBI, 1024 * MEBI]) {
      await assert.rejects(b.run(async ({ cluster }, bytes) => { await cluster.region('large', { size: bytes }); }, size), { name: 'OutOfMemoryError', code: 'ERR_FAULTLINE_OUT_OF_MEMORY', region: 'large' });
      assert.equal(await codeOf(a.run(async ({ cluster }) => { await cluster.region('large', { mode: 'open' }); })), 'ERR_FAULTLINE_REGION_NOT_FOUND');
    }
    await b.open('small', { size: 32 * MEBI });
    await b.run(({ regions }) => { new Int32Array(regions.small.buffer)[0] = 3; });
    await a.open('small', { mode: 'open' });
    assert.equal(await a.run(({ regions }) => Atomics.add(new Int32Array(regions.small.buffer), 0, 1)), 3);
    await b.leave();
    assert.equal(await a.run(({ regions }) => Atomics.load(new Int32Array(regions.small.buffer), 0)), 4);
  });

  it('too low for a region that another member creates: its own stay ends with a typed error, and nothing of the others is harmed', async () => {
    const [a, b, c] = await startMembers(3, { name: 'memory', size: MEBI });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(7); });
    await b.run(async (state) => {
      state.lock = await state.cluster.lock('held');
      Atomics.add(new Int32Array(state.region.buffer), 0, 1);
    });
    await tellEvents(a, 'member-died', 'member-left');
    await tellEvents(b, 'lost');
    const id = await b.run(({ cluster }) => cluster.self.id);
    // What it wrote is not only there any more.
    assert.equal(await c.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), 8);
    await limit(b, 400 * MEBI);
    await c.open('large', { size: 1024 * MEBI });
    assert.equal(await b.told('event lost'), 'ERR_FAULTLINE_COORDINATOR');
    assert.equal(await codeOf(b.run(async ({ cluster }) => { await cluster.lock('x'); })), 'ERR_FAULTLINE_COORDINATOR');
    assert.equal(await codeOf(b.run(({ region, attempt }) => attempt(() => new Int32Array(region.buffer)[0]))), 'ERR_FAULTLINE_COORDINATOR');
    assert.match(b.stderr, /region 'large' of 1073741824 bytes can't be mapped in this process/);
    assert.equal(await a.told('event member-died'), id);
    assert.equal(await c.run(async ({ cluster }) => {
      const lock = await cluster.lock('held');
      await lock.release();
      return lock.ownerDied;
    }), true);
    for (const member of [a, c]) {
      assert.equal(await member.run(({ regions }) => new Int32Array(regions.memory.buffer).subarray(1).every((word) => word === 7)), true);
    }
    await a.open('large', { mode: 'open' });
    await c.run(({ regions }) => { new Int32Array(regions.large.buffer)[200 * (1 << 20)] = 9; });
    assert.equal(await a.run(({ regions }) => new Int32Array(regions.large.buffer)[200 * (1 << 20)]), 9);
    await arrived(a);
    await limit(b, Infinity);
    await b.run(({ cluster }) => cluster.close());
  });
});
