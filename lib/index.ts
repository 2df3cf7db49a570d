/** faultline: a SharedArrayBuffer that spans processes. See the README for a first example. */
export { attempt } from './attempt.js';
export type { PageInfo } from './calls.js';
export { join, type Cluster, type ClusterEvents, type Member, type PageLoss, type View } from './cluster.js';
export {
  FaultlineError,
  InvalidArgumentError,
  OutOfRangeError,
  MisalignedError,
  ClosedError,
  EvictedError,
  ClusterLostError,
  PageLostError,
  NotLostError,
  RegionExistsError,
  RegionNotFoundError,
  RegionDestroyedError,
  AddressTakenError,
  OutOfMemoryError,
  TimeoutError,
  BarrierBrokenError,
  JoinRefusedError,
  JoinTimeoutError,
  KeysNeededError,
  GuardUnavailableError,
  NotOnMainError,
  NoBridgeError,
  CoordinatorError,
  SystemError,
} from './errors.js';
export type { Lock } from './lock.js';
export type { JoinOptions, Range, RegionOptions } from './options.js';
export type { Pin, Region } from './region.js';
export type { ClusterStats, Histogram, RegionStats } from './stats.js';
