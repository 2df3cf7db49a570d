/** attempt(): a lost page becomes an exception. */
import { types } from 'node:util';
import { bridge, bridgeError, type Loss } from './bridge.js';
import { downError, threadClients } from './client.js';
import { makeError, type FaultlineError } from './errors.js';
import { enterLockScope, leaveLockScope } from './lock.js';
import { Down } from './native.js';
import { invalid, show } from './options.js';

/**
 * Calls `fn` and returns what it returns. If `fn` touches memory that can't be had any more, in any region and from any
 * depth, `fn` is stopped there and attempt throws:
 *
 * - PageLostError: the only copy of the page was at a member that died (see Region.restore),
 * - RegionDestroyedError, ClosedError: the region was destroyed, or closed by this process,
 * - EvictedError, ClusterLostError, CoordinatorError: this member's stay in the cluster is over.
 *
 * Nothing in `fn` can catch this, and its `finally` and `using` do not run; locks that it took by lockSync() and still
 * holds are released. Stores that it makes between the loss and the throw (it may run on for a few instructions) are
 * undefined. Calls may be nested: the innermost one throws. What `fn` throws itself passes through unchanged.
 *
 * `fn` must be synchronous: an async function, or one that returns a promise, is refused with InvalidArgumentError,
 * because the rest of it would run outside. @throws NoBridgeError if this installation lacks the addon that can stop JavaScript.
 */
export function attempt<T>(fn: () => T): T {
  if (typeof fn !== 'function') throw invalid('fn', `fn must be a function, not ${show(fn)}`);
  if (types.isAsyncFunction(fn)) throw asynchronous();
  if (!bridge) {
    throw makeError('ERR_FAULTLINE_NO_BRIDGE', `attempt() needs the addon v8_bridge, which could not be loaded for Node ${process.version} (build it with 'npm rebuild faultline'): ${bridgeError?.message ?? 'unknown reason'}`);
  }
  const scope = enterLockScope();
  let outcome: { value: T } | { loss: Loss };
  try {
    outcome = bridge.attempt(fn);
  } catch (error) {
    leaveLockScope(scope, false);
    throw error;
  }
  leaveLockScope(scope, 'loss' in outcome);
  if ('loss' in outcome) throw lossError(outcome.loss);
  refusePromise(outcome.value);
  return outcome.value;
}

function refusePromise(value: unknown): void {
  if (types.isPromise(value)) {
    // The refusal is the error to see; whatever becomes of the promise must not be another, unhandled one.
    value.then(undefined, () => undefined);
    throw asynchronous();
  }
  if ((typeof value === 'object' || typeof value === 'function') && value !== null && typeof (value as { then?: unknown }).then === 'function') throw asynchronous();
}

function asynchronous(): Error {
  return invalid('fn', 'attempt() needs a synchronous function: what a promise does later would run outside of it');
}

function lossError({ region, page, pageSize, offset, member, epoch, down }: Loss): FaultlineError {
  if (down === Down.Up) {
    const start = page * pageSize;
    return makeError('ERR_FAULTLINE_PAGE_LOST', `page ${page} (offset ${start}) of region '${region}' is lost: its only copy was at member ${member}, which died in epoch ${epoch}`, { region, page, offset: start, member, epoch });
  }
  if (down === Down.Destroyed) return downError(down, region, { region, offset });
  const known = knownEnd(down, region);
  const { cluster, member: self, epoch: since } = (known ?? {}) as { cluster?: string; member?: number; epoch?: number };
  return downError(down, down === Down.Closed ? `region '${region}'` : (cluster ?? `the cluster of region '${region}'`), { region, offset, member: self ?? member, epoch: since ?? epoch });
}

/** The handler knows only that the member is down; the coordinator has said more. */
function knownEnd(down: number, region: string): FaultlineError | undefined {
  const { code } = downError(down, region, {});
  for (const client of threadClients()) {
    client.drain();
    if (client.over?.code === code && client.state.regions.some(({ name }) => name === region)) return client.over;
  }
  return undefined;
}
