import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { codeOf, joinedThread, openInThread, tellEvents } from '../support/steps.js';

const PAGE = 4096;

/** Runs an expression in the coordinator's thread of that member, by way of an inspector: the only honest way in from outside. */
async function inCoordinator(member: Member, expression: string): Promise<void> {
  await member.run(async ({ require }, source) => {
    const { Session } = require('node:inspector') as typeof import('node:inspector');
    const session = new Session();
    session.connect();
    const post = (method: string, params: object): Promise<unknown> => new Promise((resolve, reject) => {
      session.post(method, params, (error, answer) => { if (error) reject(error); else resolve(answer); });
    });
    try {
      const attached = new Promise<string>((resolve) => session.on('NodeWorker.attachedToWorker', ({ params: { sessionId, workerInfo } }) => {
        if (workerInfo.url.endsWith('/coordinator/main.js')) resolve(sessionId);
      }));
      await post('NodeWorker.enable', { waitForDebuggerOnStart: false });
      const sessionId = await attached;
      const evaluated = new Promise((resolve) => session.once('NodeWorker.receivedMessageFromWorker', resolve));
      await post('NodeWorker.sendMessageToWorker', { sessionId, message: JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression: source } }) });
      await evaluated;
    } finally {
      session.disconnect();
    }
  }, expression);
}

describe('hazards: the coordinator of a member ends by an uncaught error', () => {
  for (const registrar of [false, true]) {
    it(`of ${registrar ? 'the registrar' : 'any other member'}: all calls of all its threads fail with CoordinatorError, the process lives, the others hear of it`, async () => {
      const members = await startMembers(3, { name: 'memory', size: 16 * PAGE });
      const [broken, other, third] = registrar ? members : [members[1], members[0], members[2]];
      await other.run(({ region }) => { new Int32Array(region.buffer)[0] = 7; });
      // It is in the other's hands, so it may go with nobody.
      await third.run(({ region }) => new Int32Array(region.buffer)[0]);
      await other.run(async (state) => { state.lock = await state.cluster.lock('held'); });
      await other.run(async (state) => { state.pin = await state.region.pin({ offset: 15 * 4096, length: 4096 }, 'write'); });
      const threads = await Promise.all([0, 1, 2].map(async () => {
        const thread = await joinedThread(broken);
        await openInThread(thread, 'memory');
        return thread;
      }));
      await tellEvents(broken, 'lost');
      await tellEvents(other, registrar ? 'lost' : 'member-died');
      const id = await broken.run(({ cluster }) => cluster.self.id);
      const waiting = [
        broken.run(async ({ cluster }) => { await cluster.lock('held'); }),
        broken.run(({ cluster }) => cluster.barrier('never', 2)),
        broken.run(({ region }) => region.wait(4096, 0)),
        broken.run(({ region }) => region.prefetch(15 * 4096, 4096)),
        threads[0].run(({ cluster, tell }) => { tell('asking'); cluster.lockSync('held'); }),
        threads[1].run(({ region, tell }) => { tell('asking'); region.waitSync(4096, 0); }),
        threads[2].run(({ attempt, region, tell }) => { tell('asking'); return attempt(() => new Int32Array(region.buffer)[15 * 1024]); }),
      ].map(codeOf);
      for (const _ of threads) await broken.told('asking');
      await inCoordinator(broken, 'setImmediate(() => { throw new Error("uncaught by purpose"); })');
      assert.equal(await broken.told('event lost'), 'ERR_FAULTLINE_COORDINATOR');
      assert.deepEqual(await Promise.all(waiting), Array(7).fill('ERR_FAULTLINE_COORDINATOR'));
      assert.match(broken.stderr, /^faultline: the coordinator of local:\S+ ended: Error: uncaught by purpose/);
      const later = await broken.run(async ({ cluster, region, attempt }) => {
        const codes: string[] = [];
        for (const call of [
          () => cluster.lock('x'), () => cluster.region('x', { size: 4096 }), () => region.prefetch(),
          async () => cluster.lockSync('x'), async () => cluster.stats(), async () => attempt(() => new Int32Array(region.buffer)[0]),
        ]) codes.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
        return codes;
      });
      assert.deepEqual(later, Array(6).fill('ERR_FAULTLINE_COORDINATOR'));

      if (registrar) {
        assert.equal(await other.told('event lost'), 'ERR_FAULTLINE_CLUSTER_LOST');
        for (const member of [other, third]) await member.leave();
      } else {
        assert.equal(await other.told('event member-died'), id);
        await other.run(({ lock, pin }) => Promise.all([lock.release(), pin.release()]));
        assert.equal(await third.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 7);
        assert.equal(await other.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 8);
      }
      // The process can go on with a new stay, in the same cluster or in one that begins anew.
      await broken.run(async (state) => {
        await state.cluster.close();
        state.cluster = await state.join({ cluster: state.cluster.address });
      });
      await broken.open('memory', { size: 16 * PAGE });
      assert.equal(await broken.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), registrar ? 0 : 9);
      await broken.leave();
    });
  }
});

/** Three members, of which the given one's coordinator may have a heap of so many MiB. The main thread's limit stays. */
async function withSmallHeap(which: number, mebibytes: number): Promise<Member[]> {
  const cluster = uniqueCluster();
  const members: Member[] = [];
  for (let i = 0; i < 3; i++) {
    const member = await Member.start({ cluster, join: false });
    await member.run(async (state, { address, limit }) => {
      // V8 reads it when a thread starts.
      if (limit) (state.require('node:v8') as typeof import('node:v8')).setFlagsFromString(`--max-old-space-size=${limit}`);
      state.cluster = await state.join({ cluster: address });
    }, { address: cluster, limit: i === which ? mebibytes : 0 });
    await member.open('memory', { size: 16 * PAGE });
    members.push(member);
  }
  return members;
}

/** Asks for a lock that somebody has until it is refused, and tells how: each request is kept by the coordinator that was asked, and by the registrar's. */
async function flood(member: Member): Promise<Record<string, number>> {
  return member.run(async ({ cluster }) => {
    const codes: Record<string, number> = {};
    const asked: Promise<void>[] = [];
    while (Object.keys(codes).length === 0 && asked.length < 1_000_000) {
      for (let i = 0; i < 200; i++) asked.push(cluster.lock('held').then(() => { codes.granted = 1; }, ({ code }: { code: string }) => { codes[code] = (codes[code] ?? 0) + 1; }));
      // Calls keep their order, so the coordinator has seen all of these. Without the wait they would pile up before it.
      await cluster.barrier(`seen ${process.pid} ${asked.length}`, 1).catch(() => undefined);
    }
    await Promise.all(asked);
    return codes;
  }, undefined, { within: 50_000 });
}

describe('hazards: the coordinator of a member has no memory left', () => {
  it('because its own threads ask for too much: it ends as by any other error, the process lives, the others go on', async () => {
    const [registrar, full, other] = await withSmallHeap(1, 32);
    await other.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    await full.run(async (state) => { state.own = await state.cluster.lock('its own'); });
    await full.run(({ region }) => { new Int32Array(region.buffer)[0] = 7; });
    assert.equal(await other.run(({ region }) => new Int32Array(region.buffer)[0]), 7);
    const [waiting, faulting] = await Promise.all([0, 1].map(() => joinedThread(full)));
    await openInThread(faulting, 'memory');
    await other.run(async (state) => { state.pin = await state.region.pin({ offset: 15 * 4096, length: 4096 }, 'write'); });
    const blocked = [
      waiting.run(({ cluster, tell }) => { tell('asking'); cluster.lockSync('held'); }),
      faulting.run(({ attempt, region, tell }) => { tell('asking'); return attempt(() => new Int32Array(region.buffer)[15 * 1024]); }),
    ].map(codeOf);
    for (const _ of blocked) await full.told('asking');
    await tellEvents(full, 'lost');
    await tellEvents(other, 'member-died');
    const id = await full.run(({ cluster }) => cluster.self.id);

    assert.deepEqual(Object.keys(await flood(full)), ['ERR_FAULTLINE_COORDINATOR']);
    assert.equal(await full.told('event lost'), 'ERR_FAULTLINE_COORDINATOR');
    assert.deepEqual(await Promise.all(blocked), Array(2).fill('ERR_FAULTLINE_COORDINATOR'));
    assert.match(full.stderr, /^faultline: the coordinator of local:\S+ ended: OutOfMemoryError: its heap of \d+ MiB is full/);
    assert.equal(await other.told('event member-died'), id);
    assert.equal(await other.run(async ({ cluster }) => (await cluster.lock('its own')).ownerDied), true);
    await other.run(({ lock, pin }) => Promise.all([lock.release(), pin.release()]));
    assert.equal(await registrar.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 7);
    await full.run(async (state) => {
      await state.cluster.close();
      state.cluster = await state.join({ cluster: state.cluster.address });
    });
    await full.open('memory', { size: 16 * PAGE });
    assert.equal(await full.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 8);
    await full.leave();
  });

  it('because the others ask the registrar for too much: the cluster ends for all with a typed error, and every process lives', async () => {
    const [full, other, third] = await withSmallHeap(0, 16);
    await third.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    for (const member of [full, third]) await tellEvents(member, 'lost');
    const codes = Object.keys(await flood(other));
    assert.ok(codes.every((code) => code === 'ERR_FAULTLINE_CLUSTER_LOST'), codes.join());
    assert.equal(await full.told('event lost'), 'ERR_FAULTLINE_COORDINATOR');
    assert.equal(await third.told('event lost'), 'ERR_FAULTLINE_CLUSTER_LOST');
    assert.match(full.stderr, /^faultline: the coordinator of local:\S+ ended: OutOfMemoryError: its heap of \d+ MiB is full/);
    for (const member of [full, other, third]) {
      assert.equal(await codeOf(member.run(({ region, attempt }) => attempt(() => new Int32Array(region.buffer)[0]))), member === full ? 'ERR_FAULTLINE_COORDINATOR' : 'ERR_FAULTLINE_CLUSTER_LOST');
      await member.leave();
    }
  });

  it('within one step: the process dies with it, and the others see that at once and recover', async () => {
    const [registrar, full, other] = await withSmallHeap(1, 32);
    await full.run(async (state) => { state.lock = await state.cluster.lock('held'); });
    await full.run(({ region }) => { new Int32Array(region.buffer).subarray(0, 2048).fill(7); });
    // The first page is elsewhere, too; the second is lost with it.
    assert.equal(await other.run(({ region }) => new Int32Array(region.buffer)[0]), 7);
    await tellEvents(other, 'member-died');
    const id = await full.run(({ cluster }) => cluster.self.id);
    const waiting = other.run(async ({ cluster }) => (await cluster.lock('held')).ownerDied);
    await inCoordinator(full, 'setImmediate(() => { const kept = []; for (;;) kept.push(new Array(1000).fill(1.5)); })');
    const { signal } = await full.exit();
    assert.equal(signal, 'SIGABRT');
    assert.equal(await other.told('event member-died'), id);
    assert.equal(await waiting, true);
    assert.equal(await registrar.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), 7);
    assert.equal(await codeOf(other.run(({ region, attempt }) => attempt(() => new Int32Array(region.buffer)[1024]))), 'ERR_FAULTLINE_PAGE_LOST');
    await other.run(({ region }) => region.restore(4096, new Uint8Array(4096).fill(1)));
    assert.equal(await registrar.run(({ region }) => new Uint8Array(region.buffer)[4096]), 1);
  });
});
