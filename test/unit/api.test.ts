import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import * as faultline from '../../lib/index.js';

const run = promisify(execFile);
/** The package's own folder: this file is dist/test/unit/api.test.js. */
const root = path.resolve(__dirname, '..', '..', '..');

/** A folder in which `faultline` resolves to this package. */
function consumer(files: Record<string, string>): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'faultline-consumer-'));
  fs.mkdirSync(path.join(folder, 'node_modules', '@types'), { recursive: true });
  fs.symlinkSync(root, path.join(folder, 'node_modules', 'faultline'));
  fs.symlinkSync(path.join(root, 'node_modules', '@types', 'node'), path.join(folder, 'node_modules', '@types', 'node'));
  for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), text);
  return folder;
}

async function inConsumer<T>(files: Record<string, string>, use: (folder: string) => Promise<T>): Promise<T> {
  const folder = consumer(files);
  try {
    return await use(folder);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

async function output(files: Record<string, string>, script: string): Promise<string> {
  return inConsumer(files, async (folder) => (await run(process.execPath, [path.join(folder, script)], { timeout: 20_000 })).stdout.trim());
}

const code = (suffix: string) => (error: unknown): boolean => {
  assert.ok(error instanceof faultline.FaultlineError, String(error));
  assert.equal(error.code, `ERR_FAULTLINE_${suffix}`);
  return true;
};

describe('the package', () => {
  it('is the same for require and import', async () => {
    const text = await output({
      'both.mjs': `
        import * as imported from 'faultline';
        import { createRequire } from 'node:module';
        const required = createRequire(import.meta.url)('faultline');
        const names = Object.keys(required).sort();
        const differing = names.filter((name) => imported[name] !== required[name]);
        console.log(JSON.stringify({ names, differing }));`,
    }, 'both.mjs');
    const { names, differing } = JSON.parse(text) as { names: string[]; differing: string[] };
    assert.deepEqual(differing, []);
    for (const name of ['join', 'attempt', 'FaultlineError', 'PageLostError', 'EvictedError']) assert.ok(names.includes(name), name);
  });

  it('shows only what is meant to be used', () => {
    const others = Object.keys(faultline).filter((name) => !name.endsWith('Error') && name !== '__esModule');
    assert.deepEqual(others.sort(), ['attempt', 'join']);
  });

  it('leaves a program that only imports it alone: no listeners, and it ends', async () => {
    const text = await output({
      'idle.cjs': `
        require('faultline');
        console.log(['SIGTERM', 'SIGINT', 'SIGHUP', 'exit', 'beforeExit'].map((event) => process.listenerCount(event)).join());`,
    }, 'idle.cjs');
    assert.equal(text, '0,0,0,0,0');
  });

  it('has types for ESM and CommonJS', async () => {
    const use = `
      import { join, attempt, PageLostError, type Cluster, type Region, type Lock, type Pin, type RegionStats } from 'faultline';
      export async function main(): Promise<number> {
        await using cluster: Cluster = await join({ cluster: 'local:x', name: 'n', faultTimeout: 2000, signal: AbortSignal.timeout(1000) });
        const region: Region = await cluster.region('r', { size: 4096, placement: 'spread', mode: 'wait' });
        cluster.on('page-lost', ({ region, ranges, member, epoch }) => void [region.length, ranges[0].offset, member + epoch]);
        cluster.once('member-died', (member) => void member.pid.toFixed());
        using lock: Lock = cluster.lockSync('l', { shared: true, timeout: 5 });
        const token: bigint = lock.token;
        await using pin: Pin = await region.pin([{ offset: 0, length: 8 }], 'write', { timeout: 100 });
        const woken: 'ok' | 'not-equal' | 'timed-out' = region.waitSync(0, 0, { timeout: 1 });
        const stats: RegionStats = region.stats();
        try {
          return attempt(() => new Int32Array(region.buffer)[0]) + pin.until + Number(token) + woken.length + stats.waits.percentile(99);
        } catch (error) {
          if (error instanceof PageLostError) return error.page + error.offset + error.member + error.epoch + error.region.length;
          throw error;
        }
      }`;
    await inConsumer({
      'esm.mts': use,
      'cjs.cts': use,
      'tsconfig.json': JSON.stringify({
        compilerOptions: { target: 'ES2022', lib: ['ES2023', 'ESNext.Disposable'], module: 'nodenext', strict: true, noEmit: true, types: ['node'], skipLibCheck: false },
        files: ['esm.mts', 'cjs.cts'],
      }),
    }, async (folder) => {
      const compiler = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc');
      const { stdout } = await run(process.execPath, [compiler, '-p', folder], { timeout: 50_000 }).catch((error: { stdout: string }) => error);
      assert.equal(stdout, '');
    });
  });
});

describe('join() without a cluster', () => {
  it('rejects, and does not throw, for bad options', async () => {
    await assert.rejects(faultline.join({ cluster: 'local:../x' }), code('INVALID_ARGUMENT'));
    await assert.rejects(faultline.join(7 as never), code('INVALID_ARGUMENT'));
    await assert.rejects(faultline.join({ cluster: 'tcp://192.0.2.1:7700' }), code('KEYS_NEEDED'));
  });

  it('rejects with the reason of a signal that is aborted already', async () => {
    const reason = new Error('changed my mind');
    await assert.rejects(faultline.join({ cluster: 'local:never', signal: AbortSignal.abort(reason) }), reason);
  });

  it('in a worker needs the package on the main thread, and says so', async () => {
    const text = await output({
      'main.cjs': `
        const { Worker } = require('node:worker_threads');
        new Worker(require.resolve('./worker.cjs'));`,
      'worker.cjs': `
        const { join, NotOnMainError } = require('faultline');
        join({ cluster: 'local:never' }).catch((error) => console.log(error instanceof NotOnMainError, error.code, error.message.includes("import 'faultline' on the main thread")));`,
    }, 'main.cjs');
    assert.equal(text, 'true ERR_FAULTLINE_NOT_ON_MAIN true');
  });
});

describe('attempt() without a region', () => {
  it('refuses what is not a function', () => {
    assert.throws(() => faultline.attempt(7 as never), code('INVALID_ARGUMENT'));
  });

  it('refuses async functions without calling them', () => {
    let called = false;
    assert.throws(() => faultline.attempt(async () => { called = true; }), code('INVALID_ARGUMENT'));
    assert.equal(called, false);
  });

  it('refuses a returned promise, whose rejection is then nobody else\'s business', async () => {
    assert.throws(() => faultline.attempt(() => Promise.reject(new Error('unseen'))), code('INVALID_ARGUMENT'));
    assert.throws(() => faultline.attempt(() => ({ then: () => undefined })), code('INVALID_ARGUMENT'));
    // An unhandled rejection would fail the test run after this turn.
    await new Promise((resolve) => setImmediate(resolve));
  });

  it('returns what the function returns and throws what it throws', () => {
    const error = new Error('mine');
    assert.equal(faultline.attempt(() => 42), 42);
    assert.equal(faultline.attempt(() => faultline.attempt(() => 'nested')), 'nested');
    assert.throws(() => faultline.attempt(() => { throw error; }), (thrown) => thrown === error);
  });
});
