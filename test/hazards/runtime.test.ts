import assert from 'node:assert/strict';
import { startMembers, Member, uniqueCluster } from '../support/members.js';

const PAGE = 4096;

/** Both count every page up in turn, so that each access of either needs a page that the other has just written. */
async function countTogether(members: Member[], pages: number, rounds: number): Promise<void> {
  await Promise.all(members.map((member) => member.run(({ region }, given) => {
    const words = new Int32Array(region.buffer);
    for (let round = 0; round < given.rounds; round++) {
      for (let page = 0; page < given.pages; page++) Atomics.add(words, page * 1024, 1);
    }
  }, { pages, rounds })));
  for (const member of members) {
    const counts = await member.run(({ region }, count) =>
      Array.from({ length: count }, (_, page) => Atomics.load(new Int32Array(region.buffer), page * 1024)), pages);
    assert.deepEqual(counts, Array.from({ length: pages }, () => members.length * rounds));
  }
}

describe('hazards of the runtime: what Node.js does beside our faults', () => {
  for (const flags of [['--jitless'], ['--disable-wasm-trap-handler']]) {
    it(`node ${flags.join(' ')}: no count is lost`, async () => {
      const cluster = uniqueCluster();
      const members = [await Member.start({ cluster, execArgv: flags }), await Member.start({ cluster, execArgv: flags })];
      await members[0].open('memory', { size: 16 * PAGE });
      await members[1].open('memory');
      await countTogether(members, 16, 20);
    });
  }

  it('garbage collections before each fault, in the main thread and in a worker: no count is lost', async () => {
    const cluster = uniqueCluster();
    const execArgv = ['--expose-gc'];
    const members = [await Member.start({ cluster, execArgv }), await Member.start({ cluster, execArgv })];
    await members[0].open('memory', { size: 4 * PAGE });
    await members[1].open('memory');
    const threads = await Promise.all(members.map((member) => member.thread(({ region }) => ({ buffer: region.buffer }))));
    await Promise.all([...members, ...threads].map((who) => who.run(({ region, buffer }) => {
      const words = new Int32Array((region?.buffer ?? buffer) as SharedArrayBuffer);
      for (let round = 0; round < 40; round++) {
        // Views that only this round has, so that the collector frees what refers to the region's buffer.
        const views = Array.from({ length: 4 }, (_, page) => new Int32Array(words.buffer, page * 4096, 1));
        (globalThis as unknown as { gc(): void }).gc();
        for (const view of views) Atomics.add(view, 0, 1);
      }
    })));
    for (const member of members) {
      assert.deepEqual(await member.run(({ region }) => [0, 1, 2, 3].map((page) => Atomics.load(new Int32Array(region.buffer), page * 1024))),
        [160, 160, 160, 160]);
      assert.ok(await member.run(({ region }) => region.stats().faults.write) > 0);
    }
  });

  it('a worker that is terminated while it waits in a fault: the page is there for everybody afterwards', async () => {
    const [a, b] = await startMembers(2, { size: 4 * PAGE });
    await a.run(async (state) => {
      new Int32Array(state.region.buffer)[0] = 7;
      state.pin = await state.region.pin({ offset: 0, length: 4096 }, 'write');
    });
    const worker = await b.thread(({ region }) => ({ buffer: region.buffer }));
    const faulting = worker.run((state) => {
      state.tell('about to fault');
      return new Int32Array(state.buffer)[0];
    }).then(() => 'read', (error: { code?: string }) => error.code);
    await b.told('about to fault');
    const ended = worker.terminate();
    await a.run(({ pin }) => pin.release());
    await ended;
    // It may have been let go before it was stopped; it must not be anything else.
    assert.ok(['read', 'ERR_THREAD_EXITED'].includes(String(await faulting)));
    await countTogetherFrom([a, b], 7);
  });

  it('child processes of every kind, started while a region is open, do not harm the member', async () => {
    const [a, b] = await startMembers(2, { size: 8 * PAGE });
    const outputs = await b.run(async ({ region, require }) => {
      const { execFileSync, fork, spawnSync } = require('node:child_process') as typeof import('node:child_process');
      new Int32Array(region.buffer)[0] = 1;
      const executed = execFileSync('echo', ['executed']).toString().trim();
      const spawned = spawnSync(process.execPath, ['-e', 'console.log("spawned")']).stdout.toString().trim();
      const fs = require('node:fs') as typeof import('node:fs');
      const folder = fs.mkdtempSync(`${require('node:os').tmpdir()}/faultline-fork-`);
      try {
        fs.writeFileSync(`${folder}/child.cjs`, 'process.once("message", (code) => process.exit(code));');
        const forked = fork(`${folder}/child.cjs`, [], { execArgv: [], stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
        const ended = new Promise((resolve) => forked.once('exit', resolve));
        forked.send(3);
        return { executed, spawned, code: await ended };
      } finally {
        fs.rmSync(folder, { recursive: true });
      }
    });
    assert.deepEqual(outputs, { executed: 'executed', spawned: 'spawned', code: 3 });
    await a.run(({ region }) => { Atomics.store(new Int32Array(region.buffer), 0, 0); });
    await countTogether([a, b], 8, 10);
  });

  it('Atomics.wait and Atomics.notify of one process, on a page that another member has', async () => {
    const [a, b] = await startMembers(2, { size: 2 * PAGE });
    const worker = await b.thread(({ region }) => ({ buffer: region.buffer }));
    await a.run(({ region }) => { Atomics.store(new Int32Array(region.buffer), 0, 5); });
    const waited = worker.run(({ buffer }) => Atomics.wait(new Int32Array(buffer), 0, 5, 10_000));
    // Nobody can see when the worker sleeps, except by what notify() counts.
    const woken = await b.run(async ({ region }) => {
      const words = new Int32Array(region.buffer);
      const deadline = Date.now() + 8000;
      while (Date.now() < deadline) {
        if (Atomics.notify(words, 0) === 1) return 1;
        await new Promise((resolve) => setImmediate(resolve));
      }
      return 0;
    });
    assert.equal(woken, 1);
    assert.equal(await waited, 'ok');
  });
});

async function countTogetherFrom(members: Member[], first: number): Promise<void> {
  for (const [index, member] of members.entries()) {
    assert.equal(await member.run(({ region }) => Atomics.add(new Int32Array(region.buffer), 0, 1)), first + index);
  }
}
