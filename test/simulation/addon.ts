/** The simulator's addon (native/simulation.cc): the production words and transitions without threads, signals or mappings. */
import path from 'node:path';
import type { Native } from '../../lib/native.js';

/** What one step of a thread in the handler came to: serve.h's Next, and asleep. */
export const Next = { Run: 0, Look: 1, Wait: 2, Change: 3, Mappings: 4, Frozen: 5, Refused: 6, Lost: 7, Lane: 8, Asleep: 255 } as const;

type Shared = Pick<Native,
  'drain' | 'gateClose' | 'gateDrained' | 'memberStopped' | 'regionRelease' |
  'claim' | 'heldVersion' | 'keptVersion' | 'held' | 'install' | 'abandon' | 'lose' | 'find' | 'invalidate' | 'recall' | 'downgrade' | 'deferral' |
  'returned' | 'drop' | 'reclaim' | 'pin' | 'unpin' | 'coalesce' | 'holdings' | 'setHomed' | 'setSlices' | 'begin' | 'directory' | 'end' | 'hint' | 'readPages' |
  'writePages' | 'zero' | 'load32' | 'sweep' | 'directoryRecords'>;

export interface Simulation extends Shared {
  memberCreate(key: string): number;
  memberDown(member: number, down: number): void;
  gateOpen(member: number): void;
  ringReady(member: number): boolean;
  regionCreate(member: number, id: number, size: number, pageSize: number, extentPages: number): number;
  /** µs. */
  setClock(now: number): void;
  /** The bytes of a region at its member. Must not be used after regionRelease. */
  view(region: number): ArrayBuffer;
  threadCreate(region: number): number;
  threadTrap(thread: number, page: number, access: number, ran: boolean, own: number): void;
  /** As if the thread's faults had come page by page until now, the next at this one: it is read ahead from there. */
  threadStream(thread: number, page: number, backwards: boolean): void;
  threadStep(thread: number): number;
  threadAsleep(thread: number): boolean;
  threadWake(thread: number): void;
  /** Did the thread's last question make somebody give copies up? */
  laneRetired(thread: number): boolean;
  laneAskAhead(thread: number, first: number, end: number, access: number): boolean;
  /** Of a thread whose last step was Lane: what it asks whom. */
  laneQuestion(thread: number): { slot: number; question: Uint8Array; first: number; access: number; count: number; hop: boolean };
  /** The answer's head; the bytes are in the view. Returns what the owner of recalled pages is to be told of their arrival. */
  laneInstall(thread: number, head: Uint8Array): Uint8Array[];
  laneFinish(thread: number): void;
  laneGiveUp(thread: number): void;
  /** A question at the page server; the handle is for the next two, and ends with serveFinish. */
  serveBegin(region: number, slot: number, question: Uint8Array): number;
  /** Refused because a third member owns the page: the page server, in that thread's place, has claimed it and is to ask the owner. */
  serveHop(thread: number, slot: number, question: Uint8Array): boolean;
  /** It holds LOCK and BUSY of what it was asked for. */
  serveLocked(serving: number): boolean;
  /** Returns the answer's head. */
  serveFinish(serving: number): Uint8Array;
  serveReturned(region: number, slot: number, question: Uint8Array): void;
  /** The pages whose bytes follow the head. */
  laneBytes(question: Uint8Array, head: Uint8Array): number[];
  /** Is a lane to the member at that slot free? */
  onLane(take: (region: number, slot: number) => boolean): void;
  /** Every change of a mapping. */
  onGuard(change: (region: number, first: number, count: number, open: number) => void): void;
  /** Is there no mapping left for this change, unless it closes more than that? */
  onShortage(refuses: (region: number, first: number, count: number, open: number) => boolean): void;
  /** A coordinator's call has to wait until a thread is no longer BUSY. */
  onBusy(wait: () => void): void;
  onWake(woken: (thread: number) => void): void;
  /** [page word low, high, version, poison, directory word low, high, copyset low, high] */
  words(region: number, page: number): number[];
}

/** `folder`: where the addon was built. */
export function loadSimulation(folder = path.resolve(__dirname, '../../../test/simulation/native')): Simulation {
  return require(path.join(folder, 'build', 'Release', 'simulation.node')) as Simulation;
}
