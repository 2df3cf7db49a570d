import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';

const PAGE = 4096;

describe('the memory: loads and stores', () => {
  it('shows each side what the other stored, through every kind of view', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 20 });
    for (const [writer, reader] of [[a, b], [b, a]]) {
      await writer.run(({ region, cluster }) => {
        const { buffer } = region;
        const seed = cluster.self.id;
        new Int8Array(buffer)[0] = -seed;
        new Uint16Array(buffer)[2050] = 60_000 + seed;
        new Float64Array(buffer)[1024 + 3] = Math.PI * seed;
        new BigUint64Array(buffer)[1536 + 3] = 0xffff_ffff_ffff_fff0n + BigInt(seed);
        new DataView(buffer).setFloat32(16_384 + 1, seed / 2);
        Atomics.store(new Int32Array(buffer), 6000, 7 * seed);
        new Uint8Array(buffer).set(new TextEncoder().encode(`written by ${seed}`), 40_000);
      });
      const seed = await writer.run(({ cluster }) => cluster.self.id);
      assert.deepEqual(await reader.run(({ region: { buffer } }) => [
        new Int8Array(buffer)[0], new Uint16Array(buffer)[2050], new Float64Array(buffer)[1027], new BigUint64Array(buffer)[1539],
        new DataView(buffer).getFloat32(16_385), Atomics.load(new Int32Array(buffer), 6000), Buffer.from(buffer, 40_000, 12).toString(),
      ]), [-seed, 60_000 + seed, Math.PI * seed, 0xffff_ffff_ffff_fff0n + BigInt(seed), seed / 2, 7 * seed, `written by ${seed}`]);
    }
  });

  it('is an ordinary SharedArrayBuffer at the same address in every member', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 20, pageSize: 8192 });
    const look = ({ region }: { region: import('../../lib/index.js').Region }): unknown[] => [
      region.buffer instanceof SharedArrayBuffer, region.buffer.byteLength, region.size, region.pageSize, region.address, region.buffer === region.buffer,
    ];
    const seen = await a.run(look);
    assert.deepEqual(seen.slice(0, 4), [true, 1 << 20, 1 << 20, 8192]);
    assert.equal(seen[5], true);
    assert.deepEqual(await b.run(look), seen);
  });

  it('is zero at first, in the home and elsewhere, to the last byte', async () => {
    const members = await startMembers(2, { size: 64 * PAGE });
    for (const member of members) {
      assert.equal(await member.run(({ region }) => new Uint8Array(region.buffer).every((byte) => byte === 0)), true);
    }
  });

  it('gives a page that nobody wrote without bytes, and a written one with exactly its own, through the coordinators', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE }, { join: { lane: 'off' } });
    await a.run(({ region }) => { new Int32Array(region.buffer)[100 * 1024] = 5; });
    const stats = await b.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      const empty = view[0] + view[1024 * 10];
      const before = region.stats();
      const full = view[100 * 1024];
      const after = region.stats();
      return { empty, full, pages: before.pages.in, before: before.bytes.in, after: after.bytes.in };
    });
    assert.equal(stats.empty, 0);
    assert.equal(stats.full, 5);
    assert.ok(stats.pages >= 2, `${stats.pages} pages came`);
    assert.equal(stats.before, 0);
    assert.equal(stats.after, PAGE);
  });

  it('upgrades a valid copy to writable without bytes, and invalidates the other copies, through the coordinators', async () => {
    const [a, b, c] = await startMembers(3, { size: 256 * PAGE }, { join: { lane: 'off' } });
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
    await c.run(({ region }) => new Int32Array(region.buffer)[0]);
    const upgrade = await b.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      const read = view[0];
      const before = region.stats();
      view[1] = 2;
      const after = region.stats();
      return { read, bytes: after.bytes.in - before.bytes.in, upgrades: after.faults.upgrade - before.faults.upgrade };
    });
    assert.deepEqual(upgrade, { read: 1, bytes: 0, upgrades: 1 });
    for (const member of [a, c]) {
      assert.deepEqual(await member.run(({ region }) => [...new Int32Array(region.buffer, 0, 2)]), [1, 2]);
    }
    assert.ok(await c.run(({ region }) => region.stats().invalidations.received) >= 1);
  });

  it('keeps regions of one cluster apart', async () => {
    const [a, b] = await startMembers(2);
    for (const member of [a, b]) {
      await member.open('one', { size: 16 * PAGE });
      await member.open('two', { size: 16 * PAGE, pageSize: 16384 });
    }
    await a.run(({ regions }) => { new Uint8Array(regions.one.buffer).fill(1); });
    await b.run(({ regions }) => { new Uint8Array(regions.two.buffer).fill(2); });
    for (const member of [a, b]) {
      assert.deepEqual(await member.run(({ regions }) => [regions.one, regions.two].map((region) => {
        const bytes = new Uint8Array(region.buffer);
        return [bytes[0], bytes.at(-1), bytes.every((byte) => byte === bytes[0])];
      })), [[1, 1, true], [2, 2, true]]);
    }
  });

  it('places all pages at the creator by default', async () => {
    const [a, b] = await startMembers(2);
    await b.open('memory', { size: 256 * PAGE });
    await a.open('memory');
    const creator = await b.run(({ cluster }) => cluster.self.id);
    assert.deepEqual(await a.run(async ({ region }) => [(await region.inspect(0)).home, (await region.inspect(region.size - 1)).home, region.placement]), [creator, creator, 'creator']);
  });

  it("places a contiguous slice at each member with 'spread', and a home that never opened the region serves it", async () => {
    const [a, b, c] = await startMembers(3);
    await a.open('memory', { size: 384 * PAGE, placement: 'spread' });
    await c.open('memory');
    const ids = await Promise.all([a, b, c].map((member) => member.run(({ cluster }) => cluster.self.id)));
    const homes = await c.run(async ({ region }) => {
      const found: number[] = [];
      for (let page = 0; page < region.size / 4096; page++) found.push((await region.inspect(page * 4096)).home);
      return found;
    });
    assert.deepEqual([...new Set(homes)].sort(), [...ids].sort());
    assert.equal(homes.filter((home, page) => page > 0 && home !== homes[page - 1]).length, 2, 'slices are contiguous');
    for (const id of ids) assert.equal(homes.filter((home) => home === id).length, 128);
    // Both that have it open write and read all of it, so every page at b goes there and back.
    await a.run(({ region }) => { new Int32Array(region.buffer).forEach((_, index, view) => { view[index] = index; }); });
    assert.equal(await c.run(({ region }) => new Int32Array(region.buffer).every((value, index, view) => {
      view[index] = -value;
      return value === index;
    })), true);
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer).every((value, index) => value === -index)), true);
    // And when it opens the region at last it finds what the others wrote.
    await b.open('memory');
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer).every((value, index) => value === -index)), true);
  });

  it('works with pages from 4 KiB to 2 MiB', async () => {
    const [a, b] = await startMembers(2);
    for (let pageSize = 4096; pageSize <= 2 << 20; pageSize *= 2) {
      const name = `pages of ${pageSize}`;
      await a.open(name, { size: 4 * pageSize, pageSize });
      await b.open(name);
      await a.run(({ region }) => {
        const view = new Int32Array(region.buffer);
        for (let page = 0; page < 4; page += 2) view.fill(page + 1, page * region.pageSize / 4, (page + 1) * region.pageSize / 4);
      });
      const seen = await b.run(({ region }) => {
        const view = new Int32Array(region.buffer);
        const words = region.pageSize / 4;
        const edges = [0, 1, 2, 3].map((page) => [view[page * words], view[(page + 1) * words - 1]]);
        view[3 * words] = 9;
        return { edges, pageSize: region.pageSize, bytes: region.stats().bytes.in };
      });
      assert.deepEqual(seen, { edges: [[1, 1], [0, 0], [3, 3], [0, 0]], pageSize, bytes: 2 * pageSize });
      assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[3 * region.pageSize / 4]), 9);
    }
  });
});

describe("the memory: a home's own pages", () => {
  it('cost it one local fault for each extent of 64 pages, then none, and no message', async () => {
    const a = await Member.start({ cluster: uniqueCluster() });
    await a.open('memory', { size: 256 * PAGE });
    const seen = await a.run(({ region, cluster }) => {
      const view = new Int32Array(region.buffer);
      for (let index = 0; index < view.length; index += 8) view[index] = index;
      const first = region.stats();
      let wrong = 0;
      for (let index = 0; index < view.length; index += 8) {
        if (view[index] !== index) wrong++;
        view[index] = 0;
      }
      const { faults, waits, pages, requestsServed } = region.stats();
      return { first: first.faults, faults, waits: waits.count, pages: pages.in, requestsServed, wrong, messages: cluster.stats().messages.sent };
    });
    assert.deepEqual(seen.faults, { read: 0, write: 4, local: 4, joined: 0, upgrade: 0, lost: 0 });
    assert.deepEqual(seen.first, seen.faults);
    assert.deepEqual({ ...seen, first: 0, faults: 0 }, { first: 0, faults: 0, waits: 0, pages: 0, requestsServed: 0, wrong: 0, messages: 0 });
  });

  it('cost it nothing beside members that are elsewhere, until one of them asks', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE });
    const fill = ({ region }: { region: import('../../lib/index.js').Region }): [number, number] => {
      const view = new Int32Array(region.buffer);
      for (let index = 0; index < view.length; index += 1024) view[index]++;
      const { faults } = region.stats();
      return [faults.read + faults.write, faults.local];
    };
    assert.deepEqual(await a.run(fill), [4, 4]);
    assert.deepEqual(await a.run(fill), [4, 4]);
    assert.equal(await b.run(({ region }) => ++new Int32Array(region.buffer)[70 * 1024]), 3);
    const [faults, local] = await a.run(fill);
    assert.ok(faults > 4, 'the page that b wrote came back by a fault');
    assert.ok(local < faults, 'and from b');
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[70 * 1024]), 4);
  });
});
