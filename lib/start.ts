/**
 * The members of this process. Their coordinators are always workers of the main thread, because a worker that another
 * worker started dies with it: so the main thread starts them, for itself and for workers that ask it to.
 */
import path from 'node:path';
import { BroadcastChannel, isMainThread, SHARE_ENV, threadId, Worker } from 'node:worker_threads';
import { MAIN_CHANNEL, type CoordinatorSettings, type StartAnswer, type Started, type StartRequest } from './calls.js';
import { fromWire, makeError, toWire } from './errors.js';
import { isEnding, unwatchExit, watchExit, type Stoppable } from './exit.js';
import { Down, native } from './native.js';
import { exitTimeout, JOIN_ADDRESS_SPACE, show, type Given } from './options.js';
import type { WireError } from './coordinator/protocol/messages.js';

/** Here main tells every thread that a coordinator is gone, for those to whom it could not say so itself. */
export const ENDED_CHANNEL = 'faultline/ended';
export interface Ended { member: number; error: WireError }

/** ms that a coordinator which could not join has to clean up before its thread is ended. */
const FAILED_GRACE_MS = 2000;
/** ms that close() waits for a thread that has nothing left to do. */
const ENDING_GRACE_MS = 2000;

/** What a worker asks for beyond the settings: see {@link findMember}. */
interface StartMessage extends StartRequest { given: Given; ending: number }

class Member implements Stoppable {
  readonly exited: Promise<void>;
  readonly started: Promise<number>;
  #handle = 0;
  #worker: Worker;
  #failure: WireError | undefined;

  constructor(readonly settings: CoordinatorSettings, onExit: (member: Member) => void) {
    this.#worker = new Worker(path.join(__dirname, 'coordinator', 'main.js'), {
      workerData: settings,
      // Flags of the program such as loaders are not for the thread that all others wait for.
      execArgv: [],
      env: SHARE_ENV,
      stdout: false,
      stderr: false,
      name: `faultline ${settings.key}`,
    });
    // Ref'd until it has started, because somebody waits for that; afterwards it must not keep the program alive.
    this.started = new Promise<number>((resolve, reject) => {
      this.#worker.once('message', (message: Started) => {
        if ('failed' in message) {
          this.#failure = message.failed;
          // Whoever waits is told when the thread is gone, so that a second try meets nothing of the first.
          setTimeout(() => this.abandon(), FAILED_GRACE_MS).unref();
          return;
        }
        this.#handle = message.started;
        this.#worker.unref();
        resolve(message.started);
      });
      this.#worker.once('exit', () => reject(fromWire(this.#failure ?? toWire(this.#lastWords()))));
    });
    this.started.catch(() => undefined);
    this.#worker.on('error', (error) => {
      this.#failure ??= { code: 'ERR_FAULTLINE_COORDINATOR', message: `the coordinator of ${settings.key} ended: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}` };
    });
    this.exited = new Promise((resolve) => {
      this.#worker.once('exit', () => {
        onExit(this);
        resolve();
      });
    });
  }

  /** A coordinator makes its member before it opens any socket, so the table may know what Started did not say yet. */
  handle(): number {
    return this.#handle || native.memberFind(this.settings.key);
  }

  /** It has said goodbye, or something ended it: no handle can be attached any more. */
  isOver(): boolean {
    return this.#handle !== 0 && hasEnded(this.settings.key, this.#handle);
  }

  /** What handles are told once the thread is gone. */
  lastError(): WireError {
    return this.#failure ?? toWire(this.#lastWords());
  }

  #lastWords(): Error {
    let inOrder = false;
    try {
      inOrder = this.#handle !== 0 && native.memberState(this.#handle) !== Down.CoordinatorDied;
    } catch {
      // The native side has let go of it already, which it does only after an orderly end.
      inOrder = true;
    }
    return inOrder
      ? makeError('ERR_FAULTLINE_CLOSED', `this process has left ${this.settings.key}`, { what: this.settings.key })
      : makeError('ERR_FAULTLINE_COORDINATOR', `the coordinator of ${this.settings.key} ended unexpectedly`);
  }

  abandon(): void {
    void this.#worker.terminate();
  }

  hold(): void {
    this.#worker.ref();
  }

  letGo(): void {
    this.#worker.unref();
  }
}

const members = new Map<string, Member>();

function memberExited(member: Member): void {
  if (members.get(member.settings.key) === member) members.delete(member.settings.key);
  if (members.size === 0) unwatchExit();
  const handle = member.handle();
  if (handle === 0) return;
  const channel = new BroadcastChannel(ENDED_CHANNEL);
  channel.postMessage({ member: handle, error: member.lastError() } satisfies Ended);
  channel.close();
}

/**
 * The native handle of this process's member of that cluster; it is started if there is none.
 * @param ending a member that turned out to be on its way out: the new one starts after its end. 0: none.
 * @throws JoinRefusedError (`reason: 'options'`) if the member has other options than `given`; NotOnMainError; whatever joining throws
 */
export async function findMember(settings: CoordinatorSettings, given: Given, ending = 0): Promise<number> {
  if (!isMainThread) return askMain(settings, given, ending);
  for (;;) {
    if (isEnding()) throw makeError('ERR_FAULTLINE_CLOSED', 'this process is exiting', { what: settings.key });
    const present = members.get(settings.key);
    if (!present) {
      exitTimeout(); // A mistake in the environment shows here, not when pages are at stake.
      if (!native.canMap(JOIN_ADDRESS_SPACE)) {
        throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `joining ${settings.key} needs ${JOIN_ADDRESS_SPACE} bytes of address space, which this process may not have (see ulimit -v)`, { cluster: settings.key });
      }
      const member = new Member(settings, memberExited);
      members.set(settings.key, member);
      watchExit(() => [...members.values()]);
      return member.started;
    }
    if (present.isOver() || (ending !== 0 && present.handle() === ending)) {
      await goneMember(present, settings);
      continue;
    }
    checkSame(present.settings, given);
    watchExit(() => [...members.values()]);
    return present.started;
  }
}

/** Waits for the end of a member that can't be joined any more; its thread must be gone before the next one can have its name. */
async function goneMember(member: Member, settings: CoordinatorSettings): Promise<void> {
  member.hold();
  const handle = member.handle();
  // An evicted member, or one whose cluster was lost, still has handles that may never be closed: it is told to stop.
  if (handle !== 0 && native.memberFind(settings.key) === handle && isDown(handle)) native.requestStop(handle, settings.joinTimeout);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(makeError('ERR_FAULTLINE_JOIN_TIMEOUT', `this process has not finished leaving ${settings.key} after ${settings.joinTimeout} ms`, { cluster: settings.key }));
    }, settings.joinTimeout);
  });
  try {
    await Promise.race([member.exited, late]);
  } finally {
    clearTimeout(timer);
    member.letGo();
  }
}

function isDown(handle: number): boolean {
  try {
    const state = native.memberState(handle);
    return state !== Down.Up && state !== Down.Frozen;
  } catch {
    // The native side has let go of it.
    return true;
  }
}

/** This member's stay in the cluster is over; its thread may need another moment. */
export function hasEnded(key: string, handle: number): boolean {
  return native.memberFind(key) !== handle || isDown(handle);
}

/** Main thread: resolves when the coordinator's thread of that member has ended, or after a while; elsewhere at once. */
export async function memberEnded(handle: number): Promise<void> {
  for (const member of members.values()) {
    if (member.handle() !== handle) continue;
    member.hold();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, ENDING_GRACE_MS);
    });
    await Promise.race([member.exited, late]);
    clearTimeout(timer);
    member.letGo();
  }
}

function checkSame(existing: CoordinatorSettings, given: Given): void {
  for (const option of ['name', 'faultTimeout', 'insecure', 'lane', 'guard', 'systemCalls', 'memoryLimit'] as const) {
    const wanted = given[option];
    if (wanted === undefined || wanted === existing[option]) continue;
    throw makeError('ERR_FAULTLINE_JOIN_REFUSED',
      `this process is a member of ${existing.key} with ${option} ${show(existing[option])}; join() asked for ${show(wanted)}`,
      { reason: 'options', option, wanted, existing: existing[option] });
  }
}

let asked = 0;

function askMain(settings: CoordinatorSettings, given: Given, ending: number): Promise<number> {
  if (!native.hasMainHook()) {
    return Promise.reject(makeError('ERR_FAULTLINE_NOT_ON_MAIN', "join() in a worker needs the main thread, which starts the coordinator: import 'faultline' on the main thread, too, before the worker joins"));
  }
  return new Promise((resolve, reject) => {
    const reply = `${MAIN_CHANNEL}/${threadId}/${++asked}`;
    const answers = new BroadcastChannel(reply);
    const requests = new BroadcastChannel(MAIN_CHANNEL);
    answers.onmessage = (event) => {
      const answer = (event as { data: StartAnswer }).data;
      answers.close();
      if ('error' in answer) reject(fromWire(answer.error));
      else resolve(answer.member);
    };
    requests.postMessage({ start: settings.key, settings, reply, given, ending } satisfies StartMessage);
    requests.close();
  });
}

function answerWorkers(): void {
  const requests = new BroadcastChannel(MAIN_CHANNEL);
  requests.onmessage = (event) => {
    const { settings, given, ending, reply } = (event as { data: StartMessage }).data;
    const answer = (value: StartAnswer): void => {
      const channel = new BroadcastChannel(reply);
      channel.postMessage(value);
      channel.close();
    };
    findMember(settings, given, ending).then((member) => answer({ member }), (error) => answer({ error: toWire(error) }));
  };
  requests.unref();
}

if (isMainThread) {
  native.setMainHook();
  answerWorkers();
}
