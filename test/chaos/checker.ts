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
}

export interface Violation { rule: 'value-from-nowhere' | 'value-from-the-future' | 'stale-read' | 'order-of-reads'; access: Access; because?: Access }

/** What a location holds before the first write. */
export const INITIAL = 0;

/**
 * Whether each location is a linearizable register. With unique values this is exact (Gibbons and Korach, "Testing shared
 * memories", 1997, section 4): all accesses of one value form a cluster; a history is linearizable if and only if no read
 * precedes its own write and the clusters can be put in a row. A cluster's zone runs from its earliest end to its latest
 * start; it is forward if that is a positive span. Two forward zones may not overlap, and no backward zone may lie
 * within a forward one.
 */
export function checkRegisters(accesses: readonly Access[]): Violation[] {
  const violations: Violation[] = [];
  const locations = new Map<number, Access[]>();
  for (const access of accesses) {
    const known = locations.get(access.location);
    if (known) known.push(access);
    else locations.set(access.location, [access]);
  }
  for (const ofLocation of locations.values()) violations.push(...checkRegister(ofLocation));
  return violations;
}

interface Zone { low: number; high: number; first: Access; last: Access }

function checkRegister(accesses: readonly Access[]): Violation[] {
  const violations: Violation[] = [];
  const clusters = new Map<number, { write: Access; all: Access[] }>();
  const before: Access = { member: 'nobody', location: accesses[0].location, kind: 'write', value: INITIAL, start: -Infinity, end: -Infinity };
  clusters.set(INITIAL, { write: before, all: [before] });
  for (const access of accesses) {
    if (access.kind !== 'write') continue;
    if (clusters.has(access.value)) throw new Error(`value ${access.value} was written twice to location ${access.location}: the workload is wrong`);
    clusters.set(access.value, { write: access, all: [access] });
  }
  for (const access of accesses) {
    if (access.kind !== 'read') continue;
    const cluster = clusters.get(access.value);
    if (!cluster) violations.push({ rule: 'value-from-nowhere', access });
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
  for (const inner of backward) {
    const outer = forward.find(({ low, high }) => low < inner.low && inner.high < high);
    if (outer) violations.push({ rule: 'stale-read', access: outer.last, because: inner.first });
  }
  return violations;
}

/** One Atomics.add(…, 1) that came back, and what it found. */
export interface Ticket { member: string; location: number; value: number; start: number; end: number }

/** No two get the same number, and who was done before another began has the smaller one. */
export function checkTickets(tickets: readonly Ticket[]): string[] {
  const violations: string[] = [];
  for (const [location, ofLocation] of groups(tickets, ({ location: at }) => at)) {
    const byValue = [...ofLocation].sort((a, b) => a.value - b.value);
    let latest: Ticket | undefined;
    for (const [index, ticket] of byValue.entries()) {
      if (index > 0 && byValue[index - 1].value === ticket.value) violations.push(`${ticket.member} and ${byValue[index - 1].member} both got ${ticket.value} at ${location}`);
      if (latest && ticket.end < latest.start) violations.push(`${ticket.member} got ${ticket.value} at ${location}, and was done before ${latest.member} began, which got ${latest.value}`);
      if (!latest || ticket.start > latest.start) latest = ticket;
    }
  }
  return violations;
}

/** A number that was read and raised by one under a lock. Times are those of having the lock. */
export interface Turn { member: string; location: number; value: number; start: number; end: number; ownerDied: boolean }

/** `broken`: how many such turns ended in nobody knows what, since their member died or lost the page. */
export function checkTurns(turns: readonly Turn[], broken: number): string[] {
  const violations: string[] = [];
  for (const [location, ofLocation] of groups(turns, ({ location: at }) => at)) {
    const inOrder = [...ofLocation].sort((a, b) => a.start - b.start);
    for (let i = 1; i < inOrder.length; i++) {
      const [before, turn] = [inOrder[i - 1], inOrder[i]];
      if (turn.start < before.end) violations.push(`${turn.member} had the lock before ${before.member} gave it up`);
      // Who dies holding the lock may have raised the number, once.
      if (turn.value <= before.value || turn.value > before.value + 1 + broken) violations.push(`${turn.member} read ${turn.value} at ${location} after ${before.member} had made it ${before.value + 1}`);
    }
  }
  return violations;
}

function groups<T>(all: readonly T[], keyOf: (one: T) => number): Map<number, T[]> {
  const found = new Map<number, T[]>();
  for (const one of all) {
    const group = found.get(keyOf(one));
    if (group) group.push(one);
    else found.set(keyOf(one), [one]);
  }
  return found;
}
