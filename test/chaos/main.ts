/**
 * Chaos on real members in network namespaces: see docs/chaos.md.
 *
 *   npm run chaos -- [--seed N] [--minutes T] [--members M] [--together | --near] [--only FAULT...] [--json [FILE]]
 *
 * Ends with 0 if every promise was kept, 1 if one was broken, 2 if it can't be done here or the run itself failed, 130
 * after an interrupt.
 */
import { writeFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import { FAULT_NAMES, faultsFor, type FaultName } from './faults.js';
import { runChaos, LEAST_MEMBERS, MOST_MEMBERS, type Report } from './run.js';
import { timesTable } from './table.js';

interface Options { seed: number; minutes: number; members: number; together?: boolean; near?: boolean; only?: FaultName[]; json?: string | true }

const whole = (least: number, most: number) => (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < least || value > most) throw new InvalidArgumentError(`a whole number from ${least} to ${most}`);
  return value;
};

const program = new Command('chaos')
  .description('Members in network namespaces that are killed, stopped, starved and cut off while they work, and a check of all that they did. Needs root, ip and tc')
  .option('--seed <n>', 'decides what is done to whom in which order; not what comes of it', whole(0, 2 ** 31), 1)
  .option('--minutes <t>', 'the last round begins before that time is over', (text) => {
    const value = Number(text);
    if (!(value > 0 && value <= 1440)) throw new InvalidArgumentError('a number of minutes, at most 1440');
    return value;
  }, 5)
  .option('--members <m>', `from ${LEAST_MEMBERS} to ${MOST_MEMBERS}`, whole(LEAST_MEMBERS, MOST_MEMBERS), 4)
  .option('--together', 'as on one machine, where members see from files who has died (default: each as on a machine of its own)')
  .addOption(new Option('--near', 'really on one machine, in one network: lanes are Unix sockets, and there is no weather and no cut').conflicts('together'))
  .addOption(new Option('--only <faults...>', 'only these kinds of faults').choices(FAULT_NAMES))
  .option('--json [file]', 'also write the figures there; without a file: print them, and no table')
  .addHelpText('after', `\nFaults:\n${faultsFor(FAULT_NAMES).map(({ name, what, victim }) => `  ${name.padEnd(16)} ${victim === 'nobody' ? '' : `a ${victim}: `}${what}`).join('\n')}`);

async function main(): Promise<number> {
  const options = program.parse().opts<Options>();
  const stop = new AbortController();
  const interrupt = (): void => stop.abort(new Error('interrupted'));
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt).on('SIGHUP', interrupt);
  // As when it is piped into a program that has read enough.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', interrupt);
  let report: Report | string;
  try {
    report = await runChaos({ ...options, ms: options.minutes * 60_000, signal: stop.signal, progress: (line) => process.stderr.write(`${line}\n`) });
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    console.error('interrupted: what had been started is gone; nothing is said about what was run');
    // Timers of what was under way would keep this process for a while.
    process.exit(130);
  }
  if (typeof report === 'string') {
    console.error(`chaos can't be run here: ${report}`);
    return 2;
  }
  if (typeof options.json === 'string') writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`);
  if (options.json === true) console.log(JSON.stringify(report, null, 1));
  else tell(report);
  return report.problems.length > 0 ? 1 : 0;
}

function tell(report: Report): void {
  const { seed, seconds, members, together, near, rounds, weather, oneWay, memory, leftOut, operations, sharedReads, sections, faults, counts, problems, logs } = report;
  const list = (numbers: Record<string, number>): string => Object.entries(numbers).map(([name, count]) => `${name} ${count}`).join(', ');
  console.log(timesTable(report));
  console.log(`seed ${seed}, ${members} members${near ? ' on one machine, in one network' : together ? ' as on one machine' : ', each as on a machine of its own'}, ${rounds} rounds in ${Math.round(seconds)} s: ${list(faults)}`);
  console.log(`packets by ${weather}, one way by ${oneWay}, memory by ${memory}${leftOut.length > 0 ? `; not here: ${leftOut.join('; ')}` : ''}`);
  console.log(`${operations} accesses, ${sharedReads} reads of what another member had written, ${sections} sections under a lock`);
  if (Object.keys(counts).length > 0) console.log(`also: ${list(counts)}`);
  for (const { rule, round, fault, message } of problems) console.log(`BROKEN: ${rule}, in round ${round} (${fault}): ${message}`);
  console.log(problems.length === 0 ? 'nothing is broken' : `the histories are in ${logs}`);
}

main().then((code) => { process.exitCode = code; }, (error: Error) => {
  console.error(error.stack);
  process.exitCode = 2;
});
