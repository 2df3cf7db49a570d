/** join({ systemCalls: true }): pages that the kernel touches are fetched like those that a program touches. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { native } from '../../lib/native.js';
import { Member, startMembers, uniqueCluster } from '../support/members.js';

const PAGE = 4096;
const lacks = native.userfaultfdLacks(true);
const options = { join: { systemCalls: true } };

describe('the memory: system calls', () => {
  let folder: string;
  let file: string;
  before(function () {
    if (lacks !== null) {
      console.log(`      left out: ${lacks.syscall}: ${lacks.message}`);
      this.skip();
    }
  });
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'faultline-test-'));
    file = path.join(folder, 'bytes');
    writeFileSync(file, Buffer.alloc(64 * PAGE, 'x'));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it('read and write pages that are elsewhere, that nobody has written, and that are a home\'s own', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE }, options);
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(97, 0, 64 * 4096); });
    for (const [member, place] of [[b, 128], [a, 192]] as const) {
      const seen = await member.run(({ region, require }, given) => {
        const fs = require('node:fs') as typeof import('node:fs');
        const fd = fs.openSync(given.file, 'r+');
        const first = fs.readSync(fd, new Uint8Array(region.buffer, given.place * 4096, 9 * 4096), 0, 9 * 4096, 0);
        const second = fs.writeSync(fd, new Uint8Array(region.buffer, 3 * 4096 + 10, 20 * 4096), 0, 20 * 4096, 30 * 4096);
        // A hole, over a border.
        const third = fs.writeSync(fd, new Uint8Array(region.buffer, 250 * 4096 - 5, 10), 0, 10, 60 * 4096);
        fs.closeSync(fd);
        return [first, second, third, region.stats().protection.systemCalls];
      }, { file, place });
      assert.deepEqual(seen, [9 * PAGE, 20 * PAGE, 10, true]);
      const written = readFileSync(file);
      assert.ok(written.subarray(30 * PAGE, 50 * PAGE).every((byte) => byte === 97));
      assert.deepEqual([...written.subarray(60 * PAGE, 60 * PAGE + 11)], [...new Uint8Array(10), 120]);
    }
    for (const member of [a, b]) {
      assert.ok(await member.run(({ region }) => [128, 192].every((page) => new Uint8Array(region.buffer, page * 4096, 9 * 4096).every((byte) => byte === 120))));
    }
  });

  it('serve the program\'s own accesses in the same way: loads, stores, atomics of many threads, and instructions that straddle', async () => {
    const [a, b] = await startMembers(2, { size: 256 * PAGE }, options);
    const rounds = 300;
    const threads = await Promise.all([a, a, b, b].map((member) => member.thread(({ region }) => ({ buffer: region.buffer }))));
    await Promise.all(threads.map((thread) => thread.run(({ buffer }, given) => {
      const words = new Int32Array(buffer as SharedArrayBuffer);
      for (let i = 0; i < given; i++) {
        Atomics.add(words, 1024 * (i % 8), 1);
        // An unaligned store over the border of two pages.
        new DataView(buffer as SharedArrayBuffer, 100 * 4096 - 3).setFloat64(0, i, true);
      }
    }, rounds, { within: 60_000 })));
    for (const member of [a, b]) {
      assert.equal(await member.run(({ region }) => { const words = new Int32Array(region.buffer); let sum = 0; for (let page = 0; page < 8; page++) sum += words[page * 1024]; return sum; }), 4 * rounds);
      assert.equal(await member.run(({ region }) => new DataView(region.buffer, 100 * 4096 - 3).getFloat64(0, true)), rounds - 1);
    }
    assert.ok(await b.run(({ region }) => region.stats().faults.write) > 0);
  });

  it('hold for asynchronous ones, more of them than the thread pool has threads, between members of different kinds', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster, ...options });
    await a.open('memory', { size: 1024 * PAGE });
    await b.open('memory');
    await a.run(({ region }) => { new Uint8Array(region.buffer).fill(98); });
    const sizes = await b.run(async ({ region, require }, folderName) => {
      const fs = require('node:fs/promises') as typeof import('node:fs/promises');
      const zlib = require('node:zlib') as typeof import('node:zlib');
      const names = Array.from({ length: 16 }, (_, i) => `${folderName}/${i}`);
      await Promise.all(names.map((name, i) => fs.writeFile(name, new Uint8Array(region.buffer, i * 64 * 4096, 64 * 4096))));
      const packed = await new Promise<number>((resolve, reject) => zlib.deflate(new Uint8Array(region.buffer, 0, 4096), (error, out) => (error ? reject(error) : resolve(out.length))));
      return { sizes: await Promise.all(names.map(async (name) => { const bytes = await fs.readFile(name); return bytes.length * Number(bytes.every((byte) => byte === 98)); })), packed };
    }, folder);
    assert.deepEqual(sizes.sizes, new Array(16).fill(64 * PAGE));
    assert.ok(sizes.packed < PAGE);
  });

  it('get EFAULT where the page is lost, and the program gets what it gets otherwise; both go on when it is found again', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster, ...options });
    const b = await Member.start({ cluster });
    await a.open('memory', { size: 64 * PAGE });
    await b.open('memory');
    // Read before it was taken away: the page table remembers that it was read-only.
    await a.run(({ region }) => { const view = new Uint8Array(region.buffer); view[6 * 4096] = 1; return view[5 * 4096]; });
    await b.run(({ region }) => new Uint8Array(region.buffer)[5 * 4096]);
    await b.run(({ region }) => { const view = new Uint8Array(region.buffer); view[5 * 4096] = view[6 * 4096] = 1; });
    await b.kill('SIGKILL');
    const seen = await a.run(async ({ region, attempt, require }, name) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const view = new Uint8Array(region.buffer, 5 * 4096, 2 * 4096);
      const codeOf = (call: () => unknown): unknown => {
        try { return call(); } catch (error) { return (error as NodeJS.ErrnoException).code; }
      };
      const fd = fs.openSync(name, 'r+');
      const result: unknown[] = [codeOf(() => fs.writeSync(fd, view)), codeOf(() => attempt(() => view[0])), codeOf(() => attempt(() => view[4096]))];
      await region.discard(5 * 4096, 4096);
      result.push(codeOf(() => fs.readSync(fd, view, 0, 10, 0)), view[0], view[11]);
      fs.closeSync(fd);
      return result;
    }, file, { within: 30_000 });
    assert.deepEqual(seen, ['EFAULT', 'ERR_FAULTLINE_PAGE_LOST', 'ERR_FAULTLINE_PAGE_LOST', 10, 120, 0]);
  });

  it('get EFAULT when the region was closed, work when it is opened again, and leave no thread behind', async () => {
    const a = await Member.start({ cluster: uniqueCluster(), ...options });
    await a.open('memory', { size: 64 * PAGE });
    const seen = await a.run(async ({ cluster, region, require }, name) => {
      const fs = require('node:fs') as typeof import('node:fs');
      const codeOf = (call: () => unknown): unknown => {
        try { return call(); } catch (error) { return (error as NodeJS.ErrnoException).code; }
      };
      const proxies = (): number => fs.readdirSync('/proc/self/task').filter((tid) => fs.readFileSync(`/proc/self/task/${tid}/comm`, 'utf8').startsWith('faultline-proxy')).length;
      const view = new Uint8Array(region.buffer);
      const fd = fs.openSync(name, 'r');
      const result: unknown[] = [proxies() > 0, codeOf(() => fs.readSync(fd, view, 0, 4096, 0))];
      await region.close();
      result.push(codeOf(() => fs.readSync(fd, view, 8192, 4096, 0)));
      const again = await cluster.region('memory');
      result.push(codeOf(() => fs.readSync(fd, new Uint8Array(again.buffer), 8192, 4096, 0)));
      await cluster.close();
      result.push(codeOf(() => fs.readSync(fd, view, 0, 4096, 0)), proxies());
      fs.closeSync(fd);
      return result;
    }, file);
    assert.deepEqual(seen, [true, PAGE, 'EFAULT', PAGE, 'EFAULT', 0]);
  });

  it('an access after close() ends the process by SIGBUS with its line, as otherwise', async () => {
    const a = await Member.start({ cluster: uniqueCluster(), ...options });
    await a.open('memory', { size: 64 * PAGE });
    await a.run(async (state) => { state.view = new Uint8Array(state.region.buffer); state.view[0] = 1; await state.region.close(); });
    const ended = a.exit();
    a.run(({ view }) => view[0] as number).catch(() => undefined);
    const { signal } = await ended;
    assert.equal(signal, 'SIGBUS');
    assert.match(a.stderr, /was accessed at offset 0 after close\(\)/);
  });

  it('process.exit() does not wait for a thread that sleeps in the kernel', async () => {
    const cluster = uniqueCluster();
    const a = await Member.start({ cluster });
    const b = await Member.start({ cluster, ...options });
    await a.open('memory', { size: 64 * PAGE });
    await b.open('memory');
    await a.kill('SIGSTOP');
    await b.run(async ({ region, require }, name) => {
      const fs = require('node:fs') as typeof import('node:fs');
      fs.writeFile(name, new Uint8Array(region.buffer), () => undefined);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }, file);
    const ended = b.exit();
    b.run(() => process.exit(7)).catch(() => undefined);
    const { code, signal } = await ended;
    assert.deepEqual([code, signal], [7, null]);
    await a.kill('SIGCONT');
  });

  it('are refused where the guard is mprotect, and where nobody may watch the kernel\'s faults', async () => {
    const a = await Member.start({ join: false });
    const errors = await a.run(async ({ join }) => {
      const errorOf = (given: object): Promise<unknown[]> => join(given).then(() => ['joined'], (reason: Error & { code: string }) => [reason.code, reason.message]);
      const result = [await errorOf({ systemCalls: true, guard: 'mprotect' }), await errorOf({ systemCalls: 'yes' })];
      if (process.getuid!() === 0) {
        process.seteuid!(65534);
        result.push(await errorOf({ systemCalls: true }));
      }
      return result;
    });
    assert.equal(errors[0][0], 'ERR_FAULTLINE_INVALID_ARGUMENT');
    assert.equal(errors[1][0], 'ERR_FAULTLINE_INVALID_ARGUMENT');
    if (errors[2] !== undefined) {
      assert.equal(errors[2][0], 'ERR_FAULTLINE_GUARD_UNAVAILABLE');
      assert.match(String(errors[2][1]), /CAP_SYS_PTRACE/);
    }
  });
});
