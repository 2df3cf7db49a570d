/**
 * How this process goes, on its main thread: whichever way it ends, its members first hand over what they hold, within
 * a bound, and the exit code or signal stays what it would have been.
 *
 *   beforeExit   the event loop is empty: members are stopped with the loop running
 *   exit         process.exit(), an uncaught error: members are stopped while the main thread blocks, bounded
 *   a signal     only if the program has no listener of its own: as at exit, then the signal is raised again
 */
import { constants } from 'node:os';
import { isMainThread } from 'node:worker_threads';
import { native } from './native.js';
import { EXIT_GRACE_MS, exitTimeout } from './options.js';

/** A member of this process, from the first moment of its start. */
export interface Stoppable {
  /** Native handle; 0 while the coordinator has not made it yet. */
  handle(): number;
  /** Ends a coordinator that has no member yet, hence no socket that would mind. */
  abandon(): void;
  /** Keeps the event loop alive until the coordinator's thread has ended. */
  hold(): void;
  /** Lets the event loop end without it again. */
  letGo(): void;
  readonly exited: Promise<void>;
}

const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;
/** Exit code of a process that a signal ended, as shells count it: this and the signal's number. */
const SIGNALLED = 128;

/** Node's exit code when a listener of 'exit' throws. */
const UNCAUGHT_AT_EXIT = 7;

let members: () => Stoppable[] = () => [];
let watching = false;
/** After a bounded attempt to leave in order has failed, the next one would only wait in vain again. */
let gaveUp = false;
let ending = false;
let reallyExitReplaced = false;

/** Is the process in its 'exit' event, or beyond? Nothing new may be started then. */
export function isEnding(): boolean {
  return ending;
}

/** Main thread. Call it at every join: our listener then runs after those that the program had added until then, so that they still can use the memory. */
export function watchExit(of: () => Stoppable[]): void {
  members = of;
  process.removeListener('exit', onExit).on('exit', onExit);
  if (watching) return;
  watching = true;
  gaveUp = false;
  replaceReallyExit();
  native.parkFaults(false);
  process.removeListener('exit', onLastExit);
  process.on('beforeExit', onBeforeExit);
  process.on('uncaughtExceptionMonitor', onUncaught);
  for (const signal of SIGNALS) process.on(signal, onSignal);
}

/** Main thread, when no member is left: the process behaves again as if the package had never been used. */
export function unwatchExit(): void {
  watching = false;
  process.removeListener('exit', onExit).removeListener('beforeExit', onBeforeExit).removeListener('uncaughtExceptionMonitor', onUncaught);
  for (const signal of SIGNALS) process.removeListener(signal, onSignal);
}

/**
 * A JavaScript listener can't run while the main thread blocks, and without one the signal's default action ends the
 * process at once. So a blocking call that takes long gives the signals back for its duration: Ctrl-C must work.
 */
export function releaseSignals(): () => void {
  if (!isMainThread || !watching) return () => undefined;
  for (const signal of SIGNALS) process.removeListener(signal, onSignal);
  return () => {
    if (watching) for (const signal of SIGNALS) process.on(signal, onSignal);
  };
}

function onBeforeExit(): void {
  if (gaveUp) return;
  const leaving = members();
  if (leaving.length === 0) return;
  const timeout = exitTimeout();
  let timer: NodeJS.Timeout | undefined;
  // A worker that nobody waits for may be in a fault, and must not change how the process ends.
  native.parkFaults(true);
  process.removeListener('exit', onLastExit).on('exit', onLastExit);
  for (const member of leaving) {
    member.hold();
    const handle = member.handle();
    if (handle !== 0) requestStop(handle, timeout);
    else member.abandon();
  }
  // When the bound is over the loop must become empty again; the 'exit' event then deals with what is left.
  timer = setTimeout(() => {
    gaveUp = true;
    for (const member of leaving) member.letGo();
  }, timeout);
  void Promise.all(leaving.map((member) => member.exited)).then(() => clearTimeout(timer));
}

/**
 * process.exit() that is called again by a listener of 'exit' leaves at once, and the listeners that were still to come
 * (ours is among the last) are never called. This undocumented step is where programs hook in, and Node keeps it for them.
 */
function replaceReallyExit(): void {
  if (reallyExitReplaced) return;
  reallyExitReplaced = true;
  const last = process as unknown as { reallyExit(code?: number): never };
  const { reallyExit } = last;
  last.reallyExit = function (code = 0): never {
    if (watching && !ending) onExit(code);
    return reallyExit.call(process, code);
  };
}

/** The members are gone; threads that are parked in the handler would keep Node from ending. */
function onLastExit(code: number): void {
  native.exiting(code, 0);
}

/** A listener of 'exit' that throws ends the process without calling those after it. */
function onUncaught(): void {
  if ((process as unknown as { _exiting?: boolean })._exiting && !ending) onExit(UNCAUGHT_AT_EXIT);
}

function onExit(code: number): void {
  ending = true;
  const timeout = gaveUp ? 0 : exitTimeoutOrDefault();
  // From here on a thread that is in a fault waits for the end of the process, rather than being that end itself.
  native.exiting(code, timeout + EXIT_GRACE_MS);
  const stopped = stopNow(timeout);
  // A coordinator that did not stop has sockets, and tearing those down under a pending receive aborts the process.
  if (!stopped) native.leaveNow(code);
  // Threads that are in a fault now would keep Node from ending.
  native.exiting(code, EXIT_GRACE_MS);
}

function onSignal(signal: NodeJS.Signals): void {
  // The program has its own idea of what this signal means; if that is process.exit(), the 'exit' event is ours.
  if (process.listenerCount(signal) > 1) return;
  const timeout = exitTimeoutOrDefault();
  native.exiting(SIGNALLED + constants.signals[signal], timeout + EXIT_GRACE_MS);
  stopNow(timeout);
  unwatchExit();
  process.kill(process.pid, signal);
}

/** Blocks. true if every member stopped in order within the time. */
function stopNow(timeout: number): boolean {
  const end = native.now() + timeout * 1000;
  const handles: number[] = [];
  for (const member of members()) {
    const handle = member.handle();
    if (handle !== 0) handles.push(handle);
    else member.abandon();
  }
  for (const handle of handles) requestStop(handle, timeout);
  let all = true;
  for (const handle of handles) {
    if (!waitStopped(handle, Math.max(0, Math.ceil((end - native.now()) / 1000)))) all = false;
  }
  return all;
}

// A member that has stopped by itself a moment ago may have no native side any more: then there is nothing to do.
function requestStop(handle: number, timeout: number): void {
  try {
    native.requestStop(handle, timeout);
  } catch {
    // Stopped.
  }
}

function waitStopped(handle: number, timeout: number): boolean {
  try {
    return native.waitStopped(handle, timeout);
  } catch {
    return true;
  }
}

/** On the way out a mistake in an environment variable is no reason to lose pages. */
function exitTimeoutOrDefault(): number {
  try {
    return exitTimeout();
  } catch {
    return exitTimeout({});
  }
}
