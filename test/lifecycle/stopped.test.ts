import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { arrived, codeOf, joinedThread, openInThread, tellEvents } from '../support/steps.js';

/** ms: about 2 s of silence, and what two busy cores add. */
const BOUND = 4500;
/** ms: a lease is 1.5 s, and a member is given up after 2 s. */
const LONGER_THAN_A_LEASE = 1650;

describe('a member that is stopped (SIGSTOP)', () => {
  it('is given up within the bound; its locks pass on, barriers break, faults on its pages end, and the rest goes on', async () => {
    const [a, b, c] = await startMembers(3);
    await c.open('grid', { size: 1 << 16 });
    for (const member of [a, b]) await member.open('grid');
    const id = await c.run(async ({ cluster, region }) => {
      await cluster.lock('held');
      new Int32Array(region.buffer).fill(3);
      return cluster.self.id;
    });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 3);
    await tellEvents(a, 'member-died');
    await c.kill('SIGSTOP');
    const start = Date.now();
    const lock = a.run(async (state) => { state.lock = await state.cluster.lock('held'); return state.lock.ownerDied as boolean; });
    const barrier = codeOf(b.run(({ cluster }) => cluster.barrier('three', 3)));
    const fault = b.run(({ attempt, region }) => {
      try { return attempt(() => new Int32Array(region.buffer)[5 * 1024]); } catch (error) { return (error as { code: string }).code; }
    });
    // Meanwhile the others are not held up by it.
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[1]), 3);
    assert.equal(await a.told('event member-died', { within: BOUND }), id);
    assert.equal(await lock, true);
    assert.equal(await barrier, 'ERR_FAULTLINE_BARRIER_BROKEN');
    assert.equal(await fault, 'ERR_FAULTLINE_PAGE_LOST');
    assert.ok(Date.now() - start < BOUND, `${Date.now() - start} ms`);
    await Promise.all([a, b].map((member) => member.run(({ cluster }) => cluster.barrier('two', 2))));
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[1]), 3);
  });

  it('changes nothing any more when it goes on, and gets EvictedError from every call, from attempt(), and as an event', async () => {
    const [a, zombie] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await zombie.run((state) => {
      state.view = new Int32Array(state.region.buffer);
      state.view.fill(1);
    });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 1);
    await tellEvents(a, 'member-died');
    await tellEvents(zombie, 'evicted', 'lost');
    const thread = await joinedThread(zombie);
    await openInThread(thread, 'grid');
    await a.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    // It stands in the middle of all this when it is stopped.
    const waiting = [
      zombie.run(async ({ cluster }) => { await cluster.lock('held'); }),
      zombie.run(({ region }) => region.wait(4096 * 9, 1)),
      thread.run(({ attempt, region, tell }) => {
        const view = new Int32Array(region.buffer);
        tell('writing');
        for (let i = 0; ; i++) attempt(() => { view[(i % 15) * 1024 + 7] = 2; });
      }),
    ].map(codeOf);
    await zombie.told('writing');
    await arrived(zombie);
    await zombie.kill('SIGSTOP');
    const id = await a.told('event member-died', { within: BOUND });
    await a.run(async ({ region }) => {
      for (let tries = 0; ; tries++) {
        for (const { offset, length } of region.lost()) await region.restore(offset, new Uint8Array(length));
        try { await region.prefetch(0, region.size, { access: 'write' }); break; } catch (error) { if (tries > 20) throw error; }
      }
      new Int32Array(region.buffer).fill(5);
    });
    await zombie.kill('SIGCONT');
    assert.equal(await zombie.told('event evicted', { within: BOUND }), 'ERR_FAULTLINE_EVICTED');
    assert.deepEqual(await Promise.all(waiting), Array(3).fill('ERR_FAULTLINE_EVICTED'));
    const codes = await zombie.run(async ({ cluster, region, attempt, view }) => {
      const seen: unknown[] = [];
      for (const call of [
        () => cluster.lock('x'), () => cluster.tryLock('x'), () => cluster.barrier('x', 1), () => cluster.region('x', { size: 4096 }),
        () => region.wait(0, 0), () => region.notify(0), () => region.prefetch(), () => region.pin({ offset: 0, length: 1 }, 'read'),
        () => region.restore(0, new Uint8Array(4096)), () => region.discard(0, 1), () => region.inspect(0), () => region.destroy(),
        async () => cluster.lockSync('x'), async () => cluster.barrierSync('x', 1), async () => cluster.stats(), async () => region.waitSync(0, 0),
        async () => region.notifySync(0), async () => region.stats(), async () => region.lost(), async () => region.buffer,
        async () => attempt(() => view[0]), async () => attempt(() => { view[0] = 6; return view[0]; }),
      ]) seen.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
      return seen;
    });
    assert.deepEqual(codes, Array(22).fill('ERR_FAULTLINE_EVICTED'));
    await assert.rejects(zombie.run(({ cluster }) => cluster.lock('x')), { name: 'EvictedError', member: id });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer).every((value) => value === 5)), true);
    assert.equal(await a.run(async ({ cluster }) => await cluster.tryLock('held')), undefined);
    // close() is no error, and a new join() makes a new member.
    const fresh = await zombie.run(async (state) => {
      const { address } = state.cluster;
      await state.cluster.close();
      state.cluster = await state.join({ cluster: address });
      state.region = await state.cluster.region('grid', { mode: 'open' });
      return [state.cluster.self.id, new Int32Array(state.region.buffer)[0]];
    });
    assert.ok(fresh[0] > id);
    assert.equal(fresh[1], 5);
  });

  it('ends by one clear line and SIGBUS when it goes on outside attempt() with what is no longer its own', async () => {
    const [a, zombie] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await tellEvents(a, 'member-died');
    await tellEvents(zombie, 'evicted');
    await zombie.run((state) => { state.view = new Int32Array(state.region.buffer); state.view[0] = 1; });
    await zombie.kill('SIGSTOP');
    await a.told('event member-died', { within: BOUND });
    await zombie.kill('SIGCONT');
    await zombie.told('event evicted', { within: BOUND });
    const { signal, stderr } = await zombie.last(({ view }) => view[0], undefined, { within: 8000 });
    assert.equal(signal, 'SIGBUS');
    assert.match(stderr, /^faultline: region 'grid' was accessed at offset 0 after this member was evicted from the cluster \(read by thread \d+ outside attempt\(\)\)\n$/);
  });

  it('stays a member when it goes on within the bound', async () => {
    const [a, b] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
    await b.kill('SIGSTOP');
    const lock = a.run(async ({ cluster }) => { await (await cluster.lock('x')).release(); });
    await lock;
    await b.kill('SIGCONT');
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 1);
    assert.equal(await a.run(({ cluster }) => cluster.view.members.length), 2);
  });

  it('if it serves the cluster, makes the others fail with ClusterLostError within the bound', async () => {
    const [registrar, a] = await startMembers(2);
    await a.open('own', { size: 1 << 14 });
    await tellEvents(a, 'lost', 'evicted');
    await registrar.kill('SIGSTOP');
    const waiting = codeOf(a.run(({ cluster }) => cluster.barrier('never', 2)));
    assert.equal(await a.told('event lost', { within: BOUND }), 'ERR_FAULTLINE_CLUSTER_LOST');
    assert.equal(await waiting, 'ERR_FAULTLINE_CLUSTER_LOST');
    await registrar.kill('SIGCONT');
    await tellEvents(registrar, 'member-died');
    // The registrar goes on alone.
    assert.equal(await codeOf(registrar.run(async ({ cluster }) => { await (await cluster.lock('x')).release(); })), 'ok');
    await registrar.run(async ({ cluster }) => { while (cluster.view.members.length > 1) await new Promise((resolve) => cluster.once('view', resolve)); }, undefined, { within: BOUND });
  });

  it('does not keep others from leaving, while it is stopped', async () => {
    const [a, b, stopped] = await startMembers(3, { name: 'grid', size: 1 << 16 });
    await b.run(({ region }) => { new Int32Array(region.buffer)[0] = 4; });
    await stopped.kill('SIGSTOP');
    await b.leave({ within: 8000 });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 4);
    await a.leave({ within: 8000 });
    await stopped.kill('SIGCONT');
    // Whoever it is then, evicted or lost, it hears of it and does not hang.
    await stopped.run(async ({ cluster }) => { await cluster.close(); }, undefined, { within: 8000 });
  });

  it('when its main thread only blocks, it is not given up: the coordinator has a thread of its own', async () => {
    const [a, b] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await tellEvents(a, 'member-died');
    await b.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
    const blocked = b.run(({ require, tell }) => {
      tell('blocks');
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3000);
      return (require('node:process') as NodeJS.Process).pid;
    });
    await b.told('blocks');
    assert.equal(await a.run(({ region }) => { const view = new Int32Array(region.buffer); view[0]++; return view[0]; }), 2);
    assert.equal(await blocked, b.pid);
    assert.equal(await a.run(({ cluster }) => cluster.view.members.length), 2);
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 2);
  });

  it('in the middle of close(): it is given up all the same, and close() resolves when it goes on', async () => {
    const [a, zombie] = await startMembers(2);
    // So much to hand over that it does not get there before it stops.
    await zombie.open('large', { size: 256 << 20 });
    await zombie.run(({ region }) => { new Int32Array(region.buffer).fill(1); });
    await tellEvents(a, 'member-died');
    await tellEvents(zombie, 'evicted');
    const id = await zombie.run(({ cluster }) => cluster.self.id);
    const closing = zombie.run(async ({ cluster }) => {
      const closed = cluster.close();
      setTimeout(() => process.kill(process.pid, 'SIGSTOP'), 30);
      await closed;
      return 'closed';
    }, undefined, { within: 30_000 });
    assert.equal(await a.told('event member-died', { within: BOUND }), id);
    await zombie.kill('SIGCONT');
    assert.equal(await closing, 'closed');
    assert.equal(await codeOf(zombie.run(async ({ cluster }) => { await cluster.lock('x'); })), 'ERR_FAULTLINE_CLOSED');
    // Nothing of it stands in the way of a new stay.
    await zombie.run(async (state) => {
      state.cluster = await state.join({ cluster: state.cluster.address });
      await state.cluster.close();
    });
  });

  it('if it serves the cluster, in the middle of another one\'s join(), for longer than the lease that this one begins with: it has the memory when it has joined', async () => {
    const cluster = uniqueCluster();
    const first = await Member.start({ cluster });
    await first.open('grid', { size: 1 << 16 });
    await first.run(({ region }) => { new Int32Array(region.buffer).fill(7); });
    const joiner = await Member.start({ join: false });
    const base = process.env.XDG_RUNTIME_DIR ? path.join(process.env.XDG_RUNTIME_DIR, 'faultline') : `/tmp/faultline-${process.getuid!()}`;
    const directory = path.join(base, fs.readdirSync(base).find((name) => name.startsWith(cluster.slice('local:'.length)))!);
    const locks = fs.readdirSync(directory).length;
    const read = joiner.run(async (state, address) => {
      state.cluster = await state.join({ cluster: address });
      const region = await state.cluster.region('grid');
      return new Int32Array(region.buffer)[0];
    }, cluster, { within: 30_000 });
    // A file of its own: it has been welcomed, and has not said yet that it is there.
    const late = Date.now() + 10_000;
    while (fs.readdirSync(directory).length === locks) {
      assert.ok(Date.now() < late, 'the newcomer has a file');
      // Turns of the event loop: the messages of the members go on.
      await new Promise((resolve) => setImmediate(resolve));
    }
    process.kill(first.pid, 'SIGSTOP');
    await delay(LONGER_THAN_A_LEASE);
    process.kill(first.pid, 'SIGCONT');
    assert.equal(await read, 7);
  });
});
