import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { arrived, codeOf, joinedThread, openInThread, seeded, tellEvents } from '../support/steps.js';

const PAGE = 4096;

describe('hazards: worker.terminate()', () => {
  it('of a worker that formed the cluster and is its only handle: the process hands over, others go on, and it can join again', async () => {
    const creator = await Member.start({ join: false });
    const thread = await creator.thread(undefined, { load: true });
    const address = uniqueCluster();
    await thread.run(async (state, cluster) => {
      state.cluster = await state.join({ cluster });
      state.region = await state.cluster.region('memory', { size: 1 << 16 });
      new Int32Array(state.region.buffer).fill(5);
    }, address);
    const other = await Member.start({ cluster: address });
    await tellEvents(other, 'member-left', 'member-died', 'lost');
    const [registrar] = await other.run(({ cluster }) => cluster.view.members.map(({ id }) => id));
    await thread.terminate();
    assert.equal(await other.told('event member-left'), registrar);
    await other.open('memory', { mode: 'open' });
    assert.equal(await other.run(({ region }) => new Int32Array(region.buffer).reduce((total, word) => total + word, 0)), 5 * (1 << 14));
    await creator.run(async (state, cluster) => { state.cluster = await state.join({ cluster }); }, address);
    await creator.open('memory', { mode: 'open' });
    assert.equal(await creator.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 5);
    assert.equal(await other.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), 6);
  });

  it('of a worker that formed the cluster, while the main thread has a handle: the member stays, and so does the region', async () => {
    const creator = await Member.start({ join: false });
    const thread = await creator.thread(undefined, { load: true });
    const address = uniqueCluster();
    await thread.run(async (state, cluster) => {
      state.cluster = await state.join({ cluster });
      state.region = await state.cluster.region('memory', { size: 1 << 16 });
      state.lock = await state.cluster.lock('held');
      new Int32Array(state.region.buffer)[0] = 7;
    }, address);
    await creator.run(async (state, cluster) => { state.cluster = await state.join({ cluster }); }, address);
    const other = await Member.start({ cluster: address });
    await thread.terminate();
    assert.equal(await other.run(async ({ cluster }) => {
      const lock = await cluster.lock('held');
      await lock.release();
      return lock.ownerDied;
    }), true);
    await Promise.all([creator, other].map((member) => member.open('memory', { mode: 'open' })));
    assert.equal(await other.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 7);
    assert.equal(await creator.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), 8);
    assert.equal(await other.run(({ cluster }) => cluster.view.members.length), 2);
  });

  it('of a worker at many moments of its join(), which would form the cluster: the name is free or usable afterwards, in the same process', async () => {
    const random = seeded(11);
    const creator = await Member.start({ join: false });
    for (let round = 0; round < 8; round++) {
      const address = uniqueCluster();
      const thread = await creator.thread(undefined, { load: true });
      const joining = codeOf(thread.run(async (state, cluster) => {
        state.cluster = await state.join({ cluster });
        await new Promise(() => undefined);
      }, address));
      await new Promise((resolve) => setTimeout(resolve, random() * 150));
      await thread.terminate();
      assert.equal(await joining, 'ERR_THREAD_EXITED');
      const other = await Member.start({ cluster: address });
      await creator.run(async (state, cluster) => { state.cluster = await state.join({ cluster }); }, address);
      assert.equal(await creator.run(({ cluster }) => cluster.id), await other.run(({ cluster }) => cluster.id));
      await creator.leave();
      // An abandoned member of the creator's process would still be in the view.
      await other.run(async ({ cluster }) => {
        while (cluster.view.members.length > 1) await new Promise((resolve) => cluster.once('view', resolve));
      });
      await other.destroy();
    }
  });

  for (const nested of [false, true]) {
    it(`inside ${nested ? 'nested calls of ' : ''}attempt(), which waits in a fault: it ends with the fault, and the page is whole for everybody`, async () => {
      const [a, b] = await startMembers(2, { name: 'memory', size: 4 * PAGE });
      await a.run(async (state) => {
        new Int32Array(state.region.buffer).fill(7);
        state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write');
      });
      const thread = await joinedThread(b);
      await openInThread(thread, 'memory');
      const waiting = codeOf(thread.run(({ attempt, region, tell }, inner) => {
        const words = new Int32Array(region.buffer);
        const access = (): number => Atomics.add(words, 0, 1);
        tell('about to fault');
        attempt(inner ? () => attempt(access) : access);
        // Only a termination that came meanwhile ends this.
        for (;;) attempt(() => words[1024]);
      }, nested));
      await b.told('about to fault');
      const ended = thread.terminate({ within: 10_000 });
      await a.run(({ pin }) => pin.release());
      await ended;
      assert.equal(await waiting, 'ERR_THREAD_EXITED');
      const first = await a.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1));
      assert.ok(first === 7 || first === 8, `${first}`);
      assert.equal(await b.run(({ region, attempt }) => attempt(() => Atomics.load(new Int32Array(region.buffer), 0))), first + 1);
      assert.deepEqual(await b.run(({ region }) => new Int32Array(region.buffer).subarray(1, 1024).every((word) => word === 7)), true);
    });
  }

  it('inside attempt(), which spins on memory that is here, holding a lock: it ends at once, and the lock passes on', async () => {
    const [a, b] = await startMembers(2, { name: 'memory', size: 4 * PAGE });
    const thread = await joinedThread(b);
    await openInThread(thread, 'memory');
    const spinning = codeOf(thread.run(({ attempt, cluster, region, tell }) => {
      const words = new Int32Array(region.buffer);
      return attempt(() => {
        cluster.lockSync('held');
        Atomics.store(words, 0, 1);
        tell('spinning');
        while (Atomics.load(words, 0) === 1);
      });
    }));
    await b.told('spinning');
    const passed = a.run(async ({ cluster }) => {
      const lock = await cluster.lock('held');
      await lock.release();
      return lock.ownerDied;
    });
    await arrived(a);
    await thread.terminate({ within: 5000 });
    assert.equal(await spinning, 'ERR_THREAD_EXITED');
    assert.equal(await passed, true);
    assert.equal(await a.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), 1);
    // Another thread of the same process can still use it, and attempt() still stops what it has to.
    assert.equal(await b.run(({ region, attempt }) => attempt(() => Atomics.add(new Int32Array(region.buffer), 0, 1))), 1);
  });
});
