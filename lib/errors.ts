/**
 * Every error of the package is a FaultlineError with a stable `code`; the fields say what, where and since when.
 * Errors travel between threads and members as {@link WireError}s and are made again by {@link fromWire}.
 */
import type { WireError } from './coordinator/protocol/messages.js';

type Fields = Record<string, unknown>;

export class FaultlineError extends Error {
  readonly code: string;
  constructor(code: string, message: string, fields: Fields = {}) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    for (const [key, value] of Object.entries(fields)) {
      if (key !== 'code' && key !== 'message' && key !== 'stack') Object.defineProperty(this, key, { value, enumerable: true, configurable: true });
    }
  }
}

/** ERR_FAULTLINE_INVALID_ARGUMENT: an argument makes no sense. `argument` names it. */
export class InvalidArgumentError extends FaultlineError { declare readonly argument: string }
/** ERR_FAULTLINE_OUT_OF_RANGE: an offset or length outside the region. `offset`, `length`, `size` in bytes. */
export class OutOfRangeError extends FaultlineError { declare readonly offset: number; declare readonly length: number; declare readonly size: number }
/** ERR_FAULTLINE_MISALIGNED: an offset that must be a multiple of `alignment` bytes is not. */
export class MisalignedError extends FaultlineError { declare readonly offset: number; declare readonly alignment: number }
/** ERR_FAULTLINE_CLOSED: the cluster, region or lock was closed (or released) by this process. */
export class ClosedError extends FaultlineError { declare readonly what: string }
/** ERR_FAULTLINE_EVICTED: the others gave this member up in `epoch`; it must not touch the cluster's memory any more. */
export class EvictedError extends FaultlineError { declare readonly cluster: string; declare readonly member: number; declare readonly epoch: number }
/** ERR_FAULTLINE_CLUSTER_LOST: the process that served the membership is gone. */
export class ClusterLostError extends FaultlineError { declare readonly cluster: string; declare readonly member: number; declare readonly epoch: number }
/** ERR_FAULTLINE_PAGE_LOST: the only copy of a page was at a member that died. */
export class PageLostError extends FaultlineError {
  /** The region's name. */ declare readonly region: string;
  declare readonly page: number;
  /** Byte offset of the page in the region. */ declare readonly offset: number;
  /** The member that died with it. */ declare readonly member: number;
  /** The epoch in which it was found to be dead. */ declare readonly epoch: number;
}
/** ERR_FAULTLINE_NOT_LOST: restore() of pages that are not lost. */
export class NotLostError extends FaultlineError { declare readonly region: string; declare readonly offset: number }
/** ERR_FAULTLINE_REGION_EXISTS: mode 'create', or other options than those it was created with (`wanted`, `existing`). */
export class RegionExistsError extends FaultlineError { declare readonly region: string }
/** ERR_FAULTLINE_REGION_NOT_FOUND: mode 'open' and nobody has created it. */
export class RegionNotFoundError extends FaultlineError { declare readonly region: string }
/** ERR_FAULTLINE_REGION_DESTROYED: somebody has destroyed it. */
export class RegionDestroyedError extends FaultlineError { declare readonly region: string }
/** ERR_FAULTLINE_ADDRESS_TAKEN: something else is mapped in this process where the region must lie. */
export class AddressTakenError extends FaultlineError { declare readonly region: string; declare readonly address: bigint }
/** ERR_FAULTLINE_OUT_OF_MEMORY: more than this machine (or this Node's buffers) can hold. */
export class OutOfMemoryError extends FaultlineError {}
/** ERR_FAULTLINE_TIMEOUT: the caller's own time was over. */
export class TimeoutError extends FaultlineError { declare readonly timeout: number }
/** ERR_FAULTLINE_BARRIER_BROKEN: a member died (`members`) while the barrier was incomplete. */
export class BarrierBrokenError extends FaultlineError { declare readonly barrier: string; declare readonly members: number[]; declare readonly epoch: number }
/** ERR_FAULTLINE_JOIN_REFUSED: the cluster does not take this process (`reason`: 'protocol', 'architecture', 'full', 'options'). */
export class JoinRefusedError extends FaultlineError { declare readonly reason: string }
/** ERR_FAULTLINE_JOIN_TIMEOUT: nobody answered at the cluster's address in time. */
export class JoinTimeoutError extends FaultlineError { declare readonly cluster: string }
/** ERR_FAULTLINE_KEYS_NEEDED: an address that is not loopback, without keys and without `insecure: true`. */
export class KeysNeededError extends FaultlineError { declare readonly cluster: string }
/** ERR_FAULTLINE_GUARD_UNAVAILABLE: the guard that was asked for (`guard`) does not work here: `syscall` failed with `errno`. */
export class GuardUnavailableError extends FaultlineError { declare readonly guard: string; declare readonly syscall: string; declare readonly errno: number }
/** ERR_FAULTLINE_NOT_ON_MAIN: join() in a worker, and the main thread has not imported the package. */
export class NotOnMainError extends FaultlineError {}
/** ERR_FAULTLINE_NO_BRIDGE: attempt() needs the V8 addon, which is not built for this Node. */
export class NoBridgeError extends FaultlineError {}
/** ERR_FAULTLINE_COORDINATOR: the coordinator ended unexpectedly; nothing of this member works any more. */
export class CoordinatorError extends FaultlineError {}
/** ERR_FAULTLINE_SYSTEM: a system call failed; `errno` and `syscall` say which. */
export class SystemError extends FaultlineError { declare readonly errno?: number; declare readonly syscall?: string }

const classes: Record<string, new (code: string, message: string, fields?: Fields) => FaultlineError> = {
  ERR_FAULTLINE_INVALID_ARGUMENT: InvalidArgumentError,
  ERR_FAULTLINE_OUT_OF_RANGE: OutOfRangeError,
  ERR_FAULTLINE_MISALIGNED: MisalignedError,
  ERR_FAULTLINE_CLOSED: ClosedError,
  ERR_FAULTLINE_EVICTED: EvictedError,
  ERR_FAULTLINE_CLUSTER_LOST: ClusterLostError,
  ERR_FAULTLINE_PAGE_LOST: PageLostError,
  ERR_FAULTLINE_NOT_LOST: NotLostError,
  ERR_FAULTLINE_REGION_EXISTS: RegionExistsError,
  ERR_FAULTLINE_REGION_NOT_FOUND: RegionNotFoundError,
  ERR_FAULTLINE_REGION_DESTROYED: RegionDestroyedError,
  ERR_FAULTLINE_ADDRESS_TAKEN: AddressTakenError,
  ERR_FAULTLINE_OUT_OF_MEMORY: OutOfMemoryError,
  ERR_FAULTLINE_TIMEOUT: TimeoutError,
  ERR_FAULTLINE_BARRIER_BROKEN: BarrierBrokenError,
  ERR_FAULTLINE_JOIN_REFUSED: JoinRefusedError,
  ERR_FAULTLINE_JOIN_TIMEOUT: JoinTimeoutError,
  ERR_FAULTLINE_KEYS_NEEDED: KeysNeededError,
  ERR_FAULTLINE_GUARD_UNAVAILABLE: GuardUnavailableError,
  ERR_FAULTLINE_NOT_ON_MAIN: NotOnMainError,
  ERR_FAULTLINE_NO_BRIDGE: NoBridgeError,
  ERR_FAULTLINE_COORDINATOR: CoordinatorError,
  ERR_FAULTLINE_SYSTEM: SystemError,
};

/** Makes the error of the right class for a code. */
export function makeError(code: string, message: string, fields: Fields = {}): FaultlineError {
  return new (classes[code] ?? FaultlineError)(code, message, fields);
}

export function fromWire({ code, message, fields }: WireError): FaultlineError {
  // JSON has no bigints: toWire() made a string of it.
  const address = fields?.address;
  return makeError(code, message, code === 'ERR_FAULTLINE_ADDRESS_TAKEN' && typeof address === 'string' ? { ...fields, address: BigInt(address) } : fields);
}

/** For the way between threads and members; an unexpected error keeps its message under ERR_FAULTLINE_COORDINATOR. */
export function toWire(error: unknown): WireError {
  if (error instanceof FaultlineError) {
    const { code, message, ...fields } = error as FaultlineError & Fields;
    delete (fields as Fields).name;
    return { code, message, fields: JSON.parse(JSON.stringify(fields, (_, value: unknown) => (typeof value === 'bigint' ? value.toString() : value))) as Fields };
  }
  return { code: 'ERR_FAULTLINE_COORDINATOR', message: error instanceof Error ? error.message : String(error) };
}
