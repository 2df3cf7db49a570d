import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';
import { nativeAddon } from '../support/native-addon.js';

const PAGE = 4096;
/** For tests whose subject is time: nothing may stop however long it goes on. */
const SECONDS = process.env.FAULTLINE_LONG ? 60 : 4;
const WITHIN = { within: SECONDS * 1000 + 30_000 };

describe('the memory: everybody gets on, and nothing is lost', function () {
  this.timeout(2 * SECONDS * 1000 + 60_000);

  let addon: string;
  before('build the native test addon', async function () {
    this.timeout(120_000);
    addon = await nativeAddon();
  });

  it('two members whose threads fault on pages at one another all the time', async () => {
    const pages = 128;
    const members = await startMembers(2, { size: pages * PAGE, placement: 'spread' });
    const threads = (await Promise.all(members.map((member) => Promise.all([0, 1].map(() => member.thread(({ region }) => ({ buffer: region.buffer })))))))
      .flat();
    const counts = await Promise.all(threads.map((thread, index) => thread.run(({ buffer }, given) => {
      // Each thread has a word of its own in every page, so that all pages are wanted by everybody, and no word by two.
      const view = new Int32Array(buffer);
      const mine = new Int32Array(given.pages);
      let state = given.index + 1;
      let wrong = 0;
      let steps = 0;
      for (const end = Date.now() + given.seconds * 1000; Date.now() < end; steps++) {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        const page = (state >>> 8) % given.pages;
        const at = page * 1024 + given.index * 7;
        if (view[at] !== mine[page]) wrong++;
        view[at] = ++mine[page];
      }
      return { mine: [...mine], wrong, steps };
    }, { index, pages, seconds: SECONDS }, WITHIN)));
    for (const { wrong, steps } of counts) {
      assert.equal(wrong, 0);
      assert.ok(steps > 100 * SECONDS, `${steps} steps`);
    }
    for (const member of members) {
      const words = await member.run(({ region }, given) => [0, 1, 2, 3].map((thread) =>
        Array.from({ length: given }, (_, page) => new Int32Array(region.buffer)[page * 1024 + thread * 7])), pages);
      words.forEach((mine, index) => assert.deepEqual(mine, counts[index].mine));
    }
  });

  it('two members that write one page as fast as they can', async () => {
    const members = await startMembers(2, { size: 64 * PAGE });
    // Both begin when both are there, and stop at the same time: each must have seen the other move, again and again.
    const seen = await Promise.all(members.map((member, index) => member.run(({ region }, given) => {
      const view = new Int32Array(region.buffer);
      Atomics.add(view, 1024, 1);
      while (Atomics.load(view, 1024) < 2);
      let moves = 0;
      let last = 0;
      let mine = 0;
      let wrong = 0;
      for (const end = Date.now() + given.seconds * 1000; Date.now() < end;) {
        for (let time = 0; time < 100; time++) {
          if (view[given.index] !== mine) wrong++;
          view[given.index] = ++mine;
          const other = view[1 - given.index];
          if (other < last) wrong++;
          if (other !== last) moves++;
          last = other;
        }
      }
      return { moves, mine, wrong };
    }, { index, seconds: SECONDS }, WITHIN)));
    for (const { moves, wrong } of seen) {
      assert.equal(wrong, 0);
      assert.ok(moves > 20 * SECONDS, `saw ${moves} moves of the other`);
    }
    assert.deepEqual(await members[0].run(({ region }) => [...new Int32Array(region.buffer, 0, 2)]), seen.map(({ mine }) => mine));
  });

  it('two members that hand a word to and fro by spinning on it', async () => {
    const members = await startMembers(2, { size: 64 * PAGE });
    const rounds = 300;
    await Promise.all(members.map((member, index) => member.run(({ region }, given) => {
      const view = new Int32Array(region.buffer);
      for (let turn = given.index; turn < 2 * given.rounds; turn += 2) {
        while (Atomics.load(view, 5) !== turn);
        Atomics.store(view, 5, turn + 1);
      }
    }, { index, rounds }, WITHIN)));
    assert.equal(await members[1].run(({ region }) => new Int32Array(region.buffer)[5]), 2 * rounds);
  });

  it('a load and a store that straddle two pages that are elsewhere, at two members', async () => {
    const [a, b, c] = await startMembers(3, { size: 64 * PAGE });
    await a.run(({ region }) => { new DataView(region.buffer).setInt32(4096 - 4, 0x40091eb8); });
    await b.run(({ region }) => { new DataView(region.buffer).setUint32(4096, 0x51eb851f); });
    assert.equal(await c.run(({ region }) => new DataView(region.buffer).getFloat64(4092)), 3.14);
    // Now a owns the one, b the other page again.
    await a.run(({ region }) => { new DataView(region.buffer).setInt32(4096 - 4, 0x40040000); });
    await b.run(({ region }) => { new DataView(region.buffer).setUint32(4096, 0); });
    assert.equal(await c.run(({ region }) => {
      const view = new DataView(region.buffer);
      const read = view.getFloat64(4092);
      view.setFloat64(4092, 0.1);
      return read;
    }), 2.5);
    for (const member of [a, b]) assert.equal(await member.run(({ region }) => new DataView(region.buffer).getFloat64(4092)), 0.1);
  });

  it('two members whose straddling stores need the same two pages, in JavaScript and in native code', async () => {
    const members = await startMembers(2, { size: 64 * PAGE, placement: 'spread' });
    // The border between the slices: the left page is at home at the one, the right page at the other.
    const border = 32 * PAGE;
    const times = 150 * SECONDS;
    await Promise.all(members.map((member, index) => member.run(({ region, require }, given) => {
      const view = new DataView(region.buffer);
      const { store64 } = require(given.addon);
      for (let time = 0; time < given.times; time++) {
        view.setBigUint64(given.border - 3, BigInt(given.index * 1_000_000 + time), true);
        store64(region.address + BigInt(given.border - 20 - given.index), 1n, 1n);
        store64(region.address + BigInt(given.border - 4), BigInt(given.index), 3n);
      }
    }, { index, border, times, addon }, WITHIN)));
    const both = await Promise.all(members.map((member) => member.run(({ region }, at) => [...new Uint8Array(region.buffer, at - 32, 64)], border)));
    assert.deepEqual(both[0], both[1]);
  });

  it('copies between ranges that straddle pages of both members, one instruction with up to four pages', async () => {
    const members = await startMembers(2, { size: 64 * PAGE, placement: 'spread' });
    const times = 50 * SECONDS;
    const half = 32 * PAGE;
    await members[0].run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    await Promise.all(members.map((member, index) => member.run(({ region, require }, { half, times, index, addon: path }) => {
      const { move } = require(path);
      // One copies from the first border to the second, the other back: all four pages are wanted by both, for both.
      const places = [region.address + 4096n - 30n, region.address + BigInt(half) + 8192n - 30n];
      for (let time = 0; time < times; time++) move(places[index], places[1 - index], 60n);
    }, { half, times, index, addon }, WITHIN)));
    for (const member of members) assert.equal(await member.run(({ region }) => new Uint8Array(region.buffer).every((byte) => byte === 1)), true);
  });

  it('Atomics.add from 3 threads in each of 4 processes, to the exact total', async () => {
    const members = await startMembers(4, { size: 16 * PAGE });
    // Worker threads only: a main thread that spins until all are there could not pass on what its workers are asked.
    const threads = (await Promise.all(members.map((member) => Promise.all([0, 1, 2].map(() => member.thread(({ region }) => ({ buffer: region.buffer })))))))
      .flat();
    const times = 200 * SECONDS;
    await Promise.all(threads.map((thread) => thread.run(({ buffer }, given) => {
      const words = new Int32Array(buffer);
      const longs = new BigInt64Array(buffer);
      Atomics.add(words, 8192, 1);
      while (Atomics.load(words, 8192) < given.threads);
      // Two counters on two pages: whoever adds to both needs both.
      for (let time = 0; time < given.times; time++) {
        Atomics.add(words, 3, 1);
        Atomics.sub(longs, 1024, 2n);
      }
    }, { times, threads: threads.length }, WITHIN)));
    for (const member of members) {
      assert.deepEqual(await member.run(({ region }) => [Atomics.load(new Int32Array(region.buffer), 3), Atomics.load(new BigInt64Array(region.buffer), 1024)]),
        [threads.length * times, BigInt(-2 * threads.length * times)]);
    }
  });

  it('Atomics.compareExchange, exchange, or, xor: one winner for each step', async () => {
    const members = await startMembers(3, { size: 16 * PAGE });
    const steps = 600;
    const results = await Promise.all(members.map((member, index) => member.run(({ region }, given) => {
      const view = new Int32Array(region.buffer);
      Atomics.add(view, 8192, 1);
      while (Atomics.load(view, 8192) < 3);
      let wins = 0;
      let turns = 0;
      for (let at = Atomics.load(view, 0); at < given.steps; at = Atomics.load(view, 0), turns++) {
        if (Atomics.compareExchange(view, 0, at, at + 1) === at) wins++;
        Atomics.xor(view, 2048, 1 << given.index);
        Atomics.or(view, 2049, 1 << given.index);
      }
      return { wins, turns };
    }, { steps, index }, WITHIN)));
    assert.equal(results.reduce((sum, { wins }) => sum + wins, 0), steps);
    // Whoever holds the page long enough may have made all steps before another had its first turn.
    const expected = (bit: (turns: number) => boolean): number => results.reduce((bits, { turns }, index) => bits | (bit(turns) ? 1 << index : 0), 0);
    assert.deepEqual(await members[0].run(({ region }) => [...new Int32Array(region.buffer).subarray(2048, 2050)]), [expected((turns) => turns % 2 === 1), expected((turns) => turns > 0)]);
  });

  it('registers with one writer each never go back, at any reader, and show what was written before them', async () => {
    const members = await startMembers(3, { size: 64 * PAGE });
    const threads = await Promise.all(members.flatMap((member) => [0, 1].map(() => member.thread(({ region }) => ({ buffer: region.buffer })))));
    // Writer w stores the same growing value first at `data`, then at `flag`, on other pages: whoever sees a flag must see
    // data that is as new. All writers share those pages, so that the words travel in every combination.
    const results = await Promise.all(threads.map((thread, self) => thread.run(({ buffer }, given) => {
      const view = new Int32Array(buffer);
      const flag = (writer: number): number => (writer % 3) * 1024 + writer * 5;
      const data = (writer: number): number => (3 + ((writer + 1) % 4)) * 1024 + writer * 9;
      const seen = new Int32Array(given.writers);
      let state = 12345 + given.self;
      let value = 0;
      let errors = '';
      let reads = 0;
      for (const end = Date.now() + given.seconds * 1000; Date.now() < end && errors === '';) {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        if (state >>> 30 === 0) {
          value++;
          view[data(given.self)] = value;
          view[flag(given.self)] = value;
          continue;
        }
        const writer = (state >>> 10) % given.writers;
        const flagged = view[flag(writer)];
        const stored = view[data(writer)];
        reads++;
        if (flagged < seen[writer]) errors = `the flag of ${writer} went back from ${seen[writer]} to ${flagged}`;
        if (stored < flagged) errors = `flag ${flagged} of ${writer}, but data ${stored}`;
        if (writer === given.self && (flagged !== value || stored !== value)) errors = `own value ${value} read as ${flagged}, ${stored}`;
        seen[writer] = flagged;
      }
      return { errors, value, reads, seen: [...seen] };
    }, { self, writers: threads.length, seconds: SECONDS }, WITHIN)));
    for (const { errors, value, reads } of results) {
      assert.equal(errors, '');
      assert.ok(value > 20 && reads > 60, `${value} writes, ${reads} reads`);
    }
    for (const { seen } of results) assert.ok(seen.every((last, writer) => last <= results[writer].value));
  });
});
