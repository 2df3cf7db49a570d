import assert from 'node:assert/strict';
import { Member, uniqueCluster } from '../support/members.js';

describe('joining and leaving many times', () => {
  it('leaks no descriptor, mapping or thread in 200 cycles', async function () {
    this.timeout(120_000);
    const member = await Member.start({ join: false, execArgv: ['--expose-gc'] });
    const counts = await member.run(async ({ join, require }, cluster) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const collect = async (): Promise<void> => {
        for (let i = 0; i < 3; i++) {
          (globalThis as unknown as { gc(): void }).gc();
          await new Promise((resolve) => setImmediate(resolve));
        }
      };
      const count = (): number[] => [
        fs.readdirSync('/proc/self/fd').length,
        fs.readFileSync('/proc/self/maps', 'utf8').split('\n').length,
        fs.readdirSync('/proc/self/task').length,
      ];
      const seen: number[][] = [];
      for (let cycle = 1; cycle <= 200; cycle++) {
        const joined = await join({ cluster });
        const region = await joined.region('r', { size: 1 << 20 });
        new Int32Array(region.buffer)[0] = cycle;
        await joined.close();
        if (cycle % 100 === 0) {
          await collect();
          seen.push(count());
        }
      }
      return seen;
    }, uniqueCluster(), { within: 100_000 });
    const [[files, mappings, threads], [filesNow, mappingsNow, threadsNow]] = counts;
    assert.ok(filesNow <= files + 1, `${files} descriptors became ${filesNow}`);
    assert.ok(threadsNow <= threads + 1, `${threads} threads became ${threadsNow}`);
    // The allocator's arenas come and go; a leaked region would be five mappings in each of the 100 cycles between.
    assert.ok(mappingsNow <= mappings + 30, `${mappings} mappings became ${mappingsNow}`);
  });
});
