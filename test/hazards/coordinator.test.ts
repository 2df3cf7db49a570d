import assert from 'node:assert/strict';
import { Member, startMembers } from '../support/members.js';
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
