/** What else there is to fetch a page with, as meters. */
import type { Bench, Meter } from '../bench.js';
import { net } from './net.js';
import { redis } from './redis.js';
import { socket } from './sockets.js';
import { zeromq } from './zeromq.js';

/** µs: what a lane polls, too. */
export const POLL_US = 50;

export async function references(bench: Bench, page: number): Promise<Meter[]> {
  return [
    await zeromq(bench, page),
    await net(bench, page),
    await socket(bench, 'unix', 0, page),
    await socket(bench, 'unix', POLL_US, page),
    await socket(bench, 'unix', 0, page, true),
    await socket(bench, 'unix', POLL_US, page, true),
    await socket(bench, 'tcp', 0, page),
    await socket(bench, 'tcp', POLL_US, page),
    ...((await bench.unlessLeftOut('ioredis', () => redis(bench, page))) ?? []),
  ];
}
