import assert from 'node:assert/strict';
import { codeOf } from '../support/steps.js';
import { startMembers } from '../support/members.js';

/**
 * A library's own tests, as its package ships them, with their data in a region. Of the libraries here sharedmap and
 * objectbuffer ship tests; docs/programs.md says why those of objectbuffer are not run.
 */
describe("the memory: libraries' own tests", () => {
  it('sharedmap: its threads in one member, its words and locks in pages of another one, which reads them all the while', async function () {
    this.timeout(180_000);
    const [home, runner] = await startMembers(2, { size: 128 << 20 });
    const suite = runner.run(async (state) => {
      const path = state.require('node:path') as typeof import('node:path');
      const folder = path.dirname(state.require.resolve('sharedmap/test.js'));
      // It starts its threads by a relative path.
      process.chdir(folder);
      let used = 0;
      globalThis.SharedArrayBuffer = function (bytes: number): SharedArrayBuffer {
        const at = used;
        used += Math.ceil(bytes / 4096) * 4096;
        return state.region.window(at, bytes);
      } as unknown as SharedArrayBufferConstructor;
      const lines: string[] = [];
      const ended = new Promise<void>((resolve, reject) => {
        console.log = (line: unknown): void => {
          if (line instanceof Error) reject(line);
          lines.push(String(line));
          // It goes on to check, and throws in this turn if something is wrong.
          if (line === 'all finished, checking consistency') setImmediate(resolve);
        };
        console.assert = (holds: unknown): void => { if (!holds) reject(new Error('an assertion of the suite does not hold')); };
        process.on('uncaughtException', reject);
      });
      state.require(path.join(folder, 'test.js'));
      await ended;
      const { faults, recalls } = state.region.stats();
      return { used, passes: lines.filter((line) => /operations in/.test(line)).length, threads: lines.filter((line) => /^worker \d+ finished/.test(line)).length, faults: faults.read + faults.write, recalls: recalls.received };
    }, undefined, { within: 170_000 });
    let over = false;
    void suite.then(() => { over = true; }, () => { over = true; });
    let read = 0;
    while (!over) {
      read += await home.run(async ({ region }) => {
        const words = new Int32Array(region.buffer);
        let pages = 0;
        for (const until = Date.now() + 10; Date.now() < until; pages++) Atomics.load(words, Math.floor(Math.random() * 12_000) * 1024);
        await new Promise((resolve) => setTimeout(resolve, 100));
        return pages;
      });
    }
    const seen = await suite;
    if (process.env.FAULTLINE_SHOW) console.log('sharedmap\'s own tests', seen, read);
    assert.ok(seen.used > 20 << 20, `${seen.used} bytes of the region in use`);
    assert.ok(seen.threads > 0 && seen.passes === seen.threads, 'each of its threads has come to its end');
    assert.ok(seen.faults > 1000 && seen.recalls > 100, `${seen.faults} faults, ${seen.recalls} recalls`);
    assert.equal(await codeOf(runner.run(() => { throw Object.assign(new Error(), { code: 'ALIVE' }); })), 'ALIVE');
  });
});
