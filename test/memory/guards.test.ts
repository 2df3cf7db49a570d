import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { native } from '../../lib/native.js';
import { Member, startMembers, uniqueCluster } from '../support/members.js';

const PAGE = 4096;
const works = native.userfaultfdLacks() === null;

describe('the memory: guards', () => {
  it('what is chosen by itself is userfaultfd where it works; a name, or FAULTLINE_GUARD, chooses otherwise', async () => {
    const cluster = uniqueCluster();
    const guardOf = (member: Member): Promise<string> => member.run(({ region }) => region.stats().protection.guard);
    const auto = await Member.start({ cluster, env: { FAULTLINE_GUARD: '' } });
    await auto.open('memory', { size: 4 * PAGE });
    assert.equal(await guardOf(auto), works ? 'userfaultfd' : 'mprotect');
    const named = await Member.start({ cluster, join: { guard: 'mprotect' }, env: { FAULTLINE_GUARD: 'userfaultfd' } });
    await named.open('memory');
    assert.equal(await guardOf(named), 'mprotect');
    const fromEnvironment = await Member.start({ cluster, env: { FAULTLINE_GUARD: 'mprotect' } });
    await fromEnvironment.open('memory');
    assert.equal(await guardOf(fromEnvironment), 'mprotect');
  });

  it('a guard that does not exist is a typed error, from the option and from the environment', async () => {
    const a = await Member.start({ join: false, env: { FAULTLINE_GUARD: 'fence' } });
    const errors = await a.run(async ({ join }) => {
      const list: [string, string][] = [];
      for (const options of [{ guard: 'wall' }, {}]) {
        const error = await join(options as object).then(() => undefined, (reason: Error & { code: string; argument: string }) => reason);
        list.push([error?.code ?? 'joined', error?.message ?? '']);
      }
      return list;
    });
    for (const [code] of errors) assert.equal(code, 'ERR_FAULTLINE_INVALID_ARGUMENT');
    assert.match(errors[0][1], /guard/);
    assert.match(errors[1][1], /FAULTLINE_GUARD/);
  });

  it('a second join() of a process that asks for another guard is refused', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, join: { guard: 'mprotect' } });
    const error = await a.run(async ({ join }, address) => join({ cluster: address, guard: 'auto' }).then(() => null, (reason: Error & { code: string; option: string }) => [reason.code, reason.option]), cluster);
    assert.deepEqual(error, ['ERR_FAULTLINE_JOIN_REFUSED', 'guard']);
  });

  it('members with different guards share pages', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, join: { guard: 'mprotect' } });
    const b = await Member.start({ cluster, join: { guard: 'auto' } });
    await a.open('memory', { size: 256 * PAGE });
    await b.open('memory');
    for (let round = 0; round < 3; round++) {
      for (const member of [a, b]) {
        await member.run(({ region }) => {
          const words = new Int32Array(region.buffer);
          for (let page = 0; page < 256; page += 3) words[page * 1024 + page]++;
        });
      }
    }
    assert.equal(await a.run(({ region }) => new Int32Array(region.buffer).reduce((sum, word) => sum + word, 0)), 6 * 86);
  });

  it('new pages, pages that were never written, and pages that were given up read as zero, and keep what is written', async () => {
    const [a, b] = await startMembers(2, { size: 512 * PAGE });
    const result = await b.run(async ({ region }) => {
      const words = new Int32Array(region.buffer);
      let sum = 0;
      for (let page = 511; page >= 0; page -= 7) sum += words[page * 1024 + 5];
      for (let page = 0; page < 512; page += 5) words[page * 1024 + 5] = page + 1;
      await region.discard(0, 100 * 4096);
      for (let page = 0; page < 100; page++) sum += words[page * 1024 + 5];
      words[50 * 1024 + 5] = 7;
      return [sum, words[50 * 1024 + 5], words[51 * 1024 + 5], words[105 * 1024 + 5]];
    });
    assert.deepEqual(result, [0, 7, 0, 106]);
    assert.deepEqual(await a.run(({ region }) => { const words = new Int32Array(region.buffer); return [words[50 * 1024 + 5], words[51 * 1024 + 5], words[510 * 1024 + 5]]; }), [7, 0, 511]);
  });

  it('a home that touches single pages of a large region has memory for those only', async () => {
    const [a] = await startMembers(1, { size: 1 << 30 });
    const grown = await a.run(({ region, require }) => {
      const { readFileSync } = require('node:fs') as typeof import('node:fs');
      const shared = (): number => Number(/RssShmem:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]);
      const bytes = new Uint8Array(region.buffer);
      const before = shared();
      for (let page = 0; page < 1 << 18; page += 1 << 8) bytes[page * 4096] = 1;
      return shared() - before;
    });
    // KiB; each page is in the app view only, and none of its neighbours.
    assert.ok(grown >= 1024 * 4 && grown < 1024 * 12, `${grown} KiB for 1,024 pages`);
  });

  it('a million pages that are open, each beside one that is not, need no more mappings with userfaultfd', async function () {
    this.timeout(240_000);
    const pages = 2_000_000;
    if (!works) this.skip();
    const a = await Member.start({ cluster: uniqueCluster(), join: { guard: 'userfaultfd' } });
    await a.open('wide', { size: pages * PAGE });
    const seen = await a.run(({ region, require }, count) => {
      const { readFileSync } = require('node:fs') as typeof import('node:fs');
      const mappings = (): number => readFileSync('/proc/self/maps', 'utf8').split('\n').length;
      const before = mappings();
      let sum = 0;
      for (let first = 0; first < count; first += 1 << 18) {
        const view = new Uint8Array(region.window(first * 4096, Math.min(1 << 18, count - first) * 4096));
        for (let at = 0; at < view.length; at += 2 * 4096) sum += view[at];
      }
      const { limitHits, coalesced, filled } = region.stats().protection;
      return { sum, more: mappings() - before, limitHits, coalesced, filled };
    }, pages, { within: 200_000 });
    assert.equal(seen.sum, 0);
    assert.deepEqual([seen.limitHits, seen.coalesced], [0, 0]);
    assert.ok(seen.more < 50, `${seen.more} more mappings`);
    assert.ok(seen.filled >= pages / 2 - pages / 2 / 32, `${seen.filled} pages were opened`);
  });

  it('a guard that is asked for by name and can\'t be had is a typed error, and nothing of it is left', async () => {
    const a = await Member.start({ join: false });
    const error = await a.run(async ({ join, require }) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const { execFileSync } = require('node:child_process') as typeof import('node:child_process');
      execFileSync('prlimit', ['--pid', String(process.pid), '--nofile=256:256']);
      const taken: number[] = [];
      try {
        for (;;) taken.push(fs.openSync('/dev/null', 'r'));
      } catch { /* No descriptor is left. */ }
      const refused = await join({ guard: 'userfaultfd' }).then(() => null, (reason: Error & { code: string; guard: string; syscall: string }) => [reason.name, reason.code, reason.guard, reason.syscall]);
      for (const descriptor of taken) fs.closeSync(descriptor);
      const left = fs.readdirSync('/proc/self/fd').map((name) => { try { return fs.readlinkSync(`/proc/self/fd/${name}`); } catch { return ''; } }).filter((name) => /memfd:faultline|userfaultfd/.test(name));
      return { refused, left };
    });
    assert.deepEqual(error, { refused: ['GuardUnavailableError', 'ERR_FAULTLINE_GUARD_UNAVAILABLE', 'userfaultfd', 'memfd_create'], left: [] });
  });

  it('a home with mprotect stays well below the kernel\'s limit on mappings when every second page of it is read over lanes', async function () {
    this.timeout(120_000);
    const pages = 100_000;
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, join: { guard: 'mprotect' } });
    const b = await Member.start({ cluster });
    await a.open('wide', { size: pages * PAGE });
    await b.open('wide');
    await a.run(({ region }, count) => { const words = new Int32Array(region.buffer); for (let page = 0; page < count; page += 2) words[page * 1024] = page; }, pages);
    const wrong = await b.run(({ region }, count) => {
      const words = new Int32Array(region.buffer);
      let different = 0;
      for (let page = 0; page < count; page += 2) different += Number(words[page * 1024] !== page);
      return different;
    }, pages, { within: 60_000 });
    assert.equal(wrong, 0);
    const { limitHits } = await a.run(({ region }) => region.stats().protection);
    assert.ok(limitHits > 0, 'its budget was used up');
    const limit = Number(readFileSync('/proc/sys/vm/max_map_count', 'utf8'));
    const used = readFileSync(`/proc/${a.pid}/maps`, 'utf8').split('\n').length;
    // At the limit every other mapping of the process fails, and V8 ends it.
    assert.ok(used < 0.8 * limit, `${used} of ${limit} mappings`);
  });
});
