/** ioredis beside a redis-server that is started here, if one is installed. */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import type { Redis } from 'ioredis';
import type { Bench, Meter } from '../bench.js';
import { LeftOutError, placed, within } from '../programs.js';
import type { State } from '../state.js';

const KEYS = 32;
const READY_MS = 10_000;

function installed(): boolean {
  try {
    execFileSync('redis-server', ['--version'], { stdio: 'ignore' });
    require.resolve('ioredis');
    return true;
  } catch {
    return false;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

function ready(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let said = '';
    child.stdout!.on('data', (data: Buffer) => {
      said = (said + data.toString()).slice(-10_000);
      if (said.includes('Ready to accept connections')) resolve();
    });
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`redis-server ended with ${code}: ${said}`)));
  });
}

export const actions = {
  async connect(state: State, { port, bytes }: { port: number; bytes: number }): Promise<void> {
    const { Redis: Client } = await import('ioredis');
    const client = new Client({ port, host: '127.0.0.1', lazyConnect: true, enableReadyCheck: true });
    await client.connect();
    const value = Buffer.alloc(bytes, 7);
    for (let i = 0; i < KEYS; i++) await client.set(`page ${i}`, value);
    state.kept.set('redis', client);
  },

  async take(state: State, { count, many }: { count: number; many: boolean }): Promise<Float64Array> {
    const client = state.kept.get('redis') as Redis;
    const names = Array.from({ length: KEYS }, (_, i) => `page ${i}`);
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      if (many) await client.mgetBuffer(names);
      else await client.getBuffer(names[i % KEYS]);
      samples[i] = Number(process.hrtime.bigint() - start);
    }
    return samples;
  },
};

export async function redis(bench: Bench, bytes: number): Promise<Meter[]> {
  if (!installed()) throw new LeftOutError('redis-server (Debian: apt-get install redis-server) or the package ioredis is not installed');
  const port = await freePort();
  const [command, ...args] = placed(bench.placement, 0, ['redis-server', '--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--daemonize', 'no'], { endsWithUs: true });
  const server = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  const ended = new Promise((resolve) => server.once('exit', resolve));
  bench.onClose(async () => {
    server.kill();
    const late = setTimeout(() => server.kill('SIGKILL'), 5000);
    await ended;
    clearTimeout(late);
  });
  await within(ready(server), READY_MS, 'redis-server');
  // Node's own index for the client: it sits where a reader sits.
  const party = await bench.party({ members: 1, joined: false, seat: () => 1 });
  await party.call(0, 'references/redis#connect', { port, bytes });
  const take = (many: boolean) => (count: number): Promise<Float64Array> => party.call(0, 'references/redis#take', { count, many });
  return [
    { key: 'redis-get', reference: true, what: `ioredis GET of ${bytes / 1024} KiB`, take: take(false) },
    { key: 'redis-mget', reference: true, what: `ioredis MGET of ${KEYS} x ${bytes / 1024} KiB`, bytes: KEYS * bytes, take: take(true) },
  ];
}
