/** The process that a {@link Member} of members.ts drives: runs the functions that it is sent. */
import { createRequire } from 'node:module';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { evaluate, offerHelpers, thrown } from './evaluate.js';
import type { Ask, Reply, State } from './members.js';

const [, , load] = process.argv;
let released = false;
const threads = new Map<number, Worker>();
/** Questions that a thread has not answered yet. */
const open = new Map<number, number>();

function reply(message: Reply): void {
  if (!process.connected) return;
  process.send!(message);
}

const importModule = (specifier: string): Promise<unknown> => import(specifier);

const state = {
  regions: {},
  require: createRequire(__filename),
  import: importModule,
  tell: (name: string, value?: unknown) => reply({ told: name, value }),
} as unknown as State;
offerHelpers();

const ready = loadPackage();
// Whatever comes of it is the answer to the first question.
ready.catch(() => undefined);

process.on('message', (ask) => void answer(ask as Ask));
process.on('disconnect', () => {
  // The test is gone: nobody else would end this process if it hangs.
  if (!released) process.kill(process.pid, 'SIGKILL');
});

async function loadPackage(): Promise<void> {
  if (load === 'none') return;
  const { join, attempt } = state.faultline = load === 'esm' ? await import('faultline') as never : state.require('faultline');
  Object.assign(state, { join, attempt });
}

async function answer(ask: Ask): Promise<void> {
  try {
    await ready;
    if ('start' in ask) return void await startThread(ask.id, ask.thread, ask.start);
    if ('terminate' in ask) return void await terminate(ask.id, ask.thread);
    if ('release' in ask) {
      released = true;
      process.send!({ id: ask.id, value: undefined } satisfies Reply, () => process.disconnect());
      return;
    }
    if (ask.thread !== 0) {
      const thread = threads.get(ask.thread);
      if (!thread) return threadGone(ask.id);
      open.set(ask.id, ask.thread);
      thread.postMessage(ask);
      return;
    }
    reply({ id: ask.id, value: await evaluate(ask.run, state, ask.args) });
  } catch (error) {
    reply({ id: ask.id, thrown: thrown(error) });
  }
}

async function startThread(id: number, number: number, { give, load: loaded }: { give: string | null; load: boolean }): Promise<void> {
  const given = give === null ? {} : await evaluate(give, state, undefined);
  const worker = new Worker(path.join(__dirname, 'thread.js'), { workerData: { given, load: loaded } });
  threads.set(number, worker);
  open.set(id, number);
  worker.on('message', (message: Reply | 'ready') => {
    if (message === 'ready') message = { id, value: undefined };
    if ('id' in message && !open.delete(message.id)) return;
    reply(message);
  });
  let failure: unknown;
  worker.on('error', (error) => { failure = error; });
  worker.on('exit', () => {
    threads.delete(number);
    for (const [asked, thread] of open) if (thread === number) threadGone(asked, failure);
  });
  // A thread that waits for questions must not keep a released process alive.
  worker.unref();
}

async function terminate(id: number, number: number): Promise<void> {
  await threads.get(number)?.terminate();
  reply({ id, value: undefined });
}

function threadGone(id: number, failure?: unknown): void {
  open.delete(id);
  const gone = failure ? thrown(failure) : { name: 'Error', message: 'the thread has ended', stack: '', fields: {} };
  reply({ id, thrown: { ...gone, fields: { ...gone.fields, code: gone.fields.code ?? 'ERR_THREAD_EXITED' } } });
}
