/**
 * Shows that the simulator finds bugs: makes each of list.ts's, one at a time, in a copy of the product, and runs seeds
 * until an invariant is broken. A bug in the words that no seed shows must be found by their exhaustive test.
 *
 *   npm run mutants                         all of them
 *   npm run mutants -- --only no-poison     one
 */
import { execFile, fork } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import Table from 'cli-table3';
import { Command, InvalidArgumentError } from 'commander';
import ts from 'typescript';
import type { Order, Report } from '../worker.js';
import { type Mutant, mutants } from './list.js';

/** The transitions of the native words. */
const WORDS = 'native/directory.cc';
const root = path.resolve(__dirname, '../../../..');
/** Seeds that a worker gets at a time. */
const BATCH = 100;
/** ms after which a batch counts as a run that never ends. */
const BATCH_TIME = 120_000;

export interface Result { mutant: Mutant; seeds: number; invariant: string | null; message: string; seconds: number }

/** Makes the mutant in a folder of its own and runs seeds until it is found; `most`: how many. */
export async function hunt(mutant: Mutant, most: number): Promise<Result> {
  const begun = Date.now();
  const folder = mkdtempSync(path.join(os.tmpdir(), 'faultline-mutant-'));
  try {
    await make(mutant, folder);
    const result = mutant.test === undefined ? await run(folder, most, mutant.seed) : await runTest(folder, mutant.test);
    // What the product itself breaks with this seed is no finding of the mutant's.
    if (mutant.test === undefined && result.invariant !== null && result.invariant !== 'assertion') {
      const control = await run(root, 1, result.seeds);
      if (control.invariant !== null) throw new Error(`seed ${result.seeds} breaks ${control.invariant} without any mutant: ${control.message}`);
    }
    if (result.invariant === null && mutant.edits.some(({ file }) => file === WORDS) && !(await passesExhaustiveTest(folder))) result.invariant = 'exhaustive test of the words';
    return { mutant, ...result, seconds: (Date.now() - begun) / 1000 };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The files that the mutant changes, changed. Throws if a text that it replaces does not stand in its file exactly once. */
export function changedFiles(mutant: Mutant): Map<string, string> {
  const changed = new Map<string, string>();
  for (const { file, find, replace } of mutant.edits) {
    const text = changed.get(file) ?? readFileSync(path.join(root, file), 'utf8');
    const [before, after, ...more] = text.split(find);
    if (after === undefined || more.length > 0) throw new Error(`mutant ${mutant.name}: ${file} has its text ${after === undefined ? 'nowhere' : `${more.length + 1} times`}: ${find}`);
    changed.set(file, before + replace + after);
  }
  return changed;
}

async function make(mutant: Mutant, folder: string): Promise<void> {
  const changed = changedFiles(mutant);
  cpSync(path.join(root, 'dist', 'lib'), path.join(folder, 'dist', 'lib'), { recursive: true });
  cpSync(path.join(root, 'dist', 'test', 'simulation'), path.join(folder, 'dist', 'test', 'simulation'), { recursive: true });
  const isNative = (file: string): boolean => file.startsWith('native/');
  for (const [file, text] of changed) {
    if (isNative(file)) continue;
    const { outputText } = ts.transpileModule(text, { compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022, esModuleInterop: true } });
    writeFileSync(path.join(folder, 'dist', file.replace(/\.ts$/, '.js')), outputText);
  }
  const addon = path.join('test', 'simulation', 'native');
  mkdirSync(path.join(folder, 'test', 'simulation'), { recursive: true });
  if (![...changed.keys()].some(isNative)) {
    symlinkSync(path.join(root, addon), path.join(folder, addon));
    return;
  }
  // Copied with its times, so that only what the mutant changes is compiled again.
  cpSync(path.join(root, addon), path.join(folder, addon), { recursive: true, preserveTimestamps: true });
  cpSync(path.join(root, 'native'), path.join(folder, 'native'), { recursive: true, preserveTimestamps: true });
  // The makefile names node-gyp's own files, from here.
  symlinkSync(path.join(root, 'node_modules'), path.join(folder, 'node_modules'));
  for (const [file, text] of changed) if (isNative(file)) writeFileSync(path.join(folder, file), text);
  await promisify(execFile)('make', ['-s', '-C', path.join(folder, addon, 'build'), 'BUILDTYPE=Release'], { maxBuffer: 1 << 24 });
}

/** What seeds show too seldom a test of this folder shows. */
async function runTest(folder: string, test: string): Promise<{ seeds: number; invariant: string | null; message: string }> {
  const mocha = path.join(root, 'node_modules', 'mocha', 'bin', 'mocha.js');
  return promisify(execFile)(process.execPath, [mocha, '--no-config', path.join(folder, 'dist', 'test', 'simulation', `${test}.test.js`)], { maxBuffer: 1 << 24, timeout: BATCH_TIME })
    .then(() => ({ seeds: 0, invariant: null, message: '' }), (error: Error & { code?: unknown; stdout?: string }) => {
      // Mocha's exit code is the number of tests that fail; whatever else happened is no finding.
      if (typeof error.code !== 'number' || !/\d failing/.test(error.stdout ?? '') || /" hook/.test(error.stdout ?? '')) throw error;
      return { seeds: 0, invariant: `${test}.test.ts`, message: '' };
    });
}

/** The native test of the words, which tries all their values and interleavings, against the mutant. */
async function passesExhaustiveTest(folder: string): Promise<boolean> {
  const tests = path.join('test', 'native');
  cpSync(path.join(root, tests), path.join(folder, tests), { recursive: true });
  await promisify(execFile)('make', ['-s', '-C', path.join(folder, tests), 'OUT=.', './directory_test'], { maxBuffer: 1 << 24 });
  return promisify(execFile)(path.join(folder, tests, 'directory_test'), { maxBuffer: 1 << 24, timeout: BATCH_TIME }).then(() => true, () => false);
}

function run(folder: string, most: number, from = 1): Promise<{ seeds: number; invariant: string | null; message: string }> {
  return new Promise((resolve, reject) => {
    const child = fork(path.join(folder, 'dist', 'test', 'simulation', 'worker.js'), { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    let said = '';
    child.stderr!.on('data', (text: Buffer) => { said += text.toString(); });
    let seeds = 0;
    let timer: NodeJS.Timeout | undefined;
    let result: { seeds: number; invariant: string | null; message: string } | null = null;
    const end = (value: typeof result): void => {
      clearTimeout(timer);
      result = value;
      child.kill('SIGKILL');
    };
    const go = (): void => {
      timer = setTimeout(() => end({ seeds: seeds + BATCH, invariant: 'every-fault-ends', message: 'a run did not end' }), BATCH_TIME);
      child.send({ first: from + seeds, count: Math.min(BATCH, most - seeds) } satisfies Order);
    };
    child.on('message', ({ failures }: Report) => {
      clearTimeout(timer);
      if (failures.length > 0) return end({ seeds: failures[0].seed, invariant: failures[0].invariant, message: failures[0].message.split('\n')[0] });
      seeds += BATCH;
      if (seeds >= most) end({ seeds, invariant: null, message: '' });
      else go();
    });
    child.once('error', reject);
    child.once('exit', () => {
      clearTimeout(timer);
      // Taken down by a broken assumption of the native code, say.
      resolve(result ?? { seeds: seeds + BATCH, invariant: 'assertion', message: `the run ended the process: ${said.trim().split('\n')[0]}` });
    });
    go();
  });
}

interface Options { only?: string[]; seeds: number; workers: number; json?: string; markdown?: string }

async function main(): Promise<number> {
  const whole = (text: string): number => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('a whole number');
    return value;
  };
  const options = new Command('mutants')
    .description('Makes deliberate bugs, one at a time, and shows which invariant the simulator finds them by. Exits with 1 if one survives')
    .option('--only <names...>', 'these mutants only')
    .option('--seeds <n>', 'give up after so many seeds', whole, 100_000)
    .option('--workers <n>', 'mutants at a time', whole, os.availableParallelism())
    .option('--json <file>', 'also write the results there')
    .option('--markdown <file>', 'also write the table there')
    .parse().opts<Options>();
  const unknown = options.only?.filter((name) => !mutants.some((mutant) => mutant.name === name)) ?? [];
  if (unknown.length > 0) throw new Error(`no mutant has the name ${unknown.join(', ')}; there are ${mutants.map(({ name }) => name).join(', ')}`);
  const chosen = mutants.filter(({ name }) => options.only?.includes(name) ?? true);
  const queue = [...chosen];
  const results: Result[] = [];
  await Promise.all(Array.from({ length: Math.min(options.workers, queue.length) }, async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      const result = await hunt(next, options.seeds);
      results.push(result);
      process.stderr.write(`${results.length} of ${chosen.length}: ${next.name}: ${result.invariant === null ? `not found in ${result.seeds} seeds` : `${result.invariant}${result.seeds === 0 ? '' : `, seed ${result.seeds}`}`} (${result.seconds.toFixed(0)} s)\n`);
    }
  }));
  results.sort((a, b) => mutants.indexOf(a.mutant) - mutants.indexOf(b.mutant));
  const table = new Table({ head: ['mutant', 'found by', 'seeds', 'what it does'], colWidths: [40, 20, 9, 70], wordWrap: true, style: { head: [], border: [] } });
  for (const { mutant, invariant, seeds } of results) table.push([mutant.name, invariant ?? 'NOT FOUND', seeds || '–', mutant.what]);
  console.log(table.toString());
  const survivors = results.filter(({ invariant }) => invariant === null);
  console.log(`${results.length - survivors.length} of ${results.length} mutants found`);
  if (options.json !== undefined) writeFileSync(options.json, JSON.stringify(results.map(({ mutant, ...rest }) => ({ name: mutant.name, what: mutant.what, ...rest })), null, 2));
  if (options.markdown !== undefined) {
    const lines = results.map(({ mutant, invariant, seeds }) => `| ${mutant.name} | ${mutant.what} | ${invariant ?? '**not found**'} | ${seeds || '–'} |`);
    writeFileSync(options.markdown, `| mutant | what it does | found by | seeds |\n| --- | --- | --- | ---: |\n${lines.join('\n')}\n`);
  }
  return survivors.length === 0 ? 0 : 1;
}

if (require.main === module) {
  main().then((code) => { process.exitCode = code; }, (error: unknown) => {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  });
}
