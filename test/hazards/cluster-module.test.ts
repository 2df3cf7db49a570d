import assert from 'node:assert/strict';
import path from 'node:path';
import { Member, uniqueCluster } from '../support/members.js';
import { tellEvents } from '../support/steps.js';

interface Answer { count: number; worker: number; member: number }

const CONNECTIONS = 12;

describe("hazards: Node's cluster module", () => {
  it('workers that share a port each join, count exactly, are killed and replaced, and leave in order', async () => {
    const address = uniqueCluster();
    const primary = await Member.start({ cluster: address });
    await primary.open('counts', { size: 1 << 16 });
    await tellEvents(primary, 'member-died', 'member-left');
    await primary.run((state, exec) => {
      const module = state.require('node:cluster') as typeof import('node:cluster').default;
      module.setupPrimary({ exec, execArgv: [], silent: true });
      state.module = module;
      state.errors = '';
      /** Starts a worker; resolves with its port when it listens. */
      state.fork = (index: number, cluster: string) => new Promise((resolve, reject) => {
        module.setupPrimary({ args: [cluster, String(index)] });
        const worker = module.fork();
        worker.process.stderr!.on('data', (text) => { state.errors += text; });
        worker.once('listening', ({ port }) => resolve(port));
        worker.once('exit', (code, signal) => reject(new Error(`worker ${index} ended (${signal ?? code}): ${state.errors}`)));
      });
      /** Connects so many times, one after the other, and returns the answers. */
      state.connect = async (port: number, times: number) => {
        const net = state.require('node:net') as typeof import('node:net');
        const answers: unknown[] = [];
        for (let time = 0; time < times; time++) {
          let text = '';
          for await (const part of net.connect(port, '127.0.0.1')) text += part;
          answers.push(JSON.parse(text));
        }
        return answers;
      };
    }, path.join(__dirname, 'cluster-worker.js'));

    const start = (index: number): Promise<number> => primary.run((state, given) => state.fork(given.index, given.address) as Promise<number>, { index, address });
    const connect = (port: number): Promise<Answer[]> => primary.run((state, given) => state.connect(given.port, given.times) as Promise<Answer[]>, { port, times: CONNECTIONS });

    const port = await start(1);
    assert.equal(await start(2), port);
    const first = await connect(port);
    assert.deepEqual(first.map(({ count }) => count), Array.from({ length: CONNECTIONS }, (_, count) => count));
    assert.deepEqual(new Set(first.map(({ worker }) => worker)), new Set([1, 2]));

    // The primary reads the count, so the worker that dies has no copy that nobody else has.
    assert.equal(await primary.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), CONNECTIONS);
    const killed = first.find(({ worker }) => worker === 1)!.member;
    await primary.run(async ({ module }) => {
      const [worker] = Object.values((module as typeof import('node:cluster').default).workers!);
      const ended = new Promise((resolve) => worker!.once('exit', resolve));
      worker!.process.kill('SIGKILL');
      await ended;
    });
    assert.equal(await primary.told('event member-died'), killed);
    assert.equal(await start(3), port);
    const second = await connect(port);
    assert.deepEqual(second.map(({ count }) => count), Array.from({ length: CONNECTIONS }, (_, count) => CONNECTIONS + count));
    assert.deepEqual(new Set(second.map(({ worker }) => worker)), new Set([2, 3]));

    // The last writers leave, and what they alone had is handed over.
    const ends = await primary.run(async ({ module }) => {
      const all = module as typeof import('node:cluster').default;
      const ended = Object.values(all.workers!).map((worker) => new Promise((resolve) => worker!.once('exit', (code, signal) => resolve(signal ?? code))));
      all.disconnect();
      return await Promise.all(ended);
    });
    assert.deepEqual(ends, [0, 0]);
    assert.deepEqual(new Set([await primary.told('event member-left'), await primary.told('event member-left')]), new Set(second.map(({ member }) => member)));
    assert.equal(await primary.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 0)), 2 * CONNECTIONS);
    assert.equal(await primary.run(({ errors }) => errors as string), '');
    await primary.leave();
  });
});
