import assert from 'node:assert/strict';
import { Member, uniqueCluster } from '../support/members.js';

describe('a region shared by processes', () => {
  it('shows loads what others stored, in both directions', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('grid', { size: 1 << 20 });
    await b.open('grid');
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[7]), 0);
    await a.run(({ region }) => { new Int32Array(region.buffer)[7] = 42; });
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[7]), 42);
    await b.run(({ region }) => { new Float64Array(region.buffer)[9000] = 0.5; });
    assert.equal(await a.run(({ region }) => new Float64Array(region.buffer)[9000]), 0.5);
  });

  it('costs the home one local fault for each extent while nobody else asks', async () => {
    const a = await Member.start({ cluster: uniqueCluster() });
    await a.open('grid', { size: 1 << 20 });
    const { faults, waits, messages } = await a.run(({ region, cluster: joined }) => {
      const view = new Int32Array(region.buffer);
      for (let i = 0; i < view.length; i += 16) view[i] = i;
      const { faults, waits } = region.stats();
      return { faults, waits: waits.count, messages: joined.stats().messages.sent };
    });
    assert.equal(faults.local, 4);
    assert.equal(faults.read + faults.write, 4);
    assert.equal(waits, 0);
    assert.equal(messages, 0);
  });

  it('moves no bytes for pages that nobody wrote, nor for the upgrade of a valid copy', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('grid', { size: 1 << 20 });
    await b.open('grid');
    const moved = await b.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      const read = view[0] + view[1024 * 9];
      const afterRead = region.stats().bytes.in;
      view[0] = 1;
      return { read, afterRead, afterWrite: region.stats().bytes.in, upgrades: region.stats().faults.upgrade };
    });
    assert.deepEqual(moved, { read: 0, afterRead: 0, afterWrite: 0, upgrades: 1 });
  });

  it('is served by a home that never opened it', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    const c = await Member.start({ cluster });
    await a.open('spread', { size: 3 << 20, placement: 'spread' });
    await c.open('spread');
    const homes = await a.run(async ({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let i = 0; i < view.length; i += 1024) view[i] = i;
      return [(await region.inspect(0)).home, (await region.inspect(region.size / 2)).home, (await region.inspect(region.size - 1)).home];
    });
    assert.equal(new Set(homes).size, 3);
    assert.ok(homes.includes(await b.run(({ cluster: joined }) => joined.self.id)));
    assert.equal(await c.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      let wrong = 0;
      for (let i = 0; i < view.length; i += 1024) if (view[i] !== i) wrong++;
      return wrong;
    }), 0);
  });

  it('adds atomically from 4 processes with 3 threads each', async () => {
    const cluster = uniqueCluster();
    const members = await Promise.all([0, 1, 2, 3].map(() => Member.start({ cluster })));
    await Promise.all(members.map((member) => member.open('counters', { size: 1 << 16 })));
    const threads = (await Promise.all(members.map((member) => Promise.all([0, 1, 2].map(() => member.thread(({ region }) => ({ buffer: region.buffer }))))))).flat();
    await Promise.all(threads.map((thread) => thread.run(({ buffer }) => {
      const view = new Int32Array(buffer as SharedArrayBuffer);
      for (let i = 0; i < 20_000; i++) Atomics.add(view, 5, 1);
    })));
    assert.equal(await members[2].run(({ region }) => Atomics.load(new Int32Array(region.buffer), 5)), 4 * 3 * 20_000);
  });

  it('lets two members that write one page, and pages that straddle, go on: for a minute in CI, for seconds otherwise', async function () {
    this.timeout(120_000);
    const cluster = uniqueCluster();
    const [a, b] = await Promise.all([Member.start({ cluster }), Member.start({ cluster })]);
    await a.open('hot', { size: 1 << 20 });
    await b.open('hot');
    const seconds = process.env.FAULTLINE_LONG || process.env.CI ? 60 : 3;
    const work = [a, b].map((member, index) => member.run(({ region }, given) => {
      const view = new Int32Array(region.buffer);
      const bytes = new DataView(region.buffer);
      const end = Date.now() + given.seconds * 1000;
      let rounds = 0;
      let wrong = 0;
      for (; Date.now() < end; rounds++) {
        for (let i = 0; i < 50; i++) {
          view[given.index] = rounds;
          if (view[given.index] !== rounds) wrong++;
          // Over the border between two pages, at an address that no other member writes.
          bytes.setFloat64(4096 * (8 + 2 * given.index) - 4, rounds);
          if (bytes.getFloat64(4096 * (8 + 2 * given.index) - 4) !== rounds) wrong++;
          bytes.setInt32(4096 * (9 - given.index) - 100, rounds);
        }
      }
      return { rounds, wrong };
    }, { index, seconds }, { within: seconds * 1000 + 20_000 }));
    for (const { rounds, wrong } of await Promise.all(work)) {
      assert.equal(wrong, 0);
      assert.ok(rounds > 10, `${rounds} rounds`);
    }
  });

  it('asks once for a page on which many threads fault at once', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('grid', { size: 1 << 20 });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(3); });
    await b.open('grid');
    const threads = await Promise.all([0, 1, 2, 3].map(() => b.thread(({ region }) => ({ buffer: region.buffer }))));
    const read = await Promise.all(threads.map((thread) => thread.run(({ buffer }) => new Int32Array(buffer as SharedArrayBuffer)[1024 * 100])));
    assert.deepEqual(read, [3, 3, 3, 3]);
    assert.equal(await b.run(({ region }) => region.stats().pages.in), 1);
  });

  it('serves zlib on the thread pool, and system calls on pinned pages only', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('bytes', { size: 1 << 20 });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(65); });
    await b.open('bytes');
    const result = await b.run(async ({ region, require }) => {
      const zlib = require('node:zlib') as typeof import('node:zlib');
      const fs = require('node:fs') as typeof import('node:fs');
      const { promisify } = require('node:util') as typeof import('node:util');
      const packed = await promisify(zlib.deflate)(new Uint8Array(region.buffer, 0, 1 << 18) as Uint8Array) as Buffer;
      const unpacked = zlib.inflateSync(packed);
      const file = fs.openSync('/dev/null', 'w');
      const target = new Uint8Array(region.buffer, 1 << 19, 8192);
      let before = '';
      try { fs.writeSync(file, target); } catch (error) { before = (error as NodeJS.ErrnoException).code!; }
      // /dev/null takes bytes without looking at them, so a read into absent pages shows it.
      const zero = fs.openSync('/dev/zero', 'r');
      try { fs.readSync(zero, target); } catch (error) { before = (error as NodeJS.ErrnoException).code!; }
      const pin = await region.pin({ offset: 1 << 19, length: 8192 }, 'write');
      const read = fs.readSync(zero, target);
      await pin.release();
      return { length: unpacked.length, all: unpacked.every((byte) => byte === 65), before, read, first: target[0], next: new Uint8Array(region.buffer)[(1 << 19) + 8192] };
    });
    assert.deepEqual(result, { length: 1 << 18, all: true, before: 'EFAULT', read: 8192, first: 0, next: 65 });
    assert.equal(await a.run(({ region }) => new Uint8Array(region.buffer)[(1 << 19) + 5]), 0);
  });

  it('survives more alternating pages than the kernel has mappings for', async function () {
    this.timeout(120_000);
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, join: { guard: 'mprotect' } });
    const b = await Member.start({ cluster, join: { guard: 'mprotect' } });
    await a.open('wide', { size: 300 << 20 });
    await b.open('wide');
    await a.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let page = 0; page < view.length / 1024; page++) view[page * 1024] = page;
    });
    const read = await b.run(async ({ region }) => {
      const view = new Int32Array(region.buffer);
      await region.prefetch();
      let wrong = 0;
      for (let page = 0; page < view.length / 1024; page += 2) {
        view[page * 1024 + 1] = page;
        if (view[page * 1024] !== page) wrong++;
      }
      return { wrong, limit: region.stats().protection.limitHits };
    }, undefined, { within: 100_000 });
    assert.equal(read.wrong, 0);
    assert.ok(read.limit > 0, 'the limit was reached');
    assert.equal(await a.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      let wrong = 0;
      for (let page = 0; page < view.length / 1024; page += 64) if (view[page * 1024 + 1] !== page) wrong++;
      return wrong;
    }, undefined, { within: 60_000 }), 0);
  });

  it('runs an unmodified spatial index straight on region.buffer', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('index', { size: 4 << 20 });
    await b.open('index');
    const expected = await a.run(async (state) => {
      const { default: Flatbush } = (await state.import('flatbush')) as { default: typeof import('flatbush').default };
      const index = new Flatbush(5000);
      let seed = 1;
      const next = (): number => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) % 1000;
      for (let i = 0; i < 5000; i++) index.add(next(), next());
      index.finish();
      new Uint8Array(state.region.buffer).set(new Uint8Array(index.data));
      return index.search(100, 100, 200, 200).sort((x, y) => x - y);
    });
    const found = await b.run(async (state) => {
      const { default: Flatbush } = (await state.import('flatbush')) as { default: typeof import('flatbush').default };
      return Flatbush.from(state.region.buffer as never).search(100, 100, 200, 200).sort((x, y) => x - y);
    });
    assert.ok(expected.length > 10);
    assert.deepEqual(found, expected);
  });

  it('discards: zero everywhere, and the memory is free', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('grid', { size: 1 << 20 });
    await b.open('grid');
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(9); });
    await b.run(({ region }) => { new Int32Array(region.buffer)[2048] = 10; });
    await b.run(({ region }) => region.discard(4096, 8192));
    for (const member of [a, b]) assert.deepEqual(await member.run(({ region }) => [1023, 1024, 2048, 3071, 3072].map((at) => new Int32Array(region.buffer)[at])), [9, 0, 0, 0, 9]);
  });
});
