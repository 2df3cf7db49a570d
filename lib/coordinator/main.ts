/** Entry of the coordinator's worker. */
import { workerData } from 'node:worker_threads';
import type { CoordinatorSettings } from '../calls.js';
import { native } from '../native.js';

const settings = workerData as CoordinatorSettings;
/*
 * First of all the member's native side, by which a process that exits finds this thread and waits for its end; once
 * the exit has begun none is made any more, and this throws. zeromq is loaded only then: a thread that were ended
 * while it loads, or while a socket is open, would take the process down.
 */
const member = native.memberCreate(settings.key);
// eslint-disable-next-line @typescript-eslint/no-require-imports -- after the line above, not before it
const { Coordinator } = require('./coordinator.js') as typeof import('./coordinator.js');

const coordinator = new Coordinator(settings, member);
// A broken assumption of the protocol, most likely. Nothing may go on from here, but the end must be an orderly one: a
// worker that ends with a receive pending takes the whole process down.
process.on('uncaughtException', (error) => coordinator.broken(error));
coordinator.join().catch((error: unknown) => coordinator.failed(error));
