import assert from 'node:assert/strict';
import { Member, uniqueCluster } from '../support/members.js';

describe('when a member goes', () => {
  it('loses nothing by close(), whoever leaves and in which order, the registrar included', async () => {
    const cluster = uniqueCluster();
    const members: Member[] = [];
    for (let i = 0; i < 4; i++) members.push(await Member.start({ cluster }));
    await members[0].open('grid', { size: 1 << 20 });
    for (const member of members.slice(1)) await member.open('grid');
    for (const [index, member] of members.entries()) {
      await member.run(({ region }, mine) => {
        const view = new Int32Array(region.buffer);
        for (let page = mine; page < 64; page += 4) view[page * 1024] = 1000 * (mine + 1) + page;
      }, index);
    }
    for (const leaver of [0, 2, 1]) {
      await members[leaver].leave();
      const rest = await members[3].run(({ region }) => {
        const view = new Int32Array(region.buffer);
        return Array.from({ length: 64 }, (_, page) => view[page * 1024]);
      });
      assert.deepEqual(rest, Array.from({ length: 64 }, (_, page) => 1000 * ((page % 4) + 1) + page));
    }
  });

  it('hands over at process.exit(), keeps the exit code, and at SIGTERM', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    for (const [how, expected] of [['exit', { code: 7, signal: null }], ['end', { code: 0, signal: null }], ['SIGTERM', { code: null, signal: 'SIGTERM' }]] as const) {
      const b = await Member.start({ cluster });
      await b.open(`by-${how}`, { size: 1 << 16 });
      await b.run(({ region }) => { new Int32Array(region.buffer)[5] = 55; });
      const end = how === 'exit' ? b.last(() => process.exit(7)) : how === 'end' ? b.release().then(() => b.exit()) : b.kill('SIGTERM').then(() => b.exit());
      const { code, signal } = await end;
      assert.deepEqual({ code, signal }, expected);
      await a.open(`by-${how}`, { mode: 'open' });
      assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[5]), 55, how);
    }
  });

  it('lives on where a survivor has a copy, and is lost where nobody has, after kill -9 of the home', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    const c = await Member.start({ cluster });
    await b.open('grid', { size: 1 << 20 });
    await b.run(({ region }) => { const view = new Int32Array(region.buffer); for (let i = 0; i < view.length; i++) view[i] = i; });
    await a.open('grid');
    await c.open('grid');
    await a.run((state) => {
      const view = new Int32Array(state.region.buffer);
      view[5] = 500;
      state.cluster.on('page-lost', (event) => state.tell('lost', event));
      return view[1024 * 3];
    });
    await c.run(({ region }) => new Int32Array(region.buffer)[1024 * 9]);
    await b.kill('SIGKILL');
    await a.told('lost');
    assert.deepEqual(await a.run(({ region }) => [0, 5, 1024 * 3 + 1].map((at) => new Int32Array(region.buffer)[at])), [0, 500, 3073]);
    assert.deepEqual(await c.run(({ region }) => [5, 1024 * 9].map((at) => new Int32Array(region.buffer)[at])), [500, 9216]);
    const lost = await a.run(({ region, attempt }) => {
      const view = new Int32Array(region.buffer);
      const errors: unknown[] = [];
      for (const fn of [
        () => view[1024 * 50],
        () => { try { return view[1024 * 51]; } catch { return 'caught'; } finally { errors.push('finally'); } },
        () => attempt(() => view[1024 * 52]),
        () => { for (let i = 0; ; i++) view[1024 * 53] += i; },
      ]) {
        try {
          errors.push(attempt(fn));
        } catch (error) {
          const { name, code, region: where, page, offset, member, epoch } = error as never;
          errors.push({ name, code, where, page, offset, member: Number(member) > 0, epoch: Number(epoch) > 0 });
        }
      }
      return errors;
    });
    assert.deepEqual(lost, [50, 51, 52, 53].map((page) => ({ name: 'PageLostError', code: 'ERR_FAULTLINE_PAGE_LOST', where: 'grid', page, offset: page * 4096, member: true, epoch: true })));
    await assert.rejects(a.run(({ region }) => region.prefetch(60 * 4096, 4096)), { code: 'ERR_FAULTLINE_PAGE_LOST' });
    await assert.rejects(a.run(({ region }) => region.pin({ offset: 60 * 4096, length: 1 }, 'read')), { code: 'ERR_FAULTLINE_PAGE_LOST' });
    await assert.rejects(a.run(({ attempt }) => attempt(async () => 1)), { code: 'ERR_FAULTLINE_INVALID_ARGUMENT' });
    await a.run(({ region }) => region.restore(50 * 4096, new Uint8Array(4096).fill(1)));
    assert.equal(await c.run(({ region }) => new Int32Array(region.buffer)[1024 * 50]), 0x01010101);
    await assert.rejects(c.run(({ region }) => region.restore(50 * 4096, new Uint8Array(4096))), { code: 'ERR_FAULTLINE_NOT_LOST' });
    assert.ok(!(await c.run(({ region }) => region.lost())).some(({ offset, length }) => offset <= 50 * 4096 && offset + length > 50 * 4096));
  });

  it('hands over what it alone holds, prints one line and ends by SIGBUS when a lost page is touched outside attempt()', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    const c = await Member.start({ cluster });
    await b.open('lost', { size: 1 << 16 });
    await b.run(({ region }) => { new Int32Array(region.buffer).fill(1); });
    await a.open('kept', { size: 1 << 16 });
    await c.open('kept');
    await c.open('lost');
    await c.run((state) => { state.cluster.on('page-lost', () => state.tell('lost')); });
    await b.kill('SIGKILL');
    await c.told('lost');
    const { signal, stderr } = await c.last(({ regions }) => {
      new Int32Array(regions.kept.buffer)[3] = 33;
      return new Int32Array(regions.lost.buffer)[1024 * 4];
    });
    assert.equal(signal, 'SIGBUS');
    assert.match(stderr, /^faultline: page 4 \(offset 16384\) of region 'lost' is lost: .*member 2.*epoch \d+ \(read by thread \d+ outside attempt\(\)\)$/m);
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[3]), 33);
  });

  it('gives a stopped member up within the bound; the zombie changes nothing and is told so', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await b.open('grid', { size: 1 << 16 });
    await b.run((state) => {
      new Int32Array(state.region.buffer)[0] = 1;
      state.cluster.on('evicted', () => state.tell('evicted'));
    });
    await a.open('grid');
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 1);
    await a.run((state) => { state.cluster.on('member-died', (member) => state.tell('died', member.id)); });
    await b.kill('SIGSTOP');
    assert.equal(await a.told('died', { within: 6000 }), 2);
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 2; });
    await b.kill('SIGCONT');
    await b.told('evicted');
    const codes = await b.run(async ({ region, cluster: joined, attempt }) => {
      const got: unknown[] = [];
      try { attempt(() => { new Int32Array(region.buffer)[0] = 99; return new Int32Array(region.buffer)[0]; }); } catch (error) { got.push((error as { code: string }).code); }
      for (const call of [() => joined.lock('x'), () => region.prefetch(), () => joined.barrier('b', 1), () => region.notify(0)]) await call().catch((error: { code: string }) => got.push(error.code));
      try { joined.lockSync('x'); } catch (error) { got.push((error as { code: string }).code); }
      return got;
    });
    assert.deepEqual(codes, Array(6).fill('ERR_FAULTLINE_EVICTED'));
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[0]), 2);
  });

  it('fails the others with ClusterLostError when the registrar is killed, and nobody hangs', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('grid', { size: 1 << 16 });
    await b.open('grid');
    await b.run((state) => { state.cluster.on('lost', () => state.tell('lost')); });
    const waiting = b.run(({ cluster: joined }) => joined.barrier('never', 2)).then(() => 'done', (error: { code: string }) => error.code);
    await a.kill('SIGKILL');
    await b.told('lost', { within: 6000 });
    assert.equal(await waiting, 'ERR_FAULTLINE_CLUSTER_LOST');
    await assert.rejects(b.run(({ cluster: joined }) => joined.lock('x')), { code: 'ERR_FAULTLINE_CLUSTER_LOST' });
    await b.leave();
    assert.equal((await b.last(() => process.exit(3))).code, 3);
  });
});

describe('locks, barriers, waits', () => {
  it('passes a dead holder\'s lock on with ownerDied, also a terminated worker\'s; tokens grow', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    const first = await b.run(async (state) => { state.lock = await state.cluster.lock('row'); return [state.lock.ownerDied, state.lock.token]; });
    const next = a.run(async (state) => { state.lock = await state.cluster.lock('row'); return [state.lock.ownerDied, state.lock.token]; });
    await b.kill('SIGKILL');
    const second = await next;
    assert.deepEqual([first[0], second[0]], [false, true]);
    assert.ok((second[1] as bigint) > (first[1] as bigint));
    await a.run(({ lock }) => lock.release());
    const thread = await a.thread(() => ({}), { load: true });
    await thread.run(async (state, name) => { state.cluster = await state.join({ cluster: name }); state.cluster.lockSync('row'); }, cluster);
    assert.equal(await a.run(async ({ cluster: joined }) => await joined.tryLock('row')), undefined);
    const third = a.run(async ({ cluster: joined }) => { const lock = await joined.lock('row'); await lock.release(); return lock.ownerDied; });
    await thread.terminate();
    assert.equal(await third, true);
  });

  it('breaks a barrier that is incomplete at a death, naming the dead; the next round works', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    const c = await Member.start({ cluster });
    const waiting = assert.rejects(a.run(({ cluster: joined }) => joined.barrier('step', 3)), (error: { code: string; members: number[] }) => error.code === 'ERR_FAULTLINE_BARRIER_BROKEN' && error.members[0] === 3);
    await b.run(async ({ cluster: joined }) => { await joined.barrier('other', 1); });
    await c.kill('SIGKILL');
    await waiting;
    await Promise.all([a, b].map((member) => member.run(({ cluster: joined }) => joined.barrier('step', 2))));
  });

  it('waits and notifies across members, and never loses a wake-up', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster });
    await a.open('flags', { size: 1 << 16 });
    await b.open('flags');
    assert.equal(await b.run(({ region }) => region.wait(0, 1)), 'not-equal');
    assert.equal(await b.run(({ region }) => region.wait(0, 0, { timeout: 20 })), 'timed-out');
    await assert.rejects(b.run(({ region }) => region.wait(2, 0)), { code: 'ERR_FAULTLINE_MISALIGNED' });
    const turns = 300;
    const play = [a, b].map((member, index) => member.run(async ({ region }, given) => {
      const view = new Int32Array(region.buffer);
      for (let turn = 0; turn < given.turns; turn++) {
        const mine = 2 * turn + given.index;
        for (let value = Atomics.load(view, 4); value !== mine; value = Atomics.load(view, 4)) await region.wait(16, value);
        Atomics.store(view, 4, mine + 1);
        await region.notify(16);
      }
      return Atomics.load(view, 4) >= 2 * given.turns - 1;
    }, { index, turns }, { within: 30_000 }));
    assert.deepEqual(await Promise.all(play), [true, true]);
  });
});
