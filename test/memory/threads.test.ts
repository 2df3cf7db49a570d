import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';
import { nativeAddon } from '../support/native-addon.js';

const PAGE = 4096;

describe('the memory: every thread of a process can fault', () => {
  let addon: string;
  before('build the native test addon', async function () {
    this.timeout(120_000);
    addon = await nativeAddon();
  });

  it('workers, which got the buffer by a message and never loaded the package', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    const threads = await Promise.all([a, a, b, b].map((member) => member.thread(({ region }) => ({ buffer: region.buffer }))));
    for (const [index, thread] of threads.entries()) {
      await thread.run(({ buffer }, at) => { new Float64Array(buffer)[at * 512] = at + 0.5; }, index);
    }
    for (const thread of threads) {
      assert.deepEqual(await thread.run(({ buffer }) => [0, 1, 2, 3].map((at) => new Float64Array(buffer)[at * 512])), [0.5, 1.5, 2.5, 3.5]);
    }
    assert.equal(await threads[0].run(({ buffer }) => buffer instanceof SharedArrayBuffer), true);
  });

  it('the thread pool: more zlib jobs that fault than it has threads, and random bytes written by it', async () => {
    const [a, b] = await startMembers(2, { size: 1024 * PAGE });
    await a.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let index = 0; index < view.length; index++) view[index] = Math.imul(index, 2654435761);
    });
    const result = await b.run(async ({ region, require }) => {
      const zlib = require('node:zlib') as typeof import('node:zlib');
      const crypto = require('node:crypto') as typeof import('node:crypto');
      const { promisify } = require('node:util') as typeof import('node:util');
      const part = region.size / 16;
      // Eight jobs for the four threads of the pool; each reads pages that are not here, and the loop must stay free.
      const packed = await Promise.all(Array.from({ length: 8 }, (_, index) =>
        promisify(zlib.deflate)(new Uint8Array(region.buffer, index * part, part)) as Promise<Buffer>));
      const words = packed.map((bytes) => new Int32Array(new Uint8Array(zlib.inflateSync(bytes)).buffer));
      const right = words.every((view, part) => view.every((word, index) => word === Math.imul(part * view.length + index, 2654435761)));
      const target = new Uint8Array(region.buffer, 8 * part, 8 * part);
      await promisify(crypto.randomFill)(target);
      return { right, hash: crypto.createHash('sha256').update(target).digest('hex'), writes: region.stats().faults.write };
    });
    assert.equal(result.right, true);
    assert.ok(result.writes > 0);
    assert.equal(await a.run(({ region, require }) => {
      const { createHash } = require('node:crypto') as typeof import('node:crypto');
      return createHash('sha256').update(new Uint8Array(region.buffer, region.size / 2)).digest('hex');
    }), result.hash);
  });

  it('native threads of another addon, which add atomically beside JavaScript', async () => {
    const [a, b] = await startMembers(2, { size: 16 * PAGE });
    const worker = await a.thread(({ region }) => ({ buffer: region.buffer }));
    await Promise.all([
      a.run(({ region, require }, path) => require(path).addFromThreads(region.address + 4100n, 3n, 500n), addon),
      b.run(({ region, require }, path) => require(path).addFromThreads(region.address + 4100n, 3n, 500n), addon),
      worker.run(({ buffer }) => {
        const view = new Int32Array(buffer);
        for (let time = 0; time < 500; time++) Atomics.add(view, 1025, 1);
      }),
    ]);
    assert.equal(await a.run(({ region }) => Atomics.load(new Int32Array(region.buffer), 1025)), 7 * 500);
  });

  it('the main thread, while all its workers wait in faults', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(async (state) => {
      new Int32Array(state.region.buffer).fill(1);
      state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write');
    });
    const threads = await Promise.all([0, 1, 2].map(() => b.thread(({ region }) => ({ buffer: region.buffer }))));
    let ended = 0;
    const reads = threads.map((thread) => thread.run(({ buffer, tell }) => {
      tell('reading');
      return new Int32Array(buffer)[5];
    }).finally(() => { ended++; }));
    for (const _ of threads) await b.told('reading');
    // 40 pages from the same home, one after the other, while the threads' page is held back there.
    assert.equal(await b.run(({ region }) => {
      let sum = 0;
      for (let page = 1; page < 41; page++) sum += new Int32Array(region.buffer)[page * 1024];
      return sum;
    }), 40);
    assert.equal(ended, 0);
    await a.run(async ({ region, pin }) => {
      new Int32Array(region.buffer)[5] = 2;
      await pin.release();
    });
    assert.deepEqual(await Promise.all(reads), [2, 2, 2]);
  });

  it('at once on one page: one request goes out, and all of them go on', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(({ region }) => { new Uint32Array(region.buffer)[40 * 1024] = 7; });
    const served = await a.run(({ region }) => region.stats().requestsServed);
    const seen = await b.run(({ region, require }, path) => {
      const sum = require(path).sumFromThreads(region.address + 40n * 4096n, 16n) as bigint;
      const { faults, pages, bytes } = region.stats();
      return { sum, faults: faults.read, joined: faults.joined, pages: pages.in, bytes: bytes.in };
    }, addon);
    assert.equal(seen.sum, 16n * 7n);
    assert.equal(seen.bytes, PAGE);
    assert.equal(seen.pages, 1);
    assert.ok(seen.joined <= seen.faults - 1, `${seen.joined} of ${seen.faults} faults only waited`);
    assert.equal(await a.run(({ region }) => region.stats().requestsServed) - served, 1);
  });
});
