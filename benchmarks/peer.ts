/**
 * One of the two processes that are measured. 'home' creates the region and has written every page; 'reader' faults on
 * its main thread, and takes blocks of faults and of the reference in turn, so that what disturbs one disturbs both.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { join, type Region } from '../lib/index.js';
import type { RawData } from './raw.js';

const [, , role, cluster, directory, wanted, which] = process.argv;
const PAGE = 4096;
const INTS = PAGE / 4;
/** Samples in a block. */
const BLOCK = 100;
/** Blocks that only warm up. */
const WARM_UP = 30;

const samplesWanted = Number(wanted);
const blocks = Math.ceil(samplesWanted / BLOCK) + WARM_UP;
const pages = blocks * BLOCK * 2 * 2;
const size = pages * PAGE;

function raw(data: Omit<RawData, 'role' | 'own' | 'other'>): Promise<Worker> {
  const mine = `ipc://${directory}/${role}-${data.bytes}.sock`;
  const others = `ipc://${directory}/${role === 'home' ? 'reader' : 'home'}-${data.bytes}.sock`;
  const worker = new Worker(path.join(__dirname, 'raw.js'), { workerData: { ...data, role: role === 'home' ? 'server' : 'client', own: mine, other: others } });
  return new Promise((resolve, reject) => {
    worker.once('message', () => resolve(worker));
    worker.once('error', reject);
  });
}

function ask(worker: Worker, count: number): Promise<number[]> {
  return new Promise((resolve) => {
    worker.once('message', resolve);
    worker.postMessage(count);
  });
}

async function close(worker: Worker): Promise<void> {
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  worker.postMessage('close');
  await ended;
}

/** Every second page of a half of the region, in an order without a pattern: no read-ahead, no two in one request. */
function order(half: number): number[] {
  const list = Array.from({ length: blocks * BLOCK }, (_, i) => half * (pages / 2) + 2 * i);
  let seed = 12345;
  for (let i = list.length - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    const j = seed % (i + 1);
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

async function read(region: Region): Promise<void> {
  const view = new Int32Array(region.buffer);
  const withPage = await raw({ bytes: PAGE });
  const without = await raw({ bytes: 0 });
  const sections: Record<string, { page(block: number, i: number): number; touch(at: number): number; reference: Worker }> = {};
  const first = order(0);
  const second = order(1);
  sections.read = { page: (block, i) => first[block * BLOCK + i], touch: (at) => view[at], reference: withPage };
  sections.upgrade = { page: (block, i) => first[block * BLOCK + i], touch: (at) => (view[at] = -1), reference: without };
  sections.write = { page: (block, i) => second[block * BLOCK + i], touch: (at) => (view[at] = -1), reference: withPage };
  for (const [name, section] of Object.entries(sections)) {
    // An upgrade needs copies that were read before.
    if (name !== 'upgrade' && which !== 'all' && which !== name && !(name === 'read' && which === 'upgrade')) continue;
    if (name === 'upgrade' && which !== 'all' && which !== name) continue;
    const faults: number[] = [];
    const reference: number[] = [];
    for (let block = 0; block < blocks; block++) {
      const taken: number[] = [];
      for (let i = 0; i < BLOCK; i++) {
        const at = section.page(block, i) * INTS;
        const start = process.hrtime.bigint();
        const value = section.touch(at);
        taken.push(Number(process.hrtime.bigint() - start));
        if (name === 'read' && value !== at / INTS + 1) throw new Error(`page ${at / INTS} holds ${value}`);
      }
      const other = await ask(section.reference, BLOCK);
      if (block >= WARM_UP) {
        faults.push(...taken);
        reference.push(...other);
      }
      process.send!({ progress: (block + 1) / blocks, section: name });
    }
    process.send!({ section: name, faults, reference });
  }
  await Promise.all([close(withPage), close(without)]);
}

async function main(): Promise<void> {
  const joined = await join({ cluster });
  if (role === 'home') {
    const region = await joined.region('bench', { size });
    const view = new Int32Array(region.buffer);
    for (let page = 0; page < pages; page++) view[page * INTS] = page + 1;
    const servers = await Promise.all([raw({ bytes: PAGE }), raw({ bytes: 0 })]);
    process.send!('ready');
    process.once('disconnect', () => void Promise.all(servers.map(close)).then(() => process.exit(0)));
    return;
  }
  await read(await joined.region('bench', { mode: 'open' }));
  process.send!('done', () => process.exit(0));
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
