import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import path from 'node:path';
import { native } from '../../lib/native.js';
import { Member, uniqueCluster } from '../support/members.js';
import { nativeAddon } from '../support/native-addon.js';
import { tellEvents } from '../support/steps.js';

describe('hazards: an addon of the program with a signal handler of its own', () => {
  let folder: string;
  let addon: string;
  let accesses: string;
  before('build the addon', async function () {
    this.timeout(120_000);
    const headers = path.resolve(process.execPath, '..', '..', 'include', 'node');
    // Without the headers of this Node.js there is nothing to build against, and a download is no part of a test.
    if (!existsSync(path.join(headers, 'node_api.h'))) this.skip();
    folder = mkdtempSync(path.join(tmpdir(), 'faultline-handler-'));
    addon = path.join(folder, 'handler.node');
    const source = path.resolve(__dirname, '..', '..', '..', 'test', 'hazards', 'foreign-handler.cc');
    execFileSync('g++', ['-std=c++17', '-shared', '-fPIC', `-I${headers}`, '-o', addon, source], { stdio: 'pipe' });
    accesses = await nativeAddon();
  });
  after(() => { if (folder) rmSync(folder, { recursive: true }); });

  /** What the kernel tells of a fault with each guard. */
  const guards = ([['mprotect', 'SIGSEGV'], ['userfaultfd', 'SIGBUS']] as const).filter(([guard]) => guard === 'mprotect' || native.userfaultfdLacks() === null);

  for (const [guard, signal] of guards) for (const when of ['before', 'after'] as const) {
    it(`for ${signal}, installed ${when} the package was loaded and had a region: faults are served (${guard})`, async () => {
      const cluster = uniqueCluster();
      const a = await Member.start({ cluster });
      const b = await Member.start({ join: false, load: 'none' });
      await a.open('memory', { size: 1 << 16 });
      await a.run(({ region }) => { new Int32Array(region.buffer).fill(9); });
      const result = await b.run(async (state, given) => {
        const handler = state.require(given.addon);
        if (given.when === 'before') handler.install(given.number);
        const joined = await state.require('../../lib/index.js').join({ cluster: given.cluster, guard: given.guard });
        const region = await joined.region('memory', { mode: 'open' });
        if (given.when === 'after') handler.install(given.number);
        const sum = new Int32Array(region.buffer).reduce((total, word) => total + word, 0);
        return { sum, seen: handler.seen() };
      }, { addon, cluster, when, guard, number: constants.signals[signal] });
      assert.equal(result.sum, 9 * (1 << 14));
      // Whoever was installed last is asked first; ours keeps what is its own.
      if (when === 'after') assert.ok(result.seen > 0);
      else assert.equal(result.seen, 0);
    });
  }

  for (const [guard, signal] of guards) it(`installed after us, and passing nothing on: the first fault ends the process by ${signal}; the others hear of the death and go on (${guard})`, async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster, join: { guard } });
    await a.open('memory', { size: 1 << 16 });
    await b.open('memory');
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(9); });
    // The only copy of the last page is at the member that is going to die.
    await b.run(({ region }) => { new Int32Array(region.buffer)[15 * 1024] = 10; });
    await tellEvents(a, 'member-died', 'page-lost');
    const id = await b.run(({ cluster: joined }) => joined.self.id);
    const end = await b.last(({ region, require }, { file, number }) => {
      require(file).installAlone(number);
      return new Int32Array(region.buffer)[0];
    }, { file: addon, number: constants.signals[signal] });
    assert.deepEqual([end.signal, end.stderr], [signal, "an addon's handler took a fault for a crash\n"]);
    assert.equal(await a.told('event member-died'), id);
    const seen = await a.run(({ region, attempt }) => {
      const words = new Int32Array(region.buffer);
      let lost: unknown;
      try { attempt(() => words[15 * 1024]); } catch (error) { lost = (error as { code: string }).code; }
      return { first: words[0], lost };
    });
    assert.deepEqual(seen, { first: 9, lost: 'ERR_FAULTLINE_PAGE_LOST' });
    await a.leave();
  });

  it('installed before us, and passing nothing on: it sees none of our faults, and still has all others', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ join: false, load: 'none' });
    await a.open('memory', { size: 1 << 16 });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(9); });
    assert.equal(await b.run(async (state, given) => {
      state.require(given.addon).installAlone();
      const joined = await state.require('../../lib/index.js').join({ cluster: given.cluster, guard: 'mprotect' });
      const region = await joined.region('memory', { mode: 'open' });
      return new Int32Array(region.buffer).reduce((total, word) => total + word, 0);
    }, { addon, cluster }), 9 * (1 << 14));
    const end = await b.last(({ require }, file) => require(file).nullDereference(), accesses);
    assert.deepEqual([end.signal, end.stderr], ['SIGSEGV', "an addon's handler took a fault for a crash\n"]);
  });
});
