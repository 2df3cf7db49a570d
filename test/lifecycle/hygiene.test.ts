import assert from 'node:assert/strict';
import { readdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { joinAndLeave, resources } from '../support/leaks.js';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { codeOf, counted, joinedThread, seeded } from '../support/steps.js';

describe('a process that joins and leaves many times', () => {
  it('leaks nothing beside another member, with regions of both, locks, pins and workers that joined, too', async function () {
    this.timeout(120_000);
    const stays = await Member.start({ cluster: uniqueCluster() });
    const cluster = await stays.run(({ cluster: joined }) => joined.address);
    await stays.open('shared', { size: 1 << 20 });
    const comes = await Member.start({ join: false, execArgv: ['--expose-gc'] });
    const cycles = (times: number): Promise<void> => joinAndLeave(comes, cluster, times, 100_000);
    const half = counted(15, 100);
    await cycles(half);
    const first = await resources(comes);
    await cycles(half);
    const second = await resources(comes);
    assert.equal(second.mappings, 0);
    assert.equal(first.mappings, 0);
    assert.ok(second.files <= first.files + 1, `${JSON.stringify(first)} became ${JSON.stringify(second)}`);
    assert.ok(second.threads <= first.threads + 1, `${JSON.stringify(first)} became ${JSON.stringify(second)}`);
    assert.deepEqual(await stays.run(({ region }) => [...new Int32Array(region.buffer, 0, 2)]), [2 * half, 2 * Math.ceil(half / 5)]);
  });

  it('costs those who stay nothing: no descriptor, channel, or place for a page is kept for who has gone', async function () {
    this.timeout(120_000);
    const stays = await Member.start({ cluster: uniqueCluster(), execArgv: ['--expose-gc'] });
    const cluster = await stays.run(({ cluster: joined }) => joined.address);
    await stays.open('shared', { size: 1 << 20 });
    const comers = await Promise.all([0, 1].map(() => Member.start({ join: false })));
    const visits = (times: number): Promise<unknown> => Promise.all(comers.map((comer) => comer.run(async ({ join }, given) => {
      for (let i = 0; i < given.times; i++) {
        const joined = await join({ cluster: given.cluster });
        Atomics.add(new Int32Array((await joined.region('shared')).buffer), 0, 1);
        await joined.close();
      }
    }, { cluster, times }, { within: 60_000 })));
    const half = counted(10, 100);
    await visits(half);
    const first = await resources(stays);
    await visits(half);
    const second = await resources(stays);
    assert.ok(second.files <= first.files + 2, `${JSON.stringify(first)} became ${JSON.stringify(second)}`);
    assert.ok(second.threads <= first.threads, `${JSON.stringify(first)} became ${JSON.stringify(second)}`);
    assert.equal(await stays.run(({ region }) => new Int32Array(region.buffer)[0]), 4 * half);
  });

  it('leaves no socket and no member\'s file behind, however its members end', async () => {
    const base = mkdtempSync(path.join(tmpdir(), 'flt-'));
    try {
      const env = { XDG_RUNTIME_DIR: base };
      const members = [];
      for (let i = 0; i < 3; i++) members.push(await Member.start({ cluster: 'local:files', env }));
      const directory = path.join(base, 'faultline', 'files.v1');
      const files = (): string[] => readdirSync(directory).filter((file) => /^m\d+\./.test(file)).sort();
      assert.deepEqual(files(), ['m1.lock', 'm1.sock', 'm2.lock', 'm2.sock', 'm3.lock', 'm3.sock']);
      await members[1].leave();
      assert.deepEqual(files(), ['m1.lock', 'm1.sock', 'm3.lock', 'm3.sock']);
      await members[2].last(() => process.exit(0));
      assert.deepEqual(files(), ['m1.lock', 'm1.sock']);
      // Who was killed can't clean up; whoever begins anew there does.
      await members[0].kill('SIGKILL');
      await members[0].exit();
      const next = await Member.start({ cluster: 'local:files', env });
      assert.deepEqual(files(), ['m1.lock', 'm1.sock']);
      await next.leave();
      assert.deepEqual(files(), []);
    } finally {
      rmSync(base, { recursive: true });
    }
  });
});

describe('a worker that is terminated', () => {
  it('at random moments takes nothing down, and leaks nothing, whatever it was doing', async function () {
    this.timeout(120_000);
    const [a, b] = await startMembers(2, { name: 'grid', size: 1 << 18 }, { execArgv: ['--expose-gc'] });
    const busy = await b.thread(({ region }) => ({ buffer: region.buffer }));
    codeOf(busy.run(({ buffer }) => {
      const view = new Int32Array(buffer as SharedArrayBuffer);
      for (let i = 0; Atomics.load(view, 63 * 1024) === 0; i++) Atomics.add(view, (i % 16) * 1024, 1);
    }, undefined, { within: 100_000 }));
    const random = seeded(11);
    const address = await a.run(({ cluster }) => cluster.address);
    const round = async (): Promise<void> => {
      await a.run(async ({ require }, given) => {
        const { Worker } = require('node:worker_threads') as typeof import('node:worker_threads');
        const worker = new Worker(`
          const { join, attempt } = require(${JSON.stringify(require.resolve('faultline'))});
          (async () => {
            const cluster = await join({ cluster: ${JSON.stringify(given.address)} });
            const region = await cluster.region('grid');
            const view = new Int32Array(region.buffer);
            for (let i = 0; ; i++) {
              const lock = i % 2 ? await cluster.lock('l') : cluster.lockSync('l');
              attempt(() => Atomics.add(view, (i % 16) * 1024, 1));
              const pin = await region.pin({ offset: (i % 16) * 4096, length: 10 }, 'write');
              if (i % 3) { await pin.release(); await lock.release(); } else lock.releaseSync();
              await region.wait(0, -1);
            }
          })();`, { eval: true });
        worker.on('error', () => undefined);
        await new Promise((resolve) => setTimeout(resolve, given.delay));
        await worker.terminate();
      }, { address, delay: random() * 120 });
    };
    const times = counted(15, 150);
    for (let i = 0; i < times; i++) await round();
    const first = await resources(a);
    for (let i = 0; i < times; i++) await round();
    const second = await resources(a);
    assert.ok(second.files <= first.files + 1 && second.threads <= first.threads && second.mappings <= first.mappings + 1, `${JSON.stringify(first)} became ${JSON.stringify(second)}`);
    // What they held has passed on, and both members work as before.
    for (const member of [a, b]) assert.equal(await codeOf(member.run(async ({ cluster }) => { await (await cluster.lock('l')).release(); })), 'ok');
    await b.run(({ region }) => { Atomics.store(new Int32Array(region.buffer), 63 * 1024, 1); });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[63 * 1024]), 1);
  });

  it('keeps the member in as long as another thread has a handle', async () => {
    const [a, b] = await startMembers(2);
    const threads = [await joinedThread(b), await joinedThread(b)];
    await b.leave();
    await threads[0].terminate();
    assert.equal(await codeOf(threads[1].run(async ({ cluster }) => { await (await cluster.lock('x')).release(); })), 'ok');
    assert.equal(await a.run(({ cluster }) => cluster.view.members.length), 2);
    await threads[1].terminate();
    await a.run(async ({ cluster }) => { while (cluster.view.members.length > 1) await new Promise((resolve) => cluster.once('view', resolve)); });
  });
});
