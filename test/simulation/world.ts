/**
 * One run: members, the server of the membership, the network between them, their threads, and what goes wrong, all out
 * of one list of choices. Production code runs in it unchanged: the protocol (Engine, Inbox, Registry) and the addon's
 * words and transitions. What stands in for the machine is here: time, channels, mappings, deaths.
 */
import type { ClusterState, Envelope, MemberId, Message, ReplyMessage } from '../../lib/coordinator/protocol/messages.js';
import { Registry } from '../../lib/coordinator/protocol/registry.js';
import { type Simulation } from './addon.js';
import { Checker, Violation } from './checker.js';
import { Choices } from './choices.js';
import { Events } from './events.js';
import { SimulatedMember } from './member.js';
import { drawPlan, type Plan, type Trigger } from './plan.js';
import { Thread } from './thread.js';

/** The server of the membership is nobody's member. */
export const SERVER = 0;
const PAGE_SIZE = 4096;
const SILENCE = 2_000_000;
const TICK = 250_000;
/** µs after the last fault was injected by which every thread must have ended. */
const PATIENCE = 60_000_000;
/** How often a thread that has something else to do comes back in the middle of a step of its coordinator. */
const COMES_BACK = 0.05;
/** A run that goes on for longer has found a loop that is no waiting. */
const MOST_EVENTS = 400_000;

interface Channel { last: number; broken: boolean; /** Grows when what is in flight is lost. */ cut: number }

export interface Outcome {
  violation: Violation | null;
  choices: number[];
  events: number;
  messages: number;
  accesses: number;
  plan: Plan;
  trace: string[];
}

export class World {
  readonly events = new Events();
  readonly members = new Map<MemberId, SimulatedMember>();
  readonly threads = new Map<number, Thread>();
  readonly checker: Checker;
  readonly plan: Plan;
  readonly registry: Registry;
  readonly trace: string[] = [];
  state: ClusterState | null = null;
  private readonly channels = new Map<number, Channel>();
  private readonly regions = new Map<number, SimulatedMember>();
  messages = 0;
  private nested = 0;
  private over = false;
  private inside: Thread | null = null;
  private serverGone = false;
  private nextThread = 0;
  accesses = 0;

  constructor(readonly native: Simulation, readonly choices: Choices, private readonly tracing: boolean) {
    this.plan = drawPlan(choices);
    this.checker = new Checker(this);
    this.registry = new Registry(SERVER, 'simulated', SILENCE, this.events.now, {
      send: (to, message) => this.send(SERVER, to, message),
      publish: (state, left) => this.publish(state, left),
      evict: (member, epoch) => this.send(SERVER, member, { type: 'evicted', epoch }),
    });
    native.onGuard((region, first, count, open) => this.guard(region, first, count, open));
    native.onShortage((region, first, count) => this.refuses(region, first, count));
    native.onWake((thread) => this.threads.get(thread)?.woken());
    native.onBusy(() => this.waitForBusy());
    native.onLane((region, slot) => this.regions.get(region)?.lanes.take(slot) ?? false);
  }

  note(text: () => string): void {
    if (this.tracing) this.trace.push(`${String(this.events.now - 1_000_000).padStart(9)}  ${text()}`);
  }

  // ---- the run ------------------------------------------------------------------------------------------------------

  run(): void {
    const { plan, events } = this;
    this.native.setClock(events.now);
    for (let i = 0; i < plan.members; i++) this.join();
    this.serverTick();
    this.openRegion();
    this.schedule();
    let count = 0;
    let deadline = Infinity;
    for (;;) {
      if (this.done()) break;
      const event = events.take();
      if (event === undefined) throw new Violation('every-fault-ends', 'nothing is left to happen, but threads have not ended');
      const member = this.members.get(event.owner);
      if (event.owner !== SERVER && (member === undefined || member.dead)) continue;
      if (member !== undefined && member.pausedUntil > event.time) {
        // A stopped process does nothing; what was due happens when it goes on.
        member.stalled.push(event.run);
        if (member.stalled.length === 1) this.wakeUp(member);
        continue;
      }
      if (event.time > events.now) {
        events.now = event.time;
        this.native.setClock(events.now);
      }
      if (deadline === Infinity && this.calm()) deadline = events.now + PATIENCE;
      if (++count > MOST_EVENTS || events.now > deadline) throw new Violation('every-fault-ends', `threads have not ended:\n${this.stuck()}`);
      event.run();
    }
    this.count = count;
    this.checker.atEnd();
  }

  count = 0;

  /** What was due while the member was stopped happens in the order in which it was due. */
  private wakeUp(member: SimulatedMember): void {
    this.events.at(member.pausedUntil, SERVER, () => {
      if (member.pausedUntil > this.events.now) return this.wakeUp(member);
      for (const run of member.stalled.splice(0)) if (!member.dead) run();
    });
  }

  dispose(): void {
    // Whoever is in the middle of a protection change finishes it; nothing else runs any more.
    this.nested = 2;
    this.over = true;
    for (const thread of this.threads.values()) thread.finishChange();
    for (const member of this.members.values()) member.dispose();
    this.threads.clear();
  }

  private done(): boolean {
    return this.unfinished === 0 && this.pendingFaults === 0 && (this.started || ![...this.members.values()].some((member) => member.up));
  }

  private started = false;
  unfinished = 0;
  /** Injections that have not happened yet. */
  private pendingFaults = 0;

  private calm(): boolean {
    return this.started && this.pendingFaults === 0;
  }

  stuck(): string {
    const lines: string[] = [];
    for (const thread of this.threads.values()) if (!thread.ended) lines.push(thread.describe());
    for (const member of this.members.values()) if (member.up) lines.push(member.describe());
    return lines.join('\n');
  }

  // ---- who is in ----------------------------------------------------------------------------------------------------

  private join(): void {
    const id = this.registry.reserve();
    if (id === null) return;
    const member = new SimulatedMember(this, id);
    this.members.set(id, member);
    this.note(() => `member ${id} joins`);
    this.registry.joined({ id, name: `m${id}`, pid: id, address: 'local', endpoint: `sim:${id}` }, this.events.now);
    member.start(this.registry.leaseLength * 1000);
  }

  /** All members have the region before the threads begin; those who join later get it with their first state. */
  private openRegion(): void {
    const first = [...this.members.keys()][0];
    this.registry.call(first, { type: 'call', id: -1_000_000, op: 'region-open', args: { name: 'r', mode: 'create', size: this.plan.extents * 64 * PAGE_SIZE, pageSize: PAGE_SIZE, placement: this.plan.spread ? 'spread' : 'creator' } }, this.events.now);
  }

  regionMade(member: SimulatedMember, handle: number): void {
    this.regions.set(handle, member);
  }

  /** A member has its region: its threads begin. */
  regionOpened(member: SimulatedMember, handle: number): void {
    this.started = true;
    for (let i = 0; i < this.plan.threads; i++) {
      const thread = new Thread(this, member, this.native.threadCreate(handle), ++this.nextThread);
      this.threads.set(thread.index, thread);
      member.threads.push(thread);
      this.unfinished++;
      thread.begin();
    }
  }

  regionClosed(handle: number): void {
    this.regions.delete(handle);
  }

  inView(id: MemberId): boolean {
    return this.state?.members.some((member) => member.id === id) ?? false;
  }

  /** Members that have been declared dead. */
  deaths = 0;

  private publish(state: ClusterState, left: MemberId[]): void {
    if (state.epoch !== this.state?.epoch) {
      this.deaths += state.died.length;
      for (const id of state.died) this.checker.declaredDead(this.members.get(id)!);
    }
    this.state = state;
    this.note(() => `the server publishes state ${state.version}: epoch ${state.epoch}, members ${state.members.map(({ id, leaving }) => (leaving ? `${id} (leaving)` : id)).join(', ')}${state.died.length > 0 ? `, died ${state.died.join(', ')}` : ''}`);
    for (const { id } of state.members) this.send(SERVER, id, { type: 'state', state });
    for (const id of left) this.send(SERVER, id, { type: 'state', state });
    this.checker.viewChanged();
  }

  private serverTick(): void {
    this.events.after(TICK, SERVER, () => {
      if (this.serverGone) return;
      this.registry.tick(this.events.now);
      this.serverTick();
    });
  }

  // ---- what goes wrong ----------------------------------------------------------------------------------------------

  private schedule(): void {
    const { plan, choices } = this;
    const inject = (times: number, what: () => void): void => {
      for (let i = 0; i < times; i++) {
        this.pendingFaults++;
        this.events.after(choices.below(plan.span), SERVER, () => {
          this.pendingFaults--;
          what();
        });
      }
    };
    inject(plan.joins, () => this.join());
    inject(plan.leaves, () => this.some((member) => member.leave()));
    inject(plan.kills, () => this.some((member) => this.kill(member)));
    inject(plan.pauses, () => this.some((member) => this.pause(member)));
    inject(plan.breaks, () => this.some((member) => {
      const others = [...this.members.values()].filter((other) => other !== member && other.up);
      if (others.length > 0) this.breakConnection(member.id, choices.pick(others).id, choices.chance(0.5));
    }));
    inject(plan.partitions, () => this.some((member) => this.partition(member)));
    inject(plan.stalls, () => this.some((member) => this.stall(member, choices.between(1_000, 1_500_000))));
    inject(plan.serverGone ? 1 : 0, () => this.loseServer());
  }

  private some(what: (member: SimulatedMember) => void): void {
    const candidates = [...this.members.values()].filter((member) => member.up && !member.leaving);
    if (candidates.length > 1) what(this.choices.pick(candidates));
  }

  private pause(member: SimulatedMember): void {
    const { choices } = this;
    // Short stops are far more common than those after which it is given up.
    const length = choices.chance(0.3) ? choices.between(1_000_000, 6_000_000) : choices.chance(0.2) ? choices.between(200_000, 1_500_000) : choices.between(100, 200_000);
    this.note(() => `member ${member.id} is stopped for ${length} µs`);
    member.pausedUntil = Math.max(member.pausedUntil, this.events.now + length);
  }

  private readonly counts = new Map<string, number>();

  /** Trouble that the plan wants at this message. */
  private pull(message: Message, arrived: boolean, from: MemberId, to: MemberId): void {
    const { triggers } = this.plan;
    if (triggers.length === 0) return;
    const { type } = message;
    const key = arrived ? `${type} arrived` : type;
    const nth = (this.counts.get(key) ?? 0) + 1;
    this.counts.set(key, nth);
    for (const trigger of triggers) {
      if (trigger.type !== type || trigger.arrived !== arrived || trigger.nth !== nth) continue;
      const asker = 'requester' in message ? message.requester : SERVER;
      const member = this.members.get(trigger.end === 'from' ? from : trigger.end === 'to' ? to : asker);
      const other = this.members.get(trigger.end === 'from' ? to : from);
      if (member === undefined) continue;
      // Not in the middle of the step that sends it.
      this.events.after(trigger.delay, SERVER, () => this.strike(trigger, member, other));
    }
  }

  private strike({ action }: Trigger, member: SimulatedMember, other: SimulatedMember | undefined): void {
    const left = [...this.members.values()].filter((one) => one.up && !one.leaving).length;
    if (!member.up || left < 2) return;
    if (action === 'die') this.kill(member);
    else if (action === 'leave') member.leave();
    else if (action === 'stop') this.pause(member);
    else if (action === 'stall') this.stall(member, this.choices.between(1, 20 * this.plan.latency));
    else if (other !== undefined && other.up) this.breakConnection(member.id, other.id, this.choices.chance(0.5));
  }

  private kill(member: SimulatedMember): void {
    this.note(() => `member ${member.id} dies`);
    member.die();
    // Of what it had sent, the last part may never arrive; each channel by itself.
    for (const other of [...this.members.keys(), SERVER]) {
      if (other !== member.id && this.choices.chance(0.5)) this.cut(member.id, other, false);
    }
    // The kernel closes its sockets and frees its lock; somebody notices.
    this.events.after(this.choices.skewed(this.plan.notice), SERVER, () => { if (!this.serverGone) this.registry.died([member.id]); });
  }

  /** What is in flight from a to b is lost, and nothing comes after it; if both, in the other direction too. */
  private breakConnection(a: MemberId, b: MemberId, both: boolean): void {
    this.note(() => `the connection from ${a} to ${b} breaks${both ? ', in both directions' : ''}`);
    this.cut(a, b, true);
    if (both) this.cut(b, a, true);
    // Whoever sent hears of it; in both directions both do.
    for (const [from, about] of both ? [[a, b], [b, a]] : [[a, b]]) {
      this.events.after(this.choices.skewed(200_000), from, () => this.members.get(from)!.suspect(about));
    }
  }

  /** Nothing comes from this member any more, or nothing reaches it, or neither. */
  private partition(member: SimulatedMember): void {
    const how = this.choices.pick(['both', 'from', 'to'] as const);
    this.note(() => `a partition: nothing comes ${how === 'both' ? `from or to` : how} member ${member.id}`);
    for (const other of [...this.members.keys(), SERVER]) {
      if (other === member.id) continue;
      if (how !== 'to') this.cut(member.id, other, true);
      if (how !== 'from') this.cut(other, member.id, true);
      if (other === SERVER) continue;
      // Whoever sends into the hole hears of it when the connection's own heartbeats stay out, which is late.
      for (const [from, about] of [[member.id, other], [other, member.id]]) {
        this.events.after(this.choices.between(SILENCE, 2 * SILENCE), from, () => this.members.get(from)!.suspect(about));
      }
    }
  }

  /** What this member sends and is sent takes longer for a moment; nothing is lost. */
  private stall(member: SimulatedMember, length: number): void {
    const until = this.events.now + length;
    this.note(() => `messages from and to member ${member.id} wait until ${until - 1_000_000}`);
    for (const other of [...this.members.keys(), SERVER]) {
      if (other === member.id) continue;
      for (const channel of [this.channel(member.id, other), this.channel(other, member.id)]) channel.last = Math.max(channel.last, until);
    }
  }

  private cut(from: MemberId, to: MemberId, forGood: boolean): void {
    const channel = this.channel(from, to);
    channel.cut++;
    channel.broken ||= forGood;
  }

  /** Nothing passes between the two in that direction any more. */
  cutOff(from: MemberId, to: MemberId): boolean {
    return this.channel(from, to).broken || this.channel(to, from).broken;
  }

  private loseServer(): void {
    this.note(() => 'the server is gone');
    this.serverGone = true;
    for (const member of this.members.values()) this.events.after(this.choices.skewed(SILENCE), member.id, () => member.over('ERR_FAULTLINE_CLUSTER_LOST'));
  }

  // ---- the network --------------------------------------------------------------------------------------------------

  private channel(from: MemberId, to: MemberId): Channel {
    const key = from * 4096 + to;
    let channel = this.channels.get(key);
    if (channel === undefined) this.channels.set(key, (channel = { last: 0, broken: false, cut: 0 }));
    return channel;
  }

  /** From a member that has that state; FIFO between two, in any order between others. */
  send(from: MemberId, to: MemberId, message: Message, payload?: Uint8Array): void {
    const channel = this.channel(from, to);
    if (channel.broken) return;
    this.messages++;
    const { plan, choices } = this;
    let delay = choices.skewed(plan.latency);
    if (choices.chance(plan.slowMessages)) delay += choices.below(plan.latency * 20);
    if (from === SERVER || to === SERVER) delay += choices.skewed(plan.serverLatency);
    const time = Math.max(channel.last, this.events.now + delay);
    channel.last = time;
    const { cut } = channel;
    const envelope: Envelope = { from, state: from === SERVER ? this.state?.version ?? 0 : this.members.get(from)!.version, message, payload };
    this.note(() => `${name(from)} -> ${name(to)}: ${describe(message)}`);
    if (from !== SERVER) this.pull(message, false, from, to);
    this.events.at(time, to, () => {
      if (channel.cut !== cut) return;
      this.pull(message, true, from, to);
      if (to === SERVER) this.toServer(envelope);
      else this.members.get(to)?.receive(envelope);
    });
  }

  private toServer({ from, message }: Envelope): void {
    if (this.serverGone) return;
    const { registry, events: { now } } = this;
    if (!registry.has(from)) return this.send(SERVER, from, { type: 'evicted', epoch: this.state?.epoch ?? 0 });
    registry.heard(from, now);
    if (message.type === 'heartbeat') registry.heartbeat(from, message.sentAt, now);
    else if (message.type === 'call') registry.call(from, message, now);
  }

  // ---- mappings, and what happens between two steps of one thread ---------------------------------------------------

  private guard(region: number, first: number, count: number, open: number): void {
    const member = this.regions.get(region);
    // What a run has come to is decided when it ends.
    if (this.over || member === undefined || member.dead) return;
    this.interleave(member);
    member.mapping.fill(open, first, first + count);
    this.checker.mapped(member, first, count, open);
  }

  private refuses(region: number, first: number, count: number): boolean {
    if (!this.choices.chance(this.plan.mappingFailures)) return false;
    this.note(() => `no mapping is left for pages ${first} to ${first + count - 1} of member ${this.regions.get(region)?.id}`);
    return true;
  }

  /** Other threads of this member run while the coordinator, or one of them, is in the middle of something. */
  interleave(member: SimulatedMember): void {
    if (this.nested >= 2 || !this.choices.chance(this.plan.interleaving)) return;
    const able = member.threads.filter((thread) => thread.able && thread !== this.inside && (!thread.thinking || this.choices.chance(COMES_BACK)));
    if (able.length === 0) return;
    this.nested++;
    this.stepThread(this.choices.pick(able));
    this.nested--;
  }

  stepThread(thread: Thread): void {
    const before = this.inside;
    this.inside = thread;
    try {
      thread.step();
    } finally {
      this.inside = before;
    }
  }

  /** A coordinator's call waits for a thread that is BUSY: that thread goes on. */
  private waitForBusy(): void {
    for (const thread of this.threads.values()) if (thread.changing && thread !== this.inside) this.stepThread(thread);
    for (const member of this.members.values()) if (member.up) member.lanes.letGo();
  }

  answer(from: MemberId, reply: ReplyMessage): void {
    this.send(SERVER, from, reply);
  }
}

function name(id: MemberId): string {
  return id === SERVER ? 'server' : String(id);
}

function describe(message: Message): string {
  const { type, ...rest } = message as Message & Record<string, unknown>;
  if (type === 'state') return `state ${(rest as unknown as { state: ClusterState }).state.version}`;
  return `${type} ${JSON.stringify(rest)}`;
}

export function simulate(native: Simulation, choices: Choices, tracing = false): Outcome {
  const world = new World(native, choices, tracing);
  let violation: Violation | null = null;
  try {
    world.run();
  } catch (error) {
    violation = error instanceof Violation ? error : new Violation('assertion', (error as Error).stack ?? String(error));
  } finally {
    world.dispose();
  }
  return { violation, choices: choices.taken, events: world.count, messages: world.messages, accesses: world.accesses, plan: world.plan, trace: world.trace };
}
