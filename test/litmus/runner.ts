/**
 * Runs litmus tests on real members. A batch is hundreds of instances of one shape, spread over pages; its threads start
 * together, walk over the instances in the same shuffled order with small random delays, and are asked for what they
 * have loaded when all of them are through. So the cost of starting together is paid once for each batch.
 */
import { randomBytes } from 'node:crypto';
import { Model, type Outcome, type Verdict } from './model.js';
import type { AccessPlan, Pace, Values } from './messages.js';
import { ANSWER_MS, MemberProcess } from './processes.js';
import { formsOf, type Form, type Shape } from './shapes.js';

/** Where an instance's variables are. */
export type Layout = 'same page' | 'different pages' | 'different homes';
/** Which threads share a process; `two and more`: the first two share one, each other has its own. */
export type Placement = 'one member' | 'two and more' | 'a member each';

export interface Variant { shape: Shape; form: Form; layout: Layout; placement: Placement }

export interface Result {
  shape: string;
  form: Form;
  layout: Layout;
  placement: Placement;
  iterations: number;
  outcomes: { outcome: string; count: number; verdict: Verdict }[];
}

export interface Settings {
  /** At least so many instances over all variants together. */
  iterations: number;
  seed: number;
  signal?: AbortSignal;
  /** After each batch. */
  progress?: (done: number, variant: Variant) => void;
  /** For each instance. */
  outcome?: (variant: Variant, verdict: Verdict) => void;
}

/** Threads of the largest shape; as many members, so that each thread can have one. */
const MEMBERS = 4;
/** In each member's slice. */
const SLICE_PAGES = 64;
/** Bytes: variables of one instance are never on one line, or the processor would move them together. */
const LINE = 64;
/** Pages for each variable of a batch that spreads its variables over pages, and for all of them in one that doesn't: in one process, and in several. */
const GROUPS = { near: 20, far: 8 };
/** Straddled borders in a batch. */
const BORDERS = 20;
/** Rounds of an empty loop (a nanosecond or less) before an instance, at most: in one process, and in several, where a page takes long to come. */
const LONGEST_DELAY = { near: 60, far: 10_000 };
/** Likewise between two accesses; short ones are far more frequent. */
const LONGEST_GAP = 200_000;
/** ns for an instance where threads go by the clock: around what a page that is used by two needs for one way. */
const PERIODS = [5_000, 20_000, 60_000];
/** The page where the threads of a batch meet before they start. */
const MEETING_PAGE = 0;

export function variants(shapes: readonly Shape[]): Variant[] {
  return shapes.flatMap((shape) => formsOf(shape).flatMap((form) => layoutsOf(shape).flatMap((layout) =>
    placementsOf(shape).map((placement) => ({ shape, form, layout, placement })))));
}

function layoutsOf({ variables }: Shape): Layout[] {
  return variables.length === 1 ? ['same page'] : ['same page', 'different pages', 'different homes'];
}

function placementsOf({ threads }: Shape): Placement[] {
  return threads.length === 2 ? ['one member', 'a member each'] : ['one member', 'two and more', 'a member each'];
}

/** Runs all variants. Rejects with the signal's reason when it is aborted, with every process ended. */
export async function runLitmus(list: Variant[], settings: Settings): Promise<Result[]> {
  const ground = new Ground(settings);
  const abort = (): void => ground.kill();
  settings.signal?.addEventListener('abort', abort);
  try {
    settings.signal?.throwIfAborted();
    await ground.prepare();
    const results: Result[] = [];
    // All variants get about the same number of batches: a batch of straddled borders has few instances, and costs as much.
    const perRound = list.reduce((sum, variant) => sum + ground.instances(variant), 0);
    const rounds = Math.ceil(settings.iterations / perRound);
    let done = 0;
    for (const variant of list) {
      const tally = new Tally(variant);
      for (let round = 0; round < rounds; round++) {
        settings.signal?.throwIfAborted();
        for (const outcome of await ground.batch(variant)) {
          const verdict = tally.add(outcome);
          settings.outcome?.(variant, verdict);
        }
        done += ground.instances(variant);
        settings.progress?.(done, variant);
      }
      results.push(tally.result());
    }
    return results;
  } catch (error) {
    // What fails because its process was ended must not hide why it was.
    settings.signal?.throwIfAborted();
    throw error;
  } finally {
    settings.signal?.removeEventListener('abort', abort);
    await ground.end();
  }
}

/** Counts outcomes of one variant and judges them. */
export class Tally {
  readonly #variant: Variant;
  readonly #model: Model;
  readonly #counts = new Map<string, { outcome: Outcome; count: number; verdict: Verdict }>();
  #iterations = 0;

  constructor(variant: Variant) {
    this.#variant = variant;
    this.#model = modelOf(variant.shape);
  }

  add(outcome: Outcome): Verdict {
    this.#iterations++;
    const key = outcome.join();
    let entry = this.#counts.get(key);
    if (!entry) this.#counts.set(key, entry = { outcome, count: 0, verdict: this.#model.judge(this.#variant.form, outcome) });
    entry.count++;
    return entry.verdict;
  }

  result(): Result {
    const { shape, form, layout, placement } = this.#variant;
    const outcomes = [...this.#counts.values()]
      .map(({ outcome, count, verdict }) => ({ outcome: this.#model.describe(outcome), count, verdict }))
      .sort((left, right) => right.count - left.count);
    return { shape: shape.name, form, layout, placement, iterations: this.#iterations, outcomes };
  }
}

const models = new Map<Shape, Model>();

function modelOf(shape: Shape): Model {
  let model = models.get(shape);
  if (!model) models.set(shape, model = new Model(shape));
  return model;
}

export function countOf(results: Result[], verdict: Verdict): number {
  return results.flatMap(({ outcomes }) => outcomes).filter((entry) => entry.verdict === verdict).reduce((sum, { count }) => sum + count, 0);
}

/** The members and the region that a run uses. */
class Ground {
  readonly #members: MemberProcess[] = [];
  readonly #random: () => number;
  /** Pages by home. */
  readonly #pages: number[][] = [];
  #pageSize = 0;
  /** What the word at the meeting page has come to. */
  #met = 0;

  constructor({ seed }: Settings) {
    this.#random = generator(seed);
  }

  async prepare(): Promise<void> {
    const cluster = `local:litmus-${process.pid}-${randomBytes(4).toString('hex')}`;
    for (let number = 0; number < MEMBERS; number++) {
      const member = new MemberProcess(`m${number}`);
      this.#members.push(member);
      await member.ask({ join: { cluster, name: member.name } });
    }
    const [first, ...others] = this.#members;
    const pages = MEMBERS * SLICE_PAGES;
    const { pageSize } = await first.ask<{ pageSize: number }>({ open: { name: 'ground', size: pages * 4096 } });
    this.#pageSize = pageSize;
    await Promise.all(others.map((member) => member.ask({ open: { name: 'ground' } })));
    const homes = await first.ask<number[]>({ homes: { pages: Array.from({ length: pages }, (_, page) => page) } });
    const ids = [...new Set(homes)];
    // Without this the layout called "different homes" would not be what it says.
    if (ids.length !== MEMBERS) throw new Error(`the region has ${ids.length} homes and not ${MEMBERS}`);
    for (const id of ids) this.#pages.push(homes.flatMap((home, page) => (home === id && page !== MEETING_PAGE ? [page] : [])));
    for (const [number, member] of this.#members.entries()) {
      const threads = number === 0 ? MEMBERS : 1;
      for (let thread = 0; thread < threads; thread++) await member.ask({ startThread: thread });
    }
  }

  /** In one batch. */
  instances({ shape, layout, placement }: Variant): number {
    if (shape.straddling !== undefined) return layout === 'different homes' ? MEMBERS - 1 : BORDERS;
    const lines = 4096 / LINE;
    return groupsOf(placement) * (layout === 'same page' ? Math.floor(lines / shape.variables.length) : lines);
  }

  async batch(variant: Variant): Promise<Outcome[]> {
    const { shape, form } = variant;
    const count = this.instances(variant);
    const cells = this.#place(variant, count);
    const pages = [...new Set(cells.flatMap((addresses) => [...addresses].flatMap((address) => [this.#page(address), this.#page(address + 7)])))];
    const threads = shape.threads.map((_, thread) => this.#where(variant.placement, thread));

    // Whoever clears the pages has them all: mostly one of the members that run, sometimes one that has nothing to do with it.
    const cleaner = this.#random() < 0.8 ? threads[this.#below(threads.length)].member : this.#below(MEMBERS);
    await this.#members[cleaner].job(0, { do: 'clear', pages: Int32Array.from(pages), pageSize: this.#pageSize });

    const order = this.#shuffled(Array.from({ length: count }, (_, instance) => instance));
    // Long delays for all, or short ones for all: what shows depends on which of the threads is ahead.
    const near = variant.placement === 'one member';
    const longest = this.#below(near ? LONGEST_DELAY.near : LONGEST_DELAY.far) + 1;
    const period = PERIODS[this.#below(PERIODS.length)];
    const withGaps = !near && this.#random() < 0.5;
    this.#met += threads.length;
    const start = { at: MEETING_PAGE * this.#pageSize, target: this.#met, within: ANSWER_MS / 2 };
    const values = await Promise.all(threads.map(({ member, thread }, number) => {
      const accesses = shape.threads[number].map((access): AccessPlan => ({
        kind: access.kind, size: access.size, value: access.kind === 'store' ? access.value : 0,
        addresses: cells[access.variable].map((address) => address + access.offset),
      }));
      const delays = Uint16Array.from(order, () => this.#below(longest));
      const gaps = withGaps ? Uint32Array.from(order, () => LONGEST_GAP * this.#random() ** 4) : null;
      const pace: Pace = near ? { by: 'looking', self: thread, threads: threads.length } : { by: 'clock', period };
      const warm = this.#random() < 0.5 ? Int32Array.from(pages, (page) => page * this.#pageSize) : new Int32Array(0);
      return this.#members[member].job(thread, { do: 'run', plan: { form, accesses, order: Int32Array.from(order), delays, gaps, warm, start, pace } });
    }));
    const reader = this.#below(MEMBERS);
    const last = await Promise.all(cells.map((addresses) => this.#members[reader].job(0, { do: 'read', addresses })));
    return gather(shape, values, last, count);
  }

  async end(): Promise<void> {
    await Promise.all(this.#members.map((member) => member.end()));
  }

  kill(): void {
    for (const member of this.#members) void member.end();
  }

  /** For each variable its address in each instance. */
  #place({ shape, layout, placement }: Variant, count: number): Int32Array[] {
    const groups = groupsOf(placement);
    const lines = this.#pageSize / LINE;
    const size = shape.variables.length;
    if (shape.straddling !== undefined) return this.#placeStraddling(shape, layout, count);
    if (layout === 'same page') {
      const pages = this.#shuffled(this.#pages.flat()).slice(0, groups);
      const perPage = Math.floor(lines / size);
      return Array.from({ length: size }, (_, variable) => Int32Array.from({ length: count }, (_, instance) =>
        pages[Math.floor(instance / perPage)] * this.#pageSize + ((instance % perPage) * size + variable) * LINE));
    }
    const turn = this.#below(MEMBERS);
    const pools = this.#pages.map((pages) => this.#shuffled(pages));
    return Array.from({ length: size }, (_, variable) => {
      const pages = pools[(layout === 'different homes' ? turn + variable : turn) % MEMBERS].splice(0, groups);
      return Int32Array.from({ length: count }, (_, instance) => pages[Math.floor(instance / lines)] * this.#pageSize + (instance % lines) * LINE);
    });
  }

  /** Each border between two pages has one instance: its other variables are on the first of these, on other pages of that home, or with another home. */
  #placeStraddling(shape: Shape, layout: Layout, count: number): Int32Array[] {
    const apart = layout === 'different homes';
    const home = this.#below(MEMBERS);
    const borders = apart
      ? this.#pages.slice(0, -1).map((pages, slice) => ({ page: pages[pages.length - 1], other: this.#pages[(slice + 2) % MEMBERS][1] }))
      : Array.from({ length: count }, (_, number) => ({ page: this.#pages[home][2 * number], other: this.#pages[home][2 * count + number] }));
    return Array.from(shape.variables, (_, variable) => Int32Array.from(borders, ({ page, other }) => {
      if (variable === shape.straddling) return (page + 1) * this.#pageSize - 4;
      return (layout === 'same page' ? page : other) * this.#pageSize + variable * LINE;
    }));
  }

  #where(placement: Placement, thread: number): { member: number; thread: number } {
    if (placement === 'one member') return { member: 0, thread };
    if (placement === 'a member each') return { member: thread, thread: 0 };
    return thread < 2 ? { member: 0, thread } : { member: thread - 1, thread: 0 };
  }

  #page(address: number): number { return Math.floor(address / this.#pageSize); }

  #below(end: number): number { return Math.floor(this.#random() * end); }

  #shuffled<T>(items: readonly T[]): T[] {
    const list = [...items];
    for (let end = list.length; end > 1; end--) {
      const other = this.#below(end);
      [list[end - 1], list[other]] = [list[other], list[end - 1]];
    }
    return list;
  }
}

function groupsOf(placement: Placement): number {
  return placement === 'one member' ? GROUPS.near : GROUPS.far;
}

/** Puts what the threads have loaded, access by access, and what the variables hold in the end together for each instance. */
function gather(shape: Shape, values: Values[], last: Values[], count: number): Outcome[] {
  return Array.from({ length: count }, (_, instance) => [
    ...values.flatMap((loaded) => Array.from({ length: loaded.length / count }, (_, load) => loaded[load * count + instance])),
    ...shape.variables.split('').map((_, variable) => last[variable][instance]),
  ]);
}

/** Numbers that look random and are the same for the same seed (Marsaglia's xorshift, 32 bits). */
function generator(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 2 ** 32;
  };
}
