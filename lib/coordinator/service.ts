/** What the coordinator does for the handles of its process: every call of calls.ts, on the session and the engine. */
import { barrierWords, lockWords, notHad, type Calls, type CoordinatorStats, type PageInfo, type Request } from '../calls.js';
import { fromWire, makeError } from '../errors.js';
import { Down, native, type GuardKind } from '../native.js';
import { MIN_PAGE_SIZE } from '../options.js';
import type { Session } from './membership/session.js';
import type { Engine } from './protocol/engine.js';
import type { RegionInfo, WireError } from './protocol/messages.js';
import { Held } from './protocol/ports.js';
import type { RegionProtocol } from './protocol/region.js';
import { normaliseRuns, type Run } from './protocol/wants.js';
import { Cancellation } from './cancellation.js';
import type { Client } from './clients.js';

/** Tries to find an address that is free in this process for a region that this process creates. */
const ADDRESS_TRIES = 16;
/** Bytes of a page in the native tables: its words, and its place in the directory. */
const TABLE_BYTES = 48;

interface PinRecord { id: number; client: Client; region: number; runs: Run[]; access: number; timer: NodeJS.Timeout | null }

export interface ServiceContext {
  readonly session: Session;
  readonly engine: Engine;
  /** The native handle of a region of the cluster's table. */
  handleOf(region: number): number;
  /** Of the member's lanes, both ends. */
  laneTraffic(): { messagesSent: number; messagesReceived: number; bytesSent: number; bytesReceived: number };
  /** For the app views of all its regions. */
  readonly guard: GuardKind;
  /** The last handle is closed: the member leaves. */
  leave(): Promise<void>;
}

export class Service {
  private readonly pins = new Map<number, PinRecord>();
  private nextPin = 0;
  /** How many handles of this process have each region open. */
  private readonly opened = new Map<number, number>();
  private readonly learned = new Set<number>();

  constructor(private readonly context: ServiceContext) {}

  handle(client: Client, request: Request, signal: Cancellation): Promise<unknown> | unknown {
    const { session, engine } = this.context;
    switch (request.op) {
      case 'attach': return { self: session.self, state: session.state };
      case 'detach': return this.detach(client);
      case 'region': return this.region(client, request.args as Calls['region']['args'], signal);
      case 'region-close': return this.regionClose(client, (request.args as Calls['region-close']['args']).region);
      case 'destroy': return session.call('region-destroy', { id: (request.args as Calls['destroy']['args']).region }, signal);
      case 'prefetch': return this.prefetch(request.args as Calls['prefetch']['args'], signal);
      case 'pin': return this.pin(client, request.args as Calls['pin']['args'], signal);
      case 'pin-renew': return this.renew(client, request.args as Calls['pin-renew']['args']);
      case 'pin-release': return this.unpin((request.args as Calls['pin-release']['args']).pin);
      case 'wait': return this.wait(request.args as Calls['wait']['args'], signal);
      case 'notify': return this.notify(request.args as Calls['notify']['args'], signal);
      case 'restore': return this.restore(request.args as Calls['restore']['args'], signal);
      case 'discard': return this.discard(request.args as Calls['discard']['args'], signal);
      case 'inspect': return this.inspect(request.args as Calls['inspect']['args'], signal);
      case 'lock': return this.lock(client, request.args as Calls['lock']['args'], signal);
      case 'unlock': return this.unlock(request.args as Calls['unlock']['args']);
      case 'barrier': return this.barrier(client, request.args as Calls['barrier']['args'], signal);
      case 'again': return this.again(request.args as Calls['again']['args'], signal);
      case 'withdraw': return this.withdraw(request.args as Calls['withdraw']['args']);
      case 'stats': return this.stats(engine, session);
      default: throw makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `unknown request ${String(request.op)}`, { argument: 'op' });
    }
  }

  /** A thread ended without closing its handle: what it held passes on. */
  clientGone(client: Client): void {
    void this.context.session.call('client-gone', { client: client.id }).catch(() => undefined);
    this.letGo(client);
  }

  releasePins(): void {
    for (const pin of [...this.pins.keys()]) this.unpin(pin);
  }

  // ---- handles ------------------------------------------------------------------------------------------------------

  private async detach(client: Client): Promise<null> {
    client.closing = true;
    this.letGo(client);
    await this.context.session.call('client-gone', { client: client.id, left: true }).catch(() => undefined);
    await this.context.leave();
    return null;
  }

  private letGo(client: Client): void {
    for (const pin of [...client.pins]) this.unpin(pin);
    for (const [region, times] of [...client.regions]) for (let i = 0; i < times; i++) this.regionClose(client, region);
  }

  // ---- regions ------------------------------------------------------------------------------------------------------

  private async region(client: Client, args: Calls['region']['args'], signal: Cancellation): Promise<Calls['region']['value']> {
    const { session, engine } = this.context;
    if (args.mode !== 'open' && args.mode !== 'wait' && args.size !== undefined) this.checkMemory(args.name, args.size, args.pageSize ?? MIN_PAGE_SIZE);
    let { info, created } = (await session.call('region-open', args, signal)) as { info: RegionInfo; created: boolean };
    await this.until(() => engine.regions.has(info.id), signal);
    const handle = this.context.handleOf(info.id);
    info = await this.map(handle, info, created, signal);
    const region = this.regionOf(info.id);
    if (!created && !this.learned.has(info.id)) {
      const home = region.homeOf(0);
      if (home !== session.self) {
        const losses = (await this.question((reply) => region.questions.ask('losses', 0, [], undefined, reply), signal)) as number[];
        region.learnLosses(losses);
      }
    }
    this.learned.add(info.id);
    if ((this.opened.get(info.id) ?? 0) === 0) native.regionDown(handle, Down.Up, '');
    this.opened.set(info.id, (this.opened.get(info.id) ?? 0) + 1);
    client.regions.set(info.id, (client.regions.get(info.id) ?? 0) + 1);
    return { handle, info, lost: region.lostRuns().map(([first, count]) => [first, count]), created };
  }

  private async map(handle: number, info: RegionInfo, created: boolean, signal: Cancellation): Promise<RegionInfo> {
    for (let tries = 0; ; tries++) {
      try {
        native.regionMap(handle, BigInt(info.address), this.context.guard);
        return info;
      } catch (error) {
        if ((error as { code?: string }).code !== 'ERR_ADDRESS_TAKEN') throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `region '${info.name}' of ${info.size} bytes can't be mapped here: ${(error as Error).message}`);
        if (!created || tries === ADDRESS_TRIES) {
          throw makeError('ERR_FAULTLINE_ADDRESS_TAKEN', `region '${info.name}' lies at 0x${BigInt(info.address).toString(16)} in every member, and something else is mapped there in this process`, { region: info.name, address: BigInt(info.address) });
        }
        info = ((await this.context.session.call('region-readdress', { id: info.id, address: info.address }, signal)) as { info: RegionInfo }).info;
      }
    }
  }

  private checkMemory(name: string, size: number, pageSize: number): void {
    // Memory is needed for what is touched only, so a region may be larger than the machine's.
    // Once it exists every member has to map it: so it must not come to be if not even its creator can.
    if (this.context.session.state.regions.some((region) => region.name === name)) return;
    if (!native.canMap(2 * size + Math.ceil(size / pageSize) * TABLE_BYTES)) {
      throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `region '${name}' of ${size} bytes can't be mapped here: it needs twice that much address space (see ulimit -v)`, { region: name, size });
    }
  }

  private regionClose(client: Client, id: number): null {
    const times = client.regions.get(id) ?? 0;
    if (times === 0) return null;
    if (times === 1) client.regions.delete(id);
    else client.regions.set(id, times - 1);
    const left = (this.opened.get(id) ?? 1) - 1;
    this.opened.set(id, left);
    if (left === 0 && this.context.engine.regions.has(id)) native.regionDown(this.context.handleOf(id), Down.Closed, 'close()');
    return null;
  }

  // ---- pages --------------------------------------------------------------------------------------------------------

  private async prefetch(args: Calls['prefetch']['args'], signal: Cancellation): Promise<null> {
    const region = this.regionOf(args.region);
    const runs = normaliseRuns([this.runOf(region, args)], Number.MAX_SAFE_INTEGER);
    await this.want(region, signal, (result) => region.wants.prefetch(runs, args.access, result));
    return null;
  }

  private async pin(client: Client, args: Calls['pin']['args'], signal: Cancellation): Promise<Calls['pin']['value']> {
    const region = this.regionOf(args.region);
    const wanted = args.ranges.map((range) => this.runOf(region, range));
    const runs = normaliseRuns(wanted);
    let pinned: PinRecord | undefined;
    await this.want(region, signal, (result) => region.wants.pin(runs, args.access, {
      done: () => {
        // Recorded in the same turn in which the pages are pinned, so that nothing stays pinned whoever ends when.
        pinned = { id: ++this.nextPin, client, region: args.region, runs, access: args.access, timer: null };
        this.pins.set(pinned.id, pinned);
        client.pins.add(pinned.id);
        const handle = this.context.handleOf(args.region);
        for (const run of wanted) native.fillHoles(handle, run.first, run.count);
        result.done();
      },
      failed: result.failed,
    }));
    const record = pinned!;
    if (signal.aborted) {
      this.unpin(record.id);
      throw signal.reason;
    }
    return { pin: record.id, until: this.limit(record, args.timeout) };
  }

  private renew(client: Client, args: Calls['pin-renew']['args']): { until: number } {
    const record = this.pins.get(args.pin);
    if (record === undefined || record.client !== client) throw makeError('ERR_FAULTLINE_CLOSED', 'the pin was released, or its time was over', { what: 'pin' });
    return { until: this.limit(record, args.timeout) };
  }

  private limit(record: PinRecord, timeout: number): number {
    if (record.timer !== null) clearTimeout(record.timer);
    record.timer = setTimeout(() => this.unpin(record.id), timeout);
    return Date.now() + timeout;
  }

  private unpin(id: number): null {
    const record = this.pins.get(id);
    if (record === undefined) return null;
    this.pins.delete(id);
    record.client.pins.delete(id);
    if (record.timer !== null) clearTimeout(record.timer);
    if (this.context.engine.regions.has(record.region)) {
      const handle = this.context.handleOf(record.region);
      for (const run of record.runs) native.unpin(handle, run.first, run.count, record.access);
    }
    return null;
  }

  private want(region: RegionProtocol, signal: Cancellation, start: (result: { done(): void; failed(page: number): void }) => () => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const aborted = (): void => {
        withdraw();
        reject(signal.reason as Error);
      };
      const settle = (then: () => void): void => {
        signal.offAbort(aborted);
        then();
      };
      const withdraw = start({ done: () => settle(resolve), failed: (page) => settle(() => reject(fromWire(region.lostError(page)))) });
      signal.onAbort(aborted);
      this.context.engine.flush();
    });
  }

  // ---- questions to homes -------------------------------------------------------------------------------------------

  private wait(args: Calls['wait']['args'], signal: Cancellation): Promise<unknown> {
    const region = this.regionOf(args.region);
    const page = Math.floor(args.offset / region.info.pageSize);
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | null = null;
      const cancel = (): void => {
        region.questions.cancelWait(id);
        this.context.engine.flush();
      };
      const id = region.questions.ask('wait', page, [args.offset, args.expected], undefined, (value, error) => {
        if (timer !== null) clearTimeout(timer);
        signal.offAbort(cancel);
        if (error !== undefined) reject(fromWire(error));
        else resolve(value);
      });
      // The home alone says whether the time was over before the notify came.
      if (args.timeout !== undefined) timer = setTimeout(cancel, args.timeout);
      signal.onAbort(cancel);
      this.context.engine.flush();
    });
  }

  private notify(args: Calls['notify']['args'], signal: Cancellation): Promise<unknown> {
    const region = this.regionOf(args.region);
    return this.question((reply) => region.questions.ask('notify', Math.floor(args.offset / region.info.pageSize), [args.offset, args.count], undefined, reply), signal);
  }

  private async restore(args: Calls['restore']['args'], signal: Cancellation): Promise<null> {
    const region = this.regionOf(args.region);
    const { pageSize } = region.info;
    const first = args.offset / pageSize;
    for (const [start, count] of region.slicesOf(first, args.bytes.length / pageSize)) {
      const bytes = args.bytes.slice((start - first) * pageSize, (start - first + count) * pageSize);
      await this.question((reply) => region.questions.ask('restore', start, [start, count], bytes, reply), signal);
    }
    return null;
  }

  private async discard(args: Calls['discard']['args'], signal: Cancellation): Promise<null> {
    const region = this.regionOf(args.region);
    const { pageSize } = region.info;
    const { first, count } = this.runOf(region, args);
    for (const [start, length] of region.slicesOf(first, count)) {
      const from = Math.max(args.offset, start * pageSize);
      const to = Math.min(args.offset + args.length, (start + length) * pageSize);
      await this.question((reply) => region.questions.ask('discard', start, [from, to - from], undefined, reply), signal);
    }
    return null;
  }

  private async inspect(args: Calls['inspect']['args'], signal: Cancellation): Promise<PageInfo> {
    const region = this.regionOf(args.region);
    const page = Math.floor(args.offset / region.info.pageSize);
    const answer = (await this.question((reply) => region.questions.ask('inspect', page, [page], undefined, reply), signal)) as Pick<PageInfo, 'state' | 'owner' | 'copies' | 'version'>;
    const names = { [Held.Invalid]: 'invalid', [Held.Shared]: 'shared', [Held.Exclusive]: 'exclusive', [Held.Lost]: 'lost' } as const;
    return { page, offset: page * region.info.pageSize, home: region.homeOf(page), ...answer, held: names[region.held(page) as 0 | 1 | 2 | 3] };
  }

  private question(start: (reply: (value: unknown, error?: WireError) => void) => void, signal: Cancellation): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const aborted = (): void => reject(signal.reason as Error);
      signal.onAbort(aborted);
      start((value, error) => {
        signal.offAbort(aborted);
        if (error !== undefined) reject(fromWire(error));
        else resolve(value);
      });
      this.context.engine.flush();
    });
  }

  // ---- locks and barriers -------------------------------------------------------------------------------------------

  private async lock(client: Client, args: Calls['lock']['args'], signal: Cancellation): Promise<Calls['lock']['value']> {
    return (await this.timed(signal, args.timeout, lockWords(args.name), (inner) => this.context.session.call('lock', { name: args.name, shared: args.shared, client: client.id, try: args.try }, inner))) as Calls['lock']['value'];
  }

  private async unlock(args: Calls['unlock']['args']): Promise<null> {
    await this.context.session.call('unlock', { name: args.name, token: args.token, died: false });
    return null;
  }

  private async barrier(client: Client, args: Calls['barrier']['args'], signal: Cancellation): Promise<null> {
    await this.timed(signal, args.timeout, barrierWords(args.name), (inner) => this.context.session.call('barrier', { name: args.name, parties: args.parties, client: client.id }, inner));
    return null;
  }

  private again(args: Calls['again']['args'], signal: Cancellation): Promise<unknown> {
    return this.timed(signal, args.timeout, args.what, (inner) => this.context.session.again(args.call, args.op, args.args, inner));
  }

  /** Nobody waits for the registrar's answer to that. */
  private withdraw({ call }: Calls['withdraw']['args']): null {
    void this.context.session.call('call-cancel', { call }).catch(() => undefined);
    return null;
  }

  private async timed<T>(signal: Cancellation, timeout: number | undefined, what: string, run: (signal: Cancellation) => Promise<T>): Promise<T> {
    if (timeout === undefined) return run(signal);
    const controller = new Cancellation();
    const aborted = (): void => controller.abort(signal.reason);
    signal.onAbort(aborted);
    const timer = setTimeout(() => controller.abort(notHad(what, timeout)), timeout);
    try {
      return await run(controller);
    } finally {
      clearTimeout(timer);
      signal.offAbort(aborted);
    }
  }

  // ---- within -------------------------------------------------------------------------------------------------------

  private stats(engine: Engine, session: Session): CoordinatorStats {
    const zmq = session.stats();
    const lanes = this.context.laneTraffic();
    return {
      ...zmq,
      messagesSent: zmq.messagesSent + lanes.messagesSent, messagesReceived: zmq.messagesReceived + lanes.messagesReceived,
      bytesSent: zmq.bytesSent + lanes.bytesSent, bytesReceived: zmq.bytesReceived + lanes.bytesReceived,
      regions: Object.fromEntries([...engine.regions].map(([id, region]) => [id, region.traffic()])),
    };
  }

  private regionOf(id: number): RegionProtocol {
    const region = this.context.engine.regions.get(id);
    if (region === undefined) throw makeError('ERR_FAULTLINE_REGION_DESTROYED', 'the region was destroyed', { region: String(id) });
    return region;
  }

  private runOf(region: RegionProtocol, range: { offset: number; length: number }): Run {
    const { pageSize } = region.info;
    const first = Math.floor(range.offset / pageSize);
    return { first, count: Math.ceil((range.offset + range.length) / pageSize) - first };
  }

  /** Waits for the agreed state that the answer of a call is already about. */
  private async until(condition: () => boolean, signal: Cancellation): Promise<void> {
    while (!condition()) {
      signal.throwIfAborted();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

