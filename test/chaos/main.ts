/**
 * Chaos on real members: see docs/chaos.md.
 *
 *   npm run chaos -- [--seed N] [--minutes T] [--members M] [--only FAULT...] [--json FILE]
 *
 * Ends with 0 if nothing was wrong, 1 if something was, 2 if it can't be run here, 130 after an interrupt.
 */
import { writeFileSync } from 'node:fs';
import Table from 'cli-table3';
import { Command, InvalidArgumentError } from 'commander';
import { type Fault, FAULTS, NotHere, type Result, runChaos, type Times } from './runner.js';

const number = (least: number, most: number) => (text: string): number => {
  const value = Number(text);
  if (text.trim() === '' || !(value >= least && value <= most)) throw new InvalidArgumentError(`a number from ${least} to ${most}`);
  return value;
};
const whole = (least: number, most: number) => (text: string): number => {
  const value = number(least, most)(text);
  if (!Number.isInteger(value)) throw new InvalidArgumentError('a whole number');
  return value;
};
const kind = (text: string, before: Fault[] = []): Fault[] => {
  const found = FAULTS.find((fault) => fault === text.replaceAll('-', ' '));
  if (found === undefined) throw new InvalidArgumentError(`there are ${FAULTS.map((fault) => fault.replaceAll(' ', '-')).join(', ')}`);
  return [...before, found];
};

const program = new Command('chaos')
  .description('Members in network namespaces are killed, stopped, cut off and starved while they work; what they saw is checked. Needs root')
  .option('--seed <n>', 'what is planned', whole(0, 2 ** 32 - 1), 1)
  .option('--minutes <t>', 'for so long', number(0.05, 24 * 60), 1)
  .option('--members <m>', 'processes', whole(2, 32), 4)
  .option('--only <faults...>', 'only these kinds', kind)
  .option('--json <file>', 'also write the figures there');

async function main(): Promise<number> {
  const { minutes, only, json, ...rest } = program.parse().opts<{ seed: number; minutes: number; members: number; only?: Fault[]; json?: string }>();
  const stop = new AbortController();
  const interrupt = (): void => stop.abort(new Error('interrupted'));
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
  try {
    const result = await runChaos({ ...rest, seconds: minutes * 60, faults: only, signal: stop.signal, progress });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    console.log(report(result));
    if (json !== undefined) writeFileSync(json, `${JSON.stringify(result, null, 1)}\n`);
    return result.violations.length > 0 ? 1 : 0;
  } catch (error) {
    if (stop.signal.aborted) {
      console.error('interrupted: nothing is said about what was run');
      return 130;
    }
    if (!(error instanceof NotHere)) throw error;
    console.error(`can't be run here: ${error.message}`);
    return 2;
  }
}

function progress(line: string): void {
  process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}` : `${line}\n`);
}

export function report(result: Result): string {
  const table = new Table({ head: ['ms', 'rounds', 'given up: n', 'p50', 'p99', 'max', 'longest access: n', 'p50', 'p99', 'max'], style: { head: [], border: [], compact: true }, colAligns: ['left', ...Array<'right'>(9).fill('right')] });
  const ms = (us: number): string => (us / 1000).toFixed(us < 10_000 ? 1 : 0);
  const columns = (times: Times | undefined): string[] => (times === undefined ? ['', '', '', ''] : [String(times.n), ms(times.p50), ms(times.p99), ms(times.max)]);
  for (const fault of FAULTS) {
    const rounds = result.counts[`rounds: ${fault}`];
    if (rounds !== undefined) table.push([fault, String(rounds), ...columns(result.detection[fault]), ...columns(result.stall[fault])]);
  }
  const counts = Object.entries(result.counts).filter(([what]) => !what.startsWith('rounds')).map(([what, count]) => `${what}: ${count}`);
  return [
    table.toString(),
    `${result.accesses} accesses of ${result.members} members in ${result.rounds} rounds, ${result.seconds.toFixed(0)} s (seed ${result.seed}); ${counts.join('; ')}`,
    ...result.without.map((what) => `without ${what}`),
    ...result.violations.slice(0, 10),
    `violations: ${result.violations.length}`,
  ].join('\n');
}

if (require.main === module) {
  main().then((code) => { process.exitCode = code; }, (error: Error) => {
    console.error(error.stack);
    process.exitCode = 1;
  });
}
