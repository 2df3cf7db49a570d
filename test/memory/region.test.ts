import assert from 'node:assert/strict';
import { startMembers, type Member } from '../support/members.js';
import { codeOf, joinedThread, openInThread, seeded } from '../support/steps.js';

const PAGE = 4096;

/** Bytes that the process's memfds take: what of its regions' memory is really there. */
function memfdBytes(member: Member): Promise<number> {
  return member.run(({ require }) => {
    const fs = require('node:fs') as typeof import('node:fs');
    let bytes = 0;
    for (const fd of fs.readdirSync('/proc/self/fd')) {
      try {
        if (fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith('/memfd:')) bytes += fs.fstatSync(Number(fd)).blocks * 512;
      } catch {
        // The descriptor of the directory itself is closed by now.
      }
    }
    return bytes;
  });
}

describe('the memory: prefetch', () => {
  it('brings more pages than one window of requests, so that no load faults any more', async () => {
    const [a, b] = await startMembers(2, { size: 2048 * PAGE });
    await a.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let page = 0; page < 2048; page++) view[page * 1024] = page + 1;
    });
    const seen = await b.run(async ({ region }) => {
      const view = new Int32Array(region.buffer);
      await region.prefetch(100, 1500 * 4096);
      const before = region.stats();
      let wrong = 0;
      for (let page = 0; page <= 1500; page++) if (view[page * 1024] !== page + 1) wrong++;
      const after = region.stats();
      return { wrong, faults: after.faults.read - before.faults.read, pages: before.pages.in, bytes: before.bytes.in };
    });
    assert.deepEqual(seen, { wrong: 0, faults: 0, pages: 1501, bytes: 1501 * PAGE });
  });

  it('of everything is the default, and of pages that are here already costs nothing', async () => {
    const [a, b] = await startMembers(2, { size: 600 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(7); });
    assert.deepEqual(await b.run(async ({ region }) => {
      await region.prefetch();
      const first = region.stats().pages.in;
      const right = new Uint8Array(region.buffer).every((byte) => byte === 7);
      await region.prefetch();
      const { faults, pages } = region.stats();
      return [first, right, faults.read, pages.in];
    }), [600, true, 0, 600]);
  });

  it("to write makes stores go through without a fault, and takes the pages from the others", async () => {
    const [a, b] = await startMembers(2, { size: 300 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(5); });
    assert.equal(await b.run(async ({ region }) => {
      await region.prefetch(0, region.size, { access: 'write' });
      new Int32Array(region.buffer).fill(6);
      return region.stats().faults.write;
    }), 0);
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer).every((word) => word === 6)), true);
  });

  it('of pages at several homes, and of the own ones', async () => {
    const members = await startMembers(3, { size: 768 * PAGE, placement: 'spread' });
    await Promise.all(members.map((member, index) => member.run(({ region }, part) => {
      new Uint8Array(region.buffer, part * region.size / 3, region.size / 3).fill(part + 1);
    }, index)));
    for (const member of members) {
      assert.deepEqual(await member.run(async ({ region }) => {
        await region.prefetch();
        const before = region.stats().faults.read;
        const bytes = new Uint8Array(region.buffer);
        const right = bytes.every((byte, at) => byte === 1 + Math.floor(at / (bytes.length / 3)));
        return [right, region.stats().faults.read - before];
      }), [true, 0]);
    }
  });

  it('leaves the event loop free', async () => {
    const [a, b] = await startMembers(2, { size: 8192 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    const turns = await b.run(async ({ region }) => {
      let turns = 0;
      const timer = setInterval(() => turns++, 1);
      await region.prefetch();
      clearInterval(timer);
      return turns;
    });
    assert.ok(turns >= 5, `${turns} turns of the event loop meanwhile`);
  });

  it('can be aborted, before and in the middle, with the reason of the signal; the pages can be had all the same', async () => {
    const [a, b] = await startMembers(2, { size: 16384 * PAGE });
    await a.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let page = 0; page < 16384; page++) view[page * 1024] = page;
    });
    const seen = await b.run(async ({ region }) => {
      const before = await region.prefetch(0, region.size, { signal: AbortSignal.abort(new Error('too late')) }).catch((error: Error) => error.message);
      const none = region.stats().pages.in;
      const controller = new AbortController();
      const prefetch = region.prefetch(0, region.size, { signal: controller.signal });
      // Until the first pages have come: it runs.
      while (region.stats().pages.in === 0) await new Promise((resolve) => setImmediate(resolve));
      controller.abort();
      const middle = await prefetch.then(() => 'done', (error: Error) => error.name);
      const some = region.stats().pages.in;
      const view = new Int32Array(region.buffer);
      let wrong = 0;
      for (let page = 0; page < 16384; page += 257) if (view[page * 1024] !== page) wrong++;
      return { before, none, middle, some, wrong };
    });
    assert.ok(seen.some < 16384, `${seen.some} pages came`);
    assert.deepEqual({ ...seen, some: 0 }, { before: 'too late', none: 0, middle: 'AbortError', some: 0, wrong: 0 });
  });
});

describe('the memory: prefetch and pin, cut short', () => {
  it('by closing the region or the cluster: what waits rejects with ClosedError at once, and nothing stays pinned', async () => {
    const [a, b] = await startMembers(2, { name: 'memory', size: 16384 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    for (const what of ['region', 'cluster'] as const) {
      const seen = await b.run(async (state, closed) => {
        const { region } = state;
        const calls = [region.prefetch(0, region.size), region.pin({ offset: 0, length: region.size }, 'read')];
        while (region.stats().pages.in === 0) await new Promise((resolve) => setImmediate(resolve));
        const ends = calls.map((call) => call.then(() => 'done', (error: { code?: string }) => error.code));
        await state[closed as 'region' | 'cluster'].close();
        return Promise.all(ends);
      }, what);
      assert.ok(seen.every((end) => end === 'ERR_FAULTLINE_CLOSED' || end === 'done'), `${seen}`);
      assert.ok(seen.includes('ERR_FAULTLINE_CLOSED'), `${seen}`);
      if (what === 'region') await b.open('memory', { mode: 'open' });
      // A pin that stayed would keep this store from the pages.
      await a.run(({ region }) => { new Uint8Array(region.buffer).fill(2); });
    }
  });

  it('by the end of their thread, at many moments: the region goes on, and nothing stays pinned', async () => {
    const [a, b] = await startMembers(2, { name: 'memory', size: 4096 * PAGE });
    const random = seeded(5);
    for (let round = 0; round < 12; round++) {
      await a.run(({ region }, value) => { new Uint8Array(region.buffer).fill(value); }, round + 1);
      const thread = await joinedThread(b);
      await openInThread(thread, 'memory');
      const fetching = codeOf(thread.run(async ({ region }) => {
        for (;;) await Promise.all([region.prefetch(), region.pin({ offset: 0, length: region.size }, 'read').then((pin) => pin.release())]);
      }));
      await new Promise((resolve) => setTimeout(resolve, random() * 30));
      await thread.terminate();
      assert.equal(await fetching, 'ERR_THREAD_EXITED');
      assert.equal(await b.run(({ region }, value) => new Uint8Array(region.buffer).every((byte) => byte === value), round + 1), true);
    }
  });
});

describe('the memory: windows', () => {
  it('are buffers over a part, with the same bytes', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    await a.run(({ region }) => {
      const window = region.window(8 + 4096, 20_000);
      if (!(window instanceof SharedArrayBuffer) || window.byteLength !== 20_000) throw new Error('no window');
      new Int32Array(window)[0] = 1;
      new Int32Array(region.buffer)[2 + 1024 + 1] = 2;
      new Int32Array(region.window(4096, 4096))[4] = 3;
    });
    assert.deepEqual(await b.run(({ region }) => [...new Int32Array(region.window(4096, 4096), 0, 6)]), [0, 0, 1, 2, 3, 0]);
  });

  it('reach what one buffer cannot, in a region of more bytes than that', async () => {
    // 5 GiB, of which a few pages are ever touched: more than a buffer of Node 20 can have.
    const size = 5 * 2 ** 30;
    const [a, b] = await startMembers(2, { size });
    const far = size - 3 * PAGE;
    await a.run(({ region }, at) => { new Float64Array(region.window(at, 8192))[1000] = 1.25; }, far);
    assert.equal(await b.run(({ region }, at) => new Float64Array(region.window(at - 8, 8008 + 8))[1001], far), 1.25);
    const whole = await b.run(({ region }) => {
      try {
        return region.buffer.byteLength;
      } catch (error) {
        return (error as { code: string }).code;
      }
    });
    const limit = await b.run(({ require }) => (require('node:buffer') as typeof import('node:buffer')).constants.MAX_LENGTH);
    assert.equal(whole, size > limit ? 'ERR_FAULTLINE_OUT_OF_MEMORY' : size);
    assert.ok(await memfdBytes(a) < 64 * 2 ** 20, 'what nobody touched takes no memory');
  });

  it('a region of a tebibyte takes memory for what is touched only, at every member', async () => {
    const size = 2 ** 40;
    const members = await startMembers(3, { size });
    const [a, b, c] = members;
    /** Pages all over the region, its last one among them. */
    const at = Array.from({ length: 64 }, (_, i) => Math.floor((size - PAGE) / 63 / PAGE) * i * PAGE);
    at.push(size - PAGE);
    await a.run(({ region }, offsets) => { for (const offset of offsets) new Float64Array(region.window(offset, 4096))[511] = offset; }, at);
    await b.run(({ region }, offsets) => { for (const offset of offsets) { const page = new Float64Array(region.window(offset, 4096)); if (page[511] !== offset) throw new Error(`offset ${offset} holds ${page[511]}`); page[510] = -offset; } }, at);
    assert.deepEqual(await c.run(({ region }, offsets) => offsets.map((offset) => [...new Float64Array(region.window(offset, 4096)).subarray(510)]), at), at.map((offset) => [-offset, offset]));
    for (const member of members) assert.ok(await memfdBytes(member) < 4 * 2 ** 20, 'what nobody touched takes no memory');
    // Whoever leaves hands over what there is, and not a tebibyte.
    await a.leave();
    assert.deepEqual(await b.run(({ region }, offset) => [...new Float64Array(region.window(offset, 4096)).subarray(510)], at[7]), [-at[7], at[7]]);
  });

  it('refuse offsets and lengths that make no sense', async () => {
    const [a] = await startMembers(1, { size: 256 * PAGE });
    const codes = await a.run(({ region }) => [[4, 8], [0, 0], [-8, 8], [region.size - 8, 16], [0.5, 8], [NaN, 1]].map(([offset, length]) => {
      try {
        return String(region.window(offset, length).byteLength);
      } catch (error) {
        return (error as { code: string }).code;
      }
    }));
    assert.deepEqual(codes, ['MISALIGNED', 'INVALID_ARGUMENT', 'OUT_OF_RANGE', 'OUT_OF_RANGE', 'INVALID_ARGUMENT', 'INVALID_ARGUMENT'].map((code) => `ERR_FAULTLINE_${code}`));
  });
});

describe('the memory: discard', () => {
  it('makes the bytes zero for everybody, whoever asks and whoever has them, and no others', async () => {
    for (const who of [0, 1, 2]) {
      const members = await startMembers(3, { size: 256 * PAGE });
      await members[0].run(({ region }) => { new Uint8Array(region.buffer).fill(9); });
      await members[1].run(({ region }) => { new Uint8Array(region.buffer, 4096 * 3, 4096 * 3).fill(8); });
      await members[2].run(({ region }) => new Uint8Array(region.buffer).every((byte) => byte !== 0));
      // From the middle of page 2 to the middle of page 130.
      await members[who].run(({ region }) => region.discard(2 * 4096 + 100, 128 * 4096));
      for (const member of members) {
        assert.equal(await member.run(({ region }) => {
          const bytes = new Uint8Array(region.buffer);
          const [from, to] = [2 * 4096 + 100, 130 * 4096 + 100];
          return bytes.every((byte, at) => byte === (at < from || at >= to ? 9 : 0));
        }), true);
      }
      await Promise.all(members.map((member) => member.destroy()));
    }
  });

  it('gives the memory back, at every member', async () => {
    const pages = 4096;
    const members = await startMembers(2, { size: pages * PAGE });
    await members[0].run(({ region }) => { new Uint8Array(region.buffer).fill(9); });
    await members[1].run(({ region }) => region.prefetch());
    for (const member of members) assert.ok(await memfdBytes(member) >= pages * PAGE);
    await members[1].run(({ region }) => region.discard(0, region.size - 4096));
    for (const member of members) assert.ok(await memfdBytes(member) < pages * PAGE / 8, `${await memfdBytes(member)} bytes are left`);
    for (const member of members) {
      assert.deepEqual(await member.run(({ region }) => [new Uint8Array(region.buffer)[5], new Uint8Array(region.buffer).at(-1)]), [0, 9]);
    }
  });

  it('while others write: every byte is what was written last, or zero', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    const thread = await b.thread(({ region }) => ({ buffer: region.buffer }));
    const writing = thread.run(({ buffer, tell }) => {
      const view = new Int32Array(buffer);
      tell('writing');
      let wrong = 0;
      for (let round = 1; round <= 400; round++) {
        for (let page = 0; page < 8; page++) {
          const seen = view[page * 1024 + 5];
          if (seen !== 0 && seen !== round - 1) wrong++;
          view[page * 1024 + 5] = round;
        }
      }
      return wrong;
    });
    await b.told('writing');
    await a.run(async ({ region }) => { for (let time = 0; time < 30; time++) await region.discard(0, 8 * 4096); });
    assert.equal(await writing, 0);
    await a.run(({ region }) => region.discard(0, region.size));
    for (const member of [a, b]) assert.equal(await member.run(({ region }) => new Uint8Array(region.buffer).every((byte) => byte === 0)), true);
  });
});

describe('the memory: what can be seen of it', () => {
  it('inspect() tells home, owner, copies and what is held here, as the page moves', async () => {
    const [a, b, c] = await startMembers(3, { size: 64 * PAGE });
    const [home, second, third] = await Promise.all([a, b, c].map((member) => member.run(({ cluster }) => cluster.self.id)));
    const at = 5 * PAGE + 17;
    const inspect = (member: Member): ReturnType<import('../../lib/index.js').Region['inspect']> => member.run(({ region }, offset) => region.inspect(offset), at);
    const fresh = await inspect(b);
    assert.deepEqual({ ...fresh, version: 0 }, { page: 5, offset: 5 * PAGE, home, owner: null, copies: fresh.copies, version: 0, state: 'idle', held: 'invalid' });
    assert.ok(!fresh.copies.includes(second) && !fresh.copies.includes(third));

    await b.run(({ region }) => { new Uint8Array(region.buffer)[5 * 4096] = 1; });
    const owned = await inspect(b);
    assert.deepEqual([owned.owner, owned.state, owned.held], [second, 'exclusive', 'exclusive']);
    assert.ok(owned.version > fresh.version);
    assert.equal((await inspect(c)).held, 'invalid');

    await c.run(({ region }) => new Uint8Array(region.buffer)[5 * 4096]);
    const shared = await inspect(c);
    assert.deepEqual([shared.home, shared.owner, shared.state, shared.held], [home, null, 'idle', 'shared']);
    assert.ok(shared.copies.includes(third));
    assert.ok(shared.version >= owned.version);
  });

  it('stats() count faults by kind, pages, bytes, recalls and invalidations on both sides', async () => {
    const [a, b] = await startMembers(2, { size: 1024 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    await b.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      // Far apart, so that reading ahead does not blur the counts.
      for (let time = 0; time < 5; time++) if (view[1024 * (100 * time + 50)] === 0) throw new Error('zero');
      for (let time = 0; time < 3; time++) view[1024 * (100 * time + 50)] = 2;
      for (let time = 5; time < 9; time++) view[1024 * (100 * time + 50)] = 2;
    });
    const mine = await b.run(({ region }) => {
      const { waits, ...rest } = region.stats();
      return { ...rest, waits: { count: waits.count, sum: waits.counts.reduce((sum, count) => sum + count), sizes: waits.counts.length === waits.bounds.length, median: waits.percentile(50), most: waits.percentile(100), last: waits.bounds.at(-1) } };
    });
    assert.deepEqual(mine.faults, { read: 5, write: 7, local: 0, joined: 0, upgrade: 3, lost: 0 });
    assert.equal(mine.waits.count, 12);
    assert.equal(mine.waits.sum, 12);
    assert.ok(mine.waits.sizes && mine.waits.last === Infinity);
    assert.ok(mine.waits.median > 0 && mine.waits.median <= mine.waits.most);
    assert.equal(mine.pages.resident, mine.pages.in - mine.faults.upgrade);
    assert.equal(mine.bytes.in, PAGE * (mine.pages.in - mine.faults.upgrade));
    assert.equal(mine.pages.out, 0);
    await a.run(({ region }) => { for (let time = 0; time < 9; time++) new Int32Array(region.buffer)[1024 * (100 * time + 50)]++; });
    const [his, now] = await Promise.all([a, b].map((member) => member.run(({ region }) => { const { waits, ...rest } = region.stats(); return { ...rest, waits: waits.count }; })));
    assert.equal(now.recalls.received, 7);
    assert.equal(his.recalls.sent, 7);
    // The load of each ++ leaves b a copy to read, the store takes that too.
    assert.equal(now.invalidations.received, 9);
    assert.equal(his.invalidations.sent, 9);
    assert.equal(now.bytes.out, 7 * PAGE);
    assert.ok(his.requestsServed >= 12);
    assert.ok(his.faults.local >= 16);
    assert.ok(his.protection.changes > 0);
  });

  it('the statistics of the cluster count messages and bytes, and nothing malformed or fenced', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    const seen = await b.run(({ cluster, region }) => {
      const before = cluster.stats();
      const read = new Uint8Array(region.buffer)[0];
      return { before, read, after: cluster.stats() };
    });
    assert.ok(seen.after.messages.sent > seen.before.messages.sent && seen.after.messages.received > seen.before.messages.received);
    assert.ok(seen.after.bytes.received - seen.before.bytes.received >= PAGE);
    assert.deepEqual([seen.after.messages.malformed, seen.after.messages.fenced], [0, 0]);
  });
});
