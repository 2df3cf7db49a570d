/**
 * The reference: a round trip over zeromq.js between workers of the same two processes, of the same sizes as a fault's
 * messages (64 bytes there, 64 bytes and a page back) over the same kinds of sockets (a Dealer to each side's Router).
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Dealer, Router } from 'zeromq';

export interface RawData { role: 'server' | 'client'; own: string; other: string; bytes: number }

const options = { linger: 0, sendTimeout: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 } as const;

async function main({ role, own, other, bytes }: RawData): Promise<void> {
  const router = new Router(options);
  await router.bind(own);
  const dealer = new Dealer(options);
  dealer.connect(other);
  // A worker that ends with a receive pending takes its process down.
  parentPort!.on('message', (message: unknown) => {
    if (message !== 'close') return;
    router.close();
    dealer.close();
    parentPort!.close();
  });
  parentPort!.postMessage('up');
  if (role === 'server') {
    for await (const [, request] of router) {
      // Memory of its own for each answer, as a coordinator needs it: zeromq sends it without copying.
      const page = Buffer.allocUnsafeSlow(bytes);
      page[0] = request[0];
      await dealer.send(bytes > 0 ? [Buffer.alloc(64), page] : Buffer.alloc(64));
    }
    return;
  }
  parentPort!.on('message', async (count: unknown) => {
    if (typeof count !== 'number') return;
    const samples: number[] = [];
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      await dealer.send(Buffer.alloc(64));
      await router.receive();
      samples.push(Number(process.hrtime.bigint() - start));
    }
    parentPort!.postMessage(samples);
  });
}

void main(workerData as RawData);
