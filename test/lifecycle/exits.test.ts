import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { Member, startMembers, uniqueCluster, type Exit } from '../support/members.js';
import { codeOf, counted, joinedThread, openInThread, seeded, tellEvents } from '../support/steps.js';

/** ms that any end may take: the hand-over at an exit is bounded by 5 s. */
const END = 9000;

/** A member with a region that it alone has written, and one that stays and will look for it. */
async function pair(): Promise<{ stays: Member; goes: Member }> {
  const [stays, goes] = await startMembers(2);
  await goes.open('left', { size: 1 << 16 });
  await goes.run(({ region }) => { new Int32Array(region.buffer)[5] = 55; });
  await tellEvents(stays, 'member-left', 'member-died');
  return { stays, goes };
}

async function assertHandedOver(stays: Member): Promise<void> {
  await stays.told('event member-left', { within: 3000 });
  await stays.open('left', { mode: 'open' });
  assert.equal(await stays.run(({ region }) => new Int32Array(region.buffer)[5]), 55);
  assert.deepEqual(await stays.run(({ region }) => region.lost()), []);
}

function assertEnd({ code, signal, stderr }: Exit, expected: { code?: number; signal?: NodeJS.Signals }): void {
  assert.deepEqual({ code, signal }, { code: expected.code ?? null, signal: expected.signal ?? null }, stderr);
}

describe('a process that ends', () => {
  it('hands over at a normal end and keeps process.exitCode', async () => {
    const { stays, goes } = await pair();
    await goes.run(() => { process.exitCode = 5; });
    await goes.release();
    assertEnd(await goes.exit({ within: END }), { code: 5 });
    await assertHandedOver(stays);
  });

  it('hands over at process.exit(), and keeps the code', async () => {
    const { stays, goes } = await pair();
    assertEnd(await goes.last(() => process.exit(7), undefined, { within: END }), { code: 7 });
    await assertHandedOver(stays);
  });

  it('hands over at an uncaught error, and shows it', async () => {
    const { stays, goes } = await pair();
    const end = await goes.last(() => { setImmediate(() => { throw new Error('uncaught by purpose'); }); }, undefined, { within: END });
    assertEnd(end, { code: 1 });
    assert.match(end.stderr, /uncaught by purpose/);
    await assertHandedOver(stays);
  });

  it('hands over at SIGTERM, SIGINT and SIGHUP when it has no handler of its own, and dies by that signal', async () => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
      const { stays, goes } = await pair();
      await goes.kill(signal);
      assertEnd(await goes.exit({ within: END }), { signal });
      await assertHandedOver(stays);
    }
  });

  it('is left alone by a signal that the program handles itself, and goes on as a member', async () => {
    const { stays, goes } = await pair();
    await goes.run(({ tell }) => { process.on('SIGTERM', () => tell('mine')); });
    await goes.kill('SIGTERM');
    await goes.told('mine');
    assert.equal(await codeOf(goes.run(async ({ cluster }) => { await (await cluster.lock('x')).release(); })), 'ok');
    await stays.open('left', { mode: 'open' });
    assert.equal(await stays.run(({ region }) => new Int32Array(region.buffer)[5]), 55);
  });

  it('hands over when its own handler of a signal calls process.exit()', async () => {
    const { stays, goes } = await pair();
    await goes.run(() => { process.once('SIGINT', () => process.exit(4)); });
    await goes.kill('SIGINT');
    assertEnd(await goes.exit({ within: END }), { code: 4 });
    await assertHandedOver(stays);
  });

  it('ends by SIGTERM while its main thread blocks in lockSync()', async () => {
    const [stays, goes] = await startMembers(2);
    await stays.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    const end = goes.last(({ cluster, tell }) => { tell('blocks'); cluster.lockSync('held'); }, undefined, { within: END });
    await goes.told('blocks');
    // A blocking call gives signals back to the system a moment after it began, so the first one may be too early.
    for (let ended = false; !ended;) {
      await goes.kill('SIGTERM');
      ended = await Promise.race([end.then(() => true), delay(100).then(() => false)]);
    }
    assertEnd(await end, { signal: 'SIGTERM' });
    await stays.run(({ lock }) => lock.release());
  });

  it('has left when an exit event comes that was added after join(): it meets ClosedError there, and the code stays', async () => {
    const { stays, goes } = await pair();
    const end = await goes.last(({ cluster, region, attempt }) => {
      process.on('exit', () => {
        for (const use of [() => cluster.lockSync('last'), () => attempt(() => { new Int32Array(region.buffer)[6] = 66; })]) {
          try { use(); } catch (error) { console.error((error as { code: string }).code); }
        }
      });
      process.exit(3);
    }, undefined, { within: END });
    assertEnd(end, { code: 3 });
    assert.equal(end.stderr, 'ERR_FAULTLINE_CLOSED\nERR_FAULTLINE_CLOSED\n');
    await assertHandedOver(stays);
  });

  it('uses the memory in an exit event that was there before join()', async () => {
    const stays = await Member.start({ cluster: uniqueCluster() });
    const goes = await Member.start({ join: false });
    await goes.run(async (state, address) => {
      process.on('exit', () => {
        const lock = state.cluster.lockSync('last');
        new Int32Array(state.region.buffer)[5] = 55;
        lock.releaseSync();
      });
      state.cluster = await state.join({ cluster: address });
      state.region = await state.cluster.region('left', { size: 1 << 16 });
    }, await stays.run(({ cluster }) => cluster.address));
    await tellEvents(stays, 'member-left');
    assertEnd(await goes.last(() => process.exit(3), undefined, { within: END }), { code: 3 });
    await assertHandedOver(stays);
  });

  it('keeps the code that an exit event sets by calling process.exit() again', async () => {
    const { stays, goes } = await pair();
    const end = await goes.last(() => {
      process.prependListener('exit', () => process.exit(9));
      process.exit(2);
    }, undefined, { within: END });
    assertEnd(end, { code: 9 });
    await assertHandedOver(stays);
  });

  it('hands over after an exit event that throws', async () => {
    const { stays, goes } = await pair();
    const end = await goes.last(() => {
      process.prependListener('exit', () => { throw new Error('thrown at the exit'); });
      setImmediate(() => process.exit(2));
    }, undefined, { within: END });
    assert.equal(end.signal, null, end.stderr);
    await assertHandedOver(stays);
  });

  describe('by process.exit(), at any stage, neither hangs, nor aborts, nor changes the code:', () => {
    it('before it has joined', async () => {
      const member = await Member.start({ join: false });
      assertEnd(await member.last(() => process.exit(11), undefined, { within: END }), { code: 11 });
    });

    it('while it joins, at many moments of that, alone or beside others', async () => {
      const random = seeded(3);
      const stays = await Member.start({ cluster: uniqueCluster() });
      const beside = await stays.run(({ cluster }) => cluster.address);
      for (let i = 0; i < counted(12, 100); i++) {
        const member = await Member.start({ join: false });
        const cluster = i % 2 ? beside : uniqueCluster();
        const end = await member.last((state, given) => {
          state.join({ cluster: given.cluster }).then(() => process.exit(given.code), (error) => { console.error(error); process.exit(99); });
          if (given.delay === 0) process.exit(given.code);
          setTimeout(() => process.exit(given.code), given.delay);
        }, { cluster, delay: i < 2 ? 0 : random() * 80, code: 20 + i }, { within: END });
        assertEnd(end, { code: 20 + i });
      }
      assert.equal(await codeOf(stays.run(async ({ cluster }) => { await (await cluster.lock('x')).release(); })), 'ok');
      await stays.run(async ({ cluster }) => { while (cluster.view.members.length > 1) await new Promise((resolve) => cluster.once('view', resolve)); });
    });

    it('right after it has joined, in the same turn', async () => {
      const member = await Member.start({ join: false });
      assertEnd(await member.last(async ({ join }, cluster) => { await join({ cluster }); process.exit(12); }, uniqueCluster(), { within: END }), { code: 12 });
    });

    it('while it opens a region, waits, prefetches, waits for a barrier and for a lock', async () => {
      const [stays, goes] = await startMembers(2, { name: 'busy', size: 1 << 22 });
      await stays.run(async (state) => {
        new Int32Array(state.region.buffer).fill(1);
        state.lock = await state.cluster.lock('held');
      });
      const end = await goes.last(({ cluster, region }) => {
        const fail = (error: { code: string }): void => { console.error('rejected', error.code); };
        cluster.region('other', { size: 1 << 20 }).catch(fail);
        cluster.region('never', { mode: 'wait' }).catch(fail);
        region.prefetch().catch(fail);
        region.pin({ offset: 0, length: 1 << 16 }, 'write').catch(fail);
        region.wait(0, 1).catch(fail);
        cluster.barrier('never', 2).catch(fail);
        cluster.lock('held').catch(fail);
        process.exit(13);
      }, undefined, { within: END });
      assertEnd(end, { code: 13 });
      assert.equal(await stays.run(({ region }) => new Int32Array(region.buffer).every((value) => value === 1)), true);
      await stays.run(({ lock }) => lock.release());
      assert.equal(await codeOf(stays.run(async ({ cluster }) => { await (await cluster.lock('held')).release(); })), 'ok');
    });

    it('while workers fault without an end', async () => {
      const [stays, goes] = await startMembers(2, { name: 'busy', size: 64 * 4096 });
      const threads = await Promise.all([stays, goes, goes].map((member) => member.thread(({ region }) => ({ buffer: region.buffer }))));
      threads.forEach((thread) => codeOf(thread.run(({ buffer, tell }) => {
        const view = new Int32Array(buffer as SharedArrayBuffer);
        for (let round = 0; ; round++) {
          for (let page = 0; page < 64; page++) Atomics.add(view, page * 1024, 1);
          if (round === 2) tell('faulting');
        }
      }, undefined, { within: 60_000 })));
      await Promise.all([stays.told('faulting'), goes.told('faulting'), goes.told('faulting')]);
      assertEnd(await goes.last(() => process.exit(14), undefined, { within: END }), { code: 14 });
      assert.equal(await stays.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0) > 0), true);
      assert.deepEqual(await stays.run(({ region }) => region.lost()), []);
    });

    it('while a worker waits in a fault for a page that another member has pinned', async () => {
      const [stays, goes] = await startMembers(2, { name: 'pinned', size: 1 << 16 });
      await stays.run(async (state) => { state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write'); });
      const thread = await goes.thread(({ region }) => ({ buffer: region.buffer }));
      codeOf(thread.run(({ buffer, tell }) => { tell('faulting'); new Int32Array(buffer as SharedArrayBuffer)[0] = 1; }));
      await goes.told('faulting');
      assertEnd(await goes.last(() => process.exit(15), undefined, { within: END }), { code: 15 });
      await stays.run(({ pin }) => pin.release());
      assert.equal(await stays.run(({ region }) => { new Int32Array(region.buffer)[0] = 2; return new Int32Array(region.buffer)[0]; }), 2);
    });

    it('while a worker that nobody waits for is in a fault, and the program just ends', async () => {
      const [stays, goes] = await startMembers(2, { name: 'pinned', size: 1 << 16 });
      await stays.run(async (state) => { state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write'); });
      const thread = await goes.thread(({ region }) => ({ buffer: region.buffer }));
      codeOf(thread.run(({ buffer, tell }) => { tell('faulting'); new Int32Array(buffer as SharedArrayBuffer)[0] = 1; }));
      await goes.told('faulting');
      await goes.release();
      assertEnd(await goes.exit({ within: END }), { code: 0 });
      assert.deepEqual(await stays.run(({ region }) => region.lost()), []);
    });

    it('while workers wait in lockSync(), barrierSync() and waitSync()', async () => {
      const [stays, goes] = await startMembers(2, { name: 'flags', size: 1 << 14 });
      await stays.run(async (state) => { state.lock = await state.cluster.lock('held'); });
      const steps = [
        ({ cluster, tell }: Parameters<Parameters<Member['run']>[0]>[0]) => { tell('asking'); cluster.lockSync('held'); },
        ({ cluster, tell }: Parameters<Parameters<Member['run']>[0]>[0]) => { tell('asking'); cluster.barrierSync('never', 2); },
        ({ region, tell }: Parameters<Parameters<Member['run']>[0]>[0]) => { tell('asking'); region.waitSync(0, 0); },
      ];
      for (const step of steps) {
        const thread = await joinedThread(goes);
        await openInThread(thread, 'flags');
        codeOf(thread.run(step));
        await goes.told('asking');
      }
      assertEnd(await goes.last(() => process.exit(16), undefined, { within: END }), { code: 16 });
      await stays.run(({ lock }) => lock.release());
      assert.equal(await codeOf(stays.run(async ({ cluster }) => { await (await cluster.lock('held')).release(); })), 'ok');
    });

    it('while it closes', async () => {
      const { stays, goes } = await pair();
      assertEnd(await goes.last(({ cluster }) => { void cluster.close(); process.exit(17); }, undefined, { within: END }), { code: 17 });
      await assertHandedOver(stays);
    });

    it('after it has closed', async () => {
      const { goes } = await pair();
      await goes.leave();
      assertEnd(await goes.last(() => process.exit(18), undefined, { within: END }), { code: 18 });
    });

    it('from a worker, which ends that thread only', async () => {
      const { goes } = await pair();
      const thread = await joinedThread(goes);
      await openInThread(thread, 'left');
      assert.equal(await codeOf(thread.run(() => process.exit(40))), 'ERR_THREAD_EXITED');
      assert.equal(await goes.run(({ region }) => new Int32Array(region.buffer)[5]), 55);
    });

    it('while it serves the cluster alone, with regions and locks', async () => {
      const [alone] = await startMembers(1, { name: 'own', size: 1 << 20 });
      assertEnd(await alone.last(async ({ cluster, region }) => {
        await cluster.lock('x');
        new Uint8Array(region.buffer).fill(1);
        process.exit(19);
      }, undefined, { within: END }), { code: 19 });
    });

    it('while it serves the cluster for others, who go on', async () => {
      const [goes, stays] = await startMembers(2, { name: 'left', size: 1 << 16 });
      await goes.run(({ region }) => { new Int32Array(region.buffer)[5] = 55; });
      await stays.run(async (state) => { state.lock = await state.cluster.lock('mine'); });
      await tellEvents(stays, 'member-left', 'lost');
      assertEnd(await goes.last(() => process.exit(20), undefined, { within: END }), { code: 20 });
      await assertHandedOver(stays);
      assert.equal(await stays.run(async ({ cluster }) => await cluster.tryLock('mine')), undefined);
    });

    it('when all members exit at the same time', async () => {
      const members = await startMembers(4, { name: 'all', size: 1 << 18 });
      await Promise.all(members.map((member) => member.run(({ region }) => { new Uint8Array(region.buffer).fill(2); })));
      const ends = await Promise.all(members.map((member, index) => member.last((_, code) => process.exit(code), 30 + index, { within: END })));
      ends.forEach((end, index) => assertEnd(end, { code: 30 + index }));
    });

    it('when the others are stopped: bounded', async () => {
      const [stopped, goes] = await startMembers(2, { name: 'own', size: 1 << 16 });
      await goes.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
      await stopped.kill('SIGSTOP');
      assertEnd(await goes.last(() => process.exit(21), undefined, { within: END }), { code: 21 });
      await stopped.kill('SIGCONT');
    });

    it('after its cluster was lost', async () => {
      const [registrar, goes] = await startMembers(2, { name: 'own', size: 1 << 16 });
      await tellEvents(goes, 'lost');
      await registrar.kill('SIGKILL');
      await goes.told('event lost');
      assertEnd(await goes.last(() => process.exit(22), undefined, { within: END }), { code: 22 });
    });
  });

  it('ends by itself although handles are open, and although nobody closed them', async () => {
    const member = await Member.start({ cluster: uniqueCluster() });
    await member.open('open', { size: 1 << 14 });
    await member.run(async ({ cluster }) => { await cluster.lock('held'); });
    await member.release();
    assertEnd(await member.exit({ within: END }), { code: 0 });
  });

  it('stays alive while a call is pending', async () => {
    const [a, b] = await startMembers(2);
    await b.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    await a.run(({ cluster }) => { void cluster.lock('held').then(() => { process.exitCode = 6; }); });
    await a.release();
    await b.run(({ cluster }) => cluster.barrier('some', 1));
    assert.equal(a.ended, undefined);
    await b.run(({ lock }) => lock.release());
    assertEnd(await a.exit({ within: END }), { code: 6 });
  });
});
