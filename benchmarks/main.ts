/**
 * What a remote page fault costs, and where the time goes, beside other ways to fetch a page.
 *
 *   npm run bench -- [--section NAMES] [--placement NAMES] [--samples N] [--quick] [--json FILE] [--plots FOLDER] [--compare FILE]
 *   npx faultline bench ...
 *
 * This process measures nothing: it starts those that do (member.ts, and the programs in native/), and tells them what to do.
 */
import { writeFileSync } from 'node:fs';
import os from 'node:os';
import { CommanderError } from 'commander';
import { Bench } from './bench.js';
import { type Facts, isBusy, machineFacts, newPageCost, watch } from './machine.js';
import { placements, type Placement } from './placement.js';
import { buildPrograms } from './programs.js';
import { compare, readRun } from './report/compare.js';
import { drawPlots } from './report/plots.js';
import { changesText, header, sectionText, stagesText, targetsText } from './report/table.js';
import { targets } from './report/targets.js';
import { chooseGuard } from '../lib/guard.js';
import { GuardKind } from '../lib/native.js';
import { checkJoin } from '../lib/options.js';
import { emptyRun, type Run } from './results.js';
import { sections } from './sections/index.js';
import { parseSettings, type Settings } from './settings.js';

/** Progress: one line that changes on a terminal, else nothing but what is done. */
function say(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

async function runSection(run: Run, settings: Settings, name: string, placement: Placement): Promise<void> {
  const section = sections.find((one) => one.name === name)!;
  const stop = watch();
  const started = Date.now();
  const bench = new Bench(section, placement, settings, run, say);
  try {
    await section.run(bench);
  } catch (error) {
    run.failed.push(`${name}, ${placement.what}: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    await bench.close();
    say('');
  }
  const noise = stop();
  run.noise.push({ section: name, placement: placement.name, ...noise, seconds: Math.round((Date.now() - started) / 100) / 10, busy: isBusy(noise) });
}

/** @throws GuardUnavailableError */
function guardHere(): string {
  const { settings } = checkJoin(undefined);
  return chooseGuard({ ...settings, systemCalls: false }) === GuardKind.Userfaultfd ? 'userfaultfd' : 'mprotect';
}

/** @returns the exit code */
export async function bench(args: readonly string[]): Promise<number> {
  let settings: Settings;
  try {
    settings = parseSettings(args, sections.map(({ name }) => name));
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode;
    throw error;
  }
  if (settings.list) {
    for (const { name, about } of sections) console.log(`${name.padEnd(12)} ${about}`);
    return 0;
  }
  // For all processes that are started, and what chooses by itself here.
  if (settings.guard !== undefined) process.env.FAULTLINE_GUARD = settings.guard;
  const before = settings.compare === undefined ? undefined : readRun(settings.compare);
  await buildPrograms();
  const facts: Facts = { ...machineFacts(), guard: guardHere() };
  if (!settings.quick) facts['a new page'] = `${newPageCost().toFixed(1)} µs`;
  const run = emptyRun(facts, { ...settings });
  console.log(`${header(run)}\n`);
  for (const name of settings.sections) {
    const section = sections.find((one) => one.name === name)!;
    for (const wanted of section.only ? [section.only] : settings.placements) {
      const placement = placements.find((one) => one.name === wanted)!;
      if (placement.cores > os.availableParallelism()) {
        run.leftOut.push(`${name}, ${placement.what}: this machine has ${os.availableParallelism()} processors`);
        continue;
      }
      if (!process.stderr.isTTY) process.stderr.write(`${name}, ${placement.what} ...\n`);
      await runSection(run, settings, name, placement);
    }
    console.log(`${sectionText(run, section)}\n`);
  }
  run.targets = targets(run);
  for (const text of [stagesText(run), targetsText(run), before ? changesText(compare(run, before)) : '']) if (text !== '') console.log(`${text}\n`);
  for (const text of run.leftOut) console.log(`Left out: ${text}`);
  for (const text of run.failed) console.log(`Failed: ${text}`);
  if (settings.json !== undefined) writeFileSync(settings.json, JSON.stringify(run, null, 1));
  if (settings.plots !== undefined) for (const file of await drawPlots(run, settings.plots)) console.log(`Drawn: ${file}`);
  return run.failed.length > 0 ? 1 : 0;
}

if (require.main === module) {
  bench(process.argv.slice(2)).then((code) => process.exit(code), (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  });
}
