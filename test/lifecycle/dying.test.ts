import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { codeOf, joinedThread, openInThread, tellEvents } from '../support/steps.js';

const PAGES = 64;
/** ms: a connection that a killed process leaves behind is closed at once, a stopped process is given up after 2 s. */
const AT_ONCE = 3000;

interface Scene { registrar: Member; home: Member; other: Member }

/** Three members with the region 'grid': every page has its number + 1 in its first word, written by `home`, where it is. */
async function scene(): Promise<Scene> {
  const [registrar, home, other] = await startMembers(3);
  await home.open('grid', { size: PAGES * 4096 });
  await home.run(({ region }) => {
    const view = new Int32Array(region.buffer);
    for (let page = 0; page < view.length / 1024; page++) view[page * 1024] = page + 1;
  });
  for (const member of [registrar, other]) {
    await member.open('grid');
    await tellEvents(member, 'member-died', 'page-lost', 'page-restored', 'lost');
  }
  return { registrar, home, other };
}

/** Kills it and waits until both others know. */
async function killed(member: Member, ...others: Member[]): Promise<void> {
  const ids = others.map((other) => other.told('event member-died', { within: AT_ONCE }));
  await member.kill('SIGKILL');
  await Promise.all(ids);
}

/** In attempt(): the first words of these pages, or what the error said. */
function look(member: Member, pages: number[]): Promise<(number | string)[]> {
  return member.run(({ region, attempt }, given) => {
    const view = new Int32Array(region.buffer);
    return given.map((page) => {
      try {
        return attempt(() => view[page * 1024]);
      } catch (error) {
        const { code, page: at, offset, region: where } = error as { code: string; page: number; offset: number; region: string };
        return `${code} ${where} ${at} ${offset}`;
      }
    });
  }, pages);
}

const lostAt = (page: number): string => `ERR_FAULTLINE_PAGE_LOST grid ${page} ${page * 4096}`;

describe('a member that is killed', () => {
  it('takes the pages with it that it alone had written, and no others', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let page = 10; page < 20; page++) view[page * 1024] = -page;
    });
    await killed(other, registrar);
    assert.deepEqual(await look(home, [9, 10, 19, 20]), [10, lostAt(10), lostAt(19), 21]);
    assert.deepEqual(await look(registrar, [9, 10, 19, 20]), [10, lostAt(10), lostAt(19), 21]);
    assert.deepEqual(await look(home, [15, 14, 0]), [lostAt(15), lostAt(14), 1]);
  });

  it('takes nothing with it that the home had got back before', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => { new Int32Array(region.buffer)[10 * 1024] = 99; });
    assert.equal(await home.run(({ region }) => new Int32Array(region.buffer)[10 * 1024]), 99);
    await killed(other, registrar);
    assert.deepEqual(await look(home, [10]), [99]);
    assert.deepEqual(await look(registrar, [10]), [99]);
    assert.deepEqual(await home.run(({ region }) => region.lost()), []);
  });

  it('leaves what it was home of where a survivor has a copy, to read or written there; the rest is lost for everybody', async () => {
    const { registrar, home, other } = await scene();
    await registrar.run(({ region }) => { const view = new Int32Array(region.buffer); view[3 * 1024] = 33; return view[5 * 1024]; });
    await other.run(({ region }) => { const view = new Int32Array(region.buffer); return view[5 * 1024] + view[40 * 1024]; });
    await killed(home, registrar, other);
    for (const member of [registrar, other]) assert.deepEqual(await look(member, [3, 5, 40, 63]), [33, 6, 41, lostAt(63)]);
    // What lives on can be written and moves about as before.
    await registrar.run(({ region }) => { new Int32Array(region.buffer)[40 * 1024] = 400; });
    assert.deepEqual(await look(other, [40]), [400]);
    assert.notEqual(await other.run(async ({ region }) => (await region.inspect(3 * 4096)).home), await home.run(() => 0).catch(() => -1));
  });

  it('leaves pages that nobody ever wrote as they were: zero', async () => {
    const [registrar, home, other] = await startMembers(3);
    await registrar.open('own', { size: 1 << 16 });
    await other.open('own');
    await tellEvents(other, 'member-died');
    await killed(home, other);
    assert.equal(await other.run(({ region }) => new Int32Array(region.buffer).every((value) => value === 0)), true);
  });

  it('is known to everybody at once, by events and by lost(), in the same words', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => new Int32Array(region.buffer)[5 * 1024]);
    const died = await home.run(({ cluster }) => cluster.self.id);
    const before = await other.run(({ cluster }) => cluster.view.epoch);
    const start = Date.now();
    await killed(home, registrar, other);
    assert.ok(Date.now() - start < AT_ONCE);
    const losses = [];
    for (const member of [registrar, other]) {
      const loss = await member.told('event page-lost');
      assert.deepEqual([loss.region, loss.member], ['grid', died]);
      assert.ok(loss.epoch > before);
      for (const { offset, length } of loss.ranges) assert.ok(offset % 4096 === 0 && length % 4096 === 0 && length > 0);
      losses.push(await member.run(({ region }) => region.lost()));
    }
    const expected = [{ offset: 0, length: 5 * 4096 }, { offset: 6 * 4096, length: (PAGES - 6) * 4096 }];
    assert.deepEqual(losses, [expected, expected]);
    const late = await Member.start({ cluster: await other.run(({ cluster }) => cluster.address) });
    await late.open('grid');
    assert.deepEqual(await late.run(({ region }) => region.lost()), expected, 'also to who comes later');
    assert.deepEqual(await look(late, [5, 6]), [6, lostAt(6)]);
  });

  it('lets others that wait for its pages go on: in attempt() with PageLostError, prefetch() and pin() likewise', async () => {
    const { registrar, home, other } = await scene();
    // Pinned at `other`, so that whoever asks has to wait until it dies.
    await other.run(async ({ region }) => {
      await region.pin({ offset: 0, length: 8 * 4096 }, 'write');
      new Int32Array(region.buffer)[0] = 5;
    });
    const thread = await home.thread(({ region }) => ({ buffer: region.buffer }), { load: true });
    const faulting = thread.run(({ attempt, buffer, tell }) => {
      tell('faulting');
      try { return attempt(() => new Int32Array(buffer as SharedArrayBuffer)[0]); } catch (error) { return (error as { code: string }).code; }
    });
    const prefetching = codeOf(registrar.run(({ region }) => region.prefetch(4096, 4096)));
    const pinning = codeOf(registrar.run(async ({ region }) => { await region.pin({ offset: 2 * 4096, length: 100 }, 'write'); }));
    const inMain = registrar.run(({ attempt, region }) => {
      try { return attempt(() => new Int32Array(region.buffer)[3 * 1024]); } catch (error) { return (error as { code: string }).code; }
    });
    await home.told('faulting');
    await other.kill('SIGKILL');
    assert.deepEqual(await Promise.all([faulting, prefetching, pinning, inMain]), Array(4).fill('ERR_FAULTLINE_PAGE_LOST'));
  });

  it('costs those who write over its dead copies nothing', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => new Int32Array(region.buffer).reduce((sum, value) => sum + value, 0));
    await killed(other, registrar);
    assert.equal(await home.run(({ region }) => {
      const view = new Int32Array(region.buffer);
      for (let page = 0; page < 64; page++) view[page * 1024] += 1;
      return view[63 * 1024];
    }), 65);
    assert.deepEqual(await look(registrar, [0, 63]), [2, 65]);
  });
});

describe('attempt()', () => {
  async function lossy(): Promise<{ member: Member; rest: Member; died: number }> {
    const { registrar, home, other } = await scene();
    const died = await home.run(({ cluster }) => cluster.self.id);
    await other.run(({ region }) => new Int32Array(region.buffer)[1024]);
    await killed(home, registrar, other);
    await other.told('event page-lost');
    return { member: other, rest: registrar, died };
  }

  it('throws a PageLostError that says what, where and since when', async () => {
    const { member, died } = await lossy();
    const { epoch } = await member.run(({ cluster }) => cluster.view);
    await assert.rejects(member.run(({ attempt, region }) => attempt(() => new Int32Array(region.buffer)[7 * 1024 + 9])), (error: Error & Record<string, unknown>) => {
      const { name, code, region, page, offset, member: from, epoch: since } = error;
      assert.deepEqual({ name, code, region, page, offset, from, since }, { name: 'PageLostError', code: 'ERR_FAULTLINE_PAGE_LOST', region: 'grid', page: 7, offset: 7 * 4096, from: died, since: epoch });
      return true;
    });
  });

  it('returns what the function returns, and passes on what it throws', async () => {
    const { member } = await lossy();
    assert.deepEqual(await member.run(({ attempt, region }) => attempt(() => [new Int32Array(region.buffer)[1024], 'more'])), [2, 'more']);
    assert.equal(await codeOf(member.run(({ attempt }) => attempt(() => { throw Object.assign(new Error('mine'), { code: 'MINE' }); }))), 'MINE');
    assert.equal(await member.run(({ attempt }) => attempt(() => undefined)), undefined);
  });

  for (const where of ['the main thread', 'a worker'] as const) {
    it(`stops the function on ${where} whatever it does: catch, finally, loops that swallow everything, reads and writes of all kinds`, async () => {
      const { member } = await lossy();
      const who = where === 'a worker' ? await joinedThread(member) : member;
      if (who !== member) await openInThread(who as Awaited<ReturnType<typeof joinedThread>>, 'grid');
      const outcome = await (who as Member).run(({ attempt, region }) => {
        const ints = new Int32Array(region.buffer);
        const bytes = new Uint8Array(region.buffer);
        const data = new DataView(region.buffer);
        const at = (page: number): number => page * 1024;
        const marks: string[] = [];
        const steps: Record<string, () => unknown> = {
          read: () => ints[at(10)],
          write: () => { ints[at(11)] = 1; },
          atomic: () => Atomics.add(ints, at(12), 1),
          exchange: () => Atomics.compareExchange(ints, at(12), 1, 2),
          copy: () => new Uint8Array(bytes.subarray(13 * 4096, 14 * 4096)),
          fill: () => bytes.fill(7, 14 * 4096, 15 * 4096),
          set: () => bytes.set(new Uint8Array(100), 15 * 4096),
          straddle: () => data.getFloat64(17 * 4096 - 4),
          caught: () => { try { return ints[at(18)]; } catch { return 'swallowed'; } },
          finals: () => { try { return ints[at(19)]; } finally { marks.push('finally'); } },
          loop: () => { for (;;) { try { ints[at(20)]++; } catch { /* go on */ } } },
          callbacks: () => [1, 2, 3].map(() => ints[at(21)]).concat([4]).sort(() => ints[at(22)]),
          generator: () => [...(function* () { while (true) yield ints[at(23)]; })()],
          deep: () => { const dive = (depth: number): number => (depth === 0 ? ints[at(24)] : dive(depth - 1) + 1); return dive(2000); },
          nested: () => attempt(() => { attempt(() => ints[at(1)]); return ints[at(25)]; }),
          promiseJob: () => { void Promise.resolve().then(() => marks.push('job')); return ints[at(26)]; },
        };
        const seen: Record<string, unknown> = {};
        for (const [name, step] of Object.entries(steps)) {
          for (let times = 0; times < 3; times++) {
            try {
              attempt(step);
              seen[name] = 'returned';
            } catch (error) {
              seen[name] = (error as { code?: string }).code;
            }
          }
        }
        // The one page that is there is as it was.
        return { seen, marks, alive: ints[at(1)], lost: region.lost().length };
      });
      for (const [name, seen] of Object.entries(outcome.seen)) assert.equal(seen, 'ERR_FAULTLINE_PAGE_LOST', name);
      assert.deepEqual(outcome.marks.filter((mark) => mark === 'finally'), []);
      assert.equal(outcome.alive, 2);
      assert.ok(outcome.lost > 0);
    });
  }

  it('can be caught by an outer attempt() of code that goes on with something else', async () => {
    const { member } = await lossy();
    assert.deepEqual(await member.run(({ attempt, region }) => attempt(() => {
      const view = new Int32Array(region.buffer);
      const found: unknown[] = [];
      for (const page of [0, 1, 2]) {
        try { found.push(attempt(() => view[page * 1024])); } catch (error) { found.push((error as { page: number }).page); }
      }
      return found;
    })), [0, 2, 2]);
  });

  it('releases what the function had locked by lockSync()', async () => {
    const { member, rest } = await lossy();
    assert.equal(await codeOf(member.run(({ attempt, cluster, region }) => attempt(() => {
      using lock = cluster.lockSync('inside');
      return lock.token > 0n && new Int32Array(region.buffer)[50 * 1024];
    }))), 'ERR_FAULTLINE_PAGE_LOST');
    assert.equal(await rest.run(async ({ cluster }) => (await cluster.tryLock('inside'))?.shared), false);
  });

  it('works ten thousand times, and the thread goes on as ever', async () => {
    const { member } = await lossy();
    const result = await member.run(({ attempt, region }) => {
      const view = new Int32Array(region.buffer);
      let losses = 0;
      let sum = 0;
      for (let i = 0; i < 10_000; i++) {
        try {
          sum += attempt(() => view[((i % 60) + 2) * 1024]);
        } catch (error) {
          if ((error as { page: number }).page === (i % 60) + 2) losses++;
        }
      }
      return { losses, sum, alive: view[1024] };
    }, undefined, { within: 40_000 });
    assert.deepEqual(result, { losses: 10_000, sum: 0, alive: 2 });
  });

  it('refuses functions that return promises, and what is no function', async () => {
    const { member } = await lossy();
    const codes = await member.run(({ attempt }) => [async () => 1, () => Promise.resolve(1), () => Promise.reject(new Error('unhandled?')), () => ({ then() { return 1; } }), undefined, 7].map((fn) => {
      try { return attempt(fn as () => unknown); } catch (error) { return (error as { code: string }).code; }
    }));
    assert.deepEqual(codes, Array(6).fill('ERR_FAULTLINE_INVALID_ARGUMENT'));
  });

  it('does not swallow a worker.terminate() that comes meanwhile', async () => {
    const { member } = await lossy();
    const thread = await joinedThread(member);
    await openInThread(thread, 'grid');
    const gone = codeOf(thread.run(({ attempt, region, tell }) => {
      const view = new Int32Array(region.buffer);
      tell('going');
      for (;;) { try { attempt(() => view[60 * 1024]); } catch { /* again */ } }
    }));
    await member.told('going');
    await thread.terminate({ within: 5000 });
    assert.equal(await gone, 'ERR_THREAD_EXITED');
    assert.deepEqual(await look(member, [1, 2]), [2, lostAt(2)]);
  });
});

describe('a lost page', () => {
  it('ends the process by one clear line and SIGBUS outside attempt(), in a worker too, and hands over first what it alone held', async () => {
    for (const where of ['main', 'worker']) {
      const { registrar, home, other } = await scene();
      const died = await home.run(({ cluster }) => cluster.self.id);
      await killed(home, registrar, other);
      await other.open('kept', { size: 1 << 14 });
      await other.run(({ regions }) => { new Int32Array(regions.kept.buffer)[3] = 33; });
      if (where === 'main') other.run(({ regions }) => new Int32Array(regions.grid.buffer)[1024 * 4]).catch(() => undefined);
      else {
        const thread = await other.thread(({ regions }) => ({ buffer: regions.grid.buffer }));
        thread.run(({ buffer }) => { new Int32Array(buffer as SharedArrayBuffer)[1024 * 4] = 1; }).catch(() => undefined);
      }
      const { signal, stderr } = await other.exit({ within: 8000 });
      assert.equal(signal, 'SIGBUS', stderr);
      assert.match(stderr, new RegExp(`^faultline: page 4 \\(offset 16384\\) of region 'grid' is lost: .*member ${died}.*epoch \\d+ \\((read|write) by thread \\d+ outside attempt\\(\\)\\)\n$`));
      await registrar.open('kept', { mode: 'open' });
      assert.equal(await registrar.run(({ region }) => new Int32Array(region.buffer)[3]), 33);
    }
  });

  it('makes prefetch() and pin() reject with PageLostError, and those of other pages resolve', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => region.prefetch(0, 8 * 4096));
    await killed(home, registrar, other);
    await assert.rejects(other.run(({ region }) => region.prefetch()), { name: 'PageLostError', region: 'grid', page: 8 });
    await assert.rejects(other.run(({ region }) => region.prefetch(30 * 4096, 1, { access: 'write' })), { name: 'PageLostError', page: 30, offset: 30 * 4096 });
    await assert.rejects(other.run(({ region }) => region.pin([{ offset: 0, length: 1 }, { offset: 9 * 4096, length: 1 }], 'read')), { name: 'PageLostError', page: 9 });
    await other.run(({ region }) => region.prefetch(0, 8 * 4096, { access: 'write' }));
    assert.equal(await codeOf(other.run(async ({ region }) => { await (await region.pin({ offset: 4096, length: 1 }, 'write')).release(); })), 'ok');
    // The failed pin of two ranges left nothing pinned.
    await registrar.run(({ region }) => { new Int32Array(region.buffer)[1] = 1; });
  });

  it('is usable again for everybody after restore(), with the bytes that were given', async () => {
    const { registrar, home, other } = await scene();
    await killed(home, registrar, other);
    await other.told('event page-lost');
    await registrar.run(({ region }) => {
      const bytes = new Uint8Array(2 * 4096).fill(3);
      const done = region.restore(10 * 4096, bytes);
      bytes.fill(9);
      return done;
    });
    assert.deepEqual((await other.told('event page-restored')).ranges, [{ offset: 10 * 4096, length: 2 * 4096 }]);
    for (const member of [registrar, other]) {
      assert.deepEqual(await look(member, [9, 10, 11, 12]), [lostAt(9), 0x03030303, 0x03030303, lostAt(12)]);
      assert.deepEqual(await member.run(({ region }) => region.lost()), [{ offset: 0, length: 10 * 4096 }, { offset: 12 * 4096, length: (PAGES - 12) * 4096 }]);
    }
    await other.run(({ region }) => { new Int32Array(region.buffer)[10 * 1024] = 7; });
    assert.deepEqual(await look(registrar, [10]), [7]);
    await other.run(({ region }) => region.restore(0, new Uint8Array(10 * 4096)));
    await other.run(({ region }) => region.restore(12 * 4096, new Uint8Array((64 - 12) * 4096).fill(1)));
    assert.deepEqual(await registrar.run(async ({ region }) => { await region.prefetch(); return region.lost(); }), []);
    assert.deepEqual(await look(registrar, [0, 10, 63]), [0, 7, 0x01010101]);
  });

  it('can be restored by one only, whoever is first, and only as whole pages that are lost', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => new Int32Array(region.buffer)[5 * 1024]);
    await killed(home, registrar, other);
    const codes = await Promise.all([registrar, other].map((member, index) => codeOf(member.run(({ region }, value) => region.restore(20 * 4096, new Uint8Array(4096).fill(value)), index + 1))));
    assert.deepEqual([...codes].sort(), ['ERR_FAULTLINE_NOT_LOST', 'ok']);
    const winner = codes.indexOf('ok') + 1;
    for (const member of [registrar, other]) assert.deepEqual(await look(member, [20]), [winner * 0x01010101]);
    // One page of the three is not lost: nothing is changed.
    assert.equal(await codeOf(registrar.run(({ region }) => region.restore(4 * 4096, new Uint8Array(3 * 4096).fill(8)))), 'ERR_FAULTLINE_NOT_LOST');
    for (const member of [registrar, other]) assert.deepEqual(await look(member, [4, 5, 6]), [lostAt(4), 6, lostAt(6)]);
    for (const [offset, length, code] of [[1, 4096, 'MISALIGNED'], [4096, 100, 'MISALIGNED'], [PAGES * 4096, 4096, 'OUT_OF_RANGE'], [-4096, 4096, 'OUT_OF_RANGE']] as const) {
      assert.equal(await codeOf(registrar.run(({ region }, at) => region.restore(at.offset, new Uint8Array(at.length)), { offset, length })), `ERR_FAULTLINE_${code}`);
    }
    assert.equal(await codeOf(registrar.run(({ region }) => region.restore(0, 'bytes' as never))), 'ERR_FAULTLINE_INVALID_ARGUMENT');
    await registrar.run(({ region }) => region.restore(0, new Uint8Array(0)));
  });

  it('is inspected without harm', async () => {
    const { registrar, home, other } = await scene();
    await killed(home, registrar, other);
    const info = await other.run(({ region }) => region.inspect(8 * 4096 + 5));
    assert.deepEqual([info.page, info.offset, info.state, info.owner], [8, 8 * 4096, 'lost', null]);
  });

  it('lets discard() answer: zero everywhere, or a typed error, and never a hang', async () => {
    const { registrar, home, other } = await scene();
    await killed(home, registrar, other);
    const code = await codeOf(other.run(({ region }) => region.discard(8 * 4096, 4096)));
    assert.ok(['ok', 'ERR_FAULTLINE_PAGE_LOST'].includes(code), code);
    assert.deepEqual(await look(registrar, [8]), [code === 'ok' ? 0 : lostAt(8)]);
  });
});

describe('discard()', () => {
  it('makes the bytes zero for everybody, parts of pages too, wherever the pages are', async () => {
    const { registrar, home, other } = await scene();
    await other.run(({ region }) => new Uint8Array(region.buffer).fill(5));
    await registrar.run(({ region }) => region.discard(4096 * 2 - 8, 4096 * 3 + 16));
    for (const member of [home, registrar, other]) {
      assert.deepEqual(await member.run(({ region }) => {
        const bytes = new Uint8Array(region.buffer);
        return [bytes[4096 * 2 - 9], bytes[4096 * 2 - 8], bytes[4096 * 3], bytes[4096 * 5 + 7], bytes[4096 * 5 + 8]];
      }), [5, 0, 0, 0, 5]);
    }
  });

  it('gives the memory back', async () => {
    const [a] = await startMembers(1, { name: 'big', size: 32 << 20 });
    const shared = (): Promise<number> => a.run(({ require }) => Number(/^RssShmem:\s+(\d+)/m.exec((require('node:fs') as typeof import('node:fs')).readFileSync('/proc/self/status', 'utf8'))![1]));
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(1); });
    const full = await shared();
    await a.run(({ region }) => region.discard(0, region.size));
    assert.ok(full > 30_000, `${full} kB`);
    assert.ok(await shared() < 4_000, `${await shared()} kB`);
  });
});

describe('a cluster whose registrar is killed', () => {
  it('ends every call that waits, on every thread, with ClusterLostError within the bound, and every later one', async () => {
    const [registrar, a] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await registrar.run(async ({ cluster, region }) => {
      await cluster.lock('held');
      new Int32Array(region.buffer)[1024] = 1;
    });
    await tellEvents(a, 'lost');
    const threads = await Promise.all([0, 1, 2, 3].map(async () => {
      const thread = await joinedThread(a);
      await openInThread(thread, 'grid');
      return thread;
    }));
    const waiting = [
      a.run(async ({ cluster }) => { await cluster.lock('held'); }),
      a.run(({ cluster }) => cluster.barrier('never', 2)),
      a.run(({ region }) => region.wait(0, 0)),
      a.run(async ({ cluster }) => { await cluster.region('never', { mode: 'wait' }); }),
      threads[0].run(({ cluster, tell }) => { tell('asking'); cluster.lockSync('held'); }),
      threads[1].run(({ cluster, tell }) => { tell('asking'); cluster.barrierSync('never too', 2); }),
      threads[2].run(({ region, tell }) => { tell('asking'); region.waitSync(0, 0); }),
      threads[3].run(({ attempt, region, tell }) => {
        tell('asking');
        const view = new Int32Array(region.buffer);
        for (;;) attempt(() => Atomics.add(view, 1, 1));
      }),
    ].map(codeOf);
    for (let i = 0; i < 4; i++) await a.told('asking');
    await a.run(async ({ region }) => { await region.inspect(0); });
    await registrar.kill('SIGKILL');
    assert.equal(await a.told('event lost', { within: AT_ONCE }), 'ERR_FAULTLINE_CLUSTER_LOST');
    assert.deepEqual(await Promise.all(waiting), Array(8).fill('ERR_FAULTLINE_CLUSTER_LOST'));
    const later = await a.run(async ({ cluster, region, attempt }) => {
      const codes: unknown[] = [];
      for (const call of [
        () => cluster.lock('x'), () => cluster.tryLock('x'), () => cluster.barrier('x', 1), () => cluster.region('x', { size: 4096 }),
        () => region.wait(0, 0), () => region.notify(0), () => region.prefetch(), () => region.pin({ offset: 0, length: 1 }, 'read'),
        () => region.restore(0, new Uint8Array(4096)), () => region.discard(0, 1), () => region.inspect(0), () => region.destroy(),
        async () => cluster.lockSync('x'), async () => cluster.barrierSync('x', 1), async () => cluster.stats(), async () => region.waitSync(0, 0),
        async () => region.notifySync(0), async () => region.stats(), async () => region.lost(), async () => attempt(() => new Int32Array(region.buffer)[0]),
      ]) codes.push(await call().then(() => `${call} succeeded`, (error: { code: string }) => error.code));
      return codes;
    });
    assert.deepEqual(later, Array(20).fill('ERR_FAULTLINE_CLUSTER_LOST'));
    await a.run(async ({ region, cluster }) => { await region.close(); await cluster.close(); });
  });

  it('gives the name free when its survivors have gone: the next join() begins anew, in the same process too', async () => {
    const [registrar, a, b] = await startMembers(3);
    const before = await a.run(({ cluster }) => [cluster.id, cluster.address]);
    for (const member of [a, b]) await tellEvents(member, 'lost');
    await registrar.kill('SIGKILL');
    for (const member of [a, b]) await member.told('event lost', { within: AT_ONCE });
    await Promise.all([a, b].map((member) => member.run(async (state, address) => {
      await state.cluster.close();
      state.cluster = await state.join({ cluster: address });
    }, before[1])));
    const ids = await Promise.all([a, b].map((member) => member.run(({ cluster }) => cluster.id)));
    assert.equal(ids[0], ids[1]);
    assert.notEqual(ids[0], before[0]);
  });

  it('ends an access outside attempt() by one clear line and SIGBUS, and nobody hangs', async () => {
    const [registrar, a] = await startMembers(2, { name: 'grid', size: 1 << 16 });
    await registrar.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
    await tellEvents(a, 'lost');
    await a.run((state) => { state.view = new Int32Array(state.region.buffer); });
    await registrar.kill('SIGKILL');
    await a.told('event lost', { within: AT_ONCE });
    const { signal, stderr } = await a.last(({ view }) => view[0], undefined, { within: 8000 });
    assert.equal(signal, 'SIGBUS');
    assert.match(stderr, /^faultline: region 'grid' was accessed at offset 0 after the cluster was lost \(read by thread \d+ outside attempt\(\)\)\n$/);
  });
});

describe('several members that are killed at once', () => {
  it('take only what was theirs', async () => {
    const members = await startMembers(5, { name: 'grid', size: PAGES * 4096 });
    await members[0].run(({ region }) => { new Int32Array(region.buffer).fill(1); });
    for (const index of [1, 2, 3, 4]) await members[index].run(({ region }, page) => { new Int32Array(region.buffer)[page * 1024] = 50 + page; }, index);
    await members[0].run((state) => {
      state.gone = 0;
      state.cluster.on('member-died', () => { if (++state.gone === 3) state.tell('all gone'); });
    });
    await Promise.all([1, 2, 3].map((index) => members[index].kill('SIGKILL')));
    await members[0].told('all gone', { within: 5000 });
    const expected = [1, lostAt(1), lostAt(2), lostAt(3), 54, 1];
    for (const member of [members[0], members[4]]) assert.deepEqual(await look(member, [0, 1, 2, 3, 4, 5]), expected);
  });

  it('while the survivor faults without an end, leave it consistent', async () => {
    const cluster = uniqueCluster();
    const [registrar] = await startMembers(1, { name: 'busy', size: 16 * 4096 }, { cluster });
    for (let round = 0; round < 3; round++) {
      const victim = await Member.start({ cluster });
      await victim.open('busy');
      const running = registrar.run(({ attempt, region, tell }, given) => {
        const view = new Int32Array(region.buffer);
        let losses = 0;
        for (let turn = 0; losses === 0 && turn < 2_000_000; turn++) {
          if (turn === 20) tell('going');
          try { attempt(() => Atomics.add(view, (turn % 16) * 1024, given)); } catch { losses++; }
        }
        return losses;
      }, 1, { within: 30_000 });
      codeOf(victim.run(({ region, tell }) => {
        const view = new Int32Array(region.buffer);
        for (let turn = 0; ; turn++) {
          Atomics.add(view, (turn % 16) * 1024, 1);
          if (turn === 20) tell('going');
        }
      }));
      await Promise.all([registrar.told('going'), victim.told('going')]);
      await victim.kill('SIGKILL');
      await running;
      // A page whose owner died is found to be lost when somebody asks for it.
      const restored = await registrar.run(async ({ region }) => {
        for (let tries = 0; tries < 17; tries++) {
          for (const { offset, length } of region.lost()) await region.restore(offset, new Uint8Array(length));
          try {
            await region.prefetch();
            return region.lost();
          } catch (error) {
            if ((error as { code: string }).code !== 'ERR_FAULTLINE_PAGE_LOST') throw error;
          }
        }
        return undefined;
      });
      assert.deepEqual(restored, []);
      assert.equal(await registrar.run(({ region }) => { const view = new Int32Array(region.buffer); view.fill(1); return view.every((value) => value === 1); }), true);
    }
  });
});
