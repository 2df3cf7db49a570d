import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { codeOf, joinedThread } from '../support/steps.js';

/**
 * Makes blocking calls until lanes for them are there: the first one finds none, and has them made. @returns the member's
 * native number. lanes: how many others there are whose lanes count.
 */
async function connected(member: Member, others: number): Promise<void> {
  await member.run(async (state, count) => {
    const { native } = state.require('../../lib/native.js');
    const handle = native.memberFind(state.cluster.address);
    const until = Date.now() + 10_000;
    // Four for faults to each of the others, and four for calls to the one that serves.
    while (native.lanesConnected(handle) < 4 * count + 4) {
      if (Date.now() > until) throw new Error(`${native.lanesConnected(handle)} lanes`);
      state.cluster.lockSync('connect').releaseSync();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    state.native = native;
    state.handle = handle;
  }, others);
}

/** How many messages of any kind this member's coordinator sent and received by ZeroMQ while it made so many blocking calls. */
function byMessage(member: Member): Promise<number> {
  return member.run(({ cluster, native, handle }) => {
    const count = (): number => cluster.stats().messages.sent - native.laneTraffic(handle).messagesSent;
    const before = count();
    for (let i = 0; i < 50; i++) cluster.lockSync('direct').releaseSync();
    return count() - before;
  });
}

describe('a blocking call to the registrar', () => {
  it('takes no message where there is a lane, or where its own process serves', async () => {
    const [a, b] = await startMembers(2);
    await connected(b, 1);
    // A heartbeat may come between.
    assert.ok((await byMessage(b)) <= 5);
    await a.run((state) => {
      state.native = state.require('../../lib/native.js').native;
      state.handle = state.native.memberFind(state.cluster.address);
    });
    assert.ok((await byMessage(a)) <= 5);
  });

  it('goes by messages without lanes', async () => {
    const [, b] = await startMembers(2, undefined, { env: { FAULTLINE_LANE: 'off' } });
    await b.run((state) => {
      state.native = state.require('../../lib/native.js').native;
      state.handle = state.native.memberFind(state.cluster.address);
    });
    assert.ok((await byMessage(b)) >= 100);
  });

  it('takes more threads than there are lanes, and each has its turn', async () => {
    const [, b] = await startMembers(2);
    await connected(b, 1);
    const threads = await Promise.all(Array.from({ length: 6 }, () => joinedThread(b)));
    const counts = await Promise.all(threads.map((thread) => thread.run(({ cluster }) => {
      for (let i = 0; i < 30; i++) {
        const lock = cluster.lockSync('crowded', { timeout: 10_000 });
        cluster.barrierSync(`alone ${lock.token}`, 1);
        lock.releaseSync();
      }
      return 30;
    })));
    assert.deepEqual(counts, [30, 30, 30, 30, 30, 30]);
  });

  it('that is still waited for when its lane breaks goes on by messages, and keeps its place', async () => {
    const [a, b, c] = await startMembers(3);
    await connected(b, 2);
    await a.run(async (state) => { state.lock = await state.cluster.lock('broken'); });
    const thread = await joinedThread(b);
    const waits = thread.run((state) => { const lock = state.cluster.lockSync('broken', { timeout: 15_000 }); state.lock = lock; return lock.token; });
    // It waits on the first lane that it found; nobody else is before it.
    await delay(200);
    const last = c.run(async (state) => { state.lock = await state.cluster.lock('broken'); return state.lock.token; });
    await delay(100);
    const serving = await a.run(({ cluster }) => cluster.self.id);
    await b.run(({ native, handle }, id) => { for (let slot = 0; slot < 3; slot++) native.lanesClosePeer(handle, slot, id); }, serving);
    await delay(200);
    await a.run(({ lock }) => lock.release());
    const token = await waits;
    await thread.run(({ lock }) => lock.releaseSync());
    assert.ok((await last) > token);
  });

  it('in the midst of which its lanes break is carried out once', async () => {
    const [a, b] = await startMembers(2);
    await connected(b, 1);
    const serving = await a.run(({ cluster }) => cluster.self.id);
    const thread = await joinedThread(b);
    const counts = thread.run(({ cluster }) => {
      let last = 0n;
      const until = Date.now() + 600;
      let count = 0;
      for (; Date.now() < until; count++) {
        const lock = cluster.lockSync('torn', { timeout: 10_000 });
        // Twice carried out, it would be held by a call that nobody knows of, and this one would wait in vain.
        if (lock.token !== last + 1n && last !== 0n) throw new Error(`token ${lock.token} after ${last}`);
        last = lock.token;
        lock.releaseSync();
        cluster.barrierSync('torn', 1, { timeout: 10_000 });
      }
      return count;
    });
    await delay(200);
    await b.run(({ native, handle }, id) => { for (let slot = 0; slot < 2; slot++) native.lanesClosePeer(handle, slot, id); }, serving);
    assert.ok((await counts) > 10);
    assert.equal(await a.run(async ({ cluster }) => (await cluster.tryLock('torn')) !== undefined), true);
  });

  it('says in time that its time is over, and holds nothing afterwards', async () => {
    const [a, b] = await startMembers(2);
    await connected(b, 1);
    await a.run(async (state) => { state.lock = await state.cluster.lock('late'); });
    const error = await b.run(({ cluster }) => {
      try {
        cluster.lockSync('late', { timeout: 120 });
        return null;
      } catch (thrown) {
        const { code, message, timeout } = thrown as Error & { code: string; timeout: number };
        return { code, message, timeout };
      }
    });
    assert.deepEqual(error, { code: 'ERR_FAULTLINE_TIMEOUT', message: `lock 'late' was not had in 120 ms`, timeout: 120 });
    assert.equal(await codeOf(b.run(({ cluster }) => cluster.barrierSync('late', 2, { timeout: 60 }))), 'ERR_FAULTLINE_TIMEOUT');
    await a.run(({ lock }) => lock.release());
    assert.equal(await a.run(({ cluster }) => { const lock = cluster.lockSync('late', { timeout: 5000 }); lock.releaseSync(); return lock.ownerDied; }), false);
    // The party that gave up counts no more.
    assert.equal(await codeOf(a.run(({ cluster }) => cluster.barrierSync('late', 2, { timeout: 60 }))), 'ERR_FAULTLINE_TIMEOUT');
    await Promise.all([a, b].map((member) => member.run(({ cluster }) => cluster.barrierSync('late', 2, { timeout: 10_000 }))));
  });

  it('of a thread that is terminated holds nothing, and the next holder hears of what it held', async () => {
    const [a, b] = await startMembers(2);
    await connected(b, 1);
    const [holds, waits] = [await joinedThread(b), await joinedThread(b)];
    await holds.run((state) => { state.lock = state.cluster.lockSync('thread'); });
    void codeOf(waits.run(({ cluster }) => cluster.lockSync('thread')));
    await delay(200);
    await waits.terminate();
    await holds.terminate();
    assert.equal(await a.run(({ cluster }) => { const lock = cluster.lockSync('thread', { timeout: 10_000 }); lock.releaseSync(); return lock.ownerDied; }), true);
  });

  it('is served by the next registrar when the one that was asked leaves', async () => {
    const members = await startMembers(3);
    const [a, b, c] = members;
    await connected(b, 2);
    await connected(c, 2);
    await b.run((state) => { state.lock = state.cluster.lockSync('moves'); });
    const waits = c.run(({ cluster }) => {
      const lock = cluster.lockSync('moves', { timeout: 15_000 });
      lock.releaseSync();
      return lock.ownerDied;
    });
    const thread = await joinedThread(b);
    const barrier = thread.run(({ cluster }) => cluster.barrierSync('moves', 2, { timeout: 15_000 }));
    await delay(200);
    await a.run(({ cluster }) => cluster.close());
    await b.run(({ lock }) => lock.releaseSync());
    assert.equal(await waits, false);
    await c.run(({ cluster }) => cluster.barrierSync('moves', 2, { timeout: 15_000 }));
    await barrier;
  });

  it('of a member that was stopped until it was given up does not give it the lock, although the answer was there', async () => {
    const cluster = uniqueCluster();
    const [a, b] = [await Member.start({ cluster }), await Member.start({ cluster })];
    await connected(b, 1);
    await a.run((state) => { state.lock = state.cluster.lockSync('stopped'); });
    const waits = codeOf(b.run(({ cluster: own }) => { own.lockSync('stopped', { timeout: 20_000 }); }));
    await delay(200);
    process.kill(b.pid, 'SIGSTOP');
    await a.run(({ lock }) => lock.releaseSync());
    assert.equal(await a.run(({ cluster: own }) => { const lock = own.lockSync('stopped', { timeout: 15_000 }); lock.releaseSync(); return lock.ownerDied; }), true);
    process.kill(b.pid, 'SIGCONT');
    assert.equal(await waits, 'ERR_FAULTLINE_EVICTED');
  });
});
