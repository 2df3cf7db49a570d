/**
 * Looks at what members logged of their accesses, and says what no memory could have done.
 *
 * Every write to a location stores a value that no other write to it stores, so each read names the write that it saw.
 * All times come from one machine's CLOCK_MONOTONIC, so an operation that ended before another began really was earlier.
 */

/** One access. Times are in ns; `end` is Infinity for a write whose member died before it could say that it was done. */
export interface Access {
  member: string;
  location: number;
  kind: 'read' | 'write';
  value: number;
  start: number;
  end: number;
  /** A write by a member that had been given up by then: nobody else may ever see it. */
  ghost?: boolean;
}

/** What was done with a counter. Its value is what was found: null if nobody can say; of a reset, what it begins with. */
export interface Add { member: string; location: number; kind: 'add' | 'count' | 'reset'; value: number | null; start: number; end: number }

/** A lock, from asking for it to its release. Times are in ns. */
export interface Section {
  member: string;
  lock: string;
  asked: number;
  /** When its holder knew; null if it never did. */
  held: number | null;
  token: number;
  ownerDied: boolean;
  /** Until then its holder had it for certain. */
  until: number;
  released: 'yes' | 'no' | 'perhaps';
  /** The holder asked, and took it back. */
  withdrawn: boolean;
}

export type Rule =
  | 'value-from-nowhere' | 'value-from-the-future' | 'stale-read' | 'order-of-reads' | 'ghost-seen'
  | 'count-from-nowhere' | 'count-from-the-future' | 'count-went-back' | 'lost-update' | 'update-from-nowhere'
  | 'two-holders' | 'tokens-grow' | 'owner-died-untold' | 'owner-died-wrongly';
export interface Violation { rule: Rule; access: Access | Add | Section; because?: Access | Add | Section }

/** What a location holds before the first write, unless it is said otherwise. */
export const INITIAL = 0;
/** Each reset of a counter begins with a larger multiple of this. */
export const COUNTER_STEP = 2 ** 32;

/**
 * Whether each location is a linearizable register. With unique values this is exact (Gibbons and Korach, "Testing shared
 * memories", 1997, section 4): all accesses of one value form a cluster; a history is linearizable if and only if no read
 * precedes its own write and the clusters can be put in a row. A cluster's zone runs from its earliest end to its latest
 * start; it is forward if that is a positive span. Two forward zones may not overlap, and no backward zone may lie
 * within a forward one.
 */
export function checkRegisters(accesses: readonly Access[], initial: ReadonlyMap<number, number> = new Map()): Violation[] {
  const violations: Violation[] = [];
  for (const ofLocation of byLocation(accesses)) violations.push(...checkRegister(ofLocation, initial.get(ofLocation[0].location) ?? INITIAL));
  return violations;
}

interface Zone { low: number; high: number; first: Access; last: Access }

function checkRegister(accesses: readonly Access[], initial: number): Violation[] {
  const violations: Violation[] = [];
  const clusters = new Map<number, { write: Access; all: Access[] }>();
  const before: Access = { member: 'nobody', location: accesses[0].location, kind: 'write', value: initial, start: -Infinity, end: -Infinity };
  clusters.set(initial, { write: before, all: [before] });
  const ghosts = new Map<number, Access>();
  for (const access of accesses) {
    if (access.kind !== 'write') continue;
    if (access.ghost) {
      ghosts.set(access.value, access);
      continue;
    }
    if (clusters.has(access.value)) throw new Error(`value ${access.value} was written twice to location ${access.location}: the workload is wrong`);
    clusters.set(access.value, { write: access, all: [access] });
  }
  for (const access of accesses) {
    if (access.kind !== 'read') continue;
    const cluster = clusters.get(access.value);
    const ghost = ghosts.get(access.value);
    if (ghost) violations.push({ rule: 'ghost-seen', access, because: ghost });
    else if (!cluster) violations.push({ rule: 'value-from-nowhere', access });
    else if (access.end < cluster.write.start) violations.push({ rule: 'value-from-the-future', access, because: cluster.write });
    else cluster.all.push(access);
  }
  const forward: Zone[] = [];
  const backward: Zone[] = [];
  for (const { all } of clusters.values()) {
    const first = all.reduce((a, b) => (b.end < a.end ? b : a));
    const last = all.reduce((a, b) => (b.start > a.start ? b : a));
    // A write that may never have happened, and that nobody saw, asks nothing of the order.
    if (first.end === Infinity) continue;
    if (first.end < last.start) forward.push({ low: first.end, high: last.start, first, last });
    else backward.push({ low: last.start, high: first.end, first, last });
  }
  forward.sort((a, b) => a.low - b.low);
  let widest: Zone | undefined;
  for (const zone of forward) {
    if (widest && zone.low < widest.high) violations.push({ rule: 'order-of-reads', access: widest.last, because: zone.first });
    if (!widest || zone.high > widest.high) widest = zone;
  }
  // For each forward zone in the order of their beginnings: the one up to here that ends last.
  const latest: Zone[] = [];
  for (const zone of forward) latest.push(latest.length > 0 && latest.at(-1)!.high > zone.high ? latest.at(-1)! : zone);
  for (const inner of backward) {
    let index = 0;
    for (let end = forward.length; index < end;) {
      const middle = (index + end) >> 1;
      if (forward[middle].low < inner.low) index = middle + 1;
      else end = middle;
    }
    const outer = latest[index - 1];
    if (outer && inner.high < outer.high) violations.push({ rule: 'stale-read', access: outer.last, because: inner.first });
  }
  return violations;
}

function byLocation<T extends { location: number }>(all: readonly T[]): Iterable<T[]> {
  const locations = new Map<number, T[]>();
  for (const one of all) {
    const known = locations.get(one.location);
    if (known) known.push(one);
    else locations.set(one.location, [one]);
  }
  return locations.values();
}

/** Whether each counter lost no addition, and none came from nowhere: each finds another value, in the order of time, without a gap. */
export function checkCounters(adds: readonly Add[], initial: ReadonlyMap<number, number> = new Map()): Violation[] {
  const violations: Violation[] = [];
  for (const ofLocation of byLocation(adds)) violations.push(...checkCounter(ofLocation, initial.get(ofLocation[0].location) ?? INITIAL));
  return violations;
}

function checkCounter(adds: readonly Add[], initial: number): Violation[] {
  const violations: Violation[] = [];
  const stepOf = (value: number): number => Math.floor(value / COUNTER_STEP);
  /** By step: what it begins with, and which values additions have found. */
  const steps = new Map<number, { first: number; next: number; found: Map<number, Add> }>();
  const begin = (value: number): void => void steps.set(stepOf(value), { first: value, next: value, found: new Map() });
  begin(initial);
  for (const { kind, value } of adds) if (kind === 'reset') begin(value!);
  const known = adds.filter((add): add is Add & { value: number } => add.value !== null);
  for (const add of known) {
    if (add.kind === 'reset') continue;
    const step = steps.get(stepOf(add.value));
    if (!step || add.value < step.first) {
      violations.push({ rule: 'count-from-nowhere', access: add });
      continue;
    }
    step.next = Math.max(step.next, add.kind === 'add' ? add.value + 1 : add.value);
    if (add.kind !== 'add') continue;
    const twice = step.found.get(add.value);
    if (twice) violations.push({ rule: 'lost-update', access: add, because: twice });
    step.found.set(add.value, add);
  }
  const unknown = adds.length - known.length;
  let missing = 0;
  for (const { first, next, found } of steps.values()) missing += next - first - found.size;
  if (missing > unknown) violations.push({ rule: 'update-from-nowhere', access: known.reduce((a, b) => (b.value > a.value ? b : a)) });
  // What was over before something began is not to be seen undone by it.
  const after = ({ kind, value }: Add & { value: number }): number => (kind === 'add' ? value + 1 : value);
  const ends = [...known].sort((a, b) => a.end - b.end);
  let over = 0;
  let highest: (Add & { value: number }) | undefined;
  for (const add of [...known].sort((a, b) => a.start - b.start)) {
    for (; over < ends.length && ends[over].end < add.start; over++) if (!highest || after(ends[over]) > after(highest)) highest = ends[over];
    if (add.kind !== 'reset' && highest && add.value < after(highest)) violations.push({ rule: 'count-went-back', access: add, because: highest });
  }
  // Only what had begun can have been counted.
  const starts = adds.filter(({ kind }) => kind === 'add').map(({ start }) => start).sort((a, b) => a - b);
  let begun = 0;
  for (const add of [...known].sort((a, b) => a.end - b.end)) {
    while (begun < starts.length && starts[begun] < add.end) begun++;
    const first = steps.get(stepOf(add.value))?.first;
    if (add.kind !== 'reset' && first !== undefined && add.value - first > begun) violations.push({ rule: 'count-from-the-future', access: add });
  }
  return violations;
}

/** Whether a lock never had two holders, its tokens grew, and the next one was told of a holder's death, and only then. */
export function checkSections(sections: readonly Section[], { deaths }: { deaths: boolean }): Violation[] {
  const violations: Violation[] = [];
  for (const lock of new Set(sections.map((section) => section.lock))) {
    const ofLock = sections.filter((section) => section.lock === lock);
    const held = ofLock.filter((section): section is Section & { held: number } => section.held !== null).sort((a, b) => a.token - b.token);
    for (const [index, next] of held.entries()) {
      const previous = held[index - 1];
      if (!previous) continue;
      if (previous.token === next.token || next.held < previous.held) violations.push({ rule: 'tokens-grow', access: next, because: previous });
      else if (next.held < previous.until) violations.push({ rule: 'two-holders', access: next, because: previous });
      // Whoever was granted it after it had asked no more has let go of it, and what it would have been told is gone with it.
      const between = ofLock.some(({ withdrawn, asked }) => withdrawn && asked < next.held);
      if (previous.released === 'no' && !next.ownerDied && !between) violations.push({ rule: 'owner-died-untold', access: next, because: previous });
      if (next.ownerDied && !deaths) violations.push({ rule: 'owner-died-wrongly', access: next, because: previous });
    }
  }
  return violations;
}
