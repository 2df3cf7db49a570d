/**
 * Questions that a home answers about its pages, one answer each: wait, notify, restore, discard, inspect. And, at the
 * asking member, the open questions. What a home on its way out has not done any more it says ('moved'), and that is
 * asked of the next one: each question is carried out once, unless a home dies over it.
 */
import type { AskMessage, MemberId, RegionInfo, ReplyMessage, WireError } from './messages.js';
import { Access, DirState, DIRECTORY_RECORD, type Network, type RegionMemory } from './ports.js';
import type { Entry, Home, Service } from './home.js';
import type { View } from './view.js';
import type { Placement } from './placement.js';
import { appendPage, pairs } from './ranges.js';

export type Reply = (value: unknown, error?: WireError) => void;

/** The answer of a home that moves; left: [first, count, …] of the pages for which it has not been done, if some are. */
const MOVED = 'moved';
const moved = (left: number[] = []): WireError => ({ code: MOVED, message: 'the home has moved', fields: { left } });

interface Waiter { from: MemberId; id: number; reply: Reply }

/** The home's side. */
export class Answers {
  /** Waiting threads by byte offset, in the order of arrival. */
  private readonly waiters = new Map<number, Waiter[]>();
  /** Waits that were withdrawn before their page was readable. */
  private readonly cancelled = new Set<string>();
  private readonly queued = new Set<string>();

  constructor(
    private readonly info: RegionInfo,
    private readonly memory: RegionMemory,
    private readonly view: View,
    private readonly home: Home,
    private readonly losses: { get(page: number): { member: MemberId; epoch: number } | undefined; delete(first: number, count: number): void },
  ) {}

  ask(from: MemberId, service: Service, message: AskMessage, payload: Uint8Array | undefined, reply: Reply): void {
    if (service.status === 'draining' || service.status === 'handed') return reply(null, moved());
    if (service.status !== 'open') {
      const copy = payload?.slice();
      service.waiting.push(() => this.ask(from, service, message, copy, reply));
      return;
    }
    const [a, b] = message.args;
    switch (message.op) {
      case 'wait': return this.wait(from, message.id, a, b, reply);
      case 'wait-cancel': return this.cancel(from, a);
      case 'notify': return reply(this.notify(a, b));
      case 'restore': return this.restore(a, b, payload, reply);
      case 'discard': return this.discard(a, b, reply);
      case 'inspect': return reply(this.inspect(a));
      case 'settled': return this.home.afterFetching(() => reply(null));
      default: return reply(null, { code: 'ERR_FAULTLINE_COORDINATOR', message: `unknown question ${message.op}` });
    }
  }

  memberGone(member: MemberId): void {
    for (const [offset, waiters] of this.waiters) {
      const left = waiters.filter((waiter) => waiter.from !== member);
      if (left.length === 0) this.waiters.delete(offset);
      else this.waiters.set(offset, left);
    }
  }

  /** The home moves, and the waits that it knew end. */
  move(first: number, count: number): void {
    const { pageSize } = this.memory;
    for (const [offset, waiters] of [...this.waiters]) {
      if (offset < first * pageSize || offset >= (first + count) * pageSize) continue;
      this.waiters.delete(offset);
      for (const { reply } of waiters) reply(null, moved());
    }
  }

  private wait(from: MemberId, id: number, offset: number, expected: number, reply: Reply): void {
    const name = `${from}/${id}`;
    this.queued.add(name);
    const compare = (): void => {
      this.queued.delete(name);
      if (this.cancelled.delete(name)) return reply('timed-out');
      // The page is idle: a store that the value doesn't show comes later, and so does its notify.
      if (this.memory.load32(offset) !== expected) return reply('not-equal');
      const waiters = this.waiters.get(offset);
      if (waiters === undefined) this.waiters.set(offset, [{ from, id, reply }]);
      else waiters.push({ from, id, reply });
    };
    this.enqueue(this.pageOf(offset), Access.Read, {
      run: compare,
      lost: (page) => {
        this.queued.delete(name);
        this.cancelled.delete(name);
        reply(null, this.lostError(page));
        return 'lost';
      },
      moved: () => {
        this.queued.delete(name);
        this.cancelled.delete(name);
        reply(null, moved());
      },
    });
  }

  private cancel(from: MemberId, id: number): void {
    const name = `${from}/${id}`;
    if (this.queued.has(name)) {
      this.cancelled.add(name);
      return;
    }
    for (const [offset, waiters] of this.waiters) {
      const at = waiters.findIndex((waiter) => waiter.from === from && waiter.id === id);
      if (at < 0) continue;
      const [waiter] = waiters.splice(at, 1);
      if (waiters.length === 0) this.waiters.delete(offset);
      waiter.reply('timed-out');
      return;
    }
  }

  private notify(offset: number, count: number): number {
    const waiters = this.waiters.get(offset);
    if (waiters === undefined) return 0;
    const woken = waiters.splice(0, count);
    if (waiters.length === 0) this.waiters.delete(offset);
    for (const waiter of woken) waiter.reply('ok');
    return woken.length;
  }

  private restore(first: number, count: number, bytes: Uint8Array | undefined, reply: Reply): void {
    const { pageSize } = this.memory;
    for (let page = first; page < first + count; page++) {
      if (this.losses.get(page) === undefined) {
        return reply(null, { code: 'ERR_FAULTLINE_NOT_LOST', message: `page ${page} of region '${this.info.name}' is not lost; restore() is for lost pages only`, fields: { region: this.info.name, offset: page * pageSize } });
      }
    }
    const found: [number, number][] = [];
    this.forPages(Array.from({ length: count }, (_, i) => first + i), (page) => {
      this.memory.writePages(page, 1, bytes!, (page - first) * pageSize);
      this.losses.delete(page, 1);
      appendPage(found, page);
    }, (left) => {
      if (found.length > 0) this.home.announceFound(found);
      reply(null, left.length > 0 ? moved(left.flat()) : undefined);
    });
  }

  /** Zeroes the bytes, and frees whole pages here; copies elsewhere are invalidated. Pages that nobody touched are left alone. */
  private discard(offset: number, length: number, reply: Reply): void {
    const { pageSize } = this.memory;
    const first = this.pageOf(offset);
    const end = Math.ceil((offset + length) / pageSize);
    const found: [number, number][] = [];
    const whole: [number, number][] = [];
    const pages: number[] = [];
    const records = new Float64Array(256 * DIRECTORY_RECORD);
    for (let page = first; page < end; ) {
      const [count, next] = this.memory.directoryRecords(page, end - page, records);
      for (let i = 0; i < count; i++) {
        const at = i * DIRECTORY_RECORD;
        for (let touched = records[at]; touched < records[at] + records[at + 1]; touched++) pages.push(touched);
      }
      page = next;
    }
    const zero = (page: number): void => {
      const from = Math.max(offset, page * pageSize);
      const to = Math.min(offset + length, (page + 1) * pageSize);
      this.memory.zero(from, to - from);
      if (to - from === pageSize) appendPage(whole, page);
      if (this.losses.get(page) !== undefined) {
        this.losses.delete(page, 1);
        appendPage(found, page);
      }
    };
    this.forPages(pages, zero, (left) => {
      if (found.length > 0) this.home.announceFound(found);
      if (whole.length > 0) this.home.announceDiscarded(whole);
      reply(null, left.length > 0 ? moved(left.flat()) : undefined);
    });
  }

  private inspect(page: number): unknown {
    const [state, owner, version, low, high] = this.home.directory(page);
    return {
      state: state === DirState.Exclusive ? 'exclusive' : state === DirState.Lost ? 'lost' : 'idle',
      owner: state === DirState.Exclusive ? (this.view.atSlot(owner) ?? null) : null,
      copies: this.view.copyset(low, high),
      version,
    };
  }

  /** Runs when each page is idle and alone, or lost; left: runs of pages at which the home moved before that. */
  private forPages(pages: number[], run: (page: number) => void, done: (left: [number, number][]) => void): void {
    const left: [number, number][] = [];
    let open = pages.length;
    if (open === 0) return done(left);
    const one = (): void => void (--open === 0 && done(left));
    for (const page of pages) {
      this.enqueue(page, Access.Write, {
        run: () => {
          run(page);
          one();
        },
        lost: () => {
          run(page);
          one();
          return 'found';
        },
        moved: () => {
          appendPage(left, page);
          one();
        },
      });
    }
  }

  private enqueue(page: number, access: number, task: NonNullable<Entry['task']>): void {
    this.home.enqueue(page, { from: 0, access, held: 0, task });
  }

  private lostError(page: number): WireError {
    const loss = this.losses.get(page) ?? { member: 0, epoch: 0 };
    return lostError(this.info, page, loss);
  }

  private pageOf(offset: number): number {
    return Math.floor(offset / this.memory.pageSize);
  }
}

export function lostError(info: RegionInfo, page: number, loss: { member: MemberId; epoch: number }): WireError {
  const offset = page * info.pageSize;
  return {
    code: 'ERR_FAULTLINE_PAGE_LOST',
    message: `page ${page} (offset ${offset}) of region '${info.name}' is lost: its only copy was at member ${loss.member}, which was gone in epoch ${loss.epoch}`,
    fields: { region: info.name, page, offset, member: loss.member, epoch: loss.epoch },
  };
}

interface Open { op: string; args: number[]; page: number; payload: Uint8Array | undefined; reply: Reply; /** Who was asked. */ home: MemberId }

/** The asking member's side. */
export class Questions {
  private readonly open = new Map<number, Open>();

  constructor(
    private readonly info: RegionInfo,
    private readonly network: Network,
    private readonly placement: Placement,
    /** Ids are unique in the member, over all regions. */
    private readonly nextId: () => number,
    private readonly askSelf: (message: AskMessage, payload: Uint8Array | undefined, reply: Reply) => void,
  ) {}

  /** Returns the question's id. `page` says whose home answers. */
  ask(op: string, page: number, args: number[], payload: Uint8Array | undefined, reply: Reply): number {
    const id = this.nextId();
    const open = { op, args, page, payload, reply, home: 0 };
    this.open.set(id, open);
    this.send(id, open);
    return id;
  }

  /** A wait's time is over, or nobody wants it any more: the home alone decides whether it was woken before. */
  cancelWait(id: number): void {
    const open = this.open.get(id);
    if (open === undefined) return;
    const slice = this.placement.of(open.page);
    const message: AskMessage = { type: 'ask', region: this.info.id, generation: slice.generation, id: 0, op: 'wait-cancel', args: [id, open.page] };
    if (slice.home === this.network.self) this.askSelf(message, undefined, () => undefined);
    else this.network.send(slice.home, message);
  }

  reply({ id, value, error }: ReplyMessage): boolean {
    const open = this.open.get(id);
    if (open === undefined) return false;
    this.open.delete(id);
    if (error?.code === MOVED) this.follow(open, pairs((error.fields?.left ?? []) as number[]));
    else open.reply(value, error);
    return true;
  }

  /** Homes have changed, and some may have died: what they were asked is asked of the next ones, waits are woken. */
  homesChanged(alive: (member: MemberId) => boolean): void {
    for (const [id, open] of [...this.open]) {
      if (alive(open.home)) continue;
      if (open.op === 'wait') this.wake(id, open);
      else this.send(id, open);
    }
  }

  /** Nobody answers any more. */
  fail(error: WireError): void {
    const all = [...this.open.values()];
    this.open.clear();
    for (const open of all) open.reply(null, error);
  }

  /** A wait may end at any time; its caller looks at the value again. */
  private wake(id: number, open: Open): void {
    this.open.delete(id);
    open.reply('ok');
  }

  /** The home has moved, with all of it undone, or all of these runs of pages. */
  private follow(open: Open, left: [number, number][]): void {
    const { op, page, args, payload, reply } = open;
    if (op === 'wait') return open.reply('ok');
    if (left.length === 0) return void this.ask(op, page, args, payload, reply);
    const { pageSize } = this.info;
    let first: WireError | undefined;
    let count = left.length;
    const one: Reply = (_, error) => {
      first ??= error;
      if (--count === 0) reply(null, first);
    };
    for (const [start, length] of left) {
      if (op === 'restore') {
        this.ask(op, start, [start, length], payload!.subarray((start - args[0]) * pageSize, (start - args[0] + length) * pageSize), one);
      } else {
        // discard
        const from = Math.max(args[0], start * pageSize);
        this.ask(op, start, [from, Math.min(args[0] + args[1], (start + length) * pageSize) - from], undefined, one);
      }
    }
  }

  private send(id: number, open: Open): void {
    const slice = this.placement.of(open.page);
    open.home = slice.home;
    const message: AskMessage = { type: 'ask', region: this.info.id, generation: slice.generation, id, op: open.op, args: open.args };
    if (slice.home === this.network.self) this.askSelf(message, open.payload, (value, error) => void this.reply({ type: 'reply', id, value, error }));
    else this.network.send(slice.home, message, open.payload);
  }
}
