/**
 * The main job: about 150,000 cities (GeoNames), indexed by flatbush in one process, asked for by others, over one region.
 * The library is unmodified and runs straight on region.buffer: only the pages that queries touch cross the wire.
 *
 *   npm run cities
 *
 * One process builds. Three ask about their part of the world, check every answer, and measure. A fourth is killed with
 * -9 in the middle. Beside it, the same queries with every node of the index fetched by request and response.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import Table from 'cli-table3';
import type { Built } from './builder.js';
import { PARTS, SHOW, type Answer } from './queries.js';
import type { Asked, Checked, Moved, Remote, Timed } from './reader.js';
import { Role } from './roles.js';

/** Queries that are timed, asked of the server too, and checked, by each reader. */
const TIMED = 300;
const CHECKED = 1000;
const SEED = 20261123;

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

function percentile(values: number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor((sorted.length * percent) / 100))];
}

function us(value: number): string {
  return value >= 1000 ? `${(value / 1000).toFixed(1)} ms` : `${value.toFixed(0)} µs`;
}

function size(bytes: number): string {
  return bytes >= 1 << 20 ? `${(bytes / (1 << 20)).toFixed(1)} MiB` : `${(bytes / 1024).toFixed(0)} KiB`;
}

function show(answers: Answer[]): void {
  for (const [number, { title }] of SHOW.entries()) {
    const { ids, km, places } = answers[number];
    console.log(`${title}${km.length === 0 ? ` (${ids.length} places)` : ''}`);
    for (const [at, { name, country, longitude, latitude }] of places.entries()) {
      const distance = km[at] === undefined ? '' : `  ${km[at].toFixed(1)} km`;
      console.log(`  ${name}, ${country}  (${latitude.toFixed(3)}, ${longitude.toFixed(3)})${distance}`);
    }
  }
}

async function main(): Promise<number> {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'faultline-cities-'));
  process.once('exit', () => {
    Role.killAll();
    rmSync(directory, { recursive: true, force: true });
  });
  const cluster = `local:cities-${process.pid}`;
  say('starting a builder, four readers, and a server to compare with ...');
  const builder = new Role('builder', 'builder.js', [cluster]);
  await builder.ready;
  const readers = PARTS.map((part, number) => new Role(`reader ${number + 1} (${part.name})`, 'reader.js', [cluster, `reader-${number + 1}`]));
  const endpoint = `ipc://${directory}/server.sock`;
  const server = new Role('server', 'baseline-server.js', [endpoint]);
  say('building the index in the region ...');
  const built = await builder.order<Built>('build');
  await Promise.all([...readers, server].map((role) => role.ready));

  console.log(`\n${built.places} places; index ${size(built.indexBytes)}, with names ${size(built.usedBytes)}, built in ${built.ms.toFixed(0)} ms with ${built.faults} local faults.\n`);
  const rest = readers.slice(0, 3);
  const victim = readers[3];
  show(await rest[0].order<Answer[]>('show'));

  say('\nmeasuring, one reader after the other ...');
  const rows: { moved: Moved; timed: Timed; remote: Remote }[] = [];
  for (const [number, reader] of rest.entries()) {
    const asked: Asked = { seed: SEED + number, count: TIMED, part: PARTS[number] };
    const timed = await reader.order<Timed>('time', asked);
    const moved = await reader.order<Moved>('moved');
    const remote = await reader.order<Remote>('remote', { ...asked, endpoint });
    rows.push({ timed, moved, remote });
  }

  say('checking all answers against private memory; reader 4 is killed with -9 in the middle ...');
  const killed = new Promise<void>((resolve) => {
    victim.on<number>('progress', (done) => {
      if (done > 0.2) resolve(victim.kill());
    });
  });
  const asked = (number: number): Asked => ({ seed: SEED + 100 + number, count: CHECKED, part: PARTS[number] });
  const lost = victim.order<Checked>('check', asked(3)).then(() => 'finished', (error: Error) => error.message);
  const checks = await Promise.all(rest.map((reader, number) => reader.order<Checked>('check', asked(number))));
  await killed;
  const end = await lost;

  const moved = new Table({ head: ['reader', 'pages moved', 'bytes moved', 'of the data', 'faults', 'fault: median', 'p99'], style: { head: [], border: [] } });
  const cost = new Table({ head: ['a query', 'first time: median', 'p99', 'again: median', 'p99', 'over zeromq: median', 'messages', 'again is faster by'], style: { head: [], border: [] } });
  for (const [number, row] of rows.entries()) {
    const { name } = PARTS[number];
    moved.push([name, row.moved.pages, size(row.moved.bytes), `${((100 * row.moved.bytes) / built.usedBytes).toFixed(1)}%`, row.moved.faults, us(row.moved.median), us(row.moved.p99)]);
    const again = percentile(row.timed.again, 50);
    const remote = percentile(row.remote.times, 50);
    cost.push([name, us(percentile(row.timed.first, 50)), us(percentile(row.timed.first, 99)), us(again), us(percentile(row.timed.again, 99)), us(remote), (row.remote.messages / TIMED).toFixed(0), `${(remote / again).toFixed(0)}x`]);
  }
  console.log(`\nWhat crossed the wire for ${TIMED} queries of each reader (and the answers above, by reader 1):`);
  console.log(moved.toString());
  console.log('\nWhat a query costs: the first time, again, and with every index node fetched by a message over raw zeromq:');
  console.log(cost.toString());

  const wrong = [...checks.flatMap((check) => check.wrong), ...rows.filter((row) => row.remote.wrong > 0).map((row) => `${row.remote.wrong} answers of the server differ`)];
  const queries = checks.reduce((sum, check) => sum + check.queries, 0);
  console.log(`\n${queries} answers checked against the same index in private memory: ${wrong.length === 0 ? 'all the same' : `${wrong.length} WRONG`}.`);
  for (const why of wrong.slice(0, 5)) console.log(`  ${why}`);
  console.log(`Reader 4 was killed with -9 in the middle (${end}); the others finished.`);
  for (const role of [...rest, server, builder]) await role.close();
  return wrong.length === 0 ? 0 : 1;
}

main().then((code) => process.exit(code), (error: Error) => {
  console.error(error.message);
  process.exit(1);
});
