/**
 * What a fault costs: cold remote reads, write upgrades and cold writes of 4 KiB pages, each beside a raw zeromq.js round
 * trip of the same sizes between the same two processes, in the same run and the same placement.
 *
 *   npm run bench -- [--section read|upgrade|write|all] [--placement one|each|free|all] [--samples N] [--json FILE]
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Table from 'cli-table3';
import { Command, InvalidArgumentError, Option } from 'commander';
import { calibrate, figures, type Figures } from './samples.js';

/** Processors for the home and the reader; undefined: wherever the scheduler puts them. */
const placements: Record<string, { what: string; home?: string; reader?: string; cores: number }> = {
  one: { what: 'both processes on one core', home: '0', reader: '0', cores: 1 },
  each: { what: 'one core each', home: '0', reader: '1', cores: 2 },
  free: { what: 'free', cores: 1 },
};
const names: Record<string, string> = { read: 'cold remote read', upgrade: 'write upgrade of a valid copy', write: 'cold remote write' };

interface Row { placement: string; section: string; fault: Figures; reference: Figures; ratio: number }

const program = new Command('bench')
  .description('What a remote page fault costs, beside a raw zeromq.js round trip of the same sizes')
  .addOption(new Option('--section <name>', 'what to measure').choices(['all', 'read', 'upgrade', 'write']).default('all'))
  .addOption(new Option('--placement <name>', 'where the two processes run').choices(['all', 'one', 'each', 'free']).default('all'))
  .option('--samples <n>', 'faults of each kind in each placement', whole, 2000)
  .option('--json <file>', 'also write the figures there');

function whole(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 100 || value > 50_000) throw new InvalidArgumentError('a whole number from 100 to 50000');
  return value;
}

function start(core: string | undefined, args: string[]): ChildProcess {
  const node = [process.execPath, path.join(__dirname, 'peer.js'), ...args];
  const [command, ...rest] = core === undefined ? node : ['taskset', '-c', core, ...node];
  return spawn(command, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
}

async function measure(placement: string, options: { section: string; samples: number }): Promise<Row[]> {
  const { home, reader, what } = placements[placement];
  const directory = mkdtempSync(path.join(os.tmpdir(), 'faultline-bench-'));
  const args = [`local:bench-${process.pid}-${placement}`, directory, String(options.samples), options.section];
  const children: ChildProcess[] = [];
  const rows: Row[] = [];
  try {
    const first = start(home, ['home', ...args]);
    children.push(first);
    await new Promise<void>((resolve, reject) => {
      first.once('message', () => resolve());
      first.once('exit', (code) => reject(new Error(`the home ended with ${code}`)));
    });
    const second = start(reader, ['reader', ...args]);
    children.push(second);
    await new Promise<void>((resolve, reject) => {
      second.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`the reader ended with ${code}`))));
      second.on('message', (message: { section: string; faults?: number[]; reference?: number[]; progress?: number }) => {
        if (message.progress !== undefined) {
          if (process.stderr.isTTY) process.stderr.write(`\r${what}: ${names[message.section]} ${Math.round(message.progress * 100)}%   `);
          return;
        }
        if (message.faults === undefined) return;
        const fault = figures(message.faults);
        const reference = figures(message.reference!);
        rows.push({ placement, section: message.section, fault, reference, ratio: Math.round((fault.p50 / reference.p50) * 100) / 100 });
      });
    });
  } finally {
    for (const child of children) if (child.exitCode === null && child.signalCode === null) {
      child.disconnect();
      await new Promise((resolve) => {
        const late = setTimeout(() => child.kill('SIGKILL'), 5000);
        child.once('exit', () => { clearTimeout(late); resolve(undefined); });
      });
    }
    rmSync(directory, { recursive: true, force: true });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  }
  return rows;
}

function machine(): Record<string, string> {
  const zeromq = JSON.parse(readFileSync(require.resolve('zeromq/package.json'), 'utf8')) as { version: string };
  return { cpu: `${os.cpus()[0]?.model.trim() ?? 'unknown'} x ${os.cpus().length}`, kernel: `${os.type()} ${os.release()}`, node: process.version, zeromq: zeromq.version };
}

async function main(): Promise<void> {
  program.parse();
  const options = program.opts<{ section: string; placement: string; samples: number; json?: string }>();
  const facts = machine();
  console.log(Object.entries(facts).map(([name, value]) => `${name}: ${value}`).join('   '));
  const before = calibrate();
  const rows: Row[] = [];
  for (const [name, placement] of Object.entries(placements)) {
    if (options.placement !== 'all' && options.placement !== name) continue;
    if (placement.cores > os.cpus().length) {
      console.log(`left out: ${placement.what} (this machine has ${os.cpus().length})`);
      continue;
    }
    rows.push(...(await measure(name, options)));
  }
  const after = calibrate();
  const table = new Table({ head: ['placement', 'µs', 'n', 'median', 'p90', 'p99', 'max', '÷ raw (median)'], style: { head: [], border: [] } });
  for (const row of rows) {
    const line = ({ n, p50, p90, p99, max }: Figures): number[] => [n, p50, p90, p99, max];
    table.push([placements[row.placement].what, names[row.section], ...line(row.fault), row.ratio]);
    table.push(['', `  raw zeromq.js, ${row.section === 'upgrade' ? '64 B there, 64 B back' : '64 B there, 64 B + 4 KiB back'}`, ...line(row.reference), '']);
  }
  console.log(table.toString());
  console.log('Faults: on the main thread of one process, page at home in the other. Reference: worker to worker, between the same processes, blocks of 100 in turn.');
  const drift = Math.max(before, after) / Math.min(before, after);
  if (drift > 1.2 || os.loadavg()[0] > os.cpus().length * 2) console.log(`The machine was busy: a fixed piece of work took ${(drift).toFixed(2)}x as long at one end of the run as at the other.`);
  if (options.json !== undefined) writeFileSync(options.json, JSON.stringify({ machine: facts, rows }, null, 2));
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
});
