import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';
import { arrived, codeOf, counted, joinedThread } from '../support/steps.js';

describe('a barrier of the cluster', () => {
  it('lets nobody on before everybody has come, round after round, from members and threads', async () => {
    const members = await startMembers(3, { name: 'rounds', size: 1 << 14 });
    const threads = await Promise.all(members.map(async (member) => {
      const thread = await joinedThread(member);
      await thread.run(async (state) => { state.region = await state.cluster.region('rounds'); });
      return thread;
    }));
    const rounds = counted(40, 1000);
    const early = await Promise.all([
      ...members.map((member) => member.run(async ({ cluster, region }, times) => {
        const view = new Int32Array(region.buffer);
        let wrong = 0;
        for (let round = 1; round <= times; round++) {
          Atomics.add(view, 0, 1);
          await cluster.barrier('round', 6);
          if (Atomics.load(view, 0) < 6 * round) wrong++;
        }
        return wrong;
      }, rounds)),
      ...threads.map((thread) => thread.run(({ cluster, region }, times) => {
        const view = new Int32Array(region.buffer);
        let wrong = 0;
        for (let round = 1; round <= times; round++) {
          Atomics.add(view, 0, 1);
          cluster.barrierSync('round', 6);
          if (Atomics.load(view, 0) < 6 * round) wrong++;
        }
        return wrong;
      }, rounds)),
    ]);
    assert.deepEqual(early, [0, 0, 0, 0, 0, 0]);
  });

  it('shows after it what anybody wrote before it', async () => {
    const members = await startMembers(3, { name: 'visible', size: 1 << 16 });
    const wrong = await Promise.all(members.map((member, index) => member.run(async ({ cluster, region }, mine) => {
      const view = new Int32Array(region.buffer);
      let errors = 0;
      for (let round = 1; round <= 20; round++) {
        view[1024 * mine] = round;
        await cluster.barrier('written', 3);
        for (let other = 0; other < 3; other++) if (view[1024 * other] !== round) errors++;
        await cluster.barrier('read', 3);
      }
      return errors;
    }, index)));
    assert.deepEqual(wrong, [0, 0, 0]);
  });

  it('refuses another number of parties, and those who wait wait on', async () => {
    const [a, b, c] = await startMembers(3);
    const waiting = a.run(({ cluster }) => cluster.barrier('two', 2));
    await arrived(a);
    await assert.rejects(b.run(({ cluster }) => cluster.barrier('two', 3)), { name: 'InvalidArgumentError', code: 'ERR_FAULTLINE_INVALID_ARGUMENT' });
    await assert.rejects(c.run(({ cluster }) => { cluster.barrierSync('two', 5); }), { code: 'ERR_FAULTLINE_INVALID_ARGUMENT' });
    await b.run(({ cluster }) => cluster.barrier('two', 2));
    await waiting;
    // The next round may have another number.
    await Promise.all([a, b, c].map((member) => member.run(({ cluster }) => cluster.barrier('two', 3))));
  });

  it('counts nobody who gave up by an AbortSignal', async () => {
    const [a, b] = await startMembers(2);
    const gaveUp = codeOf(a.run(async (state) => {
      state.controller = new AbortController();
      await state.cluster.barrier('abort', 2, { signal: state.controller.signal });
    }));
    await arrived(a);
    await a.run(({ controller }) => controller.abort(Object.assign(new Error('enough'), { code: 'ENOUGH' })));
    assert.equal(await gaveUp, 'ENOUGH');
    await arrived(a);
    let through = false;
    const waiting = b.run(({ cluster }) => cluster.barrier('abort', 2)).then(() => { through = true; });
    await arrived(b);
    assert.equal(through, false);
    await a.run(({ cluster }) => cluster.barrier('abort', 2));
    await waiting;
  });

  it('times out in barrierSync(), and does not count who has gone', async () => {
    const [a, b] = await startMembers(2);
    const thread = await joinedThread(a);
    for (const who of [a, thread]) await assert.rejects(who.run(({ cluster }) => { cluster.barrierSync('late', 2, { timeout: 30 }); }), { name: 'TimeoutError', code: 'ERR_FAULTLINE_TIMEOUT', timeout: 30 });
    await assert.rejects(b.run(({ cluster }) => { cluster.barrierSync('late', 2, { timeout: 30 }); }), { code: 'ERR_FAULTLINE_TIMEOUT' });
    await Promise.all([thread.run(({ cluster }) => { cluster.barrierSync('late', 2); }), b.run(({ cluster }) => cluster.barrier('late', 2))]);
  });

  it('counts nobody whose handle is closed, or whose thread was terminated, while it waits', async () => {
    const [a, b, c] = await startMembers(3);
    const closed = codeOf(b.run(({ cluster }) => cluster.barrier('gone', 2)));
    await arrived(b);
    await b.leave();
    assert.equal(await closed, 'ERR_FAULTLINE_CLOSED');
    const thread = await joinedThread(c);
    const terminated = codeOf(thread.run(({ cluster, tell }) => { tell('asking'); cluster.barrierSync('gone', 2); }));
    await c.told('asking');
    await arrived(c);
    await thread.terminate();
    assert.equal(await terminated, 'ERR_THREAD_EXITED');
    await arrived(c);
    let through = false;
    const waiting = a.run(({ cluster }) => cluster.barrier('gone', 2)).then(() => { through = true; });
    await arrived(a);
    assert.equal(through, false);
    await c.run(({ cluster }) => cluster.barrier('gone', 2));
    await waiting;
  });

  it('breaks for all who wait when a member dies, names the dead, and works in the next round', async () => {
    const [a, b, c] = await startMembers(3);
    const thread = await joinedThread(b);
    const died = await c.run(({ cluster }) => cluster.self.id);
    const waiting = [
      a.run(({ cluster }) => cluster.barrier('step', 4)),
      thread.run(({ cluster, tell }) => { tell('asking'); cluster.barrierSync('step', 4); }),
      c.run(({ cluster }) => cluster.barrier('step', 4)).catch((error: Error) => { throw error; }),
    ].map((wait) => wait.then(() => 'through', (error: { name: string; code: string; barrier: string; members: number[]; epoch: number }) => error));
    await b.told('asking');
    for (const member of [a, b, c]) await arrived(member);
    const { epoch } = await a.run(({ cluster }) => cluster.view);
    await c.kill('SIGKILL');
    for (const outcome of [await waiting[0], await waiting[1]]) {
      assert.ok(typeof outcome !== 'string');
      assert.deepEqual(
        { name: outcome.name, code: outcome.code, barrier: outcome.barrier, members: outcome.members },
        { name: 'BarrierBrokenError', code: 'ERR_FAULTLINE_BARRIER_BROKEN', barrier: 'step', members: [died] });
      assert.ok(outcome.epoch > epoch);
    }
    for (let round = 0; round < 3; round++) {
      await Promise.all([a.run(({ cluster }) => cluster.barrier('step', 3)), b.run(({ cluster }) => cluster.barrier('step', 3)), thread.run(({ cluster }) => { cluster.barrierSync('step', 3); })]);
    }
  });

  it('is not broken by a member that leaves in order, the registrar included', async () => {
    const [a, b, c, d] = await startMembers(4);
    const waiting = b.run(({ cluster }) => cluster.barrier('patient', 2));
    await arrived(b);
    await d.leave();
    await a.leave();
    await c.run(({ cluster }) => cluster.barrier('patient', 2));
    await waiting;
  });

  it('is refused with a typed error when its name or parties make no sense', async () => {
    const [a] = await startMembers(1);
    for (const parties of [0, -1, 1.5, NaN, 2 ** 40, '2']) {
      assert.equal(await codeOf(a.run(({ cluster }, given) => cluster.barrier('x', given as number), parties)), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(parties));
      assert.equal(await codeOf(a.run(({ cluster }, given) => { cluster.barrierSync('x', given as number); }, parties)), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    }
    assert.equal(await codeOf(a.run(({ cluster }) => cluster.barrier('', 1))), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    await a.run(({ cluster }) => cluster.barrier('x', 1));
  });
});
