/**
 * What a member does in a chaos run. These functions are sent to it as text (see ../support/members.ts), so each stands
 * for itself.
 *
 * A member writes into a file what it is about to do, and then what came of it. What a process has written to a file
 * outlives kill -9, so nothing that it did is unknown, but for the few accesses that were under way.
 */
import type { Cluster, Region } from '../../lib/index.js';
import type { State } from '../support/members.js';
import type { Line, Operation, Outcome } from './history.js';

export const PAGE_SIZE = 4096;
/** Loaded and stored at random, by Atomics and by plain instructions. */
const REGISTER_PAGES = 8;
const COUNTER_PAGES = 2;
export const LOCKS = ['left', 'right'];
/** What a lock protects lies in as many pages, each of which has its own fate. */
const PAGES_OF_LOCK = 2;
export const PAGES = REGISTER_PAGES + COUNTER_PAGES + LOCKS.length * PAGES_OF_LOCK;

/** `word`: index of an int32 (registers, what locks protect) or of an int64 (counters) in the region. */
export interface Location { id: number; page: number; word: number; kind: 'register' | 'counter' | 'protected'; lock?: string }

export const LOCATIONS: readonly Location[] = makeLocations();

function makeLocations(): Location[] {
  const made: Location[] = [];
  const add = (page: number, word: number, kind: Location['kind'], lock?: string): void => void made.push({ id: made.length, page, word, kind, lock });
  // Several in one page, far from and near to one another, so that members share pages that they need not share.
  for (let page = 0; page < REGISTER_PAGES; page++) for (const word of [0, 1, 512, 1023]) add(page, page * 1024 + word, 'register');
  for (let page = REGISTER_PAGES; page < REGISTER_PAGES + COUNTER_PAGES; page++) add(page, page * 512 + 7, 'counter');
  LOCKS.forEach((lock, index) => {
    const first = REGISTER_PAGES + COUNTER_PAGES + index * PAGES_OF_LOCK;
    for (let page = first; page < first + PAGES_OF_LOCK; page++) add(page, page * 1024 + 3, 'protected', lock);
  });
  return made;
}

export interface Installed { id: number }

/** What `install` leaves in the member's state. */
interface Workload {
  perform(operations: Operation[]): string[];
  restore(page: number, base: number): Promise<string>;
  section(lock: string, signal?: AbortSignal): Promise<string>;
  begin(round: number): void;
  accesses(random: () => number): Promise<string>;
  sections(random: () => number): Promise<string>;
  stop(): void;
}

/** `writer`: a number from 0 to 31 that no other member has in the same round. */
export interface InstallArguments { file: string; locations: readonly Location[]; pageSize: number; locks: string[]; writer: number }

/** Prepares a member that has joined and opened the region. @returns its id in the cluster */
export function install(state: State, given: InstallArguments): Installed {
  const fs = state.require('node:fs') as typeof import('node:fs');
  const { locations, pageSize, locks, writer } = given;
  const { attempt } = state;
  const cluster: Cluster = state.cluster;
  const region: Region = state.region;
  const words = new Int32Array(region.buffer);
  const counters = new BigInt64Array(region.buffer);
  const fence = new Int32Array(new SharedArrayBuffer(4));
  const file = fs.openSync(given.file, 'a');
  const now = (): number => Number(process.hrtime.bigint());
  const log = (line: Line): void => void fs.writeSync(file, `${JSON.stringify(line)}\n`);
  const codeOf = (error: unknown): string => (error as { code?: string }).code ?? (error as { name?: string }).name ?? String(error);
  const isLost = (code: string): boolean => code === 'ERR_FAULTLINE_PAGE_LOST';
  const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
  /** ms. */
  const LONGEST_BLOCK = 50;
  let plans = 0;
  let round = 0;
  let written = 0;
  let stopped = new AbortController();

  // Unique within a round, and not to be mistaken for what somebody wrote in the rounds before.
  const unique = (): number => ((round % 64) * 32 + writer) * 2 ** 20 + (++written);

  function access(kind: Operation[0], at: number, value: number): number {
    switch (kind) {
      case 'load': return Atomics.load(words, at);
      case 'store': return Atomics.store(words, at, value);
      case 'read': return words[at];
      case 'write':
        words[at] = value;
        // A locked instruction waits until the store has left the processor's buffer: only then it may be called done.
        Atomics.add(fence, 0, 1);
        return value;
      case 'count': return Number(Atomics.load(counters, at));
      default: return Number(Atomics.add(counters, at, 1n));
    }
  }

  function perform(operations: Operation[]): string[] {
    const plan = ++plans;
    log(['plan', plan, now(), operations]);
    const outcomes: Outcome[] = [];
    const codes: string[] = [];
    for (const [kind, location, value] of operations) {
      const at = locations[location].word;
      const start = now();
      try {
        const seen = attempt(() => access(kind, at, value));
        outcomes.push([start, now(), seen, '']);
        codes.push('');
      } catch (error) {
        const code = codeOf(error);
        outcomes.push([start, now(), 0, code]);
        codes.push(code);
        if (!isLost(code)) break;
      }
    }
    log(['done', plan, outcomes]);
    return codes;
  }
  const worst = (codes: string[]): string => codes.find((code) => code && !isLost(code)) ?? codes.find((code) => code) ?? '';

  async function restore(page: number, base: number): Promise<string> {
    const bytes = new Uint8Array(pageSize);
    const view = new DataView(bytes.buffer);
    const operations: Operation[] = locations.filter((location) => location.page === page).map(({ id, word, kind }) => {
      const value = kind === 'counter' ? base : unique();
      if (kind === 'counter') view.setBigInt64((word * 8) % pageSize, BigInt(value), true);
      else view.setInt32((word * 4) % pageSize, value, true);
      return [kind === 'counter' ? 'reset' : 'restore', id, value];
    });
    const plan = ++plans;
    log(['plan', plan, now(), operations]);
    const start = now();
    let code = '';
    try {
      await region.restore(page * pageSize, bytes);
    } catch (error) {
      code = codeOf(error);
    }
    const end = now();
    log(['done', plan, operations.map(([, , value]): Outcome => [start, end, value, code])]);
    return code;
  }

  /** Takes the lock, looks at what it protects, and writes it afresh, everywhere the same. blocking: ms that this thread may be blocked for it. */
  async function section(name: string, signal?: AbortSignal, blocking = 0): Promise<string> {
    const plan = ++plans;
    log(['ask', plan, name, now()]);
    let lock;
    try {
      lock = blocking > 0 ? cluster.lockSync(name, { timeout: blocking }) : await cluster.lock(name, { signal });
    } catch (error) {
      log(['unheld', plan, now(), codeOf(error)]);
      return codeOf(error);
    }
    log(['held', plan, now(), Number(lock.token), lock.ownerDied]);
    const value = unique();
    const cells = locations.filter((location) => location.lock === name);
    const code = worst(perform([...cells.map(({ id }): Operation => ['read', id, 0]), ...cells.map(({ id }): Operation => ['write', id, value])]));
    // Others wait meanwhile, and a death may come just now.
    await new Promise((resolve) => setImmediate(resolve));
    log(['releasing', plan, now()]);
    try {
      if (blocking > 0) lock.releaseSync();
      else await lock.release();
      log(['released', plan, lock.signal.aborted ? codeOf(lock.signal.reason) : '']);
    } catch (error) {
      log(['released', plan, codeOf(error)]);
      return codeOf(error);
    }
    return code;
  }

  async function accesses(random: () => number): Promise<string> {
    const below = (n: number): number => Math.floor(random() * n);
    const registers = locations.filter(({ kind }) => kind === 'register');
    const counts = locations.filter(({ kind }) => kind === 'counter');
    while (!stopped.signal.aborted) {
      const operations = Array.from({ length: 1 + below(8) }, (): Operation => {
        if (below(6) === 0) return ['add', counts[below(counts.length)].id, 0];
        // Half of all goes to a quarter of the places.
        const { id } = registers[below(below(2) ? registers.length : registers.length >> 2)];
        const kind = (['load', 'read', 'store', 'write'] as const)[below(4)];
        return [kind, id, kind === 'store' || kind === 'write' ? unique() : 0];
      });
      const code = worst(perform(operations));
      if (code && !isLost(code)) return code;
      // Somebody is about to restore what is lost: asking all the time would only keep the processor from it.
      await sleep(code ? 10 : below(4));
    }
    return '';
  }

  async function sections(random: () => number): Promise<string> {
    const { signal } = stopped;
    while (!signal.aborted) {
      const code = await section(locks[Math.floor(random() * locks.length)], signal, random() < 0.5 ? LONGEST_BLOCK : 0);
      if (code && !isLost(code) && code !== 'ERR_FAULTLINE_TIMEOUT') return signal.aborted ? '' : code;
      await sleep(1 + Math.floor(random() * 8));
    }
    return '';
  }

  cluster.on('member-died', ({ id }) => state.tell('died', { id, at: now() }));
  for (const event of ['evicted', 'lost'] as const) cluster.on(event, ({ code }: { code: string }) => state.tell('over', { code, at: now() }));
  state.chaos = {
    perform, restore, section, accesses, sections,
    begin(number: number) {
      round = number;
      written = 0;
      stopped = new AbortController();
    },
    stop: () => stopped.abort(),
  } satisfies Workload;
  return { id: cluster.self.id };
}

/** Works until it is stopped, or until an error that is not the loss of a page: its code, or ''. */
export async function work(state: State, given: { round: number; seed: number }): Promise<string> {
  const chaos = state.chaos as Workload;
  let drawn = given.seed >>> 0;
  const random = (): number => {
    drawn = (Math.imul(drawn, 1664525) + 1013904223) >>> 0;
    return drawn / 2 ** 32;
  };
  chaos.begin(given.round);
  state.tell('working');
  const codes = await Promise.all([chaos.accesses(random), chaos.sections(random)]);
  return codes.find((code) => code) ?? '';
}

export function stopWork(state: State): void {
  (state.chaos as Workload).stop();
}

/** Looks at every page. @returns the pages that are lost, and when that was known; rejects if there is another error */
export function touch(state: State, locations: readonly Location[]): { lost: number[]; at: number } {
  const chaos = state.chaos as Workload;
  const lost = new Set<number>();
  for (const { id, page, kind } of locations) {
    const [code] = chaos.perform([[kind === 'counter' ? 'count' : 'load', id, 0]]);
    if (code === 'ERR_FAULTLINE_PAGE_LOST') lost.add(page);
    else if (code) throw Object.assign(new Error(`location ${id}: ${code}`), { code });
  }
  return { lost: [...lost], at: Number(process.hrtime.bigint()) };
}

/** Writes lost pages afresh. @returns codes of errors, for each page */
export async function restorePages(state: State, given: { pages: number[]; bases: number[] }): Promise<string[]> {
  const codes: string[] = [];
  for (const [index, page] of given.pages.entries()) codes.push(await (state.chaos as Workload).restore(page, given.bases[index]));
  return codes;
}

/** Takes each lock once, so that nothing that the dead left is open when the next round begins. */
export async function settleLocks(state: State, locks: string[]): Promise<string> {
  for (const lock of locks) {
    const code = await (state.chaos as Workload).section(lock);
    if (code) return code;
  }
  return '';
}
