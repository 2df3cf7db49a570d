import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { codeOf } from '../support/steps.js';
import { Member, uniqueCluster } from '../support/members.js';

/** Paths of other Node.js executables; the addons were built for this one. */
const others = (process.env.FAULTLINE_NODES ?? '').split(':').filter((file) => file !== '');

describe('members on other versions of Node.js than the one that the addons were built with', () => {
  if (others.length === 0) it.skip('FAULTLINE_NODES names no other node (.ci/run installs some)', () => undefined);

  for (const execPath of others) {
    const version = execFileSync(execPath, ['--version'], { encoding: 'utf8' }).trim();
    it(`${version} shares memory with ${process.version}, on all threads, and has everything but attempt()`, async () => {
      const cluster = uniqueCluster();
      const here = await Member.start({ cluster });
      const there = await Member.start({ cluster, execPath });
      assert.equal(await there.run(() => process.version), version);
      await there.open('grid', { size: 1 << 20, placement: 'spread' });
      await here.open('grid');
      assert.ok(await there.run(({ region }) => region.buffer instanceof SharedArrayBuffer && region.buffer.byteLength === 1 << 20));
      await there.run(({ region }) => { new Int32Array(region.buffer).fill(7, 0, 1024 * 100); });
      assert.equal(await here.run(({ region }) => new Int32Array(region.buffer).slice(0, 1024 * 100).every((value) => value === 7)), true);
      const threads = await Promise.all([here, there].map((member) => member.thread(({ region }) => ({ buffer: region.buffer }))));
      const add = ({ buffer }: { buffer?: unknown }): void => {
        const view = new Int32Array(buffer as SharedArrayBuffer);
        for (let i = 0; i < 3_000; i++) Atomics.add(view, 200_000, 1);
      };
      await Promise.all([...threads.map((thread) => thread.run(add as never)), ...[here, there].map((member) => member.run(({ region }) => {
        const view = new Int32Array(region.buffer);
        for (let i = 0; i < 3_000; i++) Atomics.add(view, 200_000, 1);
      }))]);
      assert.equal(await there.run(({ region }) => new Int32Array(region.buffer)[200_000]), 12_000);
      await there.run(async ({ cluster: joined }) => { await (await joined.lock('x')).release(); });
      const refused = await codeOf(there.run(({ attempt }) => attempt(() => 1)));
      assert.equal(refused, 'ERR_FAULTLINE_NO_BRIDGE');
      await there.leave();
      assert.equal(await here.run(({ region }) => new Int32Array(region.buffer)[5]), 7);
    });
  }
});
