/** A process of the litmus runner: joins, opens the region, and hands jobs to its threads. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { join, type Cluster, type Region } from 'faultline';
import type { Answer, Question } from './messages.js';

let cluster: Cluster | undefined;
let region: Region | undefined;
const threads = new Map<number, Worker>();
/** One line for each thread: how far it has come. */
const abreast = new Int32Array(new SharedArrayBuffer(4096));

// The runner is gone, or wants this process gone: nobody else would end it.
process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
// An interrupt from the terminal reaches every process; the runner is who decides what ends when.
process.on('SIGINT', () => undefined);
process.on('message', (question) => void answer(question as Question));

function say(message: Answer): void {
  if (process.connected) process.send!(message);
}

async function answer(question: Question): Promise<void> {
  try {
    if ('thread' in question) {
      threads.get(question.thread)!.postMessage({ id: question.id, job: question.job });
      return;
    }
    say({ id: question.id, value: await carryOut(question) });
  } catch (error) {
    say({ id: question.id, error: String((error as Error).stack) });
  }
}

async function carryOut(question: Exclude<Question, { thread: number }>): Promise<unknown> {
  if ('join' in question) cluster = await join(question.join);
  else if ('open' in question) {
    const { name, size } = question.open;
    region = await cluster!.region(name, size === undefined ? { mode: 'open' } : { mode: 'create', size, placement: 'spread' });
    return { pageSize: region.pageSize, size: region.size };
  } else if ('homes' in question) {
    return Promise.all(question.homes.pages.map(async (page) => (await region!.inspect(page * region!.pageSize)).home));
  } else if ('startThread' in question) {
    const worker = new Worker(path.join(__dirname, 'thread.js'), { workerData: { buffer: region!.buffer, abreast } });
    worker.on('message', say);
    // Its question never gets an answer then; the end of the process tells the runner at once.
    worker.on('error', (error) => { console.error(error); process.exit(1); });
    threads.set(question.startThread, worker);
    await new Promise((resolve) => worker.once('online', resolve));
  } else {
    await Promise.all([...threads.values()].map((worker) => worker.terminate()));
    await cluster?.close();
  }
  return undefined;
}
