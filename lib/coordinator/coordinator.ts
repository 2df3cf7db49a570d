/**
 * The coordinator: one member of one cluster. It puts the parts together (the session, the protocol, the
 * addon, this process's handles) and decides the order of the member's life: join, serve, leave, stop.
 *
 * All other threads wait for this one, so it waits for nobody: no Atomics.wait or notify, nothing that runs on libuv's
 * thread pool, nothing that needs the main thread.
 */
import { writeSync } from 'node:fs';
import { getHeapSpaceStatistics, getHeapStatistics } from 'node:v8';
import { parentPort, resourceLimits } from 'node:worker_threads';
import type { CoordinatorSettings, Started } from '../calls.js';
import { FaultlineError, makeError, toWire } from '../errors.js';
import { chooseGuard } from '../guard.js';
import { Down, native, Ring, RING_RECORD } from '../native.js';
import { openEmbedded } from './membership/embedded.js';
import type { Session } from './membership/session.js';
import { Engine } from './protocol/engine.js';
import type { ClusterState, Envelope, MemberId, RegionInfo } from './protocol/messages.js';
import type { RegionProtocol } from './protocol/region.js';
import type { Direct } from './protocol/registry.js';
import { Budget } from './budget.js';
import { Clients } from './clients.js';
import { Lanes } from './lanes.js';
import { NativeRegionMemory } from './memory.js';
import { Service } from './service.js';
import { stampFault, stamping, stampReceived, stampSent } from './stamps.js';
import { LoopTimers } from './timers.js';

/** Records of the ring that are taken at a time. */
const BATCH = 256;
/** A live peer that is silent for longer is given up, ms. */
const SILENCE = 2_000;
/** Longest time that leaving may take when close() was called, ms: the hand-over moves every page that lives here only. */
const LEAVE = 60_000;
/** Longest time for the hand-over before a thread that touched a lost page ends the process, ms. */
const LAST_HAND_OVER = 3_000;
/** How often silent peers are looked for, ms. */
const TICK = 250;
/**
 * The share of its heap at which the coordinator ends. V8 ends a worker whose heap is full wherever it is, with receives
 * pending, and that takes the whole process down: the rest is for ending in order before.
 */
const HEAP_SHARE = 0.8;
/**
 * Messages and requests between two looks at the heap, which take a few µs each. By count and not by time: a flood of
 * either is delivered in one turn of the event loop, and timers wait.
 */
const LOOK_AT_HEAP = 256;

const MEBI = 1 << 20;

export class Coordinator {
  private readonly records = new Float64Array(BATCH * RING_RECORD);
  private readonly handles = new Map<number, number>();
  private readonly regionIds = new Map<number, number>();
  private readonly joining = new AbortController();
  private readonly clients: Clients;
  private session: Session | null = null;
  private engine: Engine | null = null;
  private service: Service | null = null;
  private lanes: Lanes | null = null;
  private budget: Budget | null = null;
  private early: Envelope[] = [];
  private ticker: NodeJS.Timeout | null = null;
  private arrivals = 0;
  /** µs of native.now(). */
  private leaseEnds = 0;
  private state: 'joining' | 'up' | 'leaving' | 'over' | 'stopped' = 'joining';

  /** member: its native side, made already. */
  constructor(private readonly settings: CoordinatorSettings, private readonly member: number) {
    native.memberAttach(this.member, () => this.wake());
    this.clients = new Clients(settings.key, this.member, (client, request, signal) => {
      this.checkHeap();
      if (this.service === null || this.state === 'stopped') throw makeError('ERR_FAULTLINE_CLOSED', 'the cluster is closed', { what: 'cluster' });
      if (this.state === 'leaving' && request.op !== 'detach') throw makeError('ERR_FAULTLINE_CLOSED', 'the cluster is closed', { what: 'cluster' });
      return this.service.handle(client, request, signal);
    }, (text, answer) => this.direct(this.session?.self ?? 0, text, answer));
  }

  async join(): Promise<void> {
    const { settings } = this;
    // The process may have begun to exit before anybody could be woken.
    this.wake();
    this.joining.signal.throwIfAborted();
    this.session = await openEmbedded(
      { cluster: settings.key, name: settings.name, insecure: settings.insecure, silence: SILENCE, joinTimeout: settings.joinTimeout, setLease: (until) => this.setLease(until) },
      {
        state: (state) => this.applyState(state),
        message: (envelope) => this.receive(envelope),
        tell: () => undefined,
        over: (error) => this.over(error),
        arrived: () => this.checkHeap(),
        renewed: () => this.goOn(),
      },
      this.joining.signal,
    );
    const { session } = this;
    const timers = new LoopTimers(() => this.engine?.flush());
    this.engine = new Engine(
      { self: session.self, send: (to, message, payload) => {
          if (stamping) stampSent(message);
          session.send(to, message, payload);
        },
        suspect: (peer) => session.suspect(peer) },
      timers,
      {
        openMemory: (info) => this.openMemory(info),
        closeMemory: (info) => this.closeMemory(info),
        region: (info) => ({
          lost: (runs, member, epoch) => this.clients.notify({ event: 'page-lost', region: info.id, runs, member, epoch }),
          found: (runs) => this.clients.notify({ event: 'page-found', region: info.id, runs, member: 0, epoch: 0 }),
        }),
      },
      { faultTimeout: settings.faultTimeout * 1000 },
    );
    if (settings.lane === 'auto') this.lanes = Lanes.open(this.member, session);
    this.service = new Service({ session, engine: this.engine, handleOf: (region) => this.handleOf(region), laneTraffic: () => native.laneTraffic(this.member), guard: chooseGuard(settings), leave: () => this.lastHandleClosed() });
    if (settings.memoryLimit !== null) this.budget = new Budget(this.member, settings.memoryLimit, () => this.parts(), () => this.engine?.flush());
    this.engine.apply(session.state);
    this.lanes?.apply(session.state);
    for (const envelope of this.early.splice(0)) this.receive(envelope);
    this.engine.flush();
    this.state = 'up';
    // On the way in, which may have taken several attempts, a lease may have run out.
    this.goOn();
    this.ticker = setInterval(() => {
      this.engine?.tick();
      this.engine?.flush();
      this.budget?.look();
    }, TICK);
    this.post({ started: this.member });
  }

  failed(error: unknown): void {
    this.post({ failed: toWire(error) });
    this.stop();
  }

  /** Something that must not happen has happened. */
  broken(error: Error): void {
    if (this.state === 'stopped') return;
    // The worker's own process.stderr would need the main thread.
    writeSync(2, `faultline: the coordinator of ${this.settings.key} ended: ${error.stack ?? error.message}\n`);
    const wire = toWire(makeError('ERR_FAULTLINE_COORDINATOR', `the coordinator ended: ${error.message}`));
    // Before anybody's call fails by itself: whoever meets it can then say why.
    this.clients.notify({ event: 'over', error: wire });
    native.memberDown(this.member, Down.CoordinatorDied, '');
    if (this.state === 'joining') this.post({ failed: wire });
    // First the sockets: else each call that fails now would be withdrawn at the registrar, which hears of the end anyway.
    this.stop();
    this.clients.fail(makeError(wire.code, wire.message));
  }

  /** For everything that arrives, since that is what makes it grow. */
  private checkHeap(): void {
    if (++this.arrivals % LOOK_AT_HEAP !== 0) return;
    // What V8 gives up over is the old generation; its limit for both generations is what it tells.
    const limit = getHeapStatistics().heap_size_limit - (resourceLimits.maxYoungGenerationSizeMb ?? 0) * MEBI;
    const used = getHeapSpaceStatistics().reduce((sum, space) => sum + (space.space_name.startsWith('new_') ? 0 : space.space_used_size), 0);
    if (used > HEAP_SHARE * limit) this.broken(makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `its heap of ${Math.round(limit / MEBI)} MiB is full (see --max-old-space-size)`));
  }

  // ---- what arrives -------------------------------------------------------------------------------------------------

  /** Threads have put something on the ring. */
  private wake(): void {
    const { engine, records } = this;
    for (;;) {
      const count = native.drain(this.member, records);
      if (count === 0) break;
      for (let i = 0; i < count * RING_RECORD; i += RING_RECORD) {
        const kind = records[i];
        if (kind === Ring.Fault) {
          const region = this.regionIds.get(records[i + 1])!;
          if (stamping) stampFault(region, records[i + 2]);
          engine?.fault(region, records[i + 2], records[i + 3], records[i + 4]);
        } else if (kind === Ring.Free) engine?.free(this.regionIds.get(records[i + 1])!, records[i + 2]);
        else this.rare(kind, records[i + 1], records[i + 2]);
      }
      engine?.flush();
    }
  }

  private rare(kind: number, region: number, page: number): void {
    switch (kind) {
      case Ring.Coalesce: return native.coalesce(region, page);
      case Ring.Fatal: return void this.lastWords(region, page);
      case Ring.Stop: return void this.stopBefore(page);
      case Ring.ClientGone: {
        const client = this.clients.threadEnded(page);
        if (client !== undefined) {
          this.service?.clientGone(client);
          this.clients.remove(client);
        }
        if (this.clients.size === 0) void this.lastHandleClosed();
        return;
      }
      // It asks the registrar by itself. But the watchdog may have been late, and the lease renewed before this was read.
      case Ring.LeaseOver: return this.goOn();
      case Ring.Memory: return this.budget?.look();
      case Ring.LaneCall: {
        for (const [serial, from, text] of native.takeCalls(this.member)) this.direct(from, text, (reply) => native.answerCall(this.member, serial, JSON.stringify(reply)));
        return;
      }
      case Ring.Call: return this.clients.call(region, native.slotRequest(this.member, region));
    }
  }

  private direct(from: MemberId, text: string, answer: Direct): void {
    this.checkHeap();
    if (this.state === 'up') this.session!.direct(from, text, answer);
    else answer(null);
  }

  private setLease(until: number): void {
    this.leaseEnds = until;
    native.setLease(this.member, until);
  }

  /** The watchdog has frozen the member when its lease was over. If it runs again that ends, unless the member is leaving. */
  private goOn(): void {
    if (this.state === 'up' && native.now() < this.leaseEnds) native.memberDown(this.member, Down.Up, '');
  }

  private receive(envelope: Envelope): void {
    if (this.engine === null) return void this.early.push(envelope);
    if (envelope.message.type === 'lane') return this.lanes?.told(envelope.from, envelope.message);
    if (stamping) stampReceived(envelope.message);
    this.engine.message(envelope);
    this.engine.flush();
  }

  private applyState(state: ClusterState): void {
    if (this.engine === null) return;
    // Before anybody decides what is where without those who are gone: nothing of theirs may arrive any more, and what was
    // claimed for their lanes is among what the protocol has asked for.
    this.lanes?.closeGone(state);
    this.wake();
    if (state.died.length > 0) this.budget?.memberDied();
    this.engine.apply(state);
    this.lanes?.apply(state);
    this.engine.flush();
    this.clients.notify({ event: 'view', state });
  }

  // ---- the end ------------------------------------------------------------------------------------------------------

  /** The others gave this member up, or the registrar is gone. */
  private over(error: Error): void {
    if (this.state === 'stopped' || this.state === 'over') return;
    this.state = 'over';
    const evicted = error instanceof FaultlineError && error.code === 'ERR_FAULTLINE_EVICTED';
    const wire = toWire(error);
    // Before anybody's access fails: whoever meets it in attempt() can then say who was given up, and when.
    this.clients.notify({ event: 'over', error: wire });
    native.memberDown(this.member, evicted ? Down.Evicted : Down.ClusterLost, error.message);
    this.engine?.fail(wire);
    this.clients.fail(error);
    this.stop();
  }

  /** No handle of this process is left: hand over, and go. */
  private async lastHandleClosed(): Promise<void> {
    if (this.clients.all().some((client) => !client.closing) || this.state !== 'up') return;
    await this.leave(LEAVE);
    this.end(Down.Closed, 'close()');
    // The answer to the detach that this was called for goes out first.
    setImmediate(() => this.stop());
  }

  private async stopBefore(timeout: number): Promise<void> {
    if (this.state === 'joining') {
      this.joining.abort(makeError('ERR_FAULTLINE_CLOSED', 'the process exits', { what: 'process' }));
      return;
    }
    if (this.state === 'up') await this.leave(timeout);
    // Threads that wait in a fault stay where they are: the process is on its way out.
    this.stop();
  }

  /** A thread touched a lost page outside attempt(): what only this member has must survive the process. */
  private async lastWords(region: number, page: number): Promise<void> {
    if (this.state === 'up') await this.leave(LAST_HAND_OVER);
    await this.session?.close();
    native.die(this.member, region, page);
  }

  private async leave(timeout: number): Promise<void> {
    const { session, engine } = this;
    if (session === null || engine === null) return;
    this.state = 'leaving';
    this.budget?.end();
    this.service?.releasePins();
    try {
      await session.leave(() => new Promise<void>((resolve) => {
        // Only now, when it is this member's turn: until then its threads and the others go on.
        native.memberDown(this.member, Down.Frozen, '');
        // What was granted over lanes is in the words now, and no more will be; the rest is asked for again.
        this.lanes?.stop();
        this.wake();
        // Those that have come about since: what is pinned can't be handed over. From here on nothing can be pinned any more.
        this.service?.releasePins();
        engine.leave(resolve);
        engine.flush();
      }), timeout);
    } catch {
      // Out of time, or out of the view: nothing more can be handed over.
    }
  }

  private end(down: number, detail: string): void {
    native.memberDown(this.member, down, detail);
    const error = makeError('ERR_FAULTLINE_CLOSED', 'the cluster is closed', { what: 'cluster' });
    this.engine?.fail(toWire(error));
  }

  /** Closes everything; the worker ends by itself when nothing keeps its loop. */
  private stop(): void {
    if (this.state === 'stopped') return;
    this.state = 'stopped';
    this.budget?.end();
    if (this.ticker !== null) clearInterval(this.ticker);
    this.setLease(0);
    const close = this.session?.close() ?? Promise.resolve();
    void close.catch(() => undefined).then(() => {
      this.clients.close();
      for (const handle of this.handles.values()) native.regionRelease(handle);
      native.memberStopped(this.member);
      parentPort?.close();
      // No socket is open any more; whatever timer is left has nothing to wait for.
      setImmediate(() => process.exit());
    });
  }

  // ---- regions ------------------------------------------------------------------------------------------------------

  private openMemory(info: RegionInfo): NativeRegionMemory {
    let handle: number;
    try {
      handle = native.regionCreate(this.member, { id: info.id, name: info.name, size: info.size, pageSize: info.pageSize, extentPages: info.extentPages });
    } catch (error) {
      // Every member takes part in every region. One that can't has to end: what it would be asked it could not answer.
      throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `region '${info.name}' of ${info.size} bytes can't be mapped in this process: ${(error as Error).message}`, { region: info.name, size: info.size });
    }
    this.handles.set(info.id, handle);
    this.regionIds.set(handle, info.id);
    return new NativeRegionMemory(this.member, handle, info.pageSize, () => this.session?.state.epoch ?? 0);
  }

  private closeMemory(info: RegionInfo): void {
    const handle = this.handleOf(info.id);
    native.regionDown(handle, Down.Destroyed, '');
    this.handles.delete(info.id);
    this.regionIds.delete(handle);
    native.regionRelease(handle);
    this.clients.notify({ event: 'destroyed', region: info.id });
  }

  private parts(): { handle: number; protocol: RegionProtocol }[] {
    const parts = [];
    for (const [id, handle] of this.handles) {
      const protocol = this.engine?.regions.get(id);
      if (protocol !== undefined) parts.push({ handle, protocol });
    }
    return parts;
  }

  private handleOf(region: number): number {
    const handle = this.handles.get(region);
    if (handle === undefined) throw makeError('ERR_FAULTLINE_REGION_DESTROYED', 'the region was destroyed', { region: String(region) });
    return handle;
  }

  private post(message: Started): void {
    parentPort?.postMessage(message);
  }
}
