/**
 * One member's lanes and its page server: the production steps of lane_steps.cc, with what lies between them (sockets,
 * delays, breaks) made of choices. A question and its answer travel beside the member's channels, in no order with them.
 */
import type { ClusterState, MemberId } from '../../lib/coordinator/protocol/messages.js';
import type { SimulatedMember } from './member.js';
import type { World } from './world.js';

const PAGE_SIZE = 4096;
/** µs that a thread waits for an answer, as lane_client.cc. */
const ANSWER = 200_000;
/** Lanes to one peer. */
const LANES = 2;

/** A thread, or the page server for somebody who asks it. */
interface Asker { readonly index: number; readonly id: number | string }
interface Exchange { peer: MemberId; installing: boolean; over: () => void }
interface Answer { head: Uint8Array; pages: Map<number, Int32Array> }

export class SimulatedLanes {
  private readonly exchanges = new Map<Asker, Exchange>();
  /** The page server's own: what it is in the middle of, and what waits. */
  private serving: { finish: () => void } | null = null;
  private readonly waiting: (() => void)[] = [];
  private readonly peers = new Map<number, MemberId>();
  /** The page server as one that asks: one question at a time, the production has more. */
  private hopper: Asker | null = null;
  private stopped = false;

  constructor(private readonly world: World, private readonly member: SimulatedMember) {}

  // ---- the view -----------------------------------------------------------------------------------------------------

  closeGone(state: ClusterState): void {
    for (const [slot, id] of this.peers) {
      if (state.members.some((member) => member.id === id && !member.leaving)) continue;
      this.peers.delete(slot);
      this.close(id);
    }
  }

  apply(state: ClusterState): void {
    if (this.stopped) return;
    for (const { id, slot, leaving } of state.members) if (id !== this.member.id && !leaving) this.peers.set(slot, id);
  }

  stop(): void {
    this.stopped = true;
    this.peers.clear();
    for (const thread of [...this.exchanges.keys()]) this.giveUp(thread);
    this.waiting.length = 0;
    this.serving?.finish();
  }

  private close(peer: MemberId): void {
    for (const [thread, exchange] of [...this.exchanges]) if (exchange.peer === peer) this.giveUp(thread);
    // What it has asked is answered into a socket that is shut.
    this.serving?.finish();
  }

  // ---- asking -------------------------------------------------------------------------------------------------------

  /** A free lane to the member at this slot? */
  take(slot: number): boolean {
    const { world } = this;
    const peer = this.peers.get(slot);
    if (this.stopped || !world.plan.lanes || peer === undefined) return false;
    let used = 0;
    for (const exchange of this.exchanges.values()) if (exchange.peer === peer) used++;
    return used < LANES && !world.choices.chance(0.05);
  }

  /** The thread has claimed its page, and asks; `over` when its claims have ended, or are the coordinator's. */
  ask(thread: Asker, over: () => void): void {
    const { world, member } = this;
    const { slot, question, first, access, count, hop } = world.native.laneQuestion(thread.index);
    const peer = this.peers.get(slot);
    const exchange: Exchange = { peer: peer ?? 0, installing: false, over };
    this.exchanges.set(thread, exchange);
    world.note(() => `thread ${thread.id} of member ${member.id} asks ${peer} on a lane: ${hop ? 'recall' : question[4] === 5 ? 'retire' : access === 2 ? 'write' : 'read'} page ${first}${count > 1 ? ` and ${count - 1} more` : ''}`);
    world.events.after(ANSWER, member.id, () => this.giveUp(thread, exchange));
    const other = peer === undefined ? undefined : world.members.get(peer);
    if (other === undefined || world.choices.chance(world.plan.laneBreaks)) return this.breaks(thread, exchange);
    world.events.after(this.delay(), other.id, () => {
      if (this.exchanges.get(thread) !== exchange || world.cutOff(member.id, other.id)) return;
      other.lanes.question(member.id, question, (answer) => {
        if (world.choices.chance(world.plan.laneBreaks)) return this.breaks(thread, exchange);
        world.events.after(this.delay(), member.id, () => this.answered(thread, exchange, other, answer));
      }, () => this.breaks(thread, exchange));
    });
  }

  private delay(): number {
    return this.world.choices.skewed(Math.ceil(this.world.plan.latency / 2));
  }

  private breaks(thread: Asker, exchange: Exchange): void {
    this.world.events.after(this.world.choices.skewed(1_000), this.member.id, () => this.giveUp(thread, exchange));
  }

  private answered(thread: Asker, exchange: Exchange, other: SimulatedMember, answer: Answer): void {
    const { world, member } = this;
    if (this.exchanges.get(thread) !== exchange || exchange.installing) return;
    // The kernel writes the bytes where they belong before the thread runs again, and perhaps only some of them.
    let left = world.choices.chance(0.02) ? world.choices.below(answer.pages.size + 1) : Infinity;
    for (const [page, words] of answer.pages) {
      if (left-- <= 0) return this.breaks(thread, exchange);
      member.words.set(words, page * (PAGE_SIZE / 4));
    }
    world.note(() => `thread ${thread.id} of member ${member.id} has its answer: ${answer.head[4]} of them, version ${new DataView(answer.head.buffer, answer.head.byteOffset).getUint32(32, true)}`);
    const thanks = world.native.laneInstall(thread.index, answer.head);
    exchange.installing = true;
    const delay = this.delay();
    for (const one of thanks) world.events.after(delay, other.id, () => { if (!other.ended && !world.cutOff(member.id, other.id)) other.lanes.returned(member.id, one); });
    world.events.after(world.choices.skewed(5), member.id, () => this.finish(thread, exchange));
  }

  private finish(thread: Asker, exchange: Exchange): void {
    if (this.exchanges.get(thread) !== exchange) return;
    this.exchanges.delete(thread);
    this.world.native.laneFinish(thread.index);
    exchange.over();
  }

  /** The socket is shut: what has begun to be installed is finished, all else is the coordinator's. */
  private giveUp(thread: Asker, exchange = this.exchanges.get(thread)): void {
    if (exchange === undefined || this.exchanges.get(thread) !== exchange) return;
    if (exchange.installing) return this.finish(thread, exchange);
    this.exchanges.delete(thread);
    this.world.note(() => `thread ${thread.id} of member ${this.member.id} gives up its lane`);
    this.world.native.laneGiveUp(thread.index);
    exchange.over();
  }

  // ---- answering ----------------------------------------------------------------------------------------------------

  question(from: MemberId, question: Uint8Array, answer: (answer: Answer) => void, refuse: () => void, hops = true): void {
    const { world, member } = this;
    const slot = [...this.peers].find(([, id]) => id === from)?.[0];
    if (this.stopped || member.ended || member.protocol === undefined || slot === undefined) return refuse();
    if (this.serving !== null) return void this.waiting.push(() => this.question(from, question, answer, refuse, hops));
    const index = world.native.serveBegin(member.regionHandle, slot, question);
    const end = (head: Uint8Array): void => {
      // Sent without any lock: from the memory as it is by then.
      world.events.after(world.choices.skewed(5), member.id, () => answer({ head, pages: this.pages(question, head) }));
    };
    const done = (): void => {
      this.serving = null;
      end(world.native.serveFinish(index));
      this.waiting.shift()?.();
    };
    if (world.native.serveLocked(index)) {
      const serving = { finish: done };
      this.serving = serving;
      world.events.after(world.choices.skewed(5), member.id, () => { if (this.serving === serving) done(); });
      return;
    }
    const refused = world.native.serveFinish(index);
    const hop = hops ? this.hop(slot, question) : null;
    // What it has refused it may look at again.
    if (hop === null && world.choices.chance(0.1)) world.events.after(world.choices.skewed(50), member.id, () => this.question(from, question, answer, refuse, hops));
    else if (hop === null) end(refused);
    else this.ask(hop, () => this.question(from, question, answer, refuse, world.native.laneRetired(hop.index)));
  }

  /** The page server asks the page's owner. */
  private hop(slot: number, question: Uint8Array): Asker | null {
    const { world, member } = this;
    this.hopper ??= { index: world.native.threadCreate(member.regionHandle), id: `server of ${member.id}` };
    return !this.exchanges.has(this.hopper) && world.native.serveHop(this.hopper.index, slot, question) ? this.hopper : null;
  }

  private pages(question: Uint8Array, head: Uint8Array): Map<number, Int32Array> {
    const pages = new Map<number, Int32Array>();
    for (const page of this.world.native.laneBytes(question, head)) pages.set(page, this.member.words.slice(page * (PAGE_SIZE / 4), (page + 1) * (PAGE_SIZE / 4)));
    return pages;
  }

  returned(from: MemberId, question: Uint8Array): void {
    const slot = [...this.peers].find(([, id]) => id === from)?.[0];
    if (!this.stopped && slot !== undefined) this.world.native.serveReturned(this.member.regionHandle, slot, question);
  }

  /** A coordinator's call waits for somebody who is BUSY: these are who may be. */
  letGo(): void {
    this.serving?.finish();
    for (const [thread, exchange] of [...this.exchanges]) if (exchange.installing) this.finish(thread, exchange);
  }
}
