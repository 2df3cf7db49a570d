import assert from 'node:assert/strict';
import { Member, startMembers, uniqueCluster } from '../support/members.js';

describe('hazards: too little of what a process needs', () => {
  it('out of descriptors after it has joined: faults are served both ways, and it closes', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 16 });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(3); });
    const result = await b.run(({ region, require }) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const { execFileSync } = require('node:child_process') as typeof import('node:child_process');
      execFileSync('prlimit', ['--pid', String(process.pid), '--nofile=256:256']);
      const taken: number[] = [];
      let code: string | undefined;
      try {
        for (;;) taken.push(fs.openSync('/dev/null', 'r'));
      } catch (error) {
        code = (error as NodeJS.ErrnoException).code;
      }
      const words = new Int32Array(region.buffer);
      const sum = words.reduce((total, word) => total + word, 0);
      words.fill(4);
      for (const descriptor of taken) fs.closeSync(descriptor);
      return { code, sum };
    });
    assert.deepEqual(result, { code: 'EMFILE', sum: 3 * (1 << 14) });
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer).reduce((total, word) => total + word, 0)), 4 * (1 << 14));
    await b.leave();
  });

  it('all threads of both members at the lowest priority on one core: faults end, and nobody is given up', async () => {
    const cluster = uniqueCluster();
    const members = [await Member.start({ cluster }), await Member.start({ cluster })];
    await members[0].open('memory', { size: 1 << 16 });
    await members[1].open('memory');
    for (const member of members) {
      await member.run(({ require }) => {
        const { execFileSync } = require('node:child_process') as typeof import('node:child_process');
        execFileSync('taskset', ['-a', '-p', '-c', '0', String(process.pid)]);
        execFileSync('renice', ['-n', '19', ...(require('node:fs') as typeof import('node:fs')).readdirSync('/proc/self/task')]);
      });
    }
    await Promise.all(members.map((member) => member.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      for (let step = 0; step < 320; step++) Atomics.add(words, (step % 16) * 1024, 1);
    })));
    for (const member of members) {
      assert.deepEqual(await member.run(({ region }) => Array.from({ length: 16 }, (_, page) => new Int32Array(region.buffer)[page * 1024])), Array(16).fill(40));
    }
  });
});
