import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { arrived, codeOf, counted, joinedThread, openInThread, tellEvents } from '../support/steps.js';

describe('a lock of the cluster', () => {
  it('is held by one at a time, over members, threads, and both kinds of calls', async () => {
    const members = await startMembers(2, { name: 'counter', size: 1 << 14 });
    const threads = await Promise.all(members.map(joinedThread));
    await Promise.all(threads.map((thread) => openInThread(thread, 'counter')));
    const rounds = counted(100, 2000);
    await Promise.all([
      ...members.map((member) => member.run(async ({ cluster, region }, times) => {
        const view = new Int32Array(region.buffer);
        for (let i = 0; i < times; i++) {
          const lock = await cluster.lock('counter');
          // Not atomic, and on two pages: only the lock keeps these together.
          view[0] = view[1024] + 1;
          view[1024] = view[0];
          await lock.release();
        }
      }, rounds)),
      ...threads.map((thread) => thread.run(({ cluster, region }, times) => {
        const view = new Int32Array(region.buffer);
        for (let i = 0; i < times; i++) {
          const lock = cluster.lockSync('counter');
          view[0] = view[1024] + 1;
          view[1024] = view[0];
          lock.releaseSync();
        }
      }, rounds)),
    ]);
    assert.deepEqual(await members[0].run(({ region }) => [0, 1024].map((at) => new Int32Array(region.buffer)[at])), [4 * rounds, 4 * rounds]);
  });

  it('goes to those who wait in the order of their asking', async () => {
    const members = await startMembers(4);
    await members[0].run(async (state) => { state.lock = await state.cluster.lock('queue'); });
    const order: number[] = [];
    const waiting: Promise<unknown>[] = [];
    for (const index of [2, 1, 3, 0, 2, 1]) {
      waiting.push(members[index].run(async ({ cluster }) => {
        const lock = await cluster.lock('queue');
        const { token } = lock;
        await lock.release();
        return token;
      }).then((token) => { order.push(Number(token)); return token; }));
      await arrived(members[index]);
    }
    await members[0].run(({ lock }) => lock.release());
    const tokens = (await Promise.all(waiting)) as bigint[];
    assert.deepEqual(tokens, [...tokens].sort((one, other) => Number(one - other)));
    assert.equal(order.length, 6);
  });

  it('is held by neighbouring readers together, and lets no reader overtake a writer that waits', async () => {
    const [a, b, c] = await startMembers(3);
    await a.run(async (state) => { state.lock = await state.cluster.lock('rw', { shared: true }); });
    await b.run(async (state) => { state.lock = await state.cluster.lock('rw', { shared: true }); });
    assert.equal(await c.run(async ({ cluster }) => await cluster.tryLock('rw')), undefined);
    const order: string[] = [];
    const writer = c.run(async (state) => { state.lock = await state.cluster.lock('rw'); }).then(() => order.push('writer'));
    await arrived(c);
    const reader = a.run(async (state) => { state.second = await state.cluster.lock('rw', { shared: true }); }).then(() => order.push('reader'));
    await arrived(a);
    await a.run(({ lock }) => lock.release());
    await arrived(c);
    assert.deepEqual(order, []);
    await b.run(({ lock }) => lock.release());
    await writer;
    await arrived(a);
    assert.deepEqual(order, ['writer']);
    await c.run(({ lock }) => lock.release());
    await reader;
    assert.deepEqual(order, ['writer', 'reader']);
  });

  it('is tried without waiting', async () => {
    const [a, b] = await startMembers(2);
    assert.equal(await a.run(async (state) => { state.lock = await state.cluster.tryLock('try'); return state.lock !== undefined; }), true);
    // Not re-entrant: the holder itself, and another handle of its process, get it no more than another member.
    assert.equal(await a.run(async ({ cluster }) => await cluster.tryLock('try')), undefined);
    assert.equal(await b.run(async ({ cluster }) => await cluster.tryLock('try')), undefined);
    assert.equal(await b.run(async ({ cluster }) => await cluster.tryLock('try', { shared: true })), undefined);
    await a.run(({ lock }) => lock.release());
    assert.equal(await b.run(async (state) => { state.lock = await state.cluster.tryLock('try', { shared: true }); return state.lock !== undefined; }), true);
    assert.equal(await a.run(async ({ cluster }) => (await cluster.tryLock('try', { shared: true })) !== undefined), true);
    // A try in vain leaves nothing behind that would wait.
    await b.run(({ lock }) => lock.release());
  });

  it('has a token that grows with every grant, whoever gets it', async () => {
    const [a, b] = await startMembers(2);
    const tokens: bigint[] = [];
    for (let i = 0; i < 6; i++) {
      tokens.push(await (i % 2 ? a : b).run(async ({ cluster }, name) => {
        const lock = await cluster.lock(name);
        await lock.release();
        return lock.token;
      }, 'token'));
    }
    for (let i = 1; i < tokens.length; i++) assert.ok(tokens[i] > tokens[i - 1], `${tokens[i - 1]} then ${tokens[i]}`);
  });

  it('is given up by an AbortSignal, with its reason, and passes those by who gave up', async () => {
    const [a, b, c] = await startMembers(3);
    await a.run(async (state) => { state.lock = await state.cluster.lock('abort'); });
    assert.equal(await codeOf(b.run(({ cluster }) => cluster.lock('abort', { signal: AbortSignal.abort(Object.assign(new Error('no'), { code: 'MINE' })) }))), 'MINE');
    const given = codeOf(b.run(async (state) => {
      state.controller = new AbortController();
      await state.cluster.lock('abort', { signal: state.controller.signal });
    }));
    await arrived(b);
    const next = c.run(async ({ cluster }) => {
      const lock = await cluster.lock('abort');
      await lock.release();
      return lock.ownerDied;
    });
    await arrived(c);
    await b.run(({ controller }) => controller.abort(Object.assign(new Error('enough'), { code: 'ENOUGH' })));
    assert.equal(await given, 'ENOUGH');
    await a.run(({ lock }) => lock.release());
    assert.equal(await next, false);
  });

  it('is never left behind by an abort that meets the grant', async () => {
    const [a, b] = await startMembers(2);
    const outcomes = await b.run(async ({ cluster }) => {
      const seen = { granted: 0, aborted: 0 };
      for (let i = 0; i < 100; i++) {
        const controller = new AbortController();
        const asked = cluster.lock('race', { signal: controller.signal });
        setTimeout(() => controller.abort(), (i % 10) / 10);
        try {
          await (await asked).release();
          seen.granted++;
        } catch {
          seen.aborted++;
        }
      }
      return seen;
    });
    assert.equal(outcomes.granted + outcomes.aborted, 100);
    assert.equal(await a.run(async ({ cluster }) => {
      const lock = await cluster.lock('race');
      await lock.release();
      return lock.ownerDied;
    }), false);
  });

  it('times out in lockSync(), on the main thread and in workers, and is not granted to who has gone', async () => {
    const [a, b] = await startMembers(2);
    const thread = await joinedThread(b);
    await a.run(async (state) => { state.lock = await state.cluster.lock('slow'); });
    for (const who of [b, thread]) {
      await assert.rejects(who.run(({ cluster }) => { cluster.lockSync('slow', { timeout: 30 }); }), { name: 'TimeoutError', code: 'ERR_FAULTLINE_TIMEOUT', timeout: 30 });
      await assert.rejects(who.run(({ cluster }) => { cluster.lockSync('slow', { timeout: 0 }); }), { code: 'ERR_FAULTLINE_TIMEOUT' });
    }
    await a.run(({ lock }) => lock.release());
    for (const who of [b, thread]) {
      assert.equal(await who.run(({ cluster }) => {
        const lock = cluster.lockSync('slow', { timeout: 5000 });
        lock.releaseSync();
        return lock.ownerDied;
      }), false);
    }
  });

  it('is released once, however often it is released', async () => {
    const [a, b] = await startMembers(2);
    const aborted = await a.run(async ({ cluster }) => {
      const lock = await cluster.lock('once');
      await Promise.all([lock.release(), lock.release()]);
      lock.releaseSync();
      const next = await cluster.lock('once');
      await lock.release();
      lock.releaseSync();
      await lock[Symbol.asyncDispose]();
      return [lock.signal.aborted, (await cluster.tryLock('once')) === undefined, next.signal.aborted];
    });
    // Late releases of the first one did not release the second.
    assert.deepEqual(aborted, [false, true, false]);
    assert.equal(await b.run(async ({ cluster }) => await cluster.tryLock('once')), undefined);
  });

  it('is released at the end of a block by `using` and `await using`, also if the block throws', async () => {
    const [a, b] = await startMembers(2);
    await assert.rejects(a.run(async ({ cluster }) => {
      await using lock = await cluster.lock('block');
      if (lock.token > 0n) throw Object.assign(new Error('out'), { code: 'OUT' });
    }), { code: 'OUT' });
    await a.run(({ cluster }) => {
      using lock = cluster.lockSync('block');
      return lock.ownerDied;
    });
    assert.equal(await b.run(async ({ cluster }) => (await cluster.tryLock('block'))?.ownerDied), false);
  });

  it('is released by close(), says so by its signal, and the next holder hears of no death', async () => {
    const [a, b] = await startMembers(2);
    await a.run(async (state) => {
      state.lock = await state.cluster.lock('closed');
      state.sync = state.cluster.lockSync('closed too');
    });
    const next = b.run(async ({ cluster }) => [(await cluster.lock('closed')).ownerDied, (await cluster.lock('closed too')).ownerDied]);
    await arrived(b);
    assert.deepEqual(await a.run(async ({ cluster, lock, sync }) => {
      await cluster.close();
      return [lock.signal.aborted, lock.signal.reason.code, sync.signal.aborted];
    }), [true, 'ERR_FAULTLINE_CLOSED', true]);
    assert.deepEqual(await next, [false, false]);
    // Releasing what is gone is no error.
    await a.run(async ({ lock, sync }) => { await lock.release(); sync.releaseSync(); });
  });

  it('is released by close() of one handle and not by that of another handle of its process', async () => {
    const [a, b] = await startMembers(2);
    await a.run(async (state) => {
      state.other = await state.join({ cluster: state.cluster.address });
      state.mine = await state.cluster.lock('mine');
      state.others = await state.other.lock('others');
      await state.other.close();
    });
    assert.equal(await b.run(async ({ cluster }) => await cluster.tryLock('mine')), undefined);
    assert.equal(await b.run(async ({ cluster }) => (await cluster.lock('others')).ownerDied), false);
    assert.deepEqual(await a.run(({ mine, others }) => [mine.signal.aborted, others.signal.aborted]), [false, true]);
  });

  it('passes on with ownerDied after kill -9 of its holder, and without it after the next release', async () => {
    const [a, b, c] = await startMembers(3);
    await c.run(async ({ cluster }) => { await cluster.lock('dead'); cluster.lockSync('dead too'); });
    const [one, two] = [a, b].map((member) => member.run(async (state) => {
      state.lock = await state.cluster.lock('dead');
      return state.lock.ownerDied as boolean;
    }));
    await arrived(a);
    await c.kill('SIGKILL');
    const first = await Promise.race([one.then((died) => ({ died, holder: a })), two.then((died) => ({ died, holder: b }))]);
    assert.equal(first.died, true);
    await first.holder.run(({ lock }) => lock.release());
    assert.equal(await (first.holder === a ? two : one), false);
    assert.equal(await a.run(async ({ cluster }) => (await cluster.lock('dead too')).ownerDied), true);
  });

  it('passes by a waiter that dies', async () => {
    const [a, b, c] = await startMembers(3);
    await a.run(async (state) => { state.lock = await state.cluster.lock('line'); });
    b.run(({ cluster }) => cluster.lock('line')).catch(() => undefined);
    await arrived(b);
    const next = c.run(async ({ cluster }) => (await cluster.lock('line')).ownerDied);
    await arrived(c);
    await tellEvents(a, 'member-died');
    await b.kill('SIGKILL');
    await a.told('event member-died');
    await a.run(({ lock }) => lock.release());
    assert.equal(await next, false);
  });

  it('passes on with ownerDied after worker.terminate() of its holder', async () => {
    const [a, b] = await startMembers(2);
    const thread = await joinedThread(a);
    await thread.run(async ({ cluster }) => { cluster.lockSync('worker'); await cluster.lock('worker too', { shared: true }); });
    assert.equal(await b.run(async ({ cluster }) => await cluster.tryLock('worker')), undefined);
    const next = b.run(async ({ cluster }) => [(await cluster.lock('worker')).ownerDied, (await cluster.lock('worker too')).ownerDied]);
    await arrived(b);
    await thread.terminate();
    assert.equal((await next)[0], true);
  });

  it('is not granted to a worker that was terminated in lockSync()', async () => {
    const [a, b] = await startMembers(2);
    const thread = await joinedThread(a);
    await b.run(async (state) => { state.lock = await state.cluster.lock('blocked'); });
    const gone = codeOf(thread.run(({ cluster, tell }) => { tell('asking'); cluster.lockSync('blocked'); }));
    await a.told('asking');
    await thread.terminate();
    assert.equal(await gone, 'ERR_THREAD_EXITED');
    await b.run(({ lock }) => lock.release());
    assert.equal(typeof await b.run(async ({ cluster }) => (await cluster.lock('blocked')).ownerDied), 'boolean');
  });

  it('says by its signal that it was lost with an eviction', async () => {
    const [a, b] = await startMembers(2);
    await b.run(async (state) => {
      state.lock = await state.cluster.lock('stopped');
      state.lock.signal.addEventListener('abort', () => state.tell('aborted', state.lock.signal.reason.code));
    });
    const next = a.run(async (state) => { state.lock = await state.cluster.lock('stopped'); return [state.lock.ownerDied, state.lock.token]; });
    await arrived(a);
    const before = await b.run(({ lock }) => lock.token as bigint);
    await b.kill('SIGSTOP');
    const [ownerDied, token] = await next;
    assert.equal(ownerDied, true);
    assert.ok((token as bigint) > before);
    await b.kill('SIGCONT');
    assert.equal(await b.told('aborted'), 'ERR_FAULTLINE_EVICTED');
    // A release by the zombie is no error, and takes nothing away from the new holder.
    await b.run(({ lock }) => lock.release());
    assert.equal(await a.run(async ({ cluster }) => await cluster.tryLock('stopped')), undefined);
  });

  it('stays with its holder, and its queue in order, when the registrar leaves', async () => {
    const [a, b, c, d] = await startMembers(4);
    const token = await b.run(async (state) => { state.lock = await state.cluster.lock('moves'); return state.lock.token as bigint; });
    const waiting = c.run(async (state) => { state.lock = await state.cluster.lock('moves'); return state.lock.token as bigint; });
    await arrived(c);
    const last = d.run(async (state) => { state.lock = await state.cluster.lock('moves'); return state.lock.token as bigint; });
    await arrived(d);
    await a.leave();
    assert.equal(await d.run(async ({ cluster }) => await cluster.tryLock('moves')), undefined);
    await b.run(({ lock }) => lock.release());
    const second = await waiting;
    assert.ok(second > token);
    await c.leave();
    assert.ok((await last) > second);
  });

  it('is refused with a typed error when its name or its options make no sense', async () => {
    const a = await Member.start({ cluster: uniqueCluster() });
    for (const name of ['', 'x'.repeat(256), 'a\nb', 7, null]) {
      assert.equal(await codeOf(a.run(({ cluster }, given) => cluster.lock(given as string), name)), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(name));
      assert.equal(await codeOf(a.run(({ cluster }, given) => { cluster.lockSync(given as string); }, name)), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    }
    assert.equal(await codeOf(a.run(({ cluster }) => cluster.lock('x', { shared: 1 as never }))), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    assert.equal(await codeOf(a.run(({ cluster }) => { cluster.lockSync('x', { timeout: -1 }); })), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    assert.equal(await a.run(async ({ cluster }) => (await cluster.tryLock('x'))?.name), 'x');
  });
});
