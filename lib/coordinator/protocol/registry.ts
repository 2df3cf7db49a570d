/**
 * The registrar's state machine: who is in the cluster, its regions, locks and barriers. One member runs it; it hands
 * the whole of it over when it leaves.
 *
 * Calls (op, arguments, answer; errors are FaultlineErrors):
 * - `region-open` {name, mode, size?, pageSize?, consistency?, placement?} -> {info, created}; mode 'wait' is answered
 *   when somebody creates it. REGION_EXISTS (option, wanted, existing), REGION_NOT_FOUND, INVALID_ARGUMENT, OUT_OF_MEMORY
 * - `region-readdress` {id, address} -> {info}; ADDRESS_TAKEN if others have it already
 * - `region-destroy` {id} -> null; REGION_DESTROYED
 * - `lock` {name, shared, client, try} -> {token, ownerDied}, or null for a try in vain
 * - `unlock` {name, token, died} -> null; CLOSED
 * - `barrier` {name, parties, client} -> null; BARRIER_BROKEN (members, epoch), INVALID_ARGUMENT
 * - `client-gone` {client, left} -> null; what it held passes on as the dead's unless it left in order
 * - `call-cancel` {call} -> null; `suspect` {member} -> null
 * - `leave` {} -> null when it is this member's turn; `left` {finished} -> null
 */
import { type FaultlineError, makeError, toWire } from '../../errors.js';
import { Barriers, type BarriersSnapshot } from './barriers.js';
import { Liveness } from './liveness.js';
import { type Asker, Locks, type LocksSnapshot } from './locks.js';
import type { CallMessage, ClusterState, MemberId, MemberInfo, Message, ReplyMessage } from './messages.js';
import { type OpenArgs, RegionTable, type RegionTableSnapshot } from './region-table.js';

export interface RegistryEffects {
  /** To any member of the view, the registrar's own included. */
  send(to: MemberId, message: Message): void;
  /** To everybody in it, and to those who have just left in order. Comes before the answers that depend on it. */
  publish(state: ClusterState, left: MemberId[]): void;
  /** This member has to go, or is gone: it must not touch the cluster any more. */
  evict(member: MemberId, epoch: number): void;
}

/** Copysets have room for as many. */
const SLOTS = 1023;
/** Answers kept for each member, in case it asks the next registrar again: more than it can have under way. */
const ANSWERS_KEPT = 256;

/**
 * The way back to whoever waits for a call that did not come as a message (see lib/direct.ts). null: ask again, by messages; the
 * call goes on, or has not begun. false: nobody waits there any more.
 */
export type Direct = (reply: ReplyMessage | null) => boolean;

interface Open { client: number; direct?: Direct }
interface Calls { pending: Map<number, Open>; answered: Map<number, ReplyMessage>; /** Clients that are gone: their calls may arrive after that news. */ gone: Set<number> }
interface WaitingOpen { asker: Asker; args: OpenArgs }

export interface RegistrySnapshot {
  state: ClusterState;
  nextMember: number;
  regions: RegionTableSnapshot;
  locks: LocksSnapshot;
  barriers: BarriersSnapshot;
  calls: [MemberId, /** call, client */ [number, number][], ReplyMessage[], /** clients */ gone: number[]][];
  opens: WaitingOpen[];
  leaver: MemberId;
  leaves: Asker[];
}

export class Registry {
  private state: ClusterState;
  private nextMember = 1;
  private readonly regions: RegionTable;
  private readonly locks: Locks;
  private readonly barriers: Barriers;
  private readonly liveness: Liveness;
  private readonly calls = new Map<MemberId, Calls>();
  private opens: WaitingOpen[] = [];
  /** Who hands over now; two at a time could hand to one another for ever. */
  private leaver: MemberId = 0;
  private leaves: Asker[] = [];

  /** origin: a new cluster's id, or what the registrar before this one handed over. silence in µs. */
  constructor(private readonly self: MemberId, origin: string | RegistrySnapshot, silence: number, now: number, private readonly effects: RegistryEffects) {
    const snapshot = typeof origin === 'string' ? undefined : origin;
    this.state = snapshot?.state ?? { clusterId: origin as string, version: 0, epoch: 0, registrar: self, members: [], regions: [], died: [] };
    this.liveness = new Liveness(self, silence, now);
    this.regions = new RegionTable(this.state.clusterId, snapshot?.regions);
    this.locks = new Locks((asker, grant) => this.answer(asker.member, asker.call, grant), snapshot?.locks);
    this.barriers = new Barriers((asker, error) => this.answer(asker.member, asker.call, null, error), snapshot?.barriers);
    if (snapshot !== undefined) this.restore(snapshot, now);
  }

  /** ms */
  get leaseLength(): number {
    return this.liveness.leaseLength / 1000;
  }

  has(member: MemberId): boolean {
    return this.info(member) !== undefined;
  }

  /** Was this id ever given to anybody? */
  knew(member: MemberId): boolean {
    return member > 0 && member < this.nextMember;
  }

  snapshot(): RegistrySnapshot {
    return {
      state: this.state, nextMember: this.nextMember, regions: this.regions.snapshot(), locks: this.locks.snapshot(), barriers: this.barriers.snapshot(),
      calls: [...this.calls].map(([member, { pending, answered, gone }]) => [member, [...pending].map(([id, { client }]) => [id, client]), [...answered.values()], [...gone]]),
      opens: this.opens, leaver: this.leaver, leaves: this.leaves,
    };
  }

  // ---- members ------------------------------------------------------------------------------------------------------

  /** An id for somebody who wants to join; null while all who are here are on their way out. Throws ERR_FAULTLINE_JOIN_REFUSED (reason 'full'). */
  reserve(): MemberId | null {
    if (this.state.members.length >= SLOTS) throw makeError('ERR_FAULTLINE_JOIN_REFUSED', `the cluster has ${SLOTS} members already`, { reason: 'full' });
    return this.ends ? null : this.nextMember++;
  }

  /** Does nothing if the id is not one that was reserved, or all who are here are on their way out. */
  joined(member: Omit<MemberInfo, 'slot' | 'leaving'>, now: number): void {
    if (this.has(member.id) || !this.knew(member.id) || this.ends) return;
    const taken = new Set(this.state.members.map(({ slot }) => slot));
    let slot = 0;
    while (taken.has(slot)) slot++;
    this.liveness.add(member.id, now);
    this.calls.set(member.id, { pending: new Map(), answered: new Map(), gone: new Set() });
    this.changeMembers([...this.state.members, { ...member, slot, leaving: false }], []);
    this.publish();
  }

  /** This member serves from here on: everybody is told before anything else happens. */
  takeOver(): void {
    this.state = { ...this.state, registrar: this.self };
    this.publish();
  }

  /** It has gone in order, everything handed over. */
  left(member: MemberId): void {
    if (!this.has(member)) return;
    this.regions.left(member);
    this.forget(member);
    this.changeMembers(this.state.members.filter(({ id }) => id !== member), []);
    this.publish([member]);
    this.locks.memberGone(member, false);
    this.barriers.memberLeft(member);
    this.nextLeaver();
  }

  /** gone: it went by itself, though without handing everything over, so what it had is lost as with the dead. */
  abandoned(gone: MemberId): void {
    this.died([gone], [gone]);
  }

  died(members: MemberId[], knowing: MemberId[] = []): void {
    const dead = members.filter((member) => member !== this.self && this.has(member));
    if (dead.length === 0) return;
    this.changeMembers(this.state.members.filter(({ id }) => !dead.includes(id)), dead);
    const heirs = this.heirs();
    for (const member of dead) {
      this.regions.died(member, heirs);
      this.forget(member);
    }
    // Told before the view goes on without them: afterwards there is no channel to them any more.
    for (const member of dead) if (!knowing.includes(member)) this.effects.evict(member, this.state.epoch);
    this.publish(knowing);
    for (const member of dead) this.locks.memberGone(member, true);
    this.barriers.membersDied(dead, this.state.epoch);
    this.nextLeaver();
  }

  // ---- the clock ----------------------------------------------------------------------------------------------------

  heard(member: MemberId, now: number): void {
    this.liveness.heard(member, now);
  }

  heartbeat(member: MemberId, sentAt: number, now: number): void {
    if (this.liveness.lease(member, now)) this.effects.send(member, { type: 'lease', sentAt, forMs: this.leaseLength });
  }

  /** It can't be reached any more, though nobody knows that it is dead: it goes when its lease is over. */
  condemn(member: MemberId): void {
    if (this.liveness.condemn(member)) this.effects.evict(member, this.state.epoch);
  }

  tick(now: number): void {
    const { dead, condemned } = this.liveness.tick(now);
    for (const member of condemned) this.effects.evict(member, this.state.epoch);
    this.died(dead);
  }

  // ---- calls --------------------------------------------------------------------------------------------------------

  /** A call that came before, to the registrar before this one perhaps, is answered as it was then and not run again. */
  call(from: MemberId, { id, op, args }: CallMessage, now: number, direct?: Direct): void {
    const calls = this.calls.get(from);
    const open = calls?.pending.get(id);
    if (calls === undefined || open !== undefined) {
      // Whoever asks again for what is not done yet waits for a message.
      if (open !== undefined) delete open.direct;
      direct?.(null);
      return;
    }
    const before = calls.answered.get(id);
    if (before !== undefined) return this.reply(from, before, direct);
    const named = (args as { client?: unknown } | null)?.client;
    const client = typeof named === 'number' ? named : 0;
    calls.pending.set(id, { client, direct });
    try {
      if (calls.gone.has(client) && op !== 'client-gone') throw makeError('ERR_FAULTLINE_CLOSED', 'this handle was closed', { what: 'handle' });
      this.run({ member: from, client, call: id }, op, new Arguments(op, args), now);
    } catch (error) {
      this.answer(from, id, null, error as FaultlineError);
    }
  }

  private run(asker: Asker, op: string, args: Arguments, now: number): void {
    const { member, call } = asker;
    const done = (value: unknown = null): void => this.answer(member, call, value);
    switch (op) {
      case 'region-open': return this.open(asker, args.open());
      case 'region-readdress': {
        const info = this.regions.readdress(args.integer('id'), args.text('address'), member);
        this.publish();
        return done({ info });
      }
      case 'region-destroy': {
        this.regions.destroy(args.integer('id'));
        this.publish();
        return done();
      }
      case 'lock': {
        if (!this.locks.lock(args.text('name'), asker, args.flag('shared'), args.flag('try'))) done();
        return;
      }
      case 'unlock': {
        // The answer first: the next holder's does not depend on it, and this one waits for nothing else.
        this.locks.unlock(args.text('name'), member, args.text('token'), args.flag('died'));
        return done();
      }
      case 'barrier': return this.barriers.wait(args.text('name'), args.parties(), asker);
      case 'client-gone': {
        const client = args.integer('client');
        const calls = this.calls.get(member)!;
        calls.gone.add(client);
        for (const [id, open] of [...calls.pending]) if (open.client === client && id !== call) calls.pending.delete(id);
        this.locks.clientGone(member, client, !args.flag('left'));
        this.barriers.clientGone(member, client);
        return done();
      }
      case 'call-cancel': {
        this.withdraw(member, args.integer('call'));
        return done();
      }
      case 'suspect': {
        this.liveness.suspect(member, args.integer('member'), now);
        return done();
      }
      case 'leave': {
        this.leaves.push(asker);
        return this.nextLeaver();
      }
      case 'left': {
        const finished = args.flag('finished');
        done();
        return finished ? this.left(member) : this.abandoned(member);
      }
      default: throw makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `there is no call '${op}'`, { argument: 'op' });
    }
  }

  private open(asker: Asker, args: OpenArgs): void {
    const opened = this.regions.open(args, asker.member, this.staying());
    if (opened === null) return void this.opens.push({ asker, args });
    if (opened.created) this.publish();
    this.answer(asker.member, asker.call, opened);
    if (!opened.created) return;
    const waiting = this.opens.filter((open) => open.args.name === args.name);
    this.opens = this.opens.filter((open) => open.args.name !== args.name);
    for (const { asker: waiter, args: wanted } of waiting) {
      try {
        this.open(waiter, wanted);
      } catch (error) {
        this.answer(waiter.member, waiter.call, null, error as FaultlineError);
      }
    }
  }

  private withdraw(member: MemberId, call: number): void {
    const matches = (asker: Asker): boolean => asker.member === member && asker.call === call;
    const calls = this.calls.get(member);
    // One that did not come as a message may come after its withdrawal.
    if (calls !== undefined && !calls.pending.delete(call) && !calls.answered.has(call)) {
      this.keep(calls, { type: 'reply', id: call, error: toWire(makeError('ERR_FAULTLINE_CLOSED', 'the call was withdrawn', { what: 'call' })) });
    }
    this.opens = this.opens.filter(({ asker }) => !matches(asker));
    this.leaves = this.leaves.filter((asker) => !matches(asker));
    this.locks.withdraw(member, call);
    this.barriers.withdraw(member, call);
  }

  private answer(member: MemberId, id: number, value: unknown, error?: FaultlineError): void {
    const calls = this.calls.get(member);
    const open = calls?.pending.get(id);
    if (calls === undefined || open === undefined) return;
    calls.pending.delete(id);
    const reply: ReplyMessage = error === undefined ? { type: 'reply', id, value } : { type: 'reply', id, error: toWire(error) };
    this.keep(calls, reply);
    this.reply(member, reply, open.direct);
  }

  private reply(member: MemberId, reply: ReplyMessage, direct?: Direct): void {
    if (direct === undefined || !direct(reply)) this.effects.send(member, reply);
  }

  private keep(calls: Calls, reply: ReplyMessage): void {
    calls.answered.set(reply.id, reply);
    if (calls.answered.size > ANSWERS_KEPT) calls.answered.delete(calls.answered.keys().next().value!);
  }

  /** From here on somebody else answers: whoever waits for this registrar alone has to ask again, by messages. */
  endDirect(): void {
    for (const { pending } of this.calls.values()) {
      for (const open of pending.values()) {
        open.direct?.(null);
        delete open.direct;
      }
    }
  }

  // ---- within -------------------------------------------------------------------------------------------------------

  private nextLeaver(): void {
    if (this.leaver !== 0 || this.leaves.length === 0) return;
    const asker = this.leaves.shift()!;
    this.leaver = asker.member;
    this.state = { ...this.state, members: this.state.members.map((member) => (member.id === asker.member ? { ...member, leaving: true } : member)) };
    this.regions.leaving(asker.member, this.staying());
    this.publish();
    this.answer(asker.member, asker.call, null);
  }

  private forget(member: MemberId): void {
    this.liveness.remove(member);
    this.calls.delete(member);
    this.opens = this.opens.filter(({ asker }) => asker.member !== member);
    this.leaves = this.leaves.filter((asker) => asker.member !== member);
    if (this.leaver === member) this.leaver = 0;
  }

  private changeMembers(members: MemberInfo[], died: MemberId[]): void {
    this.state = { ...this.state, epoch: this.state.epoch + 1, members, died };
  }

  private publish(left: MemberId[] = []): void {
    this.state = { ...this.state, version: this.state.version + 1, regions: this.regions.infos() };
    this.effects.publish(this.state, left);
  }

  private info(member: MemberId): MemberInfo | undefined {
    return this.state.members.find(({ id }) => id === member);
  }

  /** Everybody is on the way out: nobody could take what the last one has. */
  private get ends(): boolean {
    return this.state.members.length > 0 && this.staying().length === 0;
  }

  private staying(): MemberId[] {
    return this.state.members.filter(({ leaving }) => !leaving).map(({ id }) => id).sort((one, other) => one - other);
  }

  /** Who gets a dead member's slices: those who stay, or else the one who is leaving and is the last. */
  private heirs(): MemberId[] {
    const staying = this.staying();
    return staying.length > 0 ? staying : this.state.members.map(({ id }) => id);
  }

  private restore(snapshot: RegistrySnapshot, now: number): void {
    this.nextMember = snapshot.nextMember;
    this.opens = snapshot.opens;
    this.leaver = snapshot.leaver;
    this.leaves = snapshot.leaves;
    for (const [member, pending, answered, gone] of snapshot.calls) {
      this.calls.set(member, { pending: new Map(pending.map(([id, client]) => [id, { client }])), answered: new Map(answered.map((reply) => [reply.id, reply])), gone: new Set(gone) });
    }
    for (const { id } of snapshot.state.members) this.liveness.add(id, now);
  }
}

/** A call's arguments, which came over the wire. Every reader throws ERR_FAULTLINE_INVALID_ARGUMENT for what is not of its type. */
class Arguments {
  private readonly values: Record<string, unknown>;

  constructor(private readonly op: string, args: unknown) {
    this.values = typeof args === 'object' && args !== null ? (args as Record<string, unknown>) : {};
  }

  text(name: string): string {
    const value = this.values[name];
    if (typeof value !== 'string' || value === '') throw this.invalid(name, 'a text');
    return value;
  }

  integer(name: string): number {
    const value = this.values[name];
    if (!Number.isSafeInteger(value)) throw this.invalid(name, 'an integer');
    return value as number;
  }

  parties(): number {
    if (this.integer('parties') < 1) throw this.invalid('parties', 'at least 1');
    return this.integer('parties');
  }

  flag(name: string): boolean {
    return this.values[name] === true;
  }

  open(): OpenArgs {
    const { mode } = this.values;
    if (mode !== 'open-or-create' && mode !== 'create' && mode !== 'open' && mode !== 'wait') throw this.invalid('mode', `'open-or-create', 'create', 'open' or 'wait'`);
    return { ...(this.values as unknown as OpenArgs), name: this.text('name') };
  }

  private invalid(argument: string, expected: string): FaultlineError {
    return makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `${this.op}: ${argument} must be ${expected}`, { argument });
  }
}
