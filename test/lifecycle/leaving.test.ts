import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { arrived, counted, joinedThread, openInThread, seeded, tellEvents } from '../support/steps.js';

const PAGES = 64;

function permutations<T>(items: T[]): T[][] {
  return items.length < 2 ? [items] : items.flatMap((item, index) => permutations(items.filter((_, other) => other !== index)).map((rest) => [item, ...rest]));
}

/** Every page has a word of each member; a member's words of all pages it wrote last, exclusive or shared by chance. */
async function writePages(member: Member, mine: number, of: number): Promise<void> {
  await member.run(({ region }, { mine: index, of: count, pages }) => {
    const view = new Int32Array(region.buffer);
    for (let page = 0; page < pages; page++) view[page * 1024 + index] = (page + 1) * (index + 1);
    let read = 0;
    for (let page = index; page < pages; page += count + 1) read += view[page * 1024 + ((index + 1) % count)];
    return read;
  }, { mine, of, pages: PAGES });
}

function wrongWords(member: Member, of: number): Promise<number> {
  return member.run(({ region }, { of: count, pages }) => {
    const view = new Int32Array(region.buffer);
    let wrong = 0;
    for (let page = 0; page < pages; page++) for (let index = 0; index < count; index++) if (view[page * 1024 + index] !== (page + 1) * (index + 1)) wrong++;
    return wrong;
  }, { of, pages: PAGES });
}

describe('members that leave by close()', () => {
  for (const placement of ['creator', 'spread'] as const) {
    it(`lose nothing, whoever leaves and in which order (placement '${placement}'); the last one reads all`, async function () {
      this.timeout(300_000);
      const members = await Promise.all([0, 1, 2, 3].map(() => Member.start({ join: false })));
      const random = seeded(7);
      const all = permutations([0, 1, 2, 3]);
      const orders = process.env.FAULTLINE_LONG ? all : [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], all[Math.floor(random() * 24)], all[Math.floor(random() * 24)]];
      for (const order of orders) {
        const cluster = uniqueCluster();
        for (const member of members) await member.run(async (state, address) => { state.cluster = await state.join({ cluster: address }); }, cluster);
        // The registrar is 0; the home, with placement 'creator', is 1.
        await members[1].open('pages', { size: PAGES * 4096, placement });
        for (const member of [0, 2, 3].map((index) => members[index])) await member.open('pages');
        for (let index = 0; index < 4; index++) await writePages(members[index], index, 4);
        for (const leaver of order.slice(0, 3)) await members[leaver].leave();
        assert.equal(await wrongWords(members[order[3]], 4), 0, `order ${order.join()}`);
        assert.deepEqual(await members[order[3]].run(({ region }) => region.lost()), []);
        await members[order[3]].leave();
      }
    });
  }

  it('lose nothing when all but one leave at the same time', async () => {
    const members = await startMembers(5, { size: PAGES * 4096, name: 'pages' });
    for (let index = 0; index < 5; index++) await writePages(members[index], index, 5);
    await Promise.all([0, 1, 2, 4].map((index) => members[index].leave()));
    assert.equal(await wrongWords(members[3], 5), 0);
  });

  it('all leave at the same time, and the name is free afterwards', async () => {
    const members = await startMembers(4, { size: PAGES * 4096, name: 'pages' });
    const cluster = await members[0].run(({ cluster: joined }) => joined.address);
    for (let index = 0; index < 4; index++) await writePages(members[index], index, 4);
    await Promise.all(members.map((member) => member.leave()));
    const next = await Member.start({ cluster });
    await assert.rejects(next.open('pages', { mode: 'open' }), { code: 'ERR_FAULTLINE_REGION_NOT_FOUND' });
  });

  it('hand over while others fault on their pages, the registrar and home among them, and no write is lost', async () => {
    const members = await startMembers(4, { size: 17 * 4096, name: 'busy' });
    const [, home] = members;
    const staying = members.slice(2);
    const threads = await Promise.all(staying.flatMap((member) => [0, 1].map(() => member.thread(({ region }) => ({ buffer: region.buffer })))));
    // Each thread has a word of its own in every page, so a write that was lost shows as a lower number.
    const done = threads.map((thread, index) => thread.run(({ buffer, tell }, word) => {
      const view = new Int32Array(buffer as SharedArrayBuffer);
      let wrong = 0;
      let rounds = 0;
      while (Atomics.load(view, 16 * 1024) === 0) {
        rounds++;
        for (let page = 0; page < 16; page++) {
          view[page * 1024 + word] += 1;
          if (view[page * 1024 + word] !== rounds) wrong++;
        }
        if (rounds === 3) tell('faulting');
      }
      return { wrong, rounds };
    }, index, { within: 60_000 }));
    for (const member of [...staying, ...staying]) await member.told('faulting');
    await home.leave();
    await members[0].leave();
    await staying[0].run(({ region }) => { Atomics.store(new Int32Array(region.buffer), 16 * 1024, 1); });
    const results = await Promise.all(done);
    assert.deepEqual(results.map(({ wrong }) => wrong), [0, 0, 0, 0]);
    const words = await staying[1].run(({ region }) => Array.from({ length: 4 }, (_, word) => Array.from({ length: 16 }, (__, page) => new Int32Array(region.buffer)[page * 1024 + word])));
    words.forEach((pages, word) => assert.deepEqual(new Set(pages), new Set([results[word].rounds])));
  });

  it('are written to until their last moment: atomic counters stay exact while members come and go', async () => {
    const [a, b] = await startMembers(2, { size: 4 * 4096, name: 'counters' });
    const cluster = await a.run(({ cluster: joined }) => joined.address);
    const comers = await Promise.all([0, 1].map(() => Member.start({ join: false })));
    const rounds = counted(3, 40);
    const stays = [a, b].map((member) => member.thread(({ region }) => ({ buffer: region.buffer })));
    const adding = (await Promise.all(stays)).map((thread) => thread.run(({ buffer }) => {
      const view = new Int32Array(buffer as SharedArrayBuffer);
      let added = 0;
      while (Atomics.load(view, 3 * 1024) === 0) {
        for (let page = 0; page < 3; page++) Atomics.add(view, page * 1024, 1);
        added++;
      }
      return added;
    }, undefined, { within: 60_000 }));
    const visits = await Promise.all(comers.map(async (comer) => {
      let added = 0;
      for (let round = 0; round < rounds; round++) {
        added += await comer.run(async ({ join }, address) => {
          const joined = await join({ cluster: address });
          const region = await joined.region('counters', { mode: 'open' });
          const view = new Int32Array(region.buffer);
          for (let i = 0; i < 50; i++) for (let page = 0; page < 3; page++) Atomics.add(view, page * 1024, 1);
          await joined.close();
          return 50;
        }, cluster);
      }
      return added;
    }));
    await a.run(({ region }) => { Atomics.store(new Int32Array(region.buffer), 3 * 1024, 1); });
    const total = [...visits, ...await Promise.all(adding)].reduce((sum, added) => sum + added, 0);
    assert.deepEqual(await b.run(({ region }) => [0, 1, 2].map((page) => Atomics.load(new Int32Array(region.buffer), page * 1024))), [total, total, total]);
  });

  it('leave regions behind that others open later, with what was written', async () => {
    const [a, b] = await startMembers(2);
    await a.open('left', { size: 1 << 16 });
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(9); });
    await a.leave();
    await b.open('left', { mode: 'open' });
    assert.equal(await b.run(({ region }) => new Uint8Array(region.buffer).every((byte) => byte === 9)), true);
  });

  it('keep a region alive in the cluster when all handles on it are closed', async () => {
    const [a] = await startMembers(1, { size: 1 << 14, name: 'kept' });
    assert.equal(await a.run(async ({ cluster, region }) => {
      new Int32Array(region.buffer)[0] = 4;
      await region.close();
      const again = await cluster.region('kept', { mode: 'open' });
      return new Int32Array(again.buffer)[0];
    }), 4);
  });

  it('give their pins back, and end what they still wait for', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 14, name: 'pinned' });
    await b.run(async (state) => { state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write'); });
    const write = a.run(({ region, tell }) => { tell('asking'); new Int32Array(region.buffer)[0] = 1; return Date.now(); });
    await a.told('asking');
    const pending = b.run(async ({ cluster, region }) => {
      const open = [cluster.region('never', { mode: 'wait' }), cluster.barrier('never', 2), region.wait(0, 0)];
      const ended = Promise.all(open.map((call) => call.then(() => 'ok', (error: { code: string }) => error.code)));
      await cluster.close();
      return ended;
    });
    for (const code of await pending) assert.equal(code, 'ERR_FAULTLINE_CLOSED');
    await write;
  });

  it('are only one thing when a worker closes last: what it wrote is handed over', async () => {
    const [a, b] = await startMembers(2);
    await b.open('own', { size: 1 << 14 });
    const thread = await joinedThread(b);
    await openInThread(thread, 'own');
    await b.leave();
    await thread.run(({ region }) => { new Int32Array(region.buffer)[0] = 6; });
    await thread.run(({ cluster }) => cluster.close());
    await a.open('own', { mode: 'open' });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 6);
  });

  it('leave when the last thread with a handle was terminated', async () => {
    const a = await Member.start({ cluster: uniqueCluster() });
    const b = await Member.start({ join: false });
    const thread = await b.thread(undefined, { load: true });
    await tellEvents(a, 'member-joined', 'member-left', 'member-died');
    await thread.run(async (state, address) => {
      state.cluster = await state.join({ cluster: address });
      new Int32Array((await state.cluster.region('w', { size: 1 << 14 })).buffer)[0] = 8;
    }, await a.run(({ cluster }) => cluster.address));
    const id = await a.told('event member-joined');
    await thread.terminate();
    assert.equal(await a.told('event member-left'), id);
    await a.open('w', { mode: 'open' });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 8);
    await arrived(a);
  });
});
