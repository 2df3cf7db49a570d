/**
 * What must always be true, by the names of docs/correctness.md. The checker sees everything at once, which no member
 * can: so "the last write" is simply the last store that any member of the view has made, and a load must return it.
 */
import type { MemberId } from '../../lib/coordinator/protocol/messages.js';
import type { SimulatedMember } from './member.js';
import type { World } from './world.js';

export class Violation extends Error {
  constructor(readonly invariant: string, message: string) {
    super(message);
  }
}

/** What a page holds, as far as the threads look at it: data (twice, at both ends of the page) and a signal word. */
export interface Cell { data: number; signal: number }

/** mixed: something else has written meanwhile, or may have, before it or after it. */
interface Pending { cell: Cell; mixed: boolean; member: SimulatedMember; deaths: number }

interface Page {
  /** What a load may return: more than one only while a restore or a discard is under way beside stores. */
  accept: Cell[];
  pending: Map<number, Pending>;
}

export const DATA = 0;
export const SIGNAL = 4;
export const MIRROR = 1022;

interface Wait { page: number; asker: MemberId; cancelled: boolean; /** A notify found it queued, and was answered before anybody cancelled it. */ owed: boolean }

export class Checker {
  private readonly pages = new Map<number, Page>();
  private readonly holders = new Map<string, { member: MemberId; thread: number; shared: boolean }[]>();
  private readonly arrived = new Map<string, number>();
  /** What members wrote that were out of the view. */
  private readonly ghosts = new Set<number>();
  private tokens = new Map<string, bigint>();
  private nextPending = 0;
  private values = 0;
  readonly waits = new Map<number, Wait>();

  constructor(private readonly world: World) {}

  newValue(): number {
    return ++this.values;
  }

  private page(page: number): Page {
    let found = this.pages.get(page);
    if (found === undefined) this.pages.set(page, (found = { accept: [{ data: 0, signal: 0 }], pending: new Map() }));
    return found;
  }

  // ---- loads and stores ---------------------------------------------------------------------------------------------

  /** A load by a thread whose mapping allowed it. */
  load(member: SimulatedMember, page: number): Cell {
    this.world.accesses++;
    const at = page * 1024;
    const cell = { data: member.words[at + DATA], signal: member.words[at + SIGNAL] };
    // Nobody outside of the view is promised anything.
    if (!this.world.inView(member.id)) return cell;
    const mirror = member.words[at + MIRROR];
    if (mirror !== cell.data) throw new Violation('no-torn-page', `member ${member.id} reads ${cell.data} at the beginning of page ${page} and ${mirror} at its end`);
    const state = this.page(page);
    const same = (other: Cell): boolean => other.data === cell.data && other.signal === cell.signal;
    const fine = state.accept.some(same) || [...state.pending.values()].some(({ cell: wanted }) => same(wanted));
    if (!fine) {
      if (this.ghosts.has(cell.data)) throw new Violation('no-zombie', `member ${member.id} reads ${cell.data} in page ${page}, which somebody wrote who was out of the view\n${this.words(page)}`);
      throw new Violation('latest-value', `member ${member.id} reads ${JSON.stringify(cell)} in page ${page}, where ${state.accept.map((one) => JSON.stringify(one)).join(' or ')} was written last\n${this.words(page)}`);
    }
    state.accept = [cell];
    return cell;
  }

  store(member: SimulatedMember, page: number, cell: Cell): void {
    const at = page * 1024;
    member.words[at + DATA] = cell.data;
    member.words[at + MIRROR] = cell.data;
    member.words[at + SIGNAL] = cell.signal;
    if (!this.world.inView(member.id)) return void this.ghosts.add(cell.data);
    const state = this.page(page);
    state.accept = [cell];
    for (const pending of state.pending.values()) pending.mixed = true;
  }

  /** A restore or a discard begins: from now on, until it is answered, loads may or may not show it. */
  beginChange(member: SimulatedMember, page: number, cell: Cell): number {
    const id = ++this.nextPending;
    const { pending } = this.page(page);
    for (const other of pending.values()) other.mixed = true;
    pending.set(id, { cell, mixed: pending.size > 0, member, deaths: this.world.deaths });
    return id;
  }

  endChange(page: number, id: number, answered: boolean): void {
    const state = this.page(page);
    const pending = state.pending.get(id);
    state.pending.delete(id);
    if (pending === undefined) return;
    // Whom the others gave up may have done it to nobody's bytes but its own; and a home that died may have done it, or not.
    const done = answered && this.world.inView(pending.member.id) && pending.deaths === this.world.deaths;
    if (done && !pending.mixed) state.accept = [pending.cell];
    else state.accept.push(pending.cell);
    // Refused, or the asker was given up meanwhile: it may still happen, at any time.
    if (!done) state.pending.set(id, { ...pending, mixed: true });
  }

  // ---- mappings -----------------------------------------------------------------------------------------------------

  mapped(member: SimulatedMember, first: number, count: number, open: number): void {
    if (open > 0 && this.world.inView(member.id)) {
      for (const other of this.world.members.values()) {
        if (other === member || other.dead || other.mapping.length === 0 || !this.world.inView(other.id)) continue;
        for (let page = first; page < first + count; page++) {
          const theirs = other.mapping[page];
          if (theirs === 2 || (open === 2 && theirs === 1)) {
            throw new Violation('one-writer', `member ${member.id} may ${open === 2 ? 'write' : 'read'} page ${page} while member ${other.id} may ${theirs === 2 ? 'write' : 'read'} it\n${this.words(page)}`);
          }
        }
      }
    }
    for (const thread of member.threads) {
      for (const pin of thread.pins) {
        const low = Math.max(first, pin.first);
        const high = Math.min(first + count, pin.first + pin.count);
        // Closed for want of mappings it may be, but never given away: see one-writer.
        if (low < high && open !== 0 && open < pin.access) throw new Violation('pins-stay', `member ${member.id} loses access to pinned page ${low}`);
      }
    }
  }

  /** Until its lease is over it loads and stores what nobody else knows of. */
  declaredDead(member: SimulatedMember): void {
    if (member.up && member.isLeased) throw new Violation('no-zombie', `member ${member.id} is declared dead while its lease still runs`);
  }

  viewChanged(): void {
    for (const [name, holders] of this.holders) this.holders.set(name, holders.filter(({ member }) => this.world.inView(member)));
  }

  lost(member: SimulatedMember, runs: [number, number][]): void {
    const { plan } = this.world;
    for (const other of this.world.members.values()) {
      if (other.dead || other.ended || other.mapping.length === 0 || !this.world.inView(other.id)) continue;
      for (const [first, count] of runs) {
        // The others hear of a loss when the page may have been written afresh.
        for (let page = first; page < first + count; page++) if (member.isHome(page) && this.world.inView(member.id) && other.mapping[page] !== 0) throw new Violation('no-needless-loss', `page ${page} is lost at member ${member.id}, and member ${other.id} can read it\n${this.words(page)}`);
      }
    }
    if (plan.kills + plan.pauses + plan.breaks + plan.partitions + plan.stalls + plan.triggers.length === 0) throw new Violation('no-needless-loss', `pages ${JSON.stringify(runs)} are lost at member ${member.id}, and nobody died`);
  }

  // ---- locks, barriers, waits ---------------------------------------------------------------------------------------

  granted(name: string, member: MemberId, thread: number, shared: boolean, token: bigint): void {
    if (!this.world.inView(member)) return;
    const holders = this.holders.get(name) ?? [];
    if (holders.some((other) => !shared || !other.shared)) {
      throw new Violation('one-holder', `lock ${name} is granted to thread ${thread} of member ${member} while ${holders.map((other) => `thread ${other.thread} of member ${other.member}`).join(', ')} has it`);
    }
    // Readers who have it together hear of it in any order.
    const last = this.tokens.get(name) ?? 0n;
    if (token <= last) throw new Violation('tokens-grow', `lock ${name} is granted with token ${token} after ${last}`);
    if (!shared) this.tokens.set(name, token);
    this.holders.set(name, [...holders, { member, thread, shared }]);
  }

  released(name: string, thread: number): void {
    this.holders.set(name, (this.holders.get(name) ?? []).filter((holder) => holder.thread !== thread));
  }

  arrives(name: string): void {
    this.arrived.set(name, (this.arrived.get(name) ?? 0) + 1);
  }

  opens(name: string, parties: number): void {
    if ((this.arrived.get(name) ?? 0) < parties) throw new Violation('barrier-waits-for-all', `barrier ${name} opens for ${parties} when ${this.arrived.get(name)} have arrived`);
  }

  /** The waits that their home has queued now. */
  queuedWaits(page: number): number[] {
    const queued: number[] = [];
    for (const member of this.world.members.values()) {
      if (member.dead || member.protocol === undefined || !this.world.inView(member.id)) continue;
      const { waiters } = (member.protocol as unknown as { answers: { waiters: Map<number, { from: MemberId; id: number }[]> } }).answers;
      for (const list of waiters.values()) for (const { from, id } of list) if (this.waits.get(from * 100_000 + id)?.page === page) queued.push(from * 100_000 + id);
    }
    return queued;
  }

  waitEnds(key: number, result: unknown): void {
    const wait = this.waits.get(key);
    this.waits.delete(key);
    if (wait?.owed && result === 'timed-out' && this.world.inView(wait.asker)) throw new Violation('no-lost-wakeup', `a wait of member ${wait.asker} on page ${wait.page} timed out, although a notify came while it was queued`);
  }

  atEnd(): void {
    // Everybody who is in the view agrees on the bytes of what it may read.
    for (const [page] of this.pages) {
      for (const member of this.world.members.values()) {
        if (!member.up || !this.world.inView(member.id) || member.mapping.length === 0 || member.mapping[page] === 0) continue;
        this.load(member, page);
      }
    }
  }

  words(page: number): string {
    return [...this.world.members.values()].filter((member) => member.mapping.length > 0)
      .map((member) => `  member ${member.id}${member.dead ? ' (dead)' : member.ended ? ' (out)' : ''}: mapping ${member.mapping[page]}, words ${member.page(page)}`).join('\n');
  }
}
