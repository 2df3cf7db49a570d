import assert from 'node:assert/strict';
import { startMembers, type Member, type Thread } from '../support/members.js';
import { codeOf, counted, joinedThread, openInThread, tellEvents } from '../support/steps.js';

/** Notifies until somebody was woken: a waiter that was asked for queues at some time that nobody can see. */
async function notifyOne(who: Member | Thread, offset: number): Promise<void> {
  await who.run(async ({ region }, at) => { while (await region.notify(at, 1) === 0); }, offset);
}

describe('wait and notify', () => {
  it('answer ok, not-equal and timed-out, blocking or not, on the main thread and in workers', async () => {
    const [a, b] = await startMembers(2, { name: 'flags', size: 1 << 16 });
    const thread = await joinedThread(b);
    await openInThread(thread, 'flags');
    for (const who of [a, b, thread]) {
      assert.equal(await who.run(({ region }) => region.wait(8, 1)), 'not-equal');
      assert.equal(await who.run(({ region }) => region.waitSync(8, -1)), 'not-equal');
      assert.equal(await who.run(({ region }) => region.wait(8, 0, { timeout: 10 })), 'timed-out');
      assert.equal(await who.run(({ region }) => region.waitSync(8, 0, { timeout: 10 })), 'timed-out');
      assert.equal(await who.run(({ region }) => region.wait(8, 0, { timeout: 0 })), 'timed-out');
      assert.equal(await who.run(({ region }) => region.notifySync(8)), 0);
    }
    for (const waiter of [a, thread]) {
      const woken = waiter.run(({ region }) => region.wait(8, 0));
      await notifyOne(waiter === a ? b : a, 8);
      assert.equal(await woken, 'ok');
    }
    const blocked = thread.run(({ region }) => region.waitSync(8, 0));
    await notifyOne(a, 8);
    assert.equal(await blocked, 'ok');
  });

  it('compare with what the owner of the page wrote last, wherever the page is', async () => {
    const [a, b, c] = await startMembers(3, { name: 'flags', size: 1 << 16 });
    await b.run(({ region }) => { new Int32Array(region.buffer)[3] = 7; });
    assert.equal(await c.run(({ region }) => region.wait(12, 0)), 'not-equal');
    assert.equal(await a.run(({ region }) => region.wait(12, 7, { timeout: 10 })), 'timed-out');
    const woken = c.run(({ region }) => region.wait(12, 7));
    await notifyOne(b, 12);
    assert.equal(await woken, 'ok');
    assert.equal(await b.run(({ region }) => { new Int32Array(region.buffer)[3] = -2147483648; return region.waitSync(12, -2147483648, { timeout: 1 }); }), 'timed-out');
  });

  it('wake as many as they are told to, in the order of waiting, and only at that offset', async () => {
    const [a, b] = await startMembers(2, { name: 'flags', size: 1 << 16 });
    const elsewhere = b.run(({ region }) => region.wait(4, 0));
    const waiting = b.run(async (state) => {
      const woken: number[] = [];
      await Promise.all([0, 1, 2, 3].map((index) => state.region.wait(0, 0).then(() => {
        woken.push(index);
        state.tell('woken', [...woken]);
      })));
    });
    await notifyOne(a, 0);
    assert.deepEqual(await b.told('woken'), [0]);
    assert.equal(await a.run(({ region }) => region.notify(0, 0)), 0);
    assert.equal(await a.run(({ region }) => region.notify(0, 2)), 2);
    assert.deepEqual(await b.told('woken'), [0, 1]);
    assert.deepEqual(await b.told('woken'), [0, 1, 2]);
    assert.equal(await a.run(({ region }) => region.notify(0)), 1);
    await waiting;
    assert.equal(await a.run(({ region }) => region.notify(0)), 0);
    assert.equal(await a.run(({ region }) => region.notify(4)), 1);
    assert.equal(await elsewhere, 'ok');
  });

  it('lose no wake-up in a ping-pong of two members', async () => {
    const [a, b] = await startMembers(2, { name: 'game', size: 1 << 16 });
    const turns = counted(1500, 10_000);
    const play = [a, b].map((member, index) => member.run(async ({ region }, given) => {
      const view = new Int32Array(region.buffer);
      for (let turn = 0; turn < given.turns; turn++) {
        const mine = 2 * turn + given.index;
        for (let value = Atomics.load(view, 0); value !== mine; value = Atomics.load(view, 0)) await region.wait(0, value);
        Atomics.store(view, 0, mine + 1);
        await region.notify(0);
      }
      return 'done';
    }, { index, turns }, { within: 55_000 }));
    assert.deepEqual(await Promise.all(play), ['done', 'done']);
  });

  it('lose no wake-up in a ping-pong of blocked threads of two members, on a page that a third is home of', async () => {
    const [home, a, b] = await startMembers(3, { name: 'game', size: 1 << 16 });
    const threads = await Promise.all([a, b].map(joinedThread));
    await Promise.all(threads.map((thread) => openInThread(thread, 'game')));
    const turns = counted(1000, 10_000);
    const play = threads.map((thread, index) => thread.run(({ region }, given) => {
      const view = new Int32Array(region.buffer);
      for (let turn = 0; turn < given.turns; turn++) {
        const mine = 2 * turn + given.index;
        for (let value = Atomics.load(view, 0); value !== mine; value = Atomics.load(view, 0)) region.waitSync(0, value);
        Atomics.store(view, 0, mine + 1);
        region.notifySync(0);
      }
      return 'done';
    }, { index, turns }, { within: 55_000 }));
    assert.deepEqual(await Promise.all(play), ['done', 'done']);
    assert.equal(await home.run(({ region }) => new Int32Array(region.buffer)[0]), 2 * turns);
  });

  it('let many wait for one and wake them all', async () => {
    const members = await startMembers(3, { name: 'start', size: 1 << 14 });
    const threads = await Promise.all(members.map(joinedThread));
    await Promise.all(threads.map((thread) => openInThread(thread, 'start')));
    const waiting = [
      ...threads.map((thread) => thread.run(({ region }) => region.waitSync(0, 0))),
      ...members.map((member) => member.run(({ region }) => Promise.all(Array.from({ length: 5 }, () => region.wait(0, 0))))),
    ];
    let woken = 0;
    while (woken < 18) woken += await members[1].run(({ region }) => region.notify(0));
    assert.equal(woken, 18);
    assert.deepEqual((await Promise.all(waiting)).flat(), Array(18).fill('ok'));
  });

  it('are given up by an AbortSignal, and wake nobody who gave up', async () => {
    const [a, b] = await startMembers(2, { name: 'flags', size: 1 << 14 });
    const gaveUp = codeOf(b.run(async (state) => {
      state.controller = new AbortController();
      await state.region.wait(0, 0, { signal: state.controller.signal });
    }));
    await b.run(async ({ region }) => { await region.inspect(0); });
    await b.run(({ controller }) => controller.abort(Object.assign(new Error('enough'), { code: 'ENOUGH' })));
    assert.equal(await gaveUp, 'ENOUGH');
    // Only the home decides whether the notify or the withdrawal was first, and it hears of both from b.
    await b.run(async ({ region }) => { await region.inspect(0); });
    assert.equal(await b.run(({ region }) => region.notify(0)), 0);
    assert.equal(await codeOf(a.run(({ region }) => region.wait(0, 0, { signal: AbortSignal.abort(Object.assign(new Error('no'), { code: 'MINE' })) }))), 'MINE');
  });

  it('go on at the new home when the home leaves: waiters are woken', async () => {
    const [a, b, c] = await startMembers(3, { name: 'flags', size: 1 << 14 });
    const waiting = b.run(async (state) => {
      const waits = [state.region.wait(0, 0), state.region.wait(0, 0)];
      await state.region.inspect(0);
      state.tell('waiting');
      return Promise.all(waits);
    });
    await b.told('waiting');
    await a.leave();
    assert.deepEqual(await waiting, ['ok', 'ok']);
    const again = b.run(({ region }) => region.wait(0, 0));
    await notifyOne(c, 0);
    assert.equal(await again, 'ok');
  });

  it('end in an answer or a typed error when the home dies', async () => {
    const [a, home, b] = await startMembers(3);
    await home.open('flags', { size: 1 << 14 });
    for (const member of [a, b]) await member.open('flags');
    await home.run(({ region }) => { new Int32Array(region.buffer)[1024] = 5; });
    await tellEvents(a, 'member-died');
    const outcomes = [
      a.run(({ region }) => region.wait(4096, 5)),
      b.run(({ region }) => region.wait(0, 0)),
    ].map((wait) => wait.then((answer) => answer as string, (error: { code: string }) => error.code));
    for (const member of [a, b]) await member.run(async ({ region }) => { await region.inspect(0); });
    await home.kill('SIGKILL');
    await a.told('event member-died');
    for (const outcome of await Promise.all(outcomes)) assert.ok(['ok', 'ERR_FAULTLINE_PAGE_LOST'].includes(outcome), outcome);
    const lost = await a.run(({ region }) => region.lost());
    for (const { offset } of lost) {
      assert.equal(await codeOf(b.run(({ region }, at) => region.wait(at, 0), offset)), 'ERR_FAULTLINE_PAGE_LOST');
      assert.equal(await codeOf(b.run(({ region }, at) => { region.waitSync(at, 0); }, offset)), 'ERR_FAULTLINE_PAGE_LOST');
    }
  });

  it('reject with ClosedError when the region or the cluster is closed meanwhile', async () => {
    const [a, b] = await startMembers(2, { name: 'flags', size: 1 << 14 });
    await b.open('other', { size: 1 << 14 });
    const one = codeOf(a.run(({ regions }) => regions.flags.wait(0, 0)));
    await a.run(({ regions }) => regions.flags.close());
    assert.equal(await one, 'ERR_FAULTLINE_CLOSED');
    const two = codeOf(b.run(({ regions }) => regions.other.wait(0, 0)));
    await b.leave();
    assert.equal(await two, 'ERR_FAULTLINE_CLOSED');
    assert.equal(await codeOf(b.run(({ region }) => region.wait(0, 0))), 'ERR_FAULTLINE_CLOSED');
    assert.equal(await codeOf(b.run(({ region }) => { region.notifySync(0); })), 'ERR_FAULTLINE_CLOSED');
  });

  it('refuse offsets that are misaligned or outside, and values that are no int32', async () => {
    const [a] = await startMembers(1, { name: 'flags', size: 1 << 14 });
    for (const [offset, code] of [[2, 'MISALIGNED'], [1, 'MISALIGNED'], [1 << 14, 'OUT_OF_RANGE'], [(1 << 14) - 2, 'OUT_OF_RANGE'], [-4, 'OUT_OF_RANGE'], [0.5, 'INVALID_ARGUMENT'], ['0', 'INVALID_ARGUMENT']] as const) {
      const expected = `ERR_FAULTLINE_${code}`;
      assert.equal(await codeOf(a.run(({ region }, at) => region.wait(at as number, 0), offset)), expected, `wait ${offset}`);
      assert.equal(await codeOf(a.run(({ region }, at) => { region.waitSync(at as number, 0); }, offset)), expected, `waitSync ${offset}`);
      assert.equal(await codeOf(a.run(({ region }, at) => region.notify(at as number), offset)), expected, `notify ${offset}`);
      assert.equal(await codeOf(a.run(({ region }, at) => { region.notifySync(at as number); }, offset)), expected, `notifySync ${offset}`);
    }
    for (const expected of [0.5, 2 ** 31, -(2 ** 31) - 1, NaN, '0', 1n]) assert.equal(await codeOf(a.run(({ region }, value) => region.wait(0, value as number), expected)), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(expected));
    for (const count of [-1, 0.5, NaN, '1']) assert.equal(await codeOf(a.run(({ region }, value) => region.notify(0, value as number), count)), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(count));
    assert.equal(await a.run(({ region }) => region.notify(0, Infinity)), 0);
  });
});
