/**
 * One chaos run: rounds of work, in each of which something is done to a member, until the time is over. After each round
 * everybody has stopped, the history of the round is checked, and whoever ended is replaced.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { build, type Histogram } from 'hdr-histogram-js';
import { endMembers, Member } from '../support/members.js';
import { seeded } from '../support/steps.js';
import { CLEAR, makeBridge, type Bridge, type Weather } from './bridge.js';
import { checkCounters, checkRegisters, checkSections, COUNTER_STEP, type Violation as Found } from './checker.js';
import { FAULT_NAMES, faultsFor, isOneWay, needsLink, type Fault, type FaultName } from './faults.js';
import { addLines, emptyHistory, FULL_TRUST, readLines, type History, type Line, type Trust } from './history.js';
import { makeLimits, type Limits } from './limits.js';
import { install, LOCATIONS, LOCKS, PAGE_SIZE, PAGES, restorePages, settleLocks, stopWork, touch, work } from './workload.js';

/** Writers have 5 bits of each value; one of each process. */
export const MOST_MEMBERS = 16;
/** A member, a registrar and a witness. */
export const LEAST_MEMBERS = 3;
/** ms: after 2 s of silence a member is given up (docs/failure.md); the rest is for a busy machine. */
const DETECTION_MS = 15_000;
/** ms for a step of a survivor: an access may wait for a death to be noticed. */
const STEP_MS = 20_000;
const START_MS = 60_000;
/** ms of delay of this program's own event loop beyond which a machine is too busy to blame a member for silence. */
const BUSY_MS = 300;

export type Measure = 'detection' | 'recovery' | 'victim told' | 'joined again';
export interface Figures { fault: FaultName; measure: Measure; n: number; p50: number; p99: number; max: number }
export interface Problem { rule: string; round: number; fault: FaultName; message: string }

export interface Report {
  seed: number;
  seconds: number;
  members: number;
  together: boolean;
  near: boolean;
  rounds: number;
  weather: string;
  oneWay: string;
  memory: string;
  /** What could not be done here, and why. */
  leftOut: string[];
  operations: number;
  /** Reads that saw what another member had written. */
  sharedReads: number;
  sections: number;
  faults: Record<string, number>;
  /** What else happened, and how often. */
  counts: Record<string, number>;
  /** ms. */
  times: Figures[];
  problems: Problem[];
  /** Where the histories are: only if there are problems. */
  logs?: string;
}

export interface RunOptions {
  seed: number;
  /** The last round begins before this time is over; one there is always. */
  ms: number;
  members: number;
  only?: readonly FaultName[];
  /** As on one machine, where members see from each other's files who has died. Default: each as on a machine of its own. */
  together?: boolean;
  /** Really on one machine: one network, so that lanes are Unix sockets, and no weather and no cuts. */
  near?: boolean;
  /** For tests of the checks: changes what a member has written down. */
  forge?: (lines: Line[], member: string) => void;
  signal?: AbortSignal;
  progress?: (line: string) => void;
}

interface Seat { index: number; member: Member; id: number; file: string; read: number; lanes: { faults: number; broken: number } }
type Ended = { code: string } | { gone: Error };

class Broken extends Error {
  constructor(readonly rule: string, message: string) {
    super(message);
  }
}

const now = (): number => Number(process.hrtime.bigint());
const describe = (weather: Weather): string => `delay ${weather.delay} ms, loss ${weather.loss}%, reordering ${weather.reorder}%`;

/** @returns why it can't be done here, as text, if it can't. Rejects with the signal's reason if it is aborted. */
export async function runChaos(options: RunOptions): Promise<Report | string> {
  options.signal?.throwIfAborted();
  const bridge = makeBridge(options.members);
  if (typeof bridge === 'string') return bridge;
  const limits = makeLimits();
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'faultline-chaos-'));
  const run = new Run(options, bridge, limits, directory);
  let interrupt!: () => void;
  // What waits for something that a member tells would wait on until its time is over.
  const interrupted = new Promise<never>((_, reject) => { interrupt = () => reject(options.signal!.reason); });
  options.signal?.addEventListener('abort', interrupt, { once: true });
  let keep = false;
  try {
    const whole = run.whole();
    whole.catch(() => undefined);
    const report = await Promise.race([whole, interrupted]);
    keep = report.problems.length > 0;
    return report;
  } finally {
    options.signal?.removeEventListener('abort', interrupt);
    await endMembers();
    bridge.remove();
    limits.remove();
    if (!keep) fs.rmSync(directory, { recursive: true, force: true });
  }
}

class Run {
  private readonly random: () => number;
  private readonly report: Report;
  private readonly histograms = new Map<string, { fault: FaultName; measure: Measure; values: Histogram }>();
  private readonly lag = monitorEventLoopDelay({ resolution: 10 });
  private seats: Seat[] = [];
  private initial = new Map<number, number>();
  private processes = 0;
  private resets = 0;
  private round = 0;
  private weather: Weather = CLEAR;
  /** The last victim that has been told that it is out. */
  private toldTo: Member | undefined;

  constructor(private readonly options: RunOptions, private readonly bridge: Bridge, private readonly limits: Limits, private readonly directory: string) {
    this.random = seeded(options.seed);
    const { weather, oneWay, missing } = bridge.means;
    this.report = {
      seed: options.seed, seconds: 0, members: options.members, together: options.together ?? false, near: options.near ?? false, rounds: 0,
      weather: (!options.near && weather) || 'none', oneWay: (!options.near && oneWay) || 'none', memory: limits.means, leftOut: options.near ? ['weather, cuts: members of one network have no links'] : [...missing],
      operations: 0, sharedReads: 0, sections: 0, faults: {}, counts: {}, times: [], problems: [],
    };
  }

  async whole(): Promise<Report> {
    const { options, report } = this;
    const begun = performance.now();
    const end = begun + options.ms;
    const faults = faultsFor(options.only ?? FAULT_NAMES).filter((fault) => {
      if (options.near && needsLink(fault)) return false;
      const possible = !isOneWay(fault) || this.bridge.means.oneWay !== null;
      if (!possible) report.leftOut.push(`${fault.name}: nothing here loses one direction only`);
      return possible;
    });
    if (faults.length === 0) throw new Error('none of these faults can be made here');
    this.lag.enable();
    let fault: Fault = faults[0];
    try {
      await this.newCluster();
      options.progress?.(`${options.members} members have joined`);
      let deck: Fault[] = [];
      do {
        // Each kind once, then each once more in another order.
        if (deck.length === 0) deck = this.shuffled(faults);
        fault = deck.pop()!;
        this.round++;
        const found = await this.one(fault);
        report.rounds++;
        report.faults[fault.name] = (report.faults[fault.name] ?? 0) + 1;
        options.progress?.(`${Math.round((performance.now() - begun) / 1000)} s, round ${this.round}: ${fault.name} (${describe(this.weather)}): ${found}; ${report.operations} accesses`);
      } while (performance.now() < end && report.problems.length === 0);
    } catch (error) {
      options.signal?.throwIfAborted();
      report.problems.push({ rule: error instanceof Broken ? error.rule : 'the run failed', round: this.round, fault: fault.name, message: this.words(error as Error) });
    } finally {
      this.lag.disable();
    }
    report.seconds = (performance.now() - begun) / 1000;
    const ms = (us: number): number => Math.round(us / 100) / 10;
    // The histogram's percentiles are rounded up to its resolution, its maximum is not.
    const at = (values: Histogram, percentile: number): number => ms(Math.min(values.getValueAtPercentile(percentile), values.maxValue));
    for (const { name } of faultsFor(FAULT_NAMES)) {
      for (const { fault: of, measure, values } of this.histograms.values()) {
        if (of === name) report.times.push({ fault: of, measure, n: values.totalCount, p50: at(values, 50), p99: at(values, 99), max: ms(values.maxValue) });
      }
    }
    if (report.problems.length > 0) report.logs = this.directory;
    return report;
  }

  // ---- members ------------------------------------------------------------------------------------------------------

  private async newCluster(): Promise<void> {
    const placement = this.below(2) ? 'creator' : 'spread';
    const first = await this.take(0, { size: PAGES * PAGE_SIZE, placement });
    const rest = Array.from({ length: this.options.members - 1 }, (_, index) => this.take(index + 1));
    const seats = [first, ...await Promise.all(rest)];
    this.seats = seats;
    this.initial = new Map();
  }

  private async take(index: number, region?: { size: number; placement: 'creator' | 'spread' }): Promise<Seat> {
    this.options.signal?.throwIfAborted();
    const { bridge, directory } = this;
    const name = `m${index}.${++this.processes}`;
    const file = path.join(directory, `${name}.log`);
    const { near, together } = this.options;
    const machine = path.join(directory, near || together ? 'machine' : `machine-${index}`);
    fs.mkdirSync(machine, { recursive: true });
    const member = await Member.start({
      cluster: near ? 'local:chaos' : `tcp://${bridge.addresses[0]}:7420`, name, netns: bridge.names[near ? 0 : index], join: near ? {} : { insecure: true }, within: START_MS,
      // Two runs at once, or a user's own clusters, are not to meet.
      env: { XDG_RUNTIME_DIR: machine, NODE_NO_WARNINGS: '1' },
    });
    await member.open('chaos', region, { within: START_MS });
    const { id } = await member.run(install, { file, locations: LOCATIONS, pageSize: PAGE_SIZE, locks: LOCKS, writer: index }, { within: START_MS });
    return { index, member, id, file, read: 0, lanes: { faults: 0, broken: 0 } };
  }

  // ---- a round ------------------------------------------------------------------------------------------------------

  private async one(fault: Fault): Promise<string> {
    const { seats, bridge, limits } = this;
    this.lag.reset();
    const weather = { delay: [0, 0, 1, 3][this.below(4)], loss: [0, 0, 0.5, 2][this.below(4)], reorder: [0, 0, 5, 25][this.below(4)] };
    this.weather = this.options.near ? CLEAR : weather;
    seats.forEach(({ index }) => bridge.setWeather(index, this.weather));
    const victim = fault.victim === 'registrar' ? seats[0] : seats[1 + this.below(seats.length - 1)];
    const others = seats.filter((seat) => seat !== victim);
    const works = new Map<Seat, Promise<Ended>>();
    for (const seat of seats) {
      const seed = this.below(2 ** 31);
      works.set(seat, seat.member.run(work, { round: this.round, seed }, { within: 4 * STEP_MS + DETECTION_MS }).then((code) => ({ code }), (gone: Error) => ({ gone })));
    }
    await Promise.all(seats.map(({ member }) => member.told('working', { within: STEP_MS })));
    await this.pause(200 + this.below(600));
    const struck = now();
    const tools = { bridge, limits };
    await fault.strike(victim.member, victim.index, tools);
    const outcome = fault.outcome === 'either' ? await this.eitherWay(fault, victim) : fault.outcome;
    if (fault.victim === 'registrar') return this.withoutRegistrar(fault, victim, others, works, struck);
    const trust: Trust = { ...FULL_TRUST };
    let said = '';
    let losses = 0;
    if (outcome === 'ends') {
      const deaths = await Promise.all(others.map((seat) => this.deathOf(victim, seat)));
      said = this.measured(fault, 'detection', Math.max(...deaths) - struck);
      trust.struck = struck;
    }
    let looking: ReturnType<Run['recover']> | undefined;
    if (outcome === 'stays' && fault.outcome !== 'either') {
      looking = this.recover(others);
      // It may fail before anybody waits for it.
      looking.catch(() => undefined);
      await this.pause(fault.span);
    }
    if (outcome !== 'stays') {
      const recovered = await this.recover(others);
      said += this.measured(fault, 'recovery', recovered.at - struck);
      losses = recovered.restored;
    }
    if (outcome === 'ends' && !fault.kills && !fault.stops && this.below(2)) {
      // It must find out by itself that it is alone; or, every other time, when it comes back to others who went on.
      said += await this.victimTold(fault, victim, struck, 'alone');
    }
    const healed = now();
    if (fault.stops && outcome === 'ends') trust.zombieSince = healed;
    await fault.heal(victim.member, victim.index, tools);
    if (looking) {
      const recovered = await looking;
      said += this.measured(fault, 'recovery', recovered.at - struck);
      losses += recovered.restored;
      await this.pause(500);
    }

    await Promise.all(others.map(({ member }) => member.run(stopWork)));
    for (const seat of others) this.unhurt(seat, await works.get(seat)!);
    let replace = outcome !== 'stays';
    if (outcome === 'stays') {
      await victim.member.run(stopWork, undefined).catch(() => undefined);
      const ended = await works.get(victim)!;
      if (fault.victim === 'nobody') this.unhurt(victim, ended);
      else if ('gone' in ended || ended.code !== '') {
        replace = true;
        said += this.givenUpEarly(fault, ended, healed - struck);
        Object.assign(trust, { struck, zombieSince: fault.stops ? healed : Infinity });
      }
    } else said += await this.endOf(fault, victim, await works.get(victim)!, struck);
    await Promise.all((replace ? others : seats).map((seat) => this.countLanes(seat)));
    if (replace) await victim.member.destroy();

    const observer = seats.find((seat) => seat !== victim)!;
    const unsettled = await observer.member.run(settleLocks, LOCKS, { within: STEP_MS });
    if (unsettled !== '' && unsettled !== 'ERR_FAULTLINE_PAGE_LOST') throw new Broken('survivor-error', `${observer.member.name}: ${unsettled}`);
    losses += (await this.recover([observer])).restored;
    if (losses > 0) this.count('pages lost and restored', losses);
    if (losses > 0 && !replace) throw new Broken('needless-loss', `${losses} pages were lost, and nobody had ended`);
    if (losses > 0 && outcome === 'leaves') throw new Broken('needless-loss', `${losses} pages were lost when ${victim.member.name} left in order`);
    this.check(fault, new Map([[victim, trust]]), { deaths: replace, observer });
    bridge.setWeather(victim.index, CLEAR);
    if (replace) {
      const begun = now();
      this.seats = await Promise.all(seats.map((seat) => (seat === victim ? this.take(seat.index) : seat)));
      said += this.measured(fault, 'joined again', now() - begun);
    }
    return said.replace(/; $/, '') || 'went on';
  }

  /** The cluster ends with its registrar: everybody is told, and a new one begins. */
  private async withoutRegistrar(fault: Fault, victim: Seat, others: Seat[], works: Map<Seat, Promise<Ended>>, struck: number): Promise<string> {
    const told = await Promise.all(others.map(async ({ member }) => (await member.told('over', { within: DETECTION_MS })) as { code: string; at: number }));
    told.forEach(({ code }) => this.count(`registrar's end told as ${code}`));
    let said = told.map(({ at }) => this.measured(fault, 'detection', at - struck)).at(-1)!;
    await fault.heal(victim.member, victim.index, { bridge: this.bridge, limits: this.limits });
    for (const seat of others) {
      const ended = await works.get(seat)!;
      if ('gone' in ended) throw new Broken('survivor-error', `${seat.member.name} ended with its registrar: ${ended.gone.message}`);
      this.orderly(seat, ended.code);
    }
    if (!fault.kills) {
      // It may find itself alone, and go on.
      await victim.member.run(stopWork).catch(() => undefined);
      const ended = await works.get(victim)!;
      if ('gone' in ended) throw new Broken('every-fault-ends', `the registrar did not go on: ${ended.gone.message}`);
      if (ended.code !== '') this.orderly(victim, ended.code);
    }
    await Promise.all(this.seats.map(({ member }) => member.destroy()));
    this.check(fault, new Map(this.seats.map((seat) => [seat, { ...FULL_TRUST, struck }])), { deaths: true });
    for (const { index } of this.seats) this.bridge.setWeather(index, CLEAR);
    await this.newCluster();
    const { at } = await this.recover(this.seats);
    said += this.measured(fault, 'recovery', at - struck);
    return said.replace(/; $/, '');
  }

  /** A member that is out of memory ends, or goes on when it may have more again. */
  private async eitherWay(fault: Fault, victim: Seat): Promise<'ends' | 'stays'> {
    const ended = await victim.member.exit({ within: fault.span }).then(() => true, () => false);
    this.count(ended ? `${fault.name}: ended` : `${fault.name}: lived on`);
    return ended ? 'ends' : 'stays';
  }

  private async deathOf(victim: Seat, seat: Seat): Promise<number> {
    for (;;) {
      const { id, at } = (await seat.member.told('died', { within: DETECTION_MS })) as { id: number; at: number };
      if (id === victim.id) return at;
      throw new Broken('survivor-error', `${seat.member.name} was told that member ${id} has died, which nothing was done to`);
    }
  }

  /** Until every page can be used by all of these: lost ones are restored. */
  private async recover(seats: Seat[]): Promise<{ at: number; restored: number }> {
    const until = performance.now() + STEP_MS;
    const all = new Set<number>();
    for (;;) {
      const looks = await Promise.all(seats.map(({ member }) => member.run(touch, LOCATIONS, { within: STEP_MS }).catch((error: Error) => {
        throw new Broken('every-fault-ends', `${member.name}: ${error.message}`);
      })));
      const lost = new Set(looks.flatMap((look) => look.lost));
      if (lost.size === 0) return { at: Math.max(...looks.map(({ at }) => at)), restored: all.size };
      if (performance.now() > until) throw new Broken('every-fault-ends', `pages ${[...lost].join(', ')} are still lost after ${STEP_MS} ms of restoring`);
      lost.forEach((page) => all.add(page));
      const pages = [...lost];
      const codes = await seats[0].member.run(restorePages, { pages, bases: pages.map(() => ++this.resets * COUNTER_STEP) }, { within: STEP_MS });
      const odd = codes.find((code) => code !== '' && code !== 'ERR_FAULTLINE_NOT_LOST');
      if (odd !== undefined) throw new Broken('survivor-error', `restoring: ${odd}`);
    }
  }

  // ---- what may be said ---------------------------------------------------------------------------------------------

  private unhurt({ member }: Seat, ended: Ended): void {
    if ('gone' in ended) throw new Broken('survivor-error', `${member.name}: ${ended.gone.message}`);
    if (ended.code !== '') throw new Broken('survivor-error', `${member.name}, which nothing was done to, got ${ended.code}`);
  }

  private orderly({ member }: Seat, code: string): void {
    if (!/^ERR_FAULTLINE_(EVICTED|CLUSTER_LOST|CLOSED)$/.test(code)) throw new Broken('every-fault-ends', `${member.name} ended its work with '${code}'`);
    this.count(`work ended with ${code}`);
  }

  /** What a victim that is out of the view has to say of it. */
  private async endOf(fault: Fault, victim: Seat, ended: Ended, struck: number): Promise<string> {
    if (fault.kills) {
      if (!('gone' in ended)) throw new Broken('the run failed', `${victim.member.name} was killed, and went on`);
      return '';
    }
    if ('gone' in ended) throw new Broken('every-fault-ends', `${victim.member.name}: ${ended.gone.message}`);
    this.orderly(victim, ended.code);
    if (fault.outcome === 'leaves') return '';
    return this.victimTold(fault, victim, struck, 'back');
  }

  private async victimTold(fault: Fault, { member }: Seat, struck: number, when: 'alone' | 'back'): Promise<string> {
    if (this.toldTo === member) return '';
    this.toldTo = member;
    const { code, at } = (await member.told('over', { within: DETECTION_MS })) as { code: string; at: number };
    this.count(`${fault.name}: the victim was told ${code} ${when === 'alone' ? 'while it was cut off' : 'when it came back'}`);
    return this.measured(fault, 'victim told', at - struck);
  }

  private givenUpEarly(fault: Fault, ended: Ended, nanoseconds: number): string {
    const how = 'gone' in ended ? ended.gone.message : ended.code;
    const lag = this.lag.max / 1e6;
    this.count(`${fault.name}: given up although it came back`);
    if (fault.outcome !== 'either' && nanoseconds < 1e9 && lag < BUSY_MS) {
      throw new Broken('given-up-too-early', `the member was silent for ${Math.round(nanoseconds / 1e6)} ms only, and this program never late by more than ${Math.round(lag)} ms: ${how}`);
    }
    return 'given up; ';
  }

  private check(fault: Fault, trusts: Map<Seat, Trust>, { deaths, observer }: { deaths: boolean; observer?: Seat }): void {
    const { report, initial, seats } = this;
    const history = emptyHistory();
    for (const seat of seats) {
      const { lines, next } = readLines(seat.file, seat.read);
      seat.read = next;
      this.options.forge?.(lines, seat.member.name);
      addLines(history, seat.member.name, lines, trusts.get(seat) ?? FULL_TRUST);
    }
    const found = [...checkRegisters(history.accesses, initial), ...checkCounters(history.adds, initial), ...checkSections(history.sections, { deaths })];
    for (const violation of found.slice(0, 20)) report.problems.push(this.problem(fault, violation));
    this.add(history);
    if (observer) this.initial = lastValues(history, observer.member.name);
  }

  private problem(fault: Fault, { rule, access, because }: Found): Problem {
    return { rule, round: this.round, fault: fault.name, message: `${JSON.stringify(access)}${because ? ` against ${JSON.stringify(because)}` : ''}` };
  }

  private add(history: History): void {
    const { report } = this;
    report.operations += history.operations;
    report.sections += history.sections.filter(({ held }) => held !== null).length;
    for (const [code, times] of Object.entries(history.codes)) this.count(`accesses that ended with ${code}`, times);
    const writers = new Map(history.accesses.filter(({ kind }) => kind === 'write').map(({ value, member }) => [value, member]));
    for (const { kind, value, member } of history.accesses) {
      const writer = kind === 'read' ? writers.get(value) : undefined;
      if (writer !== undefined && writer !== member) report.sharedReads++;
    }
  }

  // ---- small things -------------------------------------------------------------------------------------------------

  private words(error: Error): string {
    return `${error instanceof Broken ? error.message : error.stack}\n  (weather: ${describe(this.weather)}; this program was late by at most ${Math.round(this.lag.max / 1e6)} ms in this round)`;
  }

  private measured(fault: Fault, measure: Measure, nanoseconds: number): string {
    const key = `${fault.name} ${measure}`;
    let entry = this.histograms.get(key);
    if (!entry) this.histograms.set(key, entry = { fault: fault.name, measure, values: build() });
    entry.values.recordValue(Math.max(0, Math.round(nanoseconds / 1000)));
    return `${measure} ${Math.round(nanoseconds / 1e6)} ms; `;
  }

  private count(what: string, times = 1): void {
    this.report.counts[what] = (this.report.counts[what] ?? 0) + times;
  }

  private async countLanes(seat: Seat): Promise<void> {
    const { faults, broken } = await seat.member.run(({ region }) => region.stats().lanes, undefined, { within: STEP_MS });
    this.count('faults over lanes', faults - seat.lanes.faults);
    this.count('faults whose lane broke', broken - seat.lanes.broken);
    seat.lanes = { faults, broken };
  }

  private below(n: number): number {
    return Math.floor(this.random() * n);
  }

  private shuffled<T>(list: readonly T[]): T[] {
    const mixed = [...list];
    for (let left = mixed.length - 1; left > 0; left--) {
      const other = this.below(left + 1);
      [mixed[left], mixed[other]] = [mixed[other], mixed[left]];
    }
    return mixed;
  }

  private pause(ms: number): Promise<void> {
    return delay(ms, undefined, { signal: this.options.signal });
  }
}

/** What everything holds when nobody works any more, as the observer has seen it last. */
export function lastValues({ accesses, adds }: History, observer: string): Map<number, number> {
  const last = new Map<number, number>();
  for (const { member, kind, location, value } of accesses) if (member === observer && kind === 'read') last.set(location, value);
  for (const { member, kind, location, value } of adds) if (member === observer && kind === 'count') last.set(location, value!);
  return last;
}
