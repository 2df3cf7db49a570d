/** Raw zeromq.js: a Dealer to each side's Router, worker to worker, as the coordinators use it. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { Bench, Meter } from '../bench.js';
import type { State } from '../state.js';
import type { WorkerData } from './zeromq-worker.js';

/** Bytes of a question, and of an answer without its page. */
export const MESSAGE_BYTES = 64;

async function next(worker: Worker): Promise<Float64Array> {
  return (await once(worker, 'message'))[0] as Float64Array;
}

export const actions = {
  async start(state: State, data: WorkerData): Promise<void> {
    const worker = new Worker(path.join(__dirname, 'zeromq-worker.js'), { workerData: data });
    state.kept.set(`zeromq ${data.own}`, worker);
    await next(worker);
  },

  take(state: State, { own, count }: { own: string; count: number }): Promise<Float64Array> {
    const worker = state.kept.get(`zeromq ${own}`) as Worker;
    worker.postMessage(count);
    return next(worker);
  },

  async stop(state: State, { own }: { own: string }): Promise<void> {
    const worker = state.kept.get(`zeromq ${own}`) as Worker;
    const ended = once(worker, 'exit');
    worker.postMessage('close');
    await ended;
  },
};

/** @param answer bytes of a page, or 0 */
export async function zeromq(bench: Bench, answer: number): Promise<Meter> {
  const party = await bench.party({ members: 2, joined: false });
  const directory = mkdtempSync(path.join(os.tmpdir(), 'faultline-bench-'));
  bench.onClose(async () => rmSync(directory, { recursive: true, force: true }));
  const [server, client] = ['server', 'client'].map((role) => `ipc://${directory}/${role}.sock`);
  await party.call(0, 'references/zeromq#start', { role: 'server', own: server, other: client, bytes: answer });
  await party.call(1, 'references/zeromq#start', { role: 'client', own: client, other: server, bytes: answer });
  // A worker that ends with a receive pending takes its process down.
  bench.onClose(() => party.call(0, 'references/zeromq#stop', { own: server }).then(() => party.call(1, 'references/zeromq#stop', { own: client })).then(() => undefined, () => undefined));
  return {
    key: answer > 0 ? 'zeromq' : 'zeromq-short', reference: true,
    what: `raw zeromq.js, ${MESSAGE_BYTES} B there, ${MESSAGE_BYTES} B${answer > 0 ? ` + ${answer / 1024} KiB` : ''} back`,
    take: (count) => party.call(1, 'references/zeromq#take', { own: client, count }),
  };
}
