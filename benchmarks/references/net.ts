/** node:net between the main threads of two processes. */
import { createServer, connect, type AddressInfo, type Socket } from 'node:net';
import type { Bench, Meter } from '../bench.js';
import type { State } from '../state.js';
import { MESSAGE_BYTES } from './zeromq.js';

/** Calls `whole` for each `bytes` that have come. */
function counted(socket: Socket, bytes: number, whole: () => void): void {
  let got = 0;
  socket.on('data', (data: Buffer) => {
    got += data.length;
    for (; got >= bytes; got -= bytes) whole();
  });
}

export const actions = {
  serve(_state: State, { answer }: { answer: number }): Promise<number> {
    const bytes = Buffer.alloc(answer, 7);
    const server = createServer({ noDelay: true }, (socket) => {
      counted(socket, MESSAGE_BYTES, () => socket.write(bytes));
      socket.on('error', () => socket.destroy());
    });
    return new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
    });
  },

  connect(state: State, { port }: { port: number }): Promise<void> {
    return new Promise((resolve, reject) => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true }, resolve);
      socket.once('error', reject);
      state.kept.set('net socket', socket);
    });
  },

  take(state: State, { count, answer }: { count: number; answer: number }): Promise<Float64Array> {
    const socket = state.kept.get('net socket') as Socket;
    const samples = new Float64Array(count);
    const request = Buffer.alloc(MESSAGE_BYTES);
    return new Promise((resolve) => {
      let done = 0;
      let start = 0n;
      const ask = (): void => {
        start = process.hrtime.bigint();
        socket.write(request);
      };
      socket.removeAllListeners('data');
      counted(socket, answer, () => {
        samples[done++] = Number(process.hrtime.bigint() - start);
        if (done === count) resolve(samples);
        else ask();
      });
      ask();
    });
  },
};

export async function net(bench: Bench, page: number): Promise<Meter> {
  const answer = MESSAGE_BYTES + page;
  const party = await bench.party({ members: 2, joined: false });
  const port = await party.call<number>(0, 'references/net#serve', { answer });
  await party.call(1, 'references/net#connect', { port });
  return {
    key: 'net', reference: true, what: `node:net (TCP), ${MESSAGE_BYTES} B there, ${MESSAGE_BYTES} B + ${page / 1024} KiB back`,
    take: (count) => party.call(1, 'references/net#take', { count, answer }),
  };
}
