/**
 * Real members for tests: child processes that are driven by functions sent to them.
 *
 *   const cluster = uniqueCluster();
 *   const a = await Member.start({ cluster });            // a process that has joined, and waits for something to do
 *   const b = await Member.start({ cluster, name: 'b' });
 *   await a.open('grid', { size: 1 << 20 });              // a's `region` from here on
 *   await b.open('grid');
 *   await a.run(({ region }) => { new Int32Array(region.buffer)[5] = 42; });
 *   assert.equal(await b.run(({ region }, index) => new Int32Array(region.buffer)[index], 5), 42);
 *
 * run() sends the function's source, so the function sees nothing of the file that it stands in: only its two arguments
 * and the globals of Node. The first is the child's `state`, a plain object that lives as long as the child:
 *
 *   faultline, join, attempt   the package (absent with `load: 'none'`)
 *   cluster                    what join() gave at the start (absent with `join: false`)
 *   region, regions            the last region that open() opened; all of them by name
 *   require, import            with paths as from here; `import` as a function, for ES modules
 *   tell(name, value?)         tells the test something before the function ends: `await a.told(name)` there
 *   anything else              whatever earlier functions kept: `state.view = new Float64Array(state.region.buffer)`
 *
 * The second is run()'s second argument. Arguments and results are copied as by structuredClone (bigints, typed arrays,
 * maps and undefined survive; handles, buffers of regions and functions don't). A function that throws makes run()
 * reject with a MemberError that has the error's name, message, code and fields. `using` and `await using` work.
 *
 * Threads of a member are driven in the same way; the main thread can be asked other things while they run. What they
 * say passes through the member's event loop, so it comes late while the main thread blocks:
 *
 *   const t = await a.thread(({ region }) => ({ buffer: region.buffer }));   // what this returns is posted: t's state
 *   const total = t.run(({ buffer }) => Atomics.add(new Int32Array(buffer), 0, 1));
 *   await t.terminate();
 *
 * A thread's state has faultline, join, attempt only with `{ load: true }`; else the thread never loads the package.
 *
 * Every step has a deadline (`within`, ms) and rejects after it with what the child was asked and what it wrote to
 * stderr. After each test every child that still lives is killed by its pid, whether the test passed or failed; when it
 * failed, what the children wrote is shown.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type * as faultline from '../../lib/index.js';
import type { JoinOptions, Region, RegionOptions } from '../../lib/index.js';

/** ms that a step may take unless it says otherwise: long on a busy machine with two cores, short for whoever waits. */
export const STEP_MS = 20_000;

/* eslint-disable @typescript-eslint/no-explicit-any */
/** What functions find in their first argument. What they keep there themselves has no type. */
export interface State {
  faultline: typeof faultline;
  join: typeof faultline.join;
  attempt: typeof faultline.attempt;
  cluster: faultline.Cluster;
  region: Region;
  regions: Record<string, Region>;
  require: NodeJS.Require;
  import(specifier: string): Promise<any>;
  tell(name: string, value?: unknown): void;
  [kept: string]: any;
}

export type Step<A, R> = (state: State, args: A) => R | Promise<R>;

export interface StepOptions {
  /** ms until the step is given up. */
  within?: number;
}

export interface StartOptions {
  /** Another Node.js than this one. */
  execPath?: string;
  /** As join() takes it; see {@link uniqueCluster}. Not needed with `join: false`. */
  cluster?: string;
  name?: string;
  /** Added to this process's environment. */
  env?: Record<string, string>;
  /** Options for node itself, for example `--expose-gc`. */
  execArgv?: string[];
  /** A network namespace to start in (needs root). */
  netns?: string;
  /** More options for join(), or false: don't join. */
  join?: JoinOptions | false;
  /** How the package is loaded. Default 'cjs'. */
  load?: 'cjs' | 'esm' | 'none';
  /** ms for the start and the join. */
  within?: number;
}

/** How a child ended. */
export interface Exit { code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }

/** What a function in a child threw: with the fields of the original error, and its `code` and `name`. */
export class MemberError extends Error {
  declare readonly code: string | undefined;
  [field: string]: unknown;
  constructor(where: string, thrown: Thrown) {
    super(thrown.message);
    this.name = thrown.name;
    Object.assign(this, thrown.fields);
    this.stack = `${thrown.name}: ${thrown.message}\n    [in ${where}]\n${thrown.stack}`;
  }
}

// ---- what parent and child say to one another -----------------------------------------------------------------------

export interface Thrown { name: string; message: string; stack: string; fields: Record<string, unknown> }
export type Ask =
  | { id: number; thread: number; run: string; args: unknown }
  | { id: number; thread: number; start: { give: string | null; load: boolean } }
  | { id: number; thread: number; terminate: true }
  | { id: number; thread: 0; release: true };
export type Reply = { id: number; value: unknown } | { id: number; thrown: Thrown } | { told: string; value: unknown };

let clusters = 0;

/** A cluster that no other test, and no other run of the tests, has. */
export function uniqueCluster(): string {
  return `local:test-${process.pid}-${++clusters}-${randomBytes(4).toString('hex')}`;
}

const living = new Set<Member>();
let startedInTest: Member[] = [];

export class Member {
  readonly name: string;
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #exit: Promise<Exit>;
  readonly #asked = new Map<number, { resolve(value: any): void; reject(error: Error): void }>();
  readonly #told = new Map<string, { values: unknown[]; waiting: ((value: any) => void)[] }>();
  #stdout = '';
  #stderr = '';
  #ended: Exit | undefined;
  #ids = 0;
  #threads = 0;

  private constructor(child: ChildProcess, name: string) {
    this.name = name;
    this.#child = child;
    this.pid = child.pid!;
    child.stdout!.setEncoding('utf8').on('data', (text: string) => { this.#stdout += text; });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.#stderr += text; });
    child.on('message', (reply) => this.#hear(reply as Reply));
    child.on('error', () => undefined);
    // 'close' and not 'exit': only then everything that it wrote has been read.
    this.#exit = new Promise((resolve) => {
      child.once('close', (code, signal) => {
        this.#ended = { code, signal, stdout: this.#stdout, stderr: this.#stderr };
        living.delete(this);
        for (const { reject } of this.#asked.values()) reject(this.#gone());
        this.#asked.clear();
        resolve(this.#ended);
      });
    });
  }

  /** Starts a process, loads the package and joins. Rejects with the MemberError of the join; the process then lives on. */
  static async start(options: StartOptions): Promise<Member> {
    const script = path.join(__dirname, 'member.js');
    const name = options.name ?? `m${startedInTest.length}`;
    const load = options.load ?? 'cjs';
    const node = [...(options.execArgv ?? []), script, load];
    const execPath = options.execPath ?? process.execPath;
    const [command, args] = options.netns
      ? ['ip', ['netns', 'exec', options.netns, execPath, ...node]]
      : [execPath, node];
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'], serialization: 'advanced', env: { ...process.env, ...options.env },
    });
    if (child.pid === undefined) throw new Error(`could not start ${command}`);
    const member = new Member(child, name);
    living.add(member);
    startedInTest.push(member);
    if (options.join === false) {
      await member.run(() => undefined, undefined, { within: options.within });
      return member;
    }
    const how: JoinOptions = { cluster: options.cluster, name, ...options.join };
    await member.run(async (state, given) => { state.cluster = await state.join(given); }, how, { within: options.within });
    return member;
  }

  /** Runs a function in the main thread of the child: see above. */
  run<R>(step: Step<undefined, R>): Promise<Awaited<R>>;
  run<A, R>(step: Step<A, R>, args: A, options?: StepOptions): Promise<Awaited<R>>;
  run<A, R>(step: Step<A, R>, args?: A, options: StepOptions = {}): Promise<Awaited<R>> {
    return this.ask({ thread: 0, run: step.toString(), args }, options);
  }

  /** Runs a function that ends the process, at once or later, and waits for its end. */
  async last<A>(step: Step<A, unknown>, args?: A, options: StepOptions = {}): Promise<Exit> {
    const answer = this.ask({ thread: 0, run: step.toString(), args }, options).then(() => undefined, (error: Error) => error);
    const failed = await Promise.race([answer, this.#exit.then(() => undefined)]);
    if (failed && (failed as MemberError).code !== 'ERR_MEMBER_EXITED') throw failed;
    return this.exit(options);
  }

  /** Opens (or creates) a region in the child: `region`, and `regions[name]`, of its state. */
  async open(name: string, options?: Omit<RegionOptions, 'signal'>, step?: StepOptions): Promise<void> {
    await this.run(async (state, given) => {
      state.region = await state.cluster.region(given.name, given.options);
      state.regions[given.name] = state.region;
    }, { name, options }, step);
  }

  /** Closes the member's handle on the cluster; the process lives on. */
  async leave(step?: StepOptions): Promise<void> {
    await this.run(({ cluster }) => cluster.close(), undefined, step);
  }

  /** Starts a thread in the child. `give` runs in the child's main thread; what it returns is posted to the thread's state. */
  async thread(give?: Step<undefined, Record<string, unknown>>, options: StepOptions & { load?: boolean } = {}): Promise<Thread> {
    const thread = new Thread(this, ++this.#threads);
    await this.ask({ thread: thread.id, start: { give: give?.toString() ?? null, load: options.load ?? false } }, options);
    return thread;
  }

  /** What a function in the child has told, or tells next, under this name; each value is given once, in order. */
  told(name: string, { within = STEP_MS }: StepOptions = {}): Promise<any> {
    const box = this.#box(name);
    if (box.values.length > 0) return Promise.resolve(box.values.shift());
    let heard!: (value: unknown) => void;
    const waiting = new Promise((resolve) => box.waiting.push(heard = resolve));
    return this.#bounded(waiting, within, `told '${name}'`, () => box.waiting.splice(box.waiting.indexOf(heard), 1));
  }

  /** Lets the child end by itself: as soon as nothing else keeps its event loop alive. Nothing can be asked any more. */
  async release(): Promise<void> {
    await this.ask({ thread: 0, release: true }, {});
  }

  /** Sends a signal. After SIGSTOP it resolves when every thread of the child has stopped. */
  async kill(signal: NodeJS.Signals): Promise<void> {
    process.kill(this.pid, signal);
    if (signal !== 'SIGSTOP') return;
    while (!this.#stopped()) await delay(2);
  }

  /** Resolves when the process has ended; it does not end it. */
  exit({ within = STEP_MS }: StepOptions = {}): Promise<Exit> {
    return this.#bounded(this.#exit, within, 'the end of the process');
  }

  get ended(): Exit | undefined { return this.#ended; }
  get stdout(): string { return this.#stdout; }
  get stderr(): string { return this.#stderr; }

  /** The kill that always works. */
  async destroy(): Promise<void> {
    if (!this.#ended) this.#child.kill('SIGKILL');
    await this.#exit;
  }

  /** For this class and {@link Thread}. */
  ask(question: Omit<Ask, 'id'> & Record<string, unknown>, { within = STEP_MS }: StepOptions): Promise<any> {
    if (this.#ended || !this.#child.connected) return Promise.reject(this.#gone());
    const id = ++this.#ids;
    const answer = new Promise((resolve, reject) => {
      this.#asked.set(id, { resolve, reject });
      this.#child.send({ id, ...question }, (error) => { if (error) reject(error); });
    });
    const what = typeof question.run === 'string' ? question.run : JSON.stringify(question);
    return this.#bounded(answer, within, what, () => this.#asked.delete(id));
  }

  #hear(reply: Reply): void {
    if ('told' in reply) {
      const box = this.#box(reply.told);
      const waiting = box.waiting.shift();
      if (waiting) waiting(reply.value);
      else box.values.push(reply.value);
      return;
    }
    const asked = this.#asked.get(reply.id);
    this.#asked.delete(reply.id);
    if ('thrown' in reply) asked?.reject(new MemberError(`member ${this.name}`, reply.thrown));
    else asked?.resolve(reply.value);
  }

  #box(name: string): { values: unknown[]; waiting: ((value: any) => void)[] } {
    let box = this.#told.get(name);
    if (!box) this.#told.set(name, box = { values: [], waiting: [] });
    return box;
  }

  async #bounded<T>(promise: Promise<T>, within: number, what: string, late?: () => void): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        late?.();
        reject(new Error(`member ${this.name} (pid ${this.pid}): not within ${within} ms: ${what}\n--- its stderr:\n${this.#stderr}`));
      }, within);
    });
    try {
      return await Promise.race([promise, deadline]);
    } finally {
      clearTimeout(timer);
    }
  }

  #gone(): Error {
    const how = this.#ended ? `ended (code ${this.#ended.code}, signal ${this.#ended.signal})` : 'can be asked nothing any more';
    return Object.assign(new Error(`member ${this.name} (pid ${this.pid}) ${how}\n--- its stderr:\n${this.#stderr}`), { code: 'ERR_MEMBER_EXITED' });
  }

  #stopped(): boolean {
    try {
      return readdirSync(`/proc/${this.pid}/task`).every((task) => /\) T/.test(readFileSync(`/proc/${this.pid}/task/${task}/stat`, 'utf8')));
    } catch {
      return true;
    }
  }
}

/** A worker thread of a member. */
export class Thread {
  constructor(readonly member: Member, readonly id: number) {}

  /** As Member.run, in this thread. Functions for one thread run one after the other only if each is awaited. */
  run<R>(step: Step<undefined, R>): Promise<Awaited<R>>;
  run<A, R>(step: Step<A, R>, args: A, options?: StepOptions): Promise<Awaited<R>>;
  run<A, R>(step: Step<A, R>, args?: A, options: StepOptions = {}): Promise<Awaited<R>> {
    return this.member.ask({ thread: this.id, run: step.toString(), args }, options);
  }

  /** worker.terminate(); what it was asked rejects with code ERR_THREAD_EXITED. */
  async terminate(options: StepOptions = {}): Promise<void> {
    await this.member.ask({ thread: this.id, terminate: true }, options);
  }
}

/** Starts several members of one cluster, and lets each open the same region (the first creates it). */
export async function startMembers(count: number, region?: { name?: string } & Omit<RegionOptions, 'signal'>, options: StartOptions = {}): Promise<Member[]> {
  const cluster = options.cluster ?? uniqueCluster();
  const first = await Member.start({ ...options, cluster });
  const members = [first, ...await Promise.all(Array.from({ length: count - 1 }, () => Member.start({ ...options, cluster })))];
  if (region) {
    const { name = 'memory', ...given } = region;
    await first.open(name, given);
    await Promise.all(members.slice(1).map((member) => member.open(name)));
  }
  return members;
}

/** Ends every member that still lives: for programs that are no tests. */
export async function endMembers(): Promise<void> {
  startedInTest = [];
  await Promise.all([...living].map((member) => member.destroy()));
}

// Programs other than tests use members too, and end them themselves.
if (typeof afterEach === 'function') afterEach('no member outlives its test', async function () {
  const started = startedInTest;
  if (this.currentTest?.state === 'failed') {
    for (const member of started) {
      const { ended, stdout, stderr } = member;
      const how = ended ? `ended with ${ended.signal ?? ended.code}` : 'alive';
      console.error(`      member ${member.name} (pid ${member.pid}): ${how}\n${indent(stdout)}${indent(stderr)}`);
    }
  }
  await endMembers();
});

function indent(text: string): string {
  return text && text.trimEnd().split('\n').map((line) => `        ${line}\n`).join('');
}
