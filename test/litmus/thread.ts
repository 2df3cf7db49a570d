/**
 * A thread of a member: walks over the instances of a litmus test.
 *
 * The machine must meet the accesses in the order in which the shape has them, and JavaScript promises no such order for
 * plain ones. So every access is a call of a function of its own, and the process runs without inlining (runner.ts):
 * no compiler sees two of them at once, and none can reorder, merge or leave out what it does not see.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { Answer, Job, RunPlan, Values } from './messages.js';
import type { Form, Size } from './shapes.js';

type Element = number | bigint;
/** `index` counts elements of the access's size, or bytes for an unaligned one. */
type AccessFunction = (index: number, value: Element) => Element;

const buffer = (workerData as { buffer: SharedArrayBuffer }).buffer;
const words = new Int32Array(buffer);
const bytes = new DataView(buffer);
const views = { 1: new Uint8Array(buffer), 2: new Uint16Array(buffer), 4: new Uint32Array(buffer), 8: new BigUint64Array(buffer) };
/** What nobody else waits on: for a pause without a busy loop. */
const pause = new Int32Array(new SharedArrayBuffer(4));
/** How often to look before the processor is left to others: about as long as a thread on another core needs to get here. */
const LOOKS = 2000;
/** ms */
const PAUSE = 0.2;

function accessFunction(kind: 'load' | 'store', size: Size, form: Form, aligned: boolean): AccessFunction {
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

function run({ form, accesses, order, delays, warm, start }: RunPlan): Values {
  const prepared = accesses.map(({ kind, size, value, addresses }) => {
    const aligned = addresses.every((address) => address % size === 0);
    return {
      access: accessFunction(kind, size, form, aligned),
      value: size === 8 ? BigInt(value) : value,
      places: aligned ? addresses.map((address) => address / size) : addresses,
      results: Array<Element>(addresses.length).fill(0),
    };
  });
  let sum = 0;
  for (const at of warm) sum += words[at / 4];
  rendezvous(start);
  for (let turn = 0; turn < order.length; turn++) {
    const instance = order[turn];
    for (let round = delays[turn]; round > 0; round--) sum++;
    for (let number = 0; number < prepared.length; number++) {
      const { access, value, places, results } = prepared[number];
      results[instance] = access(places[instance], value);
    }
  }
  if (sum === -1) throw new Error('the delays and the warming up have to be used, or they are compiled away');
  const loads = prepared.filter((_, number) => accesses[number].kind === 'load');
  return Float64Array.from(loads.flatMap(({ results }) => results.map(Number)));
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
