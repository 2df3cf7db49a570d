import assert from 'node:assert/strict';
import { codeOf, counted } from '../support/steps.js';
import { Member, uniqueCluster } from '../support/members.js';

const PAGE = 4096;
const MIB = 1 << 20;
/** What a member may be over its limit when nothing happens: nothing. While threads bring pages: what comes between two looks. */
const MOMENT = 2 * MIB;

/** A home without a limit that has written every page, and a member with one. */
async function homeAndGuest(size: number, memoryLimit: number, lane: 'auto' | 'off', pageSize = PAGE): Promise<[Member, Member]> {
  const cluster = uniqueCluster();
  const home = await Member.start({ cluster, join: { lane } });
  await home.open('memory', { size, pageSize });
  await home.run(({ region }) => {
    const words = new Int32Array(region.buffer);
    for (let page = 0; page < words.length / 1024; page++) words.fill(page + 1, page * 1024, page * 1024 + 2).fill(~page, page * 1024 + 1022, page * 1024 + 1024);
  });
  const guest = await Member.start({ cluster, join: { lane, memoryLimit } });
  await guest.open('memory');
  return [home, guest];
}

describe('the memory: memoryLimit', () => {
  for (const lane of ['auto', 'off'] as const) {
    it(`a region eight times the limit is read twice over, and never takes much more (lane ${lane})`, async () => {
      const [, guest] = await homeAndGuest(64 * MIB, 8 * MIB, lane);
      const seen = await guest.run(({ region }) => {
        const words = new Int32Array(region.buffer);
        let wrong = 0;
        let most = 0;
        for (let round = 0; round < 2; round++) {
          for (let page = 0; page < words.length / 1024; page++) {
            if (words[page * 1024] !== page + 1 || words[page * 1024 + 1023] !== ~page) wrong++;
            if (page % 256 === 0) most = Math.max(most, region.stats().memory.bytes);
          }
        }
        return { wrong, most, memory: region.stats().memory, in: region.stats().pages.in };
      }, undefined, { within: 60_000 });
      assert.equal(seen.wrong, 0);
      assert.ok(seen.most <= 8 * MIB + MOMENT, `${seen.most} bytes at once`);
      assert.ok(seen.memory.dropped > 8192, `${seen.memory.dropped} copies dropped`);
      // A scan in a circle has nothing left of what it read before: all is read again.
      assert.ok(seen.in > 16_384, `${seen.in} pages came`);
    });

    it(`what is written beyond the limit goes home, and is what others, and the writer, read (lane ${lane})`, async () => {
      const [home, guest] = await homeAndGuest(32 * MIB, 4 * MIB, lane);
      const seen = await guest.run(({ region }) => {
        const words = new Int32Array(region.buffer);
        let most = 0;
        for (let page = 0; page < words.length / 1024; page++) {
          words[page * 1024 + 7] = page * 3;
          if (page % 256 === 0) most = Math.max(most, region.stats().memory.bytes);
        }
        return { most, memory: region.stats().memory };
      }, undefined, { within: 60_000 });
      assert.ok(seen.most <= 4 * MIB + MOMENT, `${seen.most} bytes at once`);
      assert.ok(seen.memory.sentHome > 4096, `${seen.memory.sentHome} pages went home`);
      const wrong = ({ region }: { region: { buffer: SharedArrayBuffer } }): number => {
        const words = new Int32Array(region.buffer);
        let count = 0;
        for (let page = 0; page < words.length / 1024; page++) if (words[page * 1024 + 7] !== page * 3 || words[page * 1024 + 1023] !== ~page) count++;
        return count;
      };
      assert.equal(await guest.run(wrong, undefined, { within: 60_000 }), 0);
      assert.equal(await home.run(wrong, undefined, { within: 60_000 }), 0);
    });
  }

  it('what went home survives the writer', async () => {
    const [home, guest] = await homeAndGuest(32 * MIB, 4 * MIB, 'auto');
    await guest.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      for (let page = 0; page < words.length / 1024; page++) words[page * 1024 + 7] = page * 3;
    }, undefined, { within: 60_000 });
    await guest.kill('SIGKILL');
    await guest.exit();
    const seen = await home.run(async ({ region, cluster, attempt }) => {
      while (cluster.view.members.length > 1) await new Promise((resolve) => setTimeout(resolve, 10));
      const words = new Int32Array(region.buffer);
      let lost = 0;
      let wrong = 0;
      for (let page = 0; page < words.length / 1024; page++) {
        try {
          if (attempt(() => words[page * 1024 + 7]) !== page * 3) wrong++;
        } catch {
          lost++;
        }
      }
      return { lost, wrong };
    }, undefined, { within: 60_000 });
    assert.equal(seen.wrong, 0);
    // What it could have had at most when it died.
    assert.ok(seen.lost > 0 && seen.lost <= (4 * MIB + MOMENT) / PAGE, `${seen.lost} pages lost`);
  });

  it('members of several limits, each the home of a part, count right over more than any of them may take', async () => {
    const cluster = uniqueCluster();
    const limits = [2 * MIB, 4 * MIB, undefined];
    const members = await Promise.all(limits.map((memoryLimit) => Member.start({ cluster, join: memoryLimit === undefined ? {} : { memoryLimit } })));
    await members[0].open('memory', { size: 12 * MIB, placement: 'spread' });
    await Promise.all(members.slice(1).map((member) => member.open('memory')));
    const times = counted(4_000, 40_000);
    await Promise.all(members.map((member, index) => member.run(({ region }, { index, times }) => {
      const words = new Int32Array(region.buffer);
      let state = index + 1;
      for (let i = 0; i < times; i++) {
        state = Math.imul(state, 1664525) + 1013904223 | 0;
        Atomics.add(words, (state >>> 8) % (words.length / 1024) * 1024 + (state & 3), 1);
      }
    }, { index, times }, { within: 60_000 })));
    const sums = await Promise.all(members.map((member) => member.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      let sum = 0;
      for (let page = 0; page < words.length / 1024; page++) for (let i = 0; i < 4; i++) sum += Atomics.load(words, page * 1024 + i);
      return sum;
    }, undefined, { within: 60_000 })));
    assert.deepEqual(sums, [3 * times, 3 * times, 3 * times]);
  });

  it('pinned pages stay, although they are more than the limit', async () => {
    const [, guest] = await homeAndGuest(16 * MIB, 2 * MIB, 'auto');
    const seen = await guest.run(async ({ region }) => {
      const pin = await region.pin([{ offset: 0, length: 4 << 20 }], 'read');
      const words = new Int32Array(region.buffer);
      let wrong = 0;
      for (let page = 1024; page < words.length / 1024; page++) if (words[page * 1024] !== page + 1) wrong++;
      const before = region.stats().faults.read;
      for (let page = 0; page < 1024; page++) if (words[page * 1024] !== page + 1) wrong++;
      const faults = region.stats().faults.read - before;
      await pin.release();
      return { wrong, faults };
    }, undefined, { within: 60_000 });
    assert.deepEqual(seen, { wrong: 0, faults: 0 });
  });

  it("a home's own pages count, stay, and keep nobody waiting", async () => {
    const cluster = uniqueCluster();
    const home = await Member.start({ cluster, join: { memoryLimit: MIB } });
    await home.open('memory', { size: 16 * MIB });
    const other = await Member.start({ cluster });
    await other.open('theirs', { size: 4 * MIB });
    await other.run(({ region }) => new Uint8Array(region.buffer).fill(7));
    const seen = await home.run(async ({ region, cluster: joined }) => {
      new Uint8Array(region.buffer).fill(1);
      const theirs = await joined.region('theirs');
      const sum = new Uint8Array(theirs.buffer).reduce((total, byte) => total + byte, 0);
      return { sum, own: region.stats().memory.bytes };
    }, undefined, { within: 60_000 });
    assert.deepEqual(seen, { sum: 7 * 4 * MIB, own: 16 * MIB });
  });

  it('pages as large as the limit are worked with one after the other', async () => {
    const [home, guest] = await homeAndGuest(32 * MIB, MIB, 'auto', 2 * MIB);
    const seen = await guest.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      let wrong = 0;
      for (let page = 0; page < words.length / 1024; page += 512) {
        if (words[page * 1024] !== page + 1) wrong++;
        words[page * 1024 + 7] = page;
      }
      return wrong;
    }, undefined, { within: 60_000 });
    assert.equal(seen, 0);
    assert.equal(await home.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      let wrong = 0;
      for (let page = 0; page < words.length / 1024; page += 512) if (words[page * 1024 + 7] !== page) wrong++;
      return wrong;
    }), 0);
  });

  it('what is no limit is refused, in the option and in the environment; two of one process must agree', async () => {
    for (const memoryLimit of [0, -1, 4096, 1.5, NaN, Infinity, '8MiB', null, true]) {
      assert.equal(await codeOf(Member.start({ cluster: uniqueCluster(), join: { memoryLimit: memoryLimit as number } })), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(memoryLimit));
    }
    assert.equal(await codeOf(Member.start({ cluster: uniqueCluster(), env: { FAULTLINE_MEMORY_LIMIT: 'much' } })), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, env: { FAULTLINE_MEMORY_LIMIT: String(8 * MIB) } });
    const error = await a.run(async ({ join }, address) => join({ cluster: address, memoryLimit: 1 << 21 }).then(() => null, (reason: Error & { code: string; option: string }) => [reason.code, reason.option]), cluster);
    assert.deepEqual(error, ['ERR_FAULTLINE_JOIN_REFUSED', 'memoryLimit']);
    await a.run(async ({ join }, address) => (await join({ cluster: address, memoryLimit: 8 << 20 })).close(), cluster);
  });
});
