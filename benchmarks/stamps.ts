/** Puts the stamps of several processes together: one clock, since they run on one machine. */
import { figures } from './samples.js';

/** ns, the region's id, page, stage: see native/stamps.h and lib/coordinator/stamps.ts. */
export type StampTuple = readonly [ns: number, region: number, page: number, stage: number];
export interface Access { page: number; start: number; end: number }
export interface StageTime { name: string; us: number }

const TRAPPED = 1;
/** What is shown for the time until a stage is reached. */
const STEPS: readonly (readonly [stage: number, name: string])[] = [
  [TRAPPED, 'trap'],
  [2, 'handler claims'],
  [3, 'lane: to the page server'],
  [4, 'page server'],
  [5, 'lane: back, with bytes'],
  [6, 'handler opens'],
  [7, 'handler rings'],
  [8, 'coordinator wakes'],
  [9, 'coordinator asks'],
  [10, 'zeromq: to the home'],
  [11, 'home asks others'],
  [12, 'zeromq: to others'],
  [13, 'others answer'],
  [14, 'zeromq: back to the home'],
  [15, 'home answers'],
  [16, 'zeromq: back, with bytes'],
  [17, 'coordinator opens'],
  [18, 'thread goes on'],
];
/** There may be several of these, of which the last one counts. */
const LAST = new Set([11, 12, 13, 14]);
const END = 'return to the program';
export const WHOLE = 'all of it';

/** In the order of a fault. */
export const STAGE_NAMES: readonly string[] = [...STEPS.map(([, name]) => name), END, WHOLE];

/** ns of each step of one access; undefined: no fault was taken, the page came with another. */
function steps(access: Access, stamps: readonly StampTuple[]): Map<string, number> | undefined {
  const at = new Map<number, number>();
  for (const [ns, , , stage] of stamps) {
    if (ns < access.start || ns > access.end) continue;
    const known = at.get(stage);
    if (known === undefined || (LAST.has(stage) ? ns > known : ns < known)) at.set(stage, ns);
  }
  if (!at.has(TRAPPED)) return undefined;
  const result = new Map<string, number>();
  let before = access.start;
  for (const [stage, name] of STEPS) {
    const ns = at.get(stage);
    if (ns === undefined) continue;
    // Processors' clocks may differ by some ns.
    result.set(name, Math.max(0, ns - before));
    before = Math.max(before, ns);
  }
  return result.set(END, Math.max(0, access.end - before)).set(WHOLE, access.end - access.start);
}

/** Medians, in the order of a fault, of the steps that at least half of the faults took. */
export function stagesOf(accesses: readonly Access[], stamps: readonly StampTuple[]): { n: number; stages: StageTime[] } {
  const pages = new Set(accesses.map(({ page }) => page));
  const region = stamps.find(([, , page, stage]) => stage === TRAPPED && pages.has(page))?.[1];
  const byPage = new Map<number, StampTuple[]>();
  for (const one of stamps) {
    if (one[1] !== region) continue;
    const list = byPage.get(one[2]);
    if (list) list.push(one);
    else byPage.set(one[2], [one]);
  }
  const faults = accesses.map((access) => steps(access, byPage.get(access.page) ?? [])).filter((fault) => fault !== undefined);
  const stages = STAGE_NAMES.flatMap((name): StageTime[] => {
    const taken = faults.map((fault) => fault.get(name)).filter((ns) => ns !== undefined);
    return taken.length > 0 && taken.length >= faults.length / 2 ? [{ name, us: figures(taken).median }] : [];
  });
  return { n: faults.length, stages };
}
