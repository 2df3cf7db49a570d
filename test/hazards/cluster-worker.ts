/** A worker of Node's `cluster` module that joins, listens at the port that it shares with the others, and counts in the region. */
import net from 'node:net';
import { attempt, join } from '../../lib/index.js';

const [, , address, index] = process.argv;

async function main(): Promise<void> {
  const joined = await join({ cluster: address });
  const region = await joined.region('counts', { mode: 'open' });
  const words = new Int32Array(region.buffer);
  // Each connection is told its number among all, and who served it.
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined);
    socket.end(JSON.stringify({ count: attempt(() => Atomics.add(words, 0, 1)), worker: Number(index), member: joined.self.id }));
  });
  server.listen(0, '127.0.0.1');
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
