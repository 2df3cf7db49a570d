/**
 * Runs the protocol under simulated networks, threads, deaths and stops, a seed at a time, and checks what must always be
 * true after every step.
 *
 *   npm run simulate -- --seeds 100000            that many seeds, on all cores
 *   npm run simulate -- --minutes 10 --seed 5000  for that long, from that seed on
 *   npm run simulate -- --seed 77 --seeds 1       one seed, told message by message
 *   npm run simulate -- --replay schedule.json    a run that was made shorter after it had failed
 */
import { fork, type ChildProcess } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Table from 'cli-table3';
import { Command, InvalidArgumentError } from 'commander';
import { loadSimulation } from './addon.js';
import { Choices } from './choices.js';
import { shrink } from './shrink.js';
import { type Outcome, simulate } from './world.js';
import type { Failure, Order, Report } from './worker.js';

/** Seeds that a worker gets at a time. */
const BATCH = 500;
/** ms spent on making one failure shorter. */
const SHRINKING = 20_000;

interface Options { seed: number; seeds?: number; minutes?: number; workers: number; failures: number; replay?: string; out?: string; json?: string; trace?: boolean }

const whole = (least: number) => (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < least) throw new InvalidArgumentError(`a whole number from ${least} on`);
  return value;
};

const program = new Command('simulate')
  .description('Runs the protocol in the simulator and checks its invariants. Exits with 1 if one is broken')
  .option('--seed <n>', 'the first seed', whole(0), 1)
  .option('--seeds <n>', 'how many seeds (default: 20000, or as many as there is time for)', whole(1))
  .option('--minutes <t>', 'stop after that time', (text) => {
    const value = Number(text);
    if (!(value > 0)) throw new InvalidArgumentError('a number of minutes');
    return value;
  })
  .option('--workers <n>', 'processes', whole(1), os.availableParallelism())
  .option('--failures <n>', 'stop after so many seeds that fail', whole(1), 5)
  .option('--trace', 'tell every message (as with --seeds 1)')
  .option('--replay <file>', 'run the schedule in this file, and tell it')
  .option('--out <file>', 'write the shortened schedule of the first failure there', 'simulation-failure.json')
  .option('--json <file>', 'also write the figures there');

async function main(): Promise<number> {
  const options = program.parse().opts<Options>();
  if (options.replay !== undefined) return replay(options.replay);
  if (options.seeds === 1 || options.trace) return one(options.seed);
  return many(options);
}

// ---- one run --------------------------------------------------------------------------------------------------------

function replay(file: string): number {
  const { choices } = JSON.parse(readFileSync(file, 'utf8')) as { choices: number[] };
  return tell(simulate(loadSimulation(), new Choices(0, choices), true));
}

function one(seed: number): number {
  return tell(simulate(loadSimulation(), new Choices(seed), true));
}

function tell({ plan, trace, violation, events, messages, accesses }: Outcome): number {
  console.log(`plan: ${JSON.stringify(plan)}`);
  console.log('     µs');
  for (const line of trace) console.log(line);
  if (violation !== null) console.log(`\n${violation.invariant}: ${violation.message}`);
  console.log(`\n${violation === null ? 'nothing is broken' : `${violation.invariant} is broken`} after ${events} events, ${messages} messages, ${accesses} accesses`);
  return violation === null ? 0 : 1;
}

// ---- many runs ------------------------------------------------------------------------------------------------------

async function many(options: Options): Promise<number> {
  const begun = Date.now();
  const total = options.seeds ?? (options.minutes === undefined ? 20_000 : Infinity);
  const end = options.minutes === undefined ? Infinity : begun + options.minutes * 60_000;
  const sum: Report = { seeds: 0, events: 0, messages: 0, accesses: 0, failures: [] };
  let ordered = 0;
  let interrupted = false;
  const next = (): Order | null => {
    if (interrupted || ordered >= total || Date.now() >= end || sum.failures.length >= options.failures) return null;
    const count = Math.min(BATCH, total - ordered);
    const order = { first: options.seed + ordered, count };
    ordered += count;
    return order;
  };
  const interrupt = (): void => { interrupted = true; };
  process.once('SIGINT', interrupt);
  const ticker = setInterval(() => say(sum, total, begun), 5_000);
  try {
    await Promise.all(Array.from({ length: options.workers }, () => work(next, (report) => add(sum, report))));
  } finally {
    clearInterval(ticker);
    process.removeListener('SIGINT', interrupt);
  }
  const seconds = (Date.now() - begun) / 1000;
  sum.failures.sort((a, b) => a.seed - b.seed);
  print(sum, seconds, options);
  if (options.json !== undefined) writeFileSync(options.json, JSON.stringify({ ...sum, seconds, perMinute: (sum.seeds / seconds) * 60, workers: options.workers, node: process.version }, null, 2));
  if (sum.failures.length === 0) return 0;
  explain(sum.failures[0], options.out!);
  return 1;
}

/** One worker, until there is nothing more to do. */
function work(next: () => Order | null, done: (report: Report) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = fork(path.join(__dirname, 'worker.js'), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    let order: Order | null = null;
    const go = (): void => {
      order = next();
      if (order === null) child.disconnect();
      else child.send(order);
    };
    child.on('message', (report: Report) => {
      done(report);
      go();
    });
    child.once('error', reject);
    child.once('exit', (code, signal) => {
      if (order === null) resolve();
      else reject(new Error(`a worker ended with ${signal ?? code} in one of the seeds ${order.first} to ${order.first + order.count - 1}`));
    });
    go();
  });
}

function add(sum: Report, report: Report): void {
  for (const { seed, invariant } of report.failures) process.stderr.write(`seed ${seed} breaks ${invariant}\n`);
  sum.seeds += report.seeds;
  sum.events += report.events;
  sum.messages += report.messages;
  sum.accesses += report.accesses;
  sum.failures.push(...report.failures);
}

function say(sum: Report, total: number, begun: number): void {
  const seconds = (Date.now() - begun) / 1000;
  process.stderr.write(`${sum.seeds}${total === Infinity ? '' : ` of ${total}`} seeds, ${Math.round((sum.seeds / seconds) * 60)} a minute, ${sum.failures.length} failed\n`);
}

function print(sum: Report, seconds: number, { seed, workers }: Options): void {
  const table = new Table({ head: ['seeds', 'from', 'failed', 'seconds', 'seeds a minute', 'workers', 'events a seed', 'messages a seed', 'accesses a seed'], style: { head: [], border: [] } });
  const each = (count: number): string => (count / Math.max(1, sum.seeds)).toFixed(1);
  table.push([sum.seeds, seed, sum.failures.length, seconds.toFixed(1), Math.round((sum.seeds / seconds) * 60), workers, each(sum.events), each(sum.messages), each(sum.accesses)]);
  console.log(table.toString());
  for (const { seed: failed, invariant, message } of sum.failures) console.log(`seed ${failed}: ${invariant}: ${message.split('\n')[0]}`);
}

/** Makes the failure shorter, tells it, and keeps it. */
function explain({ seed, invariant }: Failure, file: string): void {
  const native = loadSimulation();
  const found = simulate(native, new Choices(seed));
  process.stderr.write(`seed ${seed} breaks ${invariant} after ${found.choices.length} choices; making it shorter\n`);
  const { choices } = shrink(native, found, SHRINKING);
  writeFileSync(file, `${JSON.stringify({ seed, invariant, choices })}\n`);
  console.log(`\nThe shortest schedule found, ${choices.length} choices (npm run simulate -- --replay ${file}):\n`);
  tell(simulate(native, new Choices(0, choices), true));
}

main().then((code) => { process.exitCode = code; }, (error: unknown) => {
  console.error(error instanceof Error ? error.stack : error);
  process.exitCode = 1;
});
