/**
 * Litmus tests of the memory on real members: see docs/memory-model.md.
 *
 *   npm run litmus -- [--iterations N] [--seed S] [--only NAME...] [--json FILE]
 *
 * Ends with 0 if nothing forbidden was seen, 1 if something was, 2 if the run failed, 130 after an interrupt.
 */
import { writeFileSync } from 'node:fs';
import Table from 'cli-table3';
import { Command, InvalidArgumentError } from 'commander';
import { countOf, runLitmus, variants, type Result, type Variant } from './runner.js';
import { allShapes } from './shapes.js';

/** ms between two lines of progress where there is no terminal to write them over. */
const PROGRESS_MS = 10_000;
const verdicts = { sc: 'allowed', tso: 'allowed, weak', forbidden: 'FORBIDDEN' };

function whole(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('a whole number, 1 or more');
  return value;
}

const program = new Command('litmus')
  .description('Litmus tests of the memory model on real members: a histogram of outcomes, and which of them are forbidden')
  .option('--iterations <n>', 'instances over all variants together', whole, 100_000)
  .option('--seed <n>', 'for places, orders and delays', whole, 1)
  .option('--only <names...>', `only these shapes: ${allShapes().map(({ name }) => name).join(', ')}`)
  .option('--json <file>', 'also write the histograms there');

async function main(): Promise<number> {
  const options = program.parse().opts<{ iterations: number; seed: number; only?: string[]; json?: string }>();
  const known = allShapes().map(({ name }) => name);
  const unknown = options.only?.filter((name) => !known.includes(name)) ?? [];
  if (unknown.length > 0) {
    console.error(`no such shape: ${unknown.join(', ')}; there are ${known.join(', ')}`);
    return 2;
  }
  if (process.arch !== 'x64') {
    console.error(`the model is that of x86-64, and this is ${process.arch}`);
    return 2;
  }
  const list = variants(allShapes().filter(({ name }) => options.only?.includes(name) ?? true));
  const stop = new AbortController();
  const interrupt = (): void => stop.abort(new Error('interrupted'));
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
  const begin = Date.now();
  try {
    const results = await runLitmus(list, { ...options, signal: stop.signal, progress: progressLine(list.length, options.iterations, begin) });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    report(results, options.seed, (Date.now() - begin) / 1000);
    if (options.json) writeFileSync(options.json, `${JSON.stringify({ seed: options.seed, results }, null, 1)}\n`);
    return countOf(results, 'forbidden') > 0 ? 1 : 0;
  } catch (error) {
    if (stop.signal.aborted) {
      console.error('interrupted: nothing is said about what was run');
      return 130;
    }
    throw error;
  }
}

function progressLine(variantCount: number, iterations: number, begin: number): (done: number, variant: Variant) => void {
  let said = begin;
  return (done, { shape, form, layout, placement }) => {
    const now = Date.now();
    if (now - said < (process.stderr.isTTY ? 200 : PROGRESS_MS)) return;
    said = now;
    const text = `${done} of about ${iterations} (${variantCount} variants), ${Math.round((now - begin) / 1000)} s: ${shape.name}, ${form}, ${layout}, ${placement}`;
    process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : `${text}\n`);
  };
}

function report(results: Result[], seed: number, seconds: number): void {
  const table = new Table({ head: ['shape', 'form', 'variables on', 'threads in', 'outcome', 'count', ''], style: { head: [], border: [], compact: true } });
  for (const { shape, form, layout, placement, outcomes } of results) {
    for (const [row, { outcome, count, verdict }] of outcomes.entries()) {
      table.push([...(row === 0 ? [shape, form, layout, placement] : ['', '', '', '']), outcome, { content: String(count), hAlign: 'right' }, verdicts[verdict]]);
    }
  }
  console.log(table.toString());
  const iterations = results.reduce((sum, result) => sum + result.iterations, 0);
  console.log(`${iterations} iterations of ${results.length} variants in ${seconds.toFixed(0)} s (seed ${seed})`);
  const weak = results.filter((result) => countOf([result], 'tso') > 0);
  console.log(weak.length > 0
    ? `weak outcomes, allowed only because stores are buffered: ${countOf(weak, 'tso')}, in ${weak.map((result) => `${result.shape} (${result.layout}, ${result.placement}: ${countOf([result], 'tso')})`).join(', ')}`
    : 'no weak outcome was seen: this run could not have told a machine with store buffers from one without, and proves less than it should');
  console.log(`forbidden outcomes: ${countOf(results, 'forbidden')}`);
}

main().then((code) => { process.exitCode = code; }, (error: Error) => {
  console.error(error.stack);
  process.exitCode = 2;
});
