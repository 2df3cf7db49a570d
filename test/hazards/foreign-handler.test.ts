import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Member, uniqueCluster } from '../support/members.js';

describe('hazards: an addon of the program with a SIGSEGV handler of its own', () => {
  let folder: string;
  let addon: string;
  before('build the addon', function () {
    this.timeout(60_000);
    const headers = path.resolve(process.execPath, '..', '..', 'include', 'node');
    // Without the headers of this Node.js there is nothing to build against, and a download is no part of a test.
    if (!existsSync(path.join(headers, 'node_api.h'))) this.skip();
    folder = mkdtempSync(path.join(tmpdir(), 'faultline-handler-'));
    addon = path.join(folder, 'handler.node');
    const source = path.resolve(__dirname, '..', '..', '..', 'test', 'hazards', 'foreign-handler.cc');
    execFileSync('g++', ['-std=c++17', '-shared', '-fPIC', `-I${headers}`, '-o', addon, source], { stdio: 'pipe' });
  });
  after(() => { if (folder) rmSync(folder, { recursive: true }); });

  for (const when of ['before', 'after'] as const) {
    it(`installed ${when} the package was loaded and had a region: faults are served`, async () => {
      const cluster = uniqueCluster();
      const a = await Member.start({ cluster });
      const b = await Member.start({ join: false, load: 'none' });
      await a.open('memory', { size: 1 << 16 });
      await a.run(({ region }) => { new Int32Array(region.buffer).fill(9); });
      const result = await b.run(async (state, given) => {
        const handler = state.require(given.addon);
        if (given.when === 'before') handler.install();
        const joined = await state.require('../../lib/index.js').join({ cluster: given.cluster });
        const region = await joined.region('memory', { mode: 'open' });
        if (given.when === 'after') handler.install();
        const sum = new Int32Array(region.buffer).reduce((total, word) => total + word, 0);
        return { sum, seen: handler.seen() };
      }, { addon, cluster, when });
      assert.equal(result.sum, 9 * (1 << 14));
      // Whoever was installed last is asked first; ours keeps what is its own.
      if (when === 'after') assert.ok(result.seen > 0);
      else assert.equal(result.seen, 0);
    });
  }
});
