import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { startMembers, type Member } from '../support/members.js';

const PAGE = 4096;

/** Stores 1 into the int32 at `offset` in a thread of the member; `stored` resolves when it went through. */
async function storeFrom(member: Member, offset: number): Promise<{ stored: Promise<number>; done(): boolean }> {
  const thread = await member.thread(({ region }) => ({ buffer: region.buffer }));
  let done = false;
  const stored = thread.run(({ buffer, tell }, at) => {
    tell('storing');
    return Atomics.exchange(new Int32Array(buffer), at / 4, 1);
  }, offset).finally(() => { done = true; });
  await member.told('storing');
  return { stored, done: () => done };
}

/**
 * Faults on 30 other pages one after the other from the member's main thread: what one of its threads asked the same home
 * for before has been looked at there by then.
 */
async function manyFaults(member: Member, firstPage: number): Promise<void> {
  await member.run(({ region }, first) => {
    const view = new Int32Array(region.buffer);
    for (let page = first; page < first + 60; page += 2) view[page * 1024]++;
  }, firstPage);
}

describe('the memory: pins', () => {
  let folder: string;
  let file: string;
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'faultline-test-'));
    file = path.join(folder, 'bytes');
    writeFileSync(file, Buffer.alloc(4 * PAGE, 'x'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('make system calls succeed on pages where they fail with EFAULT before', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(97, 0, 64 * 4096); });
    const seen = await b.run(async ({ region, require }, name) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const codeOf = (call: () => unknown): unknown => {
        try { return call(); } catch (error) { return (error as NodeJS.ErrnoException).code; }
      };
      const from = Buffer.from(region.buffer, 0, 3 * 4096);
      const to = Buffer.from(region.buffer, 128 * 4096, 2 * 4096);
      const fd = fs.openSync(name, 'r+');
      const before = [codeOf(() => fs.writeSync(fd, from, 0, from.length, 0)), codeOf(() => fs.readSync(fd, to, 0, to.length, 0))];
      const reading = await region.pin({ offset: 0, length: 3 * 4096 }, 'read');
      const writing = await region.pin({ offset: 128 * 4096, length: 2 * 4096 }, 'write');
      const after = [codeOf(() => fs.readSync(fd, to, 0, to.length, 0)), codeOf(() => fs.writeSync(fd, from, 0, from.length, 0))];
      // A page that may only be read is none that a system call may write.
      const readOnly = codeOf(() => fs.readSync(fd, from, 0, from.length, 0));
      await Promise.all([reading.release(), writing.release()]);
      fs.closeSync(fd);
      return { before, after, readOnly };
    }, file);
    assert.deepEqual(seen, { before: ['EFAULT', 'EFAULT'], after: [2 * PAGE, 3 * PAGE], readOnly: 'EFAULT' });
    assert.equal(await a.run(({ region }) => new Uint8Array(region.buffer, 128 * 4096, 2 * 4096).every((byte) => byte === 120)), true);
    const written = readFileSync(file);
    assert.ok(written.subarray(0, 3 * PAGE).every((byte) => byte === 97) && written.subarray(3 * PAGE).every((byte) => byte === 120));
  });

  it('make them succeed at the home of the pages too', async () => {
    const [a] = await startMembers(1, { size: 256 * PAGE });
    assert.deepEqual(await a.run(async ({ region, require }, name) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const fd = fs.openSync(name, 'r');
      const to = Buffer.from(region.buffer, 0, 100);
      let code = 'none';
      try { fs.readSync(fd, to, 0, 100, 0); } catch (error) { code = (error as NodeJS.ErrnoException).code!; }
      const pin = await region.pin({ offset: 0, length: 100 }, 'write');
      const read = fs.readSync(fd, to, 0, 100, 0);
      await pin.release();
      return [code, read, to.toString()];
    }, file), ['EFAULT', 100, 'x'.repeat(100)]);
  });

  for (const [who, pinner] of [['the home', 0], ['another member', 1]] as const) {
    it(`of ${who} keep a page until they are released; who waited for it then gets it with what was written last`, async () => {
      const members = await startMembers(3, { size: 256 * PAGE });
      const [holder, other] = [members[pinner], members[2]];
      await holder.run(async (state) => {
        state.pin = await state.region.pin({ offset: 0, length: 4 }, 'write');
        new Int32Array(state.region.buffer)[0] = 41;
      });
      const { stored, done } = await storeFrom(other, 0);
      await manyFaults(other, 64);
      assert.equal(done(), false);
      assert.equal(await holder.run(({ region }) => ++new Int32Array(region.buffer)[0]), 42);
      await holder.run(({ pin }) => pin.release());
      assert.equal(await stored, 42);
      assert.equal(await holder.run(({ region }) => new Int32Array(region.buffer)[0]), 1);
    });
  }

  it('to read let others read, and make only those wait who write', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 5; });
    await b.run(async (state) => { state.pin = await state.region.pin({ offset: 0, length: 4 }, 'read'); });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 5);
    const { stored, done } = await storeFrom(a, 0);
    await b.run(({ region }) => new Int32Array(region.buffer)[1024 * 70]);
    await manyFaults(b, 64);
    assert.equal(done(), false);
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 5);
    await b.run(({ pin }) => pin.release());
    assert.equal(await stored, 5);
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 1);
  });

  it('end by themselves when their time is over', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    const pinned = await a.run(async (state) => {
      const asked = Date.now();
      state.pin = await state.region.pin({ offset: 0, length: 4 }, 'write', { timeout: 150 });
      return { until: state.pin.until - asked, now: Date.now() - asked };
    });
    assert.ok(pinned.until >= 149 && pinned.until <= pinned.now + 151, `until ${pinned.until} ms from the call, which took ${pinned.now} ms`);
    const until = await a.run(({ pin }) => pin.until as number);
    const { stored } = await storeFrom(b, 0);
    assert.equal(await stored, 0);
    assert.ok(Date.now() >= until - 1, 'not before its time was over');
    assert.equal(await a.run(({ pin }) => pin.renew().then(() => 'renewed', (error: { code: string }) => error.code)), 'ERR_FAULTLINE_CLOSED');
    await a.run(({ pin }) => pin.release());
  });

  it('start their time again by renew()', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(async (state) => { state.pin = await state.region.pin({ offset: 0, length: 4 }, 'write', { timeout: 300 }); });
    const { stored, done } = await storeFrom(b, 0);
    const until = await a.run(async ({ pin }) => {
      for (let time = 0; time < 4; time++) {
        const before = pin.until as number;
        // Past the middle of its time, and so past its first end after the second round.
        await new Promise((resolve) => setTimeout(resolve, 160));
        await pin.renew();
        if (pin.until < before + 100) throw new Error(`renewed from ${before} to ${pin.until}`);
      }
      await pin.renew(200);
      return pin.until as number;
    });
    assert.equal(done(), false);
    assert.equal(await stored, 0);
    assert.ok(Date.now() >= until - 1);
  });

  it('are disposable, in both ways', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(async ({ region }) => {
      await using first = await region.pin({ offset: 0, length: 1 }, 'write');
      using second = await region.pin({ offset: 4096, length: 1 }, 'write');
      if (first.access !== 'write' || second.ranges[0].offset !== 4096) throw new Error('no pins');
    });
    const before = Date.now();
    await b.run(({ region }) => { new Int32Array(region.buffer)[0] = new Int32Array(region.buffer)[1024] = 1; });
    assert.ok(Date.now() - before < 2500, 'well before their time was over');
  });

  it('of ranges that overlap, in any order, are whole pages once each; two pins of one page count twice', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    assert.deepEqual(await b.run(async (state) => {
      state.first = await state.region.pin([{ offset: 5000, length: 5000 }, { offset: 100, length: 5000 }, { offset: 40_960, length: 1 }], 'write');
      state.second = await state.region.pin([{ offset: 4096, length: 1 }, { offset: 4096, length: 10 }], 'write');
      return state.first.ranges;
    }), [{ offset: 0, length: 3 * PAGE }, { offset: 40_960, length: PAGE }]);
    await b.run(({ first }) => first.release());
    const free = await storeFrom(a, 0);
    assert.equal(await free.stored, 0);
    const held = await storeFrom(a, 4096);
    await manyFaults(b, 64);
    assert.equal(held.done(), false);
    await b.run(({ second }) => second.release());
    assert.equal(await held.stored, 0);
  });

  it('of the same pages by two members in opposite orders never wait for each other for ever', async () => {
    const members = await startMembers(2, { size: 256 * PAGE, placement: 'spread' });
    const rounds = await Promise.all(members.map((member, index) => member.run(async ({ region }, first) => {
      const ranges = [{ offset: 0, length: 4096 }, { offset: 200 * 4096, length: 4096 }];
      if (first) ranges.reverse();
      for (let round = 0; round < 30; round++) {
        const pin = await region.pin(ranges, 'write');
        const view = new Int32Array(region.buffer);
        view[0]++;
        view[200 * 1024]++;
        await pin.release();
      }
      return 30;
    }, index === 1)));
    assert.deepEqual(rounds, [30, 30]);
    assert.deepEqual(await members[0].run(({ region }) => [new Int32Array(region.buffer)[0], new Int32Array(region.buffer)[200 * 1024]]), [60, 60]);
  });

  it('that wait can be aborted, and leave nothing behind', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(async (state) => { state.pin = await state.region.pin({ offset: 8 * 4096, length: 4 }, 'write'); });
    assert.equal(await b.run(async ({ region }) => {
      const abort = new AbortController();
      const pin = region.pin({ offset: 0, length: 16 * 4096 }, 'write', { signal: abort.signal });
      new Int32Array(region.buffer)[100 * 1024] = 1;
      abort.abort(new Error('enough'));
      return pin.then(() => 'pinned', (error: Error) => error.message);
    }), 'enough');
    const before = Date.now();
    await a.run(async ({ pin, region }) => {
      await pin.release();
      const view = new Int32Array(region.buffer);
      for (let page = 0; page < 16; page++) view[page * 1024]++;
    });
    assert.ok(Date.now() - before < 2500);
  });
});
