/**
 * The main addon as TypeScript sees it: mechanism only, no policy. Everything here is a thin Node-API surface over
 * native/*.cc. A region or a member is a small integer that indexes a process-wide native table, so that the same
 * object can be used from every thread of the process; an integer that is not valid throws ERR_NATIVE_HANDLE.
 *
 * Pages are counted from 0 within a region. A *run* is (first, count). Times are microseconds of CLOCK_MONOTONIC unless
 * the name says otherwise. `out` arrays have one byte for each page of the run.
 */
import path from 'node:path';
import bindings from 'bindings';

/** What the protocol granted this member (the HELD field of a page word). */
export const Held = { Invalid: 0, Shared: 1, Exclusive: 2, Lost: 3 } as const;
/** What a thread or a request wants. */
export const Access = { Read: 1, Write: 2 } as const;
/** Directory states at the home (the STATE field of a directory word). */
export const DirState = { Idle: 0, Exclusive: 1, Lost: 2, Away: 3 } as const;

/** What stops an access to a page that is not here. */
export const GuardKind = { Mprotect: 0, Userfaultfd: 1, /** and the kernel's own accesses, in system calls, are served */ WithSystemCalls: 2 } as const;
export type GuardKind = (typeof GuardKind)[keyof typeof GuardKind];

/** Results of {@link Native.claim}. */
export const Claim = {
  /** PEND was set by this call: the caller must now ask the home (or abandon). */
  Claimed: 0,
  /** HELD suffices and the app view is open for the access now. */
  Held: 1,
  /** Somebody has asked already (perhaps for less): an install or abandon is coming. */
  Pending: 2,
  /** BUSY: another thread changes this page just now; DEFER is set and a Free record will arrive. */
  Busy: 3,
  /** HELD is lost. */
  Lost: 4,
} as const;

/** Results of {@link Native.install}. */
export const Install = {
  Installed: 0,
  /** The answer was overtaken (version <= poison). The claim stands: ask again through the coordinator. */
  Discarded: 1,
  /** No claim of the coordinator's on this page: nothing was changed. */
  NotClaimed: 2,
  /** BUSY did not clear; DEFER is set, call again at the Free record. */
  Busy: 3,
} as const;

/** Results of {@link Native.invalidate}, {@link Native.downgrade}, {@link Native.recall}. */
export const Close = {
  /** Closed (recall: the bytes are in the buffer). */
  Done: 0,
  /** recall only: the page is all zero; no bytes were written to the buffer. */
  Zero: 1,
  /** recall only: this member never installed that version. */
  Unchanged: 2,
  /** Pinned, resident, BUSY or not resumed: DEFER is set. See {@link Native.deferral}. */
  Deferred: 3,
} as const;

/** Results of {@link Native.begin}. */
export const Begin = {
  /** TXN is set: the caller alone may change this directory word. */
  Begun: 0,
  /** A handler or page server holds LOCK or HOP; WANT is set and a Free record will arrive. */
  Locked: 1,
  /** TXN was already set. */
  Running: 2,
} as const;

/** How the bytes of an installed run are given. */
export const Content = {
  /** One page of bytes for each page of the run. */
  Bytes: 0,
  /** All zero. */
  Zero: 1,
  /** What this member's service view has already is current. */
  Same: 2,
} as const;

/** One call over a lane, of the thread that asks: {@link Native.callAsk}. */
export interface NativeCall { readonly nativeCall: unique symbol }

/** Kinds of records that {@link Native.drain} returns. */
export const Ring = {
  /** A thread faulted and claimed: {region, page, access, heldVersion}. heldVersion is 0 if it holds no valid copy. */
  Fault: 1,
  /** DEFER or WANT was set on this page and the reason is gone: look again. {region, page} */
  Free: 2,
  /** A thread touched a lost page (or a down region) outside attempt() and waits for the end. {region, page} */
  Fatal: 3,
  /** A handler could not open a page because the kernel's mapping limit is reached: call coalesce. {region, page} */
  Coalesce: 4,
  /** The environment (thread) of this client is gone; page = client id. */
  ClientGone: 5,
  /** The watchdog found the lease over and closed this member's views. */
  LeaseOver: 6,
  /** requestStop was called (the process is exiting): page = milliseconds that it will wait. */
  Stop: 7,
  /** Memory is short (setMemory): threads may wait for room. */
  Memory: 8,
  /** A blocking call: region = its slot; what is asked: slotRequest(). */
  Call: 9,
  /** Calls have come over lanes: takeCalls(). */
  LaneCall: 10,
} as const;

/** Why accesses to a region, or to all regions of a member, can't be served. 0 = it is up. */
export const Down = {
  Up: 0,
  /** Accesses wait (leaving, exiting, lease over); may go back to Up. */
  Frozen: 1,
  Closed: 2,
  Evicted: 3,
  ClusterLost: 4,
  Destroyed: 5,
  CoordinatorDied: 6,
} as const;

/** One record of the ring is this many doubles: kind, region handle, page, access, heldVersion. */
export const RING_RECORD = 5;
/** One record of {@link Native.holdings}: first, count, held, version, unacked (0 or 1). */
export const HOLDING_RECORD = 5;
/** One record of {@link Native.directoryRecords}: first, count, state, owner slot, version, copyset low, copyset high. */
export const DIRECTORY_RECORD = 7;

export interface RegionSpec {
  /** The region's id in the cluster's table; unique within the member. */
  id: number;
  name: string;
  /** Bytes; a multiple of pageSize. */
  size: number;
  /** Bytes; a power of two, 4096 to 2 MiB. */
  pageSize: number;
  /** Pages in an extent. */
  extentPages: number;
}

/** Counters since the region was made here. Histograms count faults by log2-linear buckets of µs (see histogramBounds). */
export interface NativeRegionStats {
  readFaults: number; writeFaults: number;
  /** served in the handler: home's own extents and reopened pages */
  localFaults: number;
  /** faults that found the page already asked for, and only waited */
  joinedFaults: number;
  upgradeFaults: number;
  lostFaults: number;
  protectionChanges: number; mappingLimitHits: number; coalesced: number; filledPages: number;
  /** a GuardKind */ guard: number;
  installedPages: number; discardedPages: number;
  /** bytes received into pages / zero pages and valid copies that travelled without bytes */
  installedBytes: number; installedWithoutBytes: number;
  invalidatedPages: number; recalledPages: number;
  /** clean copies that were dropped because memory was short */ droppedPages: number;
  /** bytes of memory (or swap) that the region takes here */ memory: number;
  /** on lanes, as the one that asks: faults served, referred to the coordinator, broken off; pages read ahead; messages sent and received */
  laneFaults: number; laneReferred: number; laneBroken: number; lanePagesAhead: number; laneMessages: number;
  /** and as a page server: questions, pages and bytes sent */
  laneServed: number; lanePagesOut: number; laneBytesOut: number; laneRecallsSent: number; laneRecallsReceived: number; laneInvalidationsSent: number; laneInvalidationsReceived: number;
  residentPages: number;
  /** µs waited by threads in remote faults: counts, one for each bucket */
  waitHistogram: number[];
}

export interface Native {
  readonly osPageSize: number;
  readonly arch: 'x64' | 'arm64';
  /** Largest SharedArrayBuffer that buffer() can make on this Node, bytes; 0 if it can't at all without the V8 bridge. */
  readonly canMakeBuffers: boolean;

  // ---- process -----------------------------------------------------------------------------------------------------
  /** µs, CLOCK_MONOTONIC. */
  now(): number;
  /** Opens (O_CREAT|O_RDWR|O_CLOEXEC|O_NOFOLLOW, 0600) and takes flock(LOCK_EX|LOCK_NB): a descriptor, or -1 if somebody holds it. Throws for all else. */
  lockFile(path: string): number;
  /** Is the file locked by anybody? (Opens it, tries LOCK_SH|LOCK_NB, closes.) false if it does not exist. */
  isLocked(path: string): boolean;
  closeFile(fd: number): void;
  /** Called on the main thread when the package is loaded there: join() in a worker may then ask main to start a coordinator. */
  setMainHook(): void;
  hasMainHook(): boolean;
  /** true on the thread that called setMainHook... false elsewhere. */
  isMainThread(): boolean;
  /** The address of what the V8 bridge (bridge.ts) is connected to: struct BridgePort of native/attempt.h. */
  bridgePort(): bigint;
  /** Whether this process may map so many bytes more (`ulimit -v`). */
  canMap(bytes: number): boolean;

  // ---- member ------------------------------------------------------------------------------------------------------
  /** Makes the native side of one member of this process. `key` names the cluster (its real name); throws ERR_NATIVE_KEY if taken, ERR_NATIVE_EXITING after exiting(). Any thread. */
  memberCreate(key: string): number;
  /** The live member of this process for that key, or 0. */
  memberFind(key: string): number;
  /** Calling thread becomes the coordinator: `wake` is called in its event loop when ring records are there. A fault on an app view on this thread ends the process with a message. When this environment ends without memberStopped(), the member goes down with CoordinatorDied and every wait ends. */
  memberAttach(member: number, wake: () => void): void;
  /** Takes ring records, as many as fit (RING_RECORD doubles each); returns their number. After 0 the next record wakes again. */
  drain(member: number, records: Float64Array): number;
  /** Member goes down (or Up from Frozen) in all its regions: closes all app views if down !== Up; Frozen threads wait, all other codes end their waits. `detail` is appended to the fatal line. */
  memberDown(member: number, down: number, detail: string): void;
  memberState(member: number): number;
  /** The coordinator says: I am stopped, sockets closed, nothing pending. Wakes waitStopped. After it the member's key is free again. Detaches from the calling environment. */
  memberStopped(member: number): void;
  /** Any thread: puts a Stop record on the ring. */
  requestStop(member: number, timeoutMs: number): void;
  /** Blocks the calling thread until memberStopped, or the time is over. */
  waitStopped(member: number, timeoutMs: number): boolean;
  /** Threads that are in a fault handler's wait now, over all members. */
  threadsInFaults(): number;
  /** Whether a thread other than the main one whose access can't be served any more waits for the end of the process, instead of being that end itself. */
  parkFaults(others: boolean): void;
  /** As parkFaults(true), and for all threads; if `graceMs` later threads still are in handlers the process leaves by _exit(code). Called in the 'exit' event. */
  exiting(code: number, graceMs: number): void;
  /** _exit(code): nothing that Node or other addons would still do happens. */
  leaveNow(code: number): never;
  /** The lease: until this time the member may serve. The watchdog freezes the member (as Frozen) and puts LeaseOver on the ring when it is over. 0 switches it off. */
  setLease(member: number, until: number): void;
  lease(member: number): number;
  /** Bytes that pages from other homes may still take here (less than 0: that many too many), and at how many left a Memory record goes on the ring. Wakes the threads that wait for room. Without a call there is no limit. */
  setMemory(member: number, left: number, low: number): void;
  /** Ends the process for a Fatal record: prints the line for that page and raises SIGBUS. Does not return. */
  die(member: number, region: number, page: number): void;

  // gate: handlers' home transitions run inside it
  /** Closes the gate; true if no handler is inside now; else call gateDrained until it says true. */
  gateClose(member: number): boolean;
  gateDrained(member: number): boolean;
  gateOpen(member: number, epoch: number): void;

  // lanes: sockets on which faulting threads ask other members' page servers
  /** Starts the member's page server. host: an IP address to listen at, or '' for members on one machine. Returns the address for the others. ERR_SYSTEM. */
  lanesOpen(member: number, self: number, host: string): [near: string, far: string];
  /** Member `id` is in the view, at `slot`: the token (16 bytes) that it must say when it connects. */
  lanesExpect(member: number, slot: number, id: number, token: Uint8Array): void;
  /** It listens at `address`, and wants this token. */
  lanesConnect(member: number, slot: number, id: number, address: string, token: Uint8Array): void;
  /** It is out of the view: when this returns nothing to or from it is under way on a lane, and nothing will be. */
  lanesClosePeer(member: number, slot: number, id: number): void;
  /** Ends the page server and all lanes; nothing is under way on them when it returns. */
  lanesStop(member: number): void;
  /** Lanes that are open to others now. */
  lanesConnected(member: number): number;
  /** The first page of the run that an instruction with this access would fault on; its end: none. */
  firstAbsent(region: number, first: number, count: number, access: number): number;
  /** A thread of the pool brings pages of the run that are not here, as far as lanes can; a promise of the page up to which it tried. What is not here then is for the coordinators. `cancel` takes the job back as long as no thread has begun with it, and says whether it did; the promise stays as it is then. */
  laneFetch(region: number, first: number, count: number, access: number): [upTo: Promise<number>, cancel: () => boolean];
  /** Asks member `id`, at `slot`, over a lane for calls; null: there is none, or none is free, and the call was not made. */
  callAsk(member: number, slot: number, id: number, text: string): NativeCall | null;
  /** Blocks for so long at most: the answer; null: not yet; '': none will come this way, and whether the call was carried out is not known. */
  callWait(call: NativeCall, timeoutMs: number): string | null;
  /** Its answer is not wanted any more. */
  callEnd(call: NativeCall): void;
  /** The coordinator only: calls that have come over lanes. */
  takeCalls(member: number): [serial: number, from: number, text: string][];
  /** false: nobody waits for it there any more. */
  answerCall(member: number, serial: number, text: string): boolean;
  /** Messages and bytes that went over lanes since the member joined. */
  laneTraffic(member: number): { messagesSent: number; messagesReceived: number; bytesSent: number; bytesReceived: number };

  // clients: one for each thread that has joined; so that a terminated worker's locks and waits can be let go
  /** Registers the calling environment; when it ends, a ClientGone record goes on the ring. */
  clientCreate(member: number): number;
  clientClose(member: number, client: number): void;

  // blocking calls: a slot is where a thread waits for the coordinator's answer
  /** request: what is asked, put on the ring for the coordinator, or '' if it goes another way. */
  slotCreate(member: number, request: string): number;
  /** The coordinator only: what is asked at the slot, once; null: nobody waits any more. */
  slotRequest(member: number, slot: number): string | null;
  /** Blocks up to timeoutMs (callers loop with <= 50 ms so that worker.terminate() works); the payload, or null. A member that goes down with a final code completes every slot with payload '' . */
  slotWait(member: number, slot: number, timeoutMs: number): string | null;
  slotComplete(member: number, slot: number, payload: string): boolean;
  slotClose(member: number, slot: number): void;

  // ---- stamps: see native/stamps.h; nothing happens without FAULTLINE_STAMPS ---------------------------------------
  /** region: its id in the cluster's table. */
  stamp(region: number, page: number, stage: number): void;
  /** [ns, region id, page, stage, ...] since the last call, in no particular order. Nobody may be in a fault meanwhile. */
  takeStamps(): Float64Array;

  // ---- region ------------------------------------------------------------------------------------------------------
  /** memfd, service view and tables; no app view yet. Not homed anywhere. Errors: ERR_OUT_OF_MEMORY, ERR_SYSTEM (errno, syscall). */
  regionCreate(member: number, spec: RegionSpec): number;
  /** Maps the guarded app view at exactly `address`. ERR_ADDRESS_TAKEN if something is there. Idempotent. If an old closed reservation of the same size lies there (buffers of an earlier member that still live), it is taken over. */
  regionMap(region: number, address: bigint, guard: number): void;
  /** What this kernel and this user lack for GuardKind.Userfaultfd, or WithSystemCalls: the system call and its error; null: nothing. */
  userfaultfdLacks(systemCalls?: boolean): { syscall: string; errno: number; message: string } | null;
  /** A SharedArrayBuffer over [offset, offset+length) of the app view; any thread. Holds a reference on the mapping until collected. */
  regionBuffer(region: number, offset: number, length: number): SharedArrayBuffer;
  /** This region goes down here with the code; views are closed, waits end. */
  regionDown(region: number, down: number, detail: string): void;
  /** Gives up memfd, service view, tables. The app view's addresses stay reserved (PROT_NONE) until the last buffer over them is collected; an access then dies with a clear line. */
  regionRelease(region: number): void;
  regionStats(region: number): NativeRegionStats;
  /** Bytes of memory (or swap) that the region takes in this process. */
  regionMemory(region: number): number;
  /** Upper bound of each bucket of waitHistogram, µs; the last is Infinity. */
  histogramBounds(): number[];

  // ---- member role -------------------------------------------------------------------------------------------------
  /** M4 for the coordinator. Homed pages included: as the handler's D1 where that suffices, else PEND is set. Returns how many were Claimed. */
  claim(region: number, first: number, count: number, access: number, out: Uint8Array): number;
  /** The version of the valid copy held here of that page (HELD shared or exclusive), else 0. */
  heldVersion(region: number, page: number): number;
  /** The version of the bytes here that count: of a valid copy, or of what a home has not acknowledged; else 0. */
  keptVersion(region: number, page: number): number;
  /** HELD of that page. */
  held(region: number, page: number): number;
  /** M5/M6. grant: Held.Shared or Held.Exclusive. `bytes` is needed for Content.Bytes. One protection change for each stretch that was installed. Returns how many were not Installed. */
  install(region: number, first: number, count: number, version: number, grant: number, content: number, bytes: Uint8Array | null, byteOffset: number, out: Uint8Array): number;
  /** PEND := none, sleepers wake and look again. */
  abandon(region: number, first: number, count: number): void;
  /** HELD := lost for these pages (claims end, sleepers wake and see it). code: why (a Down code, 0 = page lost). */
  lose(region: number, first: number, count: number, member: number, epoch: number): void;
  /** lost -> invalid. */
  find(region: number, first: number, count: number): void;
  /** M8/M9. Done = dropped (or nothing held): acknowledge. Returns how many were Deferred. */
  invalidate(region: number, first: number, count: number, version: number, out: Uint8Array): number;
  /** M10-M12. keep: stay with a shared copy. wantBytes: send bytes although only a shared copy is held. Page i's bytes go to buffer at byteOffset + i * pageSize. Returns how many were Deferred. */
  recall(region: number, first: number, count: number, version: number, keep: boolean, wantBytes: boolean, out: Uint8Array, buffer: Uint8Array, byteOffset: number): number;
  /** Closing this member's own copy, as its home does before it grants to others: to shared (toShared) or invalid; no UNACKED. Returns how many were Deferred. */
  downgrade(region: number, first: number, count: number, toShared: boolean, out: Uint8Array): number;
  /** µs until a Deferred page is worth another try; -1 if a Free record will say so. */
  deferral(region: number, page: number): number;
  /** M13. */
  returned(region: number, first: number, count: number, version: number): void;
  /** M15: clean copies, and copies that are not valid any more (unpinned, not pending, not UNACKED), are dropped and their memory is given back. Not for pages that are homed here. Returns how many were valid. */
  drop(region: number, first: number, count: number): number;
  /**
   * One step of the clock's hand over pages that are homed elsewhere: closes what is open, drops clean copies that have stayed
   * closed since the hand was here last, and writes owned pages that have to `out` as (first, count, version). Ends when it has
   * changed about `most` pages, or looked at many. Returns [next page, records].
   */
  reclaim(region: number, first: number, count: number, most: number, out: Float64Array): [number, number];
  /** Pins are counted in the page word while HELD and OPEN suffice; true if all were pinned, else none. */
  pin(region: number, first: number, count: number, access: number): boolean;
  /** Pinned pages that nobody has written yet get memory, for system calls. */
  fillHoles(region: number, first: number, count: number): void;
  unpin(region: number, first: number, count: number, access: number): void;
  /** M14: closes what it can around that page until mappings are few again; then wakes who waits for it. */
  coalesce(region: number, page: number): void;
  /** What this member holds in the run, as records into out; returns [records, nextPage]: call again from nextPage until it is first + count. Pages of no interest (HELD invalid, not UNACKED) are left out. Skips untouched memory quickly. */
  holdings(region: number, first: number, count: number, out: Float64Array): [number, number];

  // ---- home role ---------------------------------------------------------------------------------------------------
  /** Declares whole extents homed here or not. `lost`: pages without a record are lost (a dead home's extents), else they are idle and zero. */
  setHomed(region: number, firstExtent: number, count: number, homed: boolean, lost: boolean): void;
  isHomed(region: number, page: number): boolean;
  /** Whose home the pages are, for lanes: first page, pages, slot of the home, generation of each slice, flattened; sorted. */
  setSlices(region: number, slices: Float64Array): void;
  /** D6. */
  begin(region: number, page: number): number;
  /** [state, owner slot, version, copyset low 32, copyset high 32, writer's slot + 1, migratory] of a page homed here. */
  directory(region: number, page: number, out: Float64Array): void;
  /** D8: one store of everything; clears TXN unless keepTxn. (Also for pages without TXN during rebuild and handover.) WANT is kept while keepTxn. */
  end(region: number, page: number, state: number, owner: number, version: number, copysetLow: number, copysetHigh: number, keepTxn: boolean): void;
  /** The hints of a page homed here: slot + 1 of the writer that kept a copy, or 0; whether it migrates. */
  hint(region: number, page: number, writer: number, migratory: boolean): void;
  /** Copies pages from the service view without allocating holes; out[i] = 1 if page i is all zero (its bytes are then not written). Returns the number of pages that are not zero. Page i goes to byteOffset + i * pageSize. */
  readPages(region: number, first: number, count: number, buffer: Uint8Array, byteOffset: number, out: Uint8Array): number;
  /** Writes whole pages into the service view. */
  writePages(region: number, first: number, count: number, bytes: Uint8Array, byteOffset: number): void;
  /** Zeroes [offset, offset + length) of the service view; whole pages are punched out of the memfd. */
  zero(region: number, offset: number, length: number): void;
  /** Atomic load of an int32 through the service view. */
  load32(region: number, byteOffset: number): number;
  /** A dead member's slot is taken out of the copysets of the run; pages that are exclusive there, and that nobody has a copy of, become Lost. [runs of them written to out as (first, count) pairs, nextPage]: again from nextPage while it is before the end. */
  sweep(region: number, first: number, count: number, slot: number, out: Float64Array): [number, number];
  /** Directory words of touched pages in the run, as DIRECTORY_RECORDs; returns [records, nextPage] as holdings does. Untouched (idle, version 0, no copies) pages are left out, unless their bytes in the memfd are not a hole. */
  directoryRecords(region: number, first: number, count: number, out: Float64Array): [number, number];
}

export const native = bindings({
  bindings: 'faultline',
  module_root: path.resolve(__dirname, '..', '..'),
  try: [
    ['module_root', 'build', 'Release', 'bindings'],
    ['module_root', 'build', 'Debug', 'bindings'],
    ['module_root', 'prebuilds', `linux-${process.arch}`, 'bindings'],
  ],
} as unknown as string) as Native;
