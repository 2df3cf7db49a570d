/**
 * A thread of a member: walks over the instances of a litmus test.
 *
 * The machine must meet the accesses in the order in which the shape has them, and JavaScript promises no such order for
 * plain ones. So every access is a call of a function of its own, and the process runs without inlining (runner.ts):
 * no compiler sees two of them at once, and none can reorder, merge or leave out what it does not see.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { Answer, Job, Pace, RunPlan, Values } from './messages.js';
import type { Form, Size } from './shapes.js';

type Element = number | bigint;
/** `index` counts elements of the access's size, or bytes for an unaligned one. */
type AccessFunction = (index: number, value: Element) => Element;

const { buffer, abreast } = workerData as { buffer: SharedArrayBuffer; abreast: Int32Array };
const words = new Int32Array(buffer);
const bytes = new DataView(buffer);
const views = { 1: new Uint8Array(buffer), 2: new Uint16Array(buffer), 4: new Uint32Array(buffer), 8: new BigUint64Array(buffer) };
/** What nobody else waits on: for a pause without a busy loop. */
const pause = new Int32Array(new SharedArrayBuffer(4));
/** How often to look before the processor is left to others: about as long as a thread on another core needs to get here. */
const LOOKS = 2000;
/** ms */
const PAUSE = 0.2;
/** How many pauses a thread makes for the others in a whole batch. Whoever pauses gets a processor at once when it is through, so that on a busy machine threads meet that seldom run together. After that nobody is waited for. */
const PAUSES_ABREAST = 100;
/** Elements between the words of two threads in `abreast`: a line of the cache. */
const LINE = 16;
/** ns: the clock's times at which threads begin. Far more than what lies between the times at which they notice that all have met. */
const BEGIN_EVERY = 2_000_000n;

/** One function for each kind of access for the whole life of the thread: one made anew for each batch would be interpreted again, and a store would have left its buffer long before the load that follows. */
const functions = new Map<string, AccessFunction>();

function accessFunction(kind: 'load' | 'store', size: Size, form: Form, aligned: boolean): AccessFunction {
  const key = [kind, size, form, aligned].join();
  let access = functions.get(key);
  if (!access) functions.set(key, access = newAccessFunction(kind, size, form, aligned));
  return access;
}

function newAccessFunction(kind: 'load' | 'store', size: Size, form: Form, aligned: boolean): AccessFunction {
  if (!aligned) {
    return kind === 'load'
      ? (index) => bytes.getBigUint64(index, true)
      : (index, value) => { bytes.setBigUint64(index, value as bigint, true); return 0; };
  }
  const view = views[size] as Uint32Array;
  if (form === 'atomics') {
    return kind === 'load' ? (index) => Atomics.load(view, index) : (index, value) => Atomics.store(view, index, value as number);
  }
  return kind === 'load' ? (index) => view[index] : (index, value) => { view[index] = value as number; return 0; };
}

function run({ form, accesses, order, delays, gaps, warm, start, pace }: RunPlan): Values {
  const aligned = accesses.map(({ addresses, size }) => addresses.every((address) => address % size === 0));
  // Arrays side by side, and not objects: what is done between two accesses must be short.
  const calls = accesses.map(({ kind, size }, number) => accessFunction(kind, size, form, aligned[number]));
  const values = accesses.map(({ size, value }): Element => (size === 8 ? BigInt(value) : value));
  const places = accesses.map(({ addresses, size }, number) => (aligned[number] ? addresses.map((address) => address / size) : addresses));
  const results = accesses.map(({ addresses }) => Array<Element>(addresses.length).fill(0));
  let sum = 0;
  for (const at of warm) sum += words[at / 4];
  if (pace.by === 'looking') Atomics.store(abreast, pace.self * LINE, 0);
  rendezvous(start);
  const wait = pacer(pace);
  for (let turn = 0; turn < order.length; turn++) {
    const instance = order[turn];
    wait(turn);
    for (let round = delays[turn]; round > 0; round--) sum++;
    for (let number = 0; number < calls.length; number++) {
      results[number][instance] = calls[number](places[number][instance], values[number]);
      if (gaps !== null) for (let round = gaps[turn]; round > 0; round--) sum++;
    }
  }
  if (sum === -1) throw new Error('the delays and the warming up have to be used, or they are compiled away');
  return Float64Array.from(results.filter((_, number) => accesses[number].kind === 'load').flatMap((loaded) => loaded.map(Number)));
}

/** Both ways only make it likely that threads meet: what is judged does not depend on it. */
function pacer(pace: Pace): (turn: number) => void {
  const begin = (process.hrtime.bigint() / BEGIN_EVERY + 1n) * BEGIN_EVERY;
  if (pace.by === 'clock') {
    return (turn) => { while (process.hrtime.bigint() < begin + BigInt(turn * pace.period)); };
  }
  while (process.hrtime.bigint() < begin);
  let pauses = 0;
  return (turn) => {
    Atomics.store(abreast, pace.self * LINE, turn + 1);
    for (let other = 0; other < pace.threads; other++) {
      for (let looks = 1; pauses < PAUSES_ABREAST && abreast[other * LINE] <= turn; looks++) {
        if (looks % LOOKS !== 0) continue;
        pauses++;
        Atomics.wait(pause, 0, 0, PAUSE);
      }
    }
  };
}

function rendezvous({ at, target, within }: RunPlan['start']): void {
  const deadline = Date.now() + within;
  Atomics.add(words, at / 4, 1);
  for (let looks = 1; Atomics.load(words, at / 4) < target; looks++) {
    if (looks < LOOKS) continue;
    if (Date.now() > deadline) throw new Error(`the other threads did not start within ${within} ms`);
    Atomics.wait(pause, 0, 0, PAUSE);
  }
}

function carryOut(job: Job): Values {
  switch (job.do) {
    case 'run': return run(job.plan);
    case 'clear':
      for (const page of job.pages) new Uint8Array(buffer, page * job.pageSize, job.pageSize).fill(0);
      return new Float64Array(0);
    case 'read': return Float64Array.from(job.addresses, (address) => Number(bytes.getBigUint64(address, true)));
  }
}

parentPort!.on('message', ({ id, job }: { id: number; job: Job }) => {
  let answer: Answer;
  try {
    answer = { id, value: carryOut(job) };
  } catch (error) {
    answer = { id, error: String((error as Error).stack) };
  }
  parentPort!.postMessage(answer);
});
