/** One end of zeromq.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { Dealer, Router } from 'zeromq';
import { MESSAGE_BYTES } from './zeromq.js';

export interface WorkerData { role: 'server' | 'client'; own: string; other: string; bytes: number }

const options = { linger: 0, sendTimeout: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 } as const;

async function main({ role, own, other, bytes }: WorkerData): Promise<void> {
  const router = new Router(options);
  await router.bind(own);
  const dealer = new Dealer(options);
  dealer.connect(other);
  parentPort!.on('message', async (message: unknown) => {
    if (message === 'close') {
      router.close();
      dealer.close();
      parentPort!.close();
    } else if (typeof message === 'number') {
      const samples = new Float64Array(message);
      for (let i = 0; i < samples.length; i++) {
        const start = process.hrtime.bigint();
        await dealer.send(Buffer.alloc(MESSAGE_BYTES));
        await router.receive();
        samples[i] = Number(process.hrtime.bigint() - start);
      }
      parentPort!.postMessage(samples);
    }
  });
  parentPort!.postMessage('up');
  if (role === 'client') return;
  for await (const [, request] of router) {
    // Memory of its own for each answer, as a coordinator needs it: zeromq sends it without copying.
    const page = Buffer.allocUnsafeSlow(bytes);
    if (bytes > 0) page[0] = request[0];
    await dealer.send(bytes > 0 ? [Buffer.alloc(MESSAGE_BYTES), page] : Buffer.alloc(MESSAGE_BYTES));
  }
}

if (parentPort) void main(workerData as WorkerData);
