/**
 * Chaos on real processes: members in network namespaces work on shared pages while one of them is killed, stopped, cut
 * off or starved, and everything that they saw is checked. docs/chaos.md says what is done and what is expected.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { build, type Histogram } from 'hdr-histogram-js';
import { destroyMembers, Member } from '../support/members.js';
import { seeded } from '../support/steps.js';
import { makeBridge, type Bridge } from './bridge.js';
import { checkRegisters, checkTickets, checkTurns, type Access, type Ticket, type Turn } from './checker.js';
import { memoryLimit, type MemoryLimit } from './memory-limit.js';
import { LOCKED, PAGE, PAGES, plan, type Planned, TICKETS, work, type Done } from './workload.js';

export const FAULTS = ['none', 'kill', 'pause', 'stop', 'cut off', 'mute', 'deaf', 'starved', 'registrar killed', 'registrar stopped'] as const;
export type Fault = (typeof FAULTS)[number];

const OPERATIONS = 400;
/** ms: after 2 s of silence a member is given up (docs/failure.md); the rest is for a busy machine. */
const SURVIVOR_MS = 15_000;
/** ms */
const LONG = 4000;
const SHORT = 300;
const PORT = 7420;
/** Bytes that a starved member may have more, and what it asks for. */
const LEFT = 8 << 20;
const WANTED = 64 << 20;

export interface Options {
  seed: number;
  seconds: number;
  members: number;
  /** Only these. */
  faults?: readonly Fault[];
  signal?: AbortSignal;
  progress?(line: string): void;
}

/** µs */
export interface Times { n: number; p50: number; p99: number; max: number }
export interface Result {
  seed: number;
  members: number;
  seconds: number;
  rounds: number;
  accesses: number;
  /** By what happened. */
  counts: Record<string, number>;
  /** From the fault until the registrar, or for the registrar's own death all others, had given the member up. */
  detection: Partial<Record<Fault, Times>>;
  /** The longest that an access of a member which was not the victim took in such a round. */
  stall: Partial<Record<Fault, Times>>;
  violations: string[];
  /** What this machine could not do, and why. */
  without: string[];
}

/** Why it can't be run here. */
export class NotHere extends Error {}

export async function runChaos(options: Options): Promise<Result> {
  const bridge = makeBridge(options.members);
  if (typeof bridge === 'string') throw new NotHere(bridge);
  const limit = memoryLimit();
  const run = new Run(options, bridge, limit);
  try {
    return await run.all();
  } finally {
    await destroyMembers();
    bridge.remove();
    limit.remove();
  }
}

type Outcome = { done: Done[] } | { failed: Error };
const now = (): number => Number(process.hrtime.bigint());

class Run {
  readonly #members: Member[] = [];
  readonly #random: () => number;
  readonly #accesses: Access[] = [];
  readonly #tickets: Ticket[] = [];
  readonly #turns: Turn[] = [];
  #brokenTurns = 0;
  /** How often each page was lost, or began anew with a cluster: what was there before counts no more. */
  readonly #incarnations = new Array<number>(PAGES).fill(0);
  readonly #detection = new Map<Fault, Histogram>();
  readonly #stall = new Map<Fault, Histogram>();
  readonly #counts: Record<string, number> = {};
  readonly #without: string[] = [];
  #values = 0;
  #started = 0;

  constructor(private readonly options: Options, private readonly bridge: Bridge, private readonly limit: MemoryLimit) {
    this.#random = seeded(options.seed);
    if (limit.by !== 'control group') this.#without.push('memory is taken by a limit of address space: no control group can be made here');
  }

  async all(): Promise<Result> {
    const { seed, seconds, members, signal, progress } = this.options;
    await this.#startAll();
    for (let index = 0; index < members; index++) {
      const refused = this.bridge.disturb(index, ['delay', `${1 + this.#below(3)}ms`, '1ms', '25%', 'loss', `${this.#below(2)}%`, 'reorder', '5%']);
      if (refused !== undefined && index === 0) this.#without.push(`netem (delay, loss, reordering): ${refused.split('\n')[0]}`);
    }
    const begun = performance.now();
    let rounds = 0;
    // Each kind once in every turn of all, in an order that the seed draws: a short run has all of them.
    let kinds: Fault[] = [];
    while (performance.now() - begun < seconds * 1000) {
      signal?.throwIfAborted();
      if (kinds.length === 0) kinds = this.#shuffled([...(this.options.faults ?? FAULTS)]);
      const fault = kinds.pop()!;
      progress?.(`${((performance.now() - begun) / 1000).toFixed(0)} s: round ${rounds}, ${fault}`);
      await this.#round(fault, rounds++);
    }
    return {
      seed, members, rounds, seconds: (performance.now() - begun) / 1000, accesses: this.#accesses.length + this.#tickets.length + this.#turns.length, counts: this.#counts,
      detection: timesOf(this.#detection), stall: timesOf(this.#stall), violations: this.#violations(), without: this.#without,
    };
  }

  // ---- one round ----------------------------------------------------------------------------------------------------

  async #round(fault: Fault, round: number): Promise<void> {
    this.#count(`rounds: ${fault}`);
    const ofRegistrar = fault.startsWith('registrar');
    const victim = ofRegistrar ? 0 : 1 + this.#below(this.options.members - 1);
    const plans = this.#members.map(() => plan(OPERATIONS, (n) => this.#below(n), () => ++this.#values));
    const sent = now();
    const works = this.#members.map((member, index) => work(member, plans[index], SURVIVOR_MS).then((done): Outcome => ({ done }), (failed: Error): Outcome => ({ failed })));
    await Promise.all(this.#members.map((member) => member.told('working')));
    const struck = now();
    const gone = await this.#strike(fault, victim, struck);
    const outcomes = await Promise.all(works);
    const where = `seed ${this.options.seed}, round ${round}, ${fault} of m${victim}`;
    outcomes.forEach((outcome, index) => this.#take(outcome, plans[index], index, { fault, victim, sent, struck, where }));
    if (ofRegistrar) return this.#beginAnew();
    if (gone || this.#members[victim].ended !== undefined) await this.#replace(victim);
    await this.#restore();
  }

  /** Does it, undoes it, and says whether the member has to be replaced. */
  async #strike(fault: Fault, victim: number, struck: number): Promise<boolean> {
    const { bridge } = this;
    const member = this.#members[victim];
    const others = this.#members.map((_, index) => index).filter((index) => index !== victim);
    switch (fault) {
      case 'none': return false;
      case 'kill':
        await member.kill('SIGKILL');
        await this.#givenUp(fault, struck);
        return true;
      case 'pause': case 'stop':
        await member.kill('SIGSTOP');
        await delay(fault === 'pause' ? SHORT : LONG);
        await member.kill('SIGCONT');
        if (fault === 'stop') await this.#givenUp(fault, struck);
        return fault === 'stop';
      case 'cut off':
        bridge.setLink(victim, 'down');
        await delay(LONG);
        bridge.setLink(victim, 'up');
        await this.#givenUp(fault, struck);
        return true;
      case 'mute': case 'deaf': {
        const paths = others.map((other): [number, number] => (fault === 'mute' ? [victim, other] : [other, victim]));
        for (const [from, to] of paths) bridge.setPath(from, to, 'lost');
        await delay(LONG);
        for (const [from, to] of paths) bridge.setPath(from, to, 'open');
        await this.#givenUp(fault, struck);
        return true;
      }
      case 'starved': {
        this.limit.set(member.pid, LEFT);
        // It may live on without the memory, or be killed for it.
        const starved = await member.run((_, bytes) => {
          const kept: Buffer[] = [];
          try {
            for (let had = 0; had < bytes; had += 1 << 20) kept.push(Buffer.alloc(1 << 20, 1));
            return 'had enough';
          } catch {
            return 'went without';
          }
        }, WANTED).catch(() => 'was killed');
        this.#count(`starved: ${starved}`);
        if (starved === 'was killed') await this.#givenUp(fault, struck);
        return true;
      }
      case 'registrar killed': case 'registrar stopped':
        await member.kill(fault === 'registrar killed' ? 'SIGKILL' : 'SIGSTOP');
        for (const at of await Promise.all(others.map((other) => this.#members[other].told('lost', { within: SURVIVOR_MS })))) this.#note(this.#detection, fault, at as number - struck);
        // Nobody waits for what a stopped one still has to say.
        await member.destroy();
        return true;
    }
  }

  /** The registrar's word for it. A member that is not given up in time fails the run here. */
  async #givenUp(fault: Fault, struck: number): Promise<void> {
    const at = await this.#members[0].told('died', { within: SURVIVOR_MS }) as number;
    this.#note(this.#detection, fault, Math.max(0, at - struck));
  }

  /** What one member did, and whether it could be so. */
  #take(outcome: Outcome, planned: Planned[], index: number, about: { fault: Fault; victim: number; sent: number; struck: number; where: string }): void {
    const { fault, victim, sent, struck, where } = about;
    const done = 'done' in outcome ? outcome.done : [];
    const hurt = index === victim && fault !== 'none' && fault !== 'pause';
    const clusterLost = fault.startsWith('registrar');
    if ('failed' in outcome && !hurt) throw new Error(`${where}: m${index}: ${outcome.failed.message}`);
    const odd = done.find(({ code }) => code !== undefined && code !== 'ERR_FAULTLINE_PAGE_LOST');
    if (odd !== undefined && !((hurt || clusterLost) && /EVICTED|CLUSTER_LOST/.test(odd.code!))) throw new Error(`${where}: m${index} got ${odd.code}`);
    if (index !== victim) {
      const longest = done.filter(({ end }) => end > struck).reduce((most, { asked, end }) => Math.max(most, end - Math.max(asked, struck)), 0);
      this.#note(this.#stall, fault, longest);
    }
    const member = `m${index}`;
    planned.forEach((one, nth) => {
      const said = done[nth] as Done | undefined;
      const right = said !== undefined && said.code === undefined;
      if (said?.code === 'ERR_FAULTLINE_PAGE_LOST') this.#count('accesses to lost pages');
      switch (one.kind) {
        case 'load': case 'atomic load':
          if (right) this.#accesses.push({ member, location: this.#locationOf(one.page), kind: 'read', value: said.value, start: said.start, end: said.end });
          return;
        case 'store': case 'atomic store':
          // A write that nobody can vouch for may have happened at any time, or never.
          this.#accesses.push({ member, location: this.#locationOf(one.page), kind: 'write', value: one.value, start: said?.start ?? sent, end: right ? said.end : Infinity });
          return;
        case 'ticket':
          if (right) this.#tickets.push({ member, location: this.#locationOf(TICKETS), value: said.value, start: said.start, end: said.end });
          return;
        case 'turn':
          if (right) this.#turns.push({ member, location: this.#locationOf(LOCKED), value: said.value, start: said.start, end: said.end, ownerDied: said.ownerDied! });
          else this.#brokenTurns++;
          if (said?.ownerDied) this.#count('locks of dead owners');
      }
    });
  }

  // ---- members ------------------------------------------------------------------------------------------------------

  async #start(index: number): Promise<Member> {
    const member = await Member.start({ cluster: `tcp://${this.bridge.addresses[0]}:${PORT}`, name: `m${index}-${this.#started++}`, netns: this.bridge.names[index], join: { insecure: true } });
    await member.open('chaos', { size: PAGES * PAGE });
    await member.run((state) => {
      state.cluster.on('member-died', () => state.tell('died', Number(process.hrtime.bigint())));
      state.cluster.on('lost', () => state.tell('lost', Number(process.hrtime.bigint())));
    });
    return member;
  }

  async #startAll(): Promise<void> {
    for (let index = 0; index < this.options.members; index++) this.#members[index] = await this.#start(index);
  }

  async #replace(victim: number): Promise<void> {
    // One that was starved, or could make itself heard all the while, may still be in the view.
    const still = await this.#members[0].run((state, name) => state.cluster.view.members.some((member) => member.name === name), this.#members[victim].name);
    await this.#members[victim].destroy();
    if (still) await this.#members[0].told('died', { within: SURVIVOR_MS });
    this.#members[victim] = await this.#start(victim);
    this.#count('members replaced');
  }

  /** The cluster has ended with its registrar. */
  async #beginAnew(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.destroy()));
    await this.#startAll();
    for (let page = 0; page < PAGES; page++) this.#incarnations[page]++;
    this.#count('clusters begun anew');
  }

  async #restore(): Promise<void> {
    const restored = await this.#members[0].run(async ({ region, attempt }, given) => {
      const lost: number[] = [];
      for (let page = 0; page < given.PAGES; page++) {
        try {
          attempt(() => Atomics.load(new Int32Array(region.buffer), page * (given.PAGE / 4)));
        } catch (error) {
          if ((error as { code?: string }).code !== 'ERR_FAULTLINE_PAGE_LOST') throw error;
          lost.push(page);
          await region.restore(page * given.PAGE, new Uint8Array(given.PAGE));
        }
      }
      return lost;
    }, { PAGES, PAGE });
    for (const page of restored) {
      this.#incarnations[page]++;
      this.#count('pages restored');
    }
  }

  // ---- figures ------------------------------------------------------------------------------------------------------

  #violations(): string[] {
    const registers = checkRegisters(this.#accesses).map(({ rule, access, because }) => `${rule}: ${JSON.stringify(access)}${because ? ` because of ${JSON.stringify(because)}` : ''}`);
    const violations = [...registers, ...checkTickets(this.#tickets), ...checkTurns(this.#turns, this.#brokenTurns)];
    const writers = new Map(this.#accesses.filter(({ kind }) => kind === 'write').map(({ value, member }) => [value, member]));
    if (!this.#accesses.some(({ kind, value, member }) => kind === 'read' && value !== 0 && writers.get(value) !== member)) violations.push('nobody ever read what another wrote');
    return violations;
  }

  #locationOf(page: number): number { return page + PAGES * this.#incarnations[page]; }
  #below(n: number): number { return Math.floor(this.#random() * n); }
  #count(what: string): void { this.#counts[what] = (this.#counts[what] ?? 0) + 1; }

  #shuffled<T>(all: T[]): T[] {
    for (let i = all.length - 1; i > 0; i--) {
      const j = this.#below(i + 1);
      [all[i], all[j]] = [all[j], all[i]];
    }
    return all;
  }

  /** ns */
  #note(times: Map<Fault, Histogram>, fault: Fault, ns: number): void {
    if (!times.has(fault)) times.set(fault, build());
    times.get(fault)!.recordValue(Math.round(ns / 1000));
  }
}

function timesOf(histograms: Map<Fault, Histogram>): Partial<Record<Fault, Times>> {
  return Object.fromEntries([...histograms].map(([fault, times]) => [fault, { n: times.totalCount, p50: times.getValueAtPercentile(50), p99: times.getValueAtPercentile(99), max: times.maxValue }]));
}
