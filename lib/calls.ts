/**
 * What handles (any thread) and the coordinator (its worker) say to one another inside one process.
 *
 * Two BroadcastChannels for each handle's thread, because a MessagePort can't be handed to a thread that has no port
 * yet: requests go to `toCoordinator(key)`, to which only the coordinator listens; answers and events come on
 * `toClient(key, client)`, to which only that thread listens. `key` is the cluster's real name in this process, for
 * example 'local:default'. `client` is the number that native.clientCreate gave this thread for this member.
 */
import type { ClusterState, MemberId, RegionInfo, WireError } from './coordinator/protocol/messages.js';
import { makeError, type FaultlineError } from './errors.js';

export const toCoordinator = (key: string): string => `faultline/${key}`;
export const toClient = (key: string, client: number): string => `faultline/${key}/${client}`;
/** The main thread listens here for {@link StartRequest}s once it has imported the package. */
export const MAIN_CHANNEL = 'faultline/main';

/** A worker's join() asks main to start (or find) the coordinator; answered on BroadcastChannel `reply`. */
export interface StartRequest { start: string; settings: CoordinatorSettings; reply: string }
export type StartAnswer = { member: number } | { error: WireError };

/** What the coordinator's worker is started with (workerData). */
export interface CoordinatorSettings {
  /** The in-process key; also the normalised cluster address: 'local:NAME' or 'tcp://HOST:PORT'. */
  key: string;
  name: string;
  insecure: boolean;
  /** ms of silence of a live peer after which a fault is somebody's failure. */
  faultTimeout: number;
  /** 'auto': faults go over lanes where they can. */
  lane: 'auto' | 'off';
  /** What stops accesses to pages that are not here; 'auto': what works best here. */
  guard: 'mprotect' | 'userfaultfd' | 'auto';
  /** The kernel's accesses, in system calls, are served, too. */
  systemCalls: boolean;
  /** bytes; null: none */ memoryLimit: number | null;
  /** ms: how long joining may take. */
  joinTimeout: number;
}
/** The coordinator's worker posts one of these on its parentPort when it has joined, or could not. */
export type Started = { started: number } | { failed: WireError };

/** Put before a direct call (direct.ts) where the text of a Request is expected. */
export const DIRECT = 'direct ';

export interface Request {
  client: number; id: number; op: Op; args: unknown;
  /** A blocking call: the answer goes to this native slot as JSON of {@link Answer}, not to the channel. */
  slot?: number;
}
/** Withdraws request `cancel` of that client; no answer comes any more. */
export interface Cancel { client: number; cancel: number }
export type Answer = { id: number; value: unknown } | { id: number; error: WireError };
export type Notice =
  | { event: 'view'; state: ClusterState }
  | { event: 'page-lost' | 'page-found'; region: number; runs: [firstPage: number, pages: number][]; member: MemberId; epoch: number }
  | { event: 'destroyed'; region: number }
  /** Terminal: ERR_FAULTLINE_EVICTED, ERR_FAULTLINE_CLUSTER_LOST, ERR_FAULTLINE_COORDINATOR, or ERR_FAULTLINE_CLOSED (this process left). */
  | { event: 'over'; error: WireError };
export type ToClient = Answer | Notice;

/** Requests by name: arguments and answer. Times are ms; offsets and lengths bytes; `region` is RegionInfo.id; timeouts absent = none. */
export interface Calls {
  /** First request of every client, before all else. */
  attach: { args: Record<string, never>; value: { self: MemberId; state: ClusterState } };
  /** Lets go of all that this client holds. When the last client detaches the member leaves the cluster in order, and then answers. */
  detach: { args: Record<string, never>; value: null };
  /** handle: native region handle (its app view is mapped). lost: runs of pages. */
  region: { args: { name: string; mode: 'open-or-create' | 'create' | 'open' | 'wait'; size?: number; pageSize?: number; consistency?: 'sequential'; placement?: 'creator' | 'spread' }; value: { handle: number; info: RegionInfo; lost: [number, number][]; created: boolean } };
  'region-close': { args: { region: number }; value: null };
  destroy: { args: { region: number }; value: null };
  prefetch: { args: { region: number; offset: number; length: number; access: number }; value: null };
  pin: { args: { region: number; ranges: { offset: number; length: number }[]; access: number; timeout: number }; value: { pin: number; until: number } };
  'pin-renew': { args: { pin: number; timeout: number }; value: { until: number } };
  'pin-release': { args: { pin: number }; value: null };
  wait: { args: { region: number; offset: number; expected: number; timeout?: number }; value: 'ok' | 'not-equal' | 'timed-out' };
  notify: { args: { region: number; offset: number; count: number }; value: number };
  /** bytes: Uint8Array of whole pages. */
  restore: { args: { region: number; offset: number; bytes: Uint8Array }; value: null };
  discard: { args: { region: number; offset: number; length: number }; value: null };
  inspect: { args: { region: number; offset: number }; value: PageInfo };
  /** token is decimal. null only with `try`. ERR_FAULTLINE_TIMEOUT when `timeout` is over. */
  lock: { args: { name: string; shared: boolean; try: boolean; timeout?: number }; value: { token: string; ownerDied: boolean } | null };
  unlock: { args: { name: string; token: string }; value: null };
  barrier: { args: { name: string; parties: number; timeout?: number }; value: null };
  /** What was begun as a direct call (direct.ts) and has to be asked again, by messages; `what`: for the error when `timeout` is over. */
  again: { args: { call: number; op: DirectOp; args: unknown; timeout?: number; what: string }; value: unknown };
  /** The answer of a direct call is not wanted any more. */
  withdraw: { args: { call: number }; value: null };
  stats: { args: Record<string, never>; value: CoordinatorStats };
}
export type Op = keyof Calls;
/** What a thread that blocks may ask the registrar directly. */
export type DirectOp = 'lock' | 'unlock' | 'barrier';

/** What waits are for, as TimeoutErrors say it. */
export const lockWords = (name: string): string => `lock '${name}'`;
export const barrierWords = (name: string): string => `barrier '${name}'`;
export const notHad = (what: string, timeout: number): FaultlineError => makeError('ERR_FAULTLINE_TIMEOUT', `${what} was not had in ${timeout} ms`, { timeout });

export interface PageInfo {
  page: number;
  /** Byte offset of the page. */ offset: number;
  /** Member ids. */ home: MemberId; owner: MemberId | null; copies: MemberId[];
  version: number;
  /** At the home. */ state: 'idle' | 'exclusive' | 'lost';
  /** What this member holds. */ held: 'invalid' | 'shared' | 'exclusive' | 'lost';
}

export interface CoordinatorStats {
  messagesSent: number; messagesReceived: number; bytesSent: number; bytesReceived: number;
  /** messages dropped: not decodable or foreign / from outside the view */ malformed: number; fenced: number;
  /** by region id */ regions: Record<number, RegionTraffic>;
}
/** What the protocol counts for one region here. */
export interface RegionTraffic {
  pagesIn: number; pagesOut: number; bytesIn: number; bytesOut: number;
  invalidationsSent: number; invalidationsReceived: number; recallsSent: number; recallsReceived: number; requestsServed: number;
  /** owned pages that went home because memory was short */ sentHome: number;
}
