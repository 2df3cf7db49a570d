import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { codeOf } from '../support/steps.js';

/** The member, its region and what is in it are as before. */
async function assertNothingLost(member: Member): Promise<void> {
  assert.deepEqual(await member.run(async ({ cluster, region }) => {
    const lock = await cluster.lock('still');
    await lock.release();
    return [new Int32Array(region.buffer)[0], cluster.view.members.length];
  }), [17, 1]);
}

async function withRegion(): Promise<Member> {
  const [member] = await startMembers(1, { name: 'grid', size: 1 << 16 });
  await member.run(({ region }) => { new Int32Array(region.buffer)[0] = 17; });
  return member;
}

describe('input that makes no sense is a typed error, and nothing is lost:', () => {
  it('addresses of clusters: paths, names, ports, hosts', async () => {
    const member = await Member.start({ join: false });
    for (const cluster of [
      'local:../other', 'local:a/b', 'local:/etc', 'local:', 'local:.', 'local:..', 'local:.hidden', 'local:a b', 'local:a\0b', `local:${'x'.repeat(65)}`, 'local:ä', 'local:a\\b',
      'tcp://127.0.0.1', 'tcp://127.0.0.1:0', 'tcp://127.0.0.1:65536', 'tcp://127.0.0.1:7700/x', 'tcp://0.0.0.0:7700', 'tcp://[::]:7700', 'tcp://example.org:7700', 'tcp://:7700',
      'ipc:///tmp/x', 'default', '', 7, null, {},
    ]) {
      await assert.rejects(member.run(async ({ join }, given) => { await join({ cluster: given as string }); }, cluster), { name: 'InvalidArgumentError', code: 'ERR_FAULTLINE_INVALID_ARGUMENT', argument: 'cluster' }, String(cluster));
    }
    for (const options of [{ name: '' }, { name: 7 }, { faultTimeout: 0 }, { faultTimeout: '2000' }, { faultTimeout: Infinity }, { insecure: 'yes' }, { signal: {} }]) {
      assert.equal(await codeOf(member.run(async ({ join }, given) => { await join({ cluster: given.cluster, ...given.options } as never); }, { cluster: uniqueCluster(), options })), 'ERR_FAULTLINE_INVALID_ARGUMENT', JSON.stringify(options));
    }
    assert.equal(await codeOf(member.run(async ({ join }) => { await join(7 as never); })), 'ERR_FAULTLINE_INVALID_ARGUMENT');
  });

  it('sizes and page sizes, modes and placements of regions', async () => {
    const member = await withRegion();
    for (const options of [
      { size: 0 }, { size: -4096 }, { size: 4097 }, { size: 1.5 }, { size: NaN }, { size: Infinity }, { size: '4096' }, { size: 2 ** 60 }, {},
      { size: 1 << 20, pageSize: 1000 }, { size: 1 << 20, pageSize: 2048 }, { size: 1 << 20, pageSize: 12288 }, { size: 1 << 24, pageSize: 1 << 22 }, { size: 4096, pageSize: 8192 }, { size: 1 << 20, pageSize: '4096' },
      { size: 4096, consistency: 'eventual' }, { size: 4096, placement: 'nowhere' }, { size: 4096, mode: 'make' }, { mode: 'create' }, { size: 4096, signal: 7 }, 'grid', 7,
    ]) {
      assert.equal(await codeOf(member.run(async ({ cluster }, given) => { await cluster.region('other', given as never); }, options)), 'ERR_FAULTLINE_INVALID_ARGUMENT', JSON.stringify(options));
    }
    for (const name of ['', 'x'.repeat(256), 'a\u0000b', 7, null]) assert.equal(await codeOf(member.run(async ({ cluster }, given) => { await cluster.region(given as string, { size: 4096 }); }, name)), 'ERR_FAULTLINE_INVALID_ARGUMENT', String(name));
    assert.equal(await codeOf(member.run(async ({ cluster }) => { await cluster.region('other', { mode: 'open' }); })), 'ERR_FAULTLINE_REGION_NOT_FOUND', 'none of these made a region');
    await assertNothingLost(member);
  });

  it('a region that exists with other options, or at all, or not at all', async () => {
    const member = await withRegion();
    const other = await Member.start({ cluster: await member.run(({ cluster }) => cluster.address) });
    for (const who of [member, other]) {
      await assert.rejects(who.run(async ({ cluster }) => { await cluster.region('grid', { size: 1 << 17 }); }), { name: 'RegionExistsError', code: 'ERR_FAULTLINE_REGION_EXISTS', region: 'grid', option: 'size', wanted: 1 << 17, existing: 1 << 16 });
      for (const options of [{ pageSize: 8192 }, { placement: 'spread' as const }, { mode: 'open' as const, size: 4096 }, { mode: 'wait' as const, pageSize: 8192 }, { mode: 'create' as const, size: 1 << 16 }]) {
        assert.equal(await codeOf(who.run(async ({ cluster }, given) => { await cluster.region('grid', given); }, options)), 'ERR_FAULTLINE_REGION_EXISTS', JSON.stringify(options));
      }
      await assert.rejects(who.run(async ({ cluster }) => { await cluster.region('none', { mode: 'open' }); }), { name: 'RegionNotFoundError', region: 'none' });
      assert.equal(await who.run(async ({ cluster }) => (await cluster.region('grid', { size: 1 << 16, pageSize: 4096, placement: 'creator', consistency: 'sequential' })).size), 1 << 16);
    }
    await other.leave();
    await assertNothingLost(member);
  });

  it('offsets and lengths outside, misaligned, or no numbers', async () => {
    const member = await withRegion();
    const size = 1 << 16;
    for (const [offset, length, expected] of [[-1, 1, 'OUT_OF_RANGE'], [size, 1, 'OUT_OF_RANGE'], [0, size + 1, 'OUT_OF_RANGE'], [0, -1, 'OUT_OF_RANGE'], [1, Number.MAX_SAFE_INTEGER, 'OUT_OF_RANGE'], [0.5, 1, 'INVALID_ARGUMENT'], [0, NaN, 'INVALID_ARGUMENT'], ['0', 1, 'INVALID_ARGUMENT']] as const) {
      const codes = await member.run(async ({ region }, given) => {
        const { offset: at, length: bytes } = given as { offset: number; length: number };
        const seen: (string | undefined)[] = [];
        for (const call of [
          () => region.prefetch(at, bytes), () => region.pin({ offset: at, length: bytes }, 'read'), () => region.discard(at, bytes), async () => region.window(at, bytes),
        ]) seen.push(await call().then(() => 'ok', (error: { code: string }) => error.code));
        return seen;
      }, { offset, length });
      assert.deepEqual(codes, Array(4).fill(`ERR_FAULTLINE_${expected}`), `${offset} ${length}`);
    }
    const others = await member.run(async ({ region }) => {
      const seen: unknown[] = [];
      for (const call of [
        () => region.inspect(region.size), () => region.inspect(-1), async () => region.window(4, 8), async () => region.window(0, 0),
        () => region.pin([], 'read'), () => region.pin({ offset: 0, length: 0 }, 'read'), () => region.pin(undefined as never, 'read'), () => region.pin({ offset: 0, length: 1 }, 'execute' as never),
        () => region.pin({ offset: 0, length: 1 }, 'read', { timeout: 5001 }), () => region.pin({ offset: 0, length: 1 }, 'read', { timeout: -1 }), () => region.prefetch(0, 1, { access: 'x' as never }),
      ]) seen.push(await call().then(() => 'ok', (error: { code: string }) => error.code?.replace('ERR_FAULTLINE_', '')));
      return seen;
    });
    assert.deepEqual(others, ['OUT_OF_RANGE', 'OUT_OF_RANGE', 'MISALIGNED', ...Array(8).fill('INVALID_ARGUMENT')]);
    await assertNothingLost(member);
  });

  it('more than a process can map', async () => {
    const member = await withRegion();
    await assert.rejects(member.run(async ({ cluster }) => { await cluster.region('huge', { size: 2 ** 46 }); }), { name: 'OutOfMemoryError', code: 'ERR_FAULTLINE_OUT_OF_MEMORY' });
    assert.equal(await codeOf(member.run(async ({ cluster }) => { await cluster.region('huge', { mode: 'open' }); })), 'ERR_FAULTLINE_REGION_NOT_FOUND', 'it was not made');
    await assertNothingLost(member);
  });

  it('a cluster, region, pin or lock that is closed', async () => {
    const member = await withRegion();
    const regionCodes = await member.run(async ({ cluster, attempt }) => {
      const region = await cluster.region('closed', { size: 1 << 14 });
      const view = new Int32Array(region.buffer);
      const pin = await region.pin({ offset: 0, length: 1 }, 'write');
      await Promise.all([region.close(), region.close()]);
      const seen: unknown[] = [];
      for (const call of [
        async () => region.buffer, async () => region.window(0, 8), () => region.prefetch(), () => region.pin({ offset: 0, length: 1 }, 'read'), () => region.wait(0, 0), () => region.notify(0),
        async () => region.waitSync(0, 0), async () => region.notifySync(0), async () => region.lost(), () => region.restore(0, new Uint8Array(4096)), () => region.discard(0, 1), () => region.inspect(0), async () => region.stats(), () => region.destroy(),
        () => pin.renew(), async () => attempt(() => view[0]),
      ]) seen.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
      await pin.release();
      return { seen, name: region.name, closed: region.closed };
    });
    assert.deepEqual(regionCodes, { seen: Array(16).fill('ERR_FAULTLINE_CLOSED'), name: 'closed', closed: true });
    await assertNothingLost(member);
    const clusterCodes = await member.run(async ({ cluster, region }) => {
      const lock = await cluster.lock('l');
      await Promise.all([cluster.close(), cluster.close()]);
      const seen: unknown[] = [];
      for (const call of [
        () => cluster.region('x', { size: 4096 }), () => cluster.lock('x'), () => cluster.tryLock('x'), async () => cluster.lockSync('x'), () => cluster.barrier('x', 1), async () => cluster.barrierSync('x', 1),
        async () => cluster.stats(), async () => region.buffer, () => region.prefetch(), () => region.destroy(),
      ]) seen.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
      await lock.release();
      lock.releaseSync();
      await region.close();
      await cluster.close();
      return { seen, closed: cluster.closed, id: cluster.id.length > 0, view: cluster.view.members.length, self: cluster.self.pid };
    });
    assert.deepEqual(clusterCodes, { seen: Array(10).fill('ERR_FAULTLINE_CLOSED'), closed: true, id: true, view: 1, self: member.pid });
  });

  it('a region that was destroyed, by anybody', async () => {
    const member = await withRegion();
    const other = await Member.start({ cluster: await member.run(({ cluster }) => cluster.address) });
    await other.open('doomed', { size: 1 << 14 });
    await member.run(async (state) => {
      state.doomed = await state.cluster.region('doomed');
      state.view = new Int32Array(state.doomed.buffer);
      state.waiting = state.doomed.wait(0, 0).then(() => 'ok', (error: { code: string }) => error.code);
      await state.doomed.inspect(0);
    });
    await other.run(({ region }) => region.destroy());
    assert.equal(await member.run(({ waiting }) => waiting), 'ERR_FAULTLINE_REGION_DESTROYED');
    const codes = await member.run(async ({ doomed, attempt, view }) => {
      const seen: unknown[] = [];
      for (const call of [() => doomed.prefetch(), () => doomed.wait(0, 0), async () => doomed.buffer, () => doomed.destroy(), async () => attempt(() => view[0])]) seen.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
      await doomed.close();
      return seen;
    });
    assert.deepEqual(codes, Array(5).fill('ERR_FAULTLINE_REGION_DESTROYED'));
    // Its name is free again.
    await other.open('doomed', { size: 1 << 15, mode: 'create' });
    assert.equal(await member.run(async ({ cluster }) => new Int32Array((await cluster.region('doomed', { mode: 'open' })).buffer)[0]), 0);
    await other.leave();
    await assertNothingLost(member);
  });
});
