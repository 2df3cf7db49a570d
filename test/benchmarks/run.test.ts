import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Run } from '../../benchmarks/results.js';
import { sections } from '../../benchmarks/sections/index.js';

const main = path.resolve(__dirname, '..', '..', 'benchmarks', 'main.js');
const command = path.resolve(__dirname, '..', '..', 'lib', 'cli', 'main.js');

interface Ended { code: number | null; out: string; err: string }

function start(file: string, args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [file, ...args], { timeout: 55_000, maxBuffer: 1 << 24 }, (error, out, err) => resolve({ code: error ? (error.code as number | null) : 0, out, err }));
  });
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

function groupOf(id: string): number {
  const line = read(`/proc/${id}/stat`);
  return Number(line.slice(line.lastIndexOf(')') + 2).split(' ')[2]);
}

function commandOf(id: string): string {
  return read(`/proc/${id}/cmdline`).replaceAll('\0', ' ');
}

describe('a run of the benchmark', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), 'faultline-test-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it('measures faults beside the references, and writes figures that belong together', async () => {
    const json = path.join(folder, 'run.json');
    const { code, out, err } = await start(main, ['--quick', '--samples', '20', '--warm-up', '5', '-s', 'trap,read', '-p', 'one', '--json', json, '--plots', path.join(folder, 'plots')]);
    assert.equal(code, 0, `${out}\n${err}`);
    const run = JSON.parse(readFileSync(json, 'utf8')) as Run;
    assert.equal(run.version, 1);
    assert.deepEqual(run.failed, []);
    for (const fact of ['kernel', 'cpu', 'governor', 'node', 'zeromq']) assert.ok(run.machine[fact], fact);
    for (const key of ['segv-read', 'mprotect', 'copy-page']) assert.ok(run.rows.some((row) => row.section === 'trap' && row.key === key), key);
    for (const key of ['read', 'read-idle', 'read-shared', 'read-third', 'read-off', 'zeromq', 'net', 'c-unix-blocking', 'c-tcp-polling']) {
      const row = run.rows.find((one) => one.section === 'read' && one.key === key);
      assert.ok(row, key);
      assert.equal(row.n, 20);
      assert.equal(row.placement, 'one');
      assert.ok(row.median > 0 && row.median <= row.p90 && row.p90 <= row.p99 && row.p99 <= row.max, `${key}: ${JSON.stringify(row)}`);
    }
    assert.deepEqual(run.noise.map(({ section }) => section), ['trap', 'read']);
    assert.ok(run.targets.some(({ what, got }) => what.includes('raw zeromq.js') && got! > 0));
    assert.match(out, /cold remote read, owned by its home/);
    assert.match(out, /Targets/);
    assert.match(readFileSync(path.join(folder, 'plots', 'fault-time-one.svg'), 'utf8'), /^<svg/);
  });

  it('measures writes, hand-overs and messages', async () => {
    const json = path.join(folder, 'run.json');
    const { code, out, err } = await start(main, ['--quick', '--samples', '10', '--warm-up', '0', '-s', 'local,pingpong,messages', '-p', 'free', '--json', json]);
    assert.equal(code, 0, `${out}\n${err}`);
    const run = JSON.parse(readFileSync(json, 'utf8')) as Run;
    for (const [section, key] of [['local', 'open-page'], ['pingpong', 'home'], ['pingpong', 'members-contended']]) assert.ok(run.rows.some((row) => row.section === section && row.key === key), key);
    assert.ok(run.counts.find(({ key }) => key === 'read-off')!.value >= 2);
  });

  it('shows the steps of faults over lanes and through the coordinators', async () => {
    const json = path.join(folder, 'run.json');
    const { code, out, err } = await start(main, ['--quick', '--samples', '20', '--warm-up', '5', '-s', 'stages', '-p', 'free', '--json', json]);
    assert.equal(code, 0, `${out}\n${err}`);
    const { stages } = JSON.parse(readFileSync(json, 'utf8')) as Run;
    const names = (path: string): string[] => stages.find((one) => one.path === path)!.stages.map(({ name }) => name);
    for (const step of ['trap', 'lane: to the page server', 'page server', 'handler opens']) assert.ok(names('read').includes(step), step);
    for (const step of ['handler rings', 'coordinator wakes', 'zeromq: to the home', 'home answers', 'coordinator opens']) assert.ok(names('read (off)').includes(step), step);
    for (const step of ['home asks others', 'zeromq: to others', 'others answer', 'zeromq: back to the home']) assert.ok(names('read, third owns (off)').includes(step), step);
    for (const { stages: steps } of stages) assert.ok(steps.every(({ us }) => us >= 0) && steps.at(-1)!.us > 0);
  });

  it('leaves no process behind when it is killed', async () => {
    const run = spawn(process.execPath, [main, '-s', 'scan', '-p', 'one'], { stdio: 'ignore', detached: true });
    // All of them have the group of the first one, which is a leader because it was started detached.
    const members = (): string[] => readdirSync('/proc').filter((id) => /^\d+$/.test(id) && Number(id) !== run.pid && groupOf(id) === run.pid);
    const until = async (what: string, met: () => boolean): Promise<void> => {
      for (const late = Date.now() + 25_000; !met(); await new Promise((resolve) => setTimeout(resolve, 20))) assert.ok(Date.now() < late, what);
    };
    try {
      // The last to be started are those of the reference.
      await until('not all processes were started', () => members().some((id) => commandOf(id).includes('stream client')));
    } finally {
      run.kill('SIGKILL');
      await once(run, 'exit');
    }
    await until('some processes are still there', () => members().length === 0).catch((error: Error) => assert.fail(`${error.message}: ${members().map(commandOf).join(', ')}`));
  });

  it('lists its sections', async () => {
    const { code, out } = await start(command, ['bench', '--list']);
    assert.equal(code, 0);
    for (const { name } of sections) assert.match(out, new RegExp(`^${name} `, 'm'));
  });

  it('refuses an unknown section, an unknown command and a file that is no run', async () => {
    const unknown = await start(command, ['bench', '--section', 'nothing']);
    assert.notEqual(unknown.code, 0);
    assert.match(unknown.err, /there is .*read.* but no 'nothing'/);
    assert.equal((await start(command, ['nothing'])).code, 2);
    const none = await start(main, ['--compare', path.join(folder, 'none.json'), '-s', 'trap']);
    assert.equal(none.code, 1);
    assert.match(none.err, /can't be compared with/);
  });
});
