/**
 * What a run is like, drawn before it begins, so that most runs have only some kinds of trouble, and those often ("swarm
 * testing", Groce and others 2012): a fault that hides another one does not do so in every run.
 */
import type { Choices } from './choices.js';

/** Trouble at a message boundary: when the nth message of that type is sent, or has arrived, at one of its ends, or at the member for which a home sends it. */
export interface Trigger { type: string; nth: number; end: 'from' | 'to' | 'requester'; action: 'die' | 'leave' | 'stop' | 'break' | 'stall'; arrived: boolean; /** µs. */ delay: number }

/** Messages of which a run has few, and at which most goes wrong; the frequent ones come up by chance. */
const BOUNDARIES = ['handover', 'handover-ack', 'handed', 'rebuild', 'holdings', 'give-back', 'lost', 'state', 'ask', 'reply', 'call', 'recall', 'recalled', 'returned', 'invalidate', 'invalidated', 'data', 'request'];

export interface Plan {
  members: number;
  /** For each member. */
  threads: number;
  /** Operations of each thread. */
  operations: number;
  extents: number;
  spread: boolean;
  pages: number[];
  /** µs. */
  latency: number;
  serverLatency: number;
  slowMessages: number;
  /** µs in which things go wrong. */
  span: number;
  joins: number;
  leaves: number;
  kills: number;
  pauses: number;
  breaks: number;
  /** A member that the others, the server too, can't reach, or that can't reach them, or both. */
  partitions: number;
  /** Messages that wait for a while, as on a link that is down for a moment. */
  stalls: number;
  serverGone: boolean;
  triggers: Trigger[];
  mappingFailures: number;
  /** Faults go over lanes where they can; how often one breaks, at either end of an exchange. */
  lanes: boolean;
  laneBreaks: number;
  interleaving: number;
  /** How often a thread that is BUSY with a protection change loses its processor, and for how long at most, µs. */
  slowChanges: number;
  slowness: number;
  /** µs until a coordinator looks into the ring: what it has been sent may come first. */
  ringLatency: number;
  /** How often a thread goes to the page that it likes best, as when data is divided among threads. */
  locality: number;
  /** µs for which a pinned page may stay so, as for a read from a disk or a socket. */
  pinned: number;
  /** µs after which at the latest somebody notices that a process has died. */
  notice: number;
  /** Relative weights of what threads do. */
  weights: Record<Kind, number>;
}

export const KINDS = ['read', 'write', 'add', 'straddle', 'lock', 'wait', 'prefetch', 'pin', 'discard', 'drop', 'think', 'scan', 'barrier', 'squeeze', 'bump'] as const;
export type Kind = (typeof KINDS)[number];

export function drawPlan(choices: Choices): Plan {
  const extents = choices.between(1, 3);
  const pages: number[] = [];
  const count = 1 + choices.skewed(7);
  // Hot pages at the borders of extents, and neighbours, so that runs and slices matter.
  for (let i = 0; i < count; i++) {
    const page = choices.chance(0.6) ? choices.below(4) : choices.below(extents * 64);
    if (!pages.includes(page)) pages.push(page);
  }
  const sometimes = (probability: number, most: number): number => (choices.chance(probability) ? choices.between(1, most) : 0);
  let latency = choices.pick([20, 5, 100, 600]);
  const weights = Object.fromEntries(KINDS.map((kind) => [kind, kind === 'read' || kind === 'write' ? 4 : choices.chance(0.4) ? choices.between(1, 4) : 0])) as Record<Kind, number>;
  let members = choices.between(2, 4);
  const drawnLeaves = sometimes(0.25, 2);
  const kills = sometimes(0.3, 2);
  const pauses = sometimes(0.2, 2);
  const breaks = sometimes(0.1, 1);
  const partitions = sometimes(0.08, 1);
  const stalls = sometimes(0.1, 2);
  const triggers: Trigger[] = [];
  if (choices.chance(0.25)) {
    for (let count = choices.between(1, 3); count > 0; count--) {
      triggers.push({
        type: choices.pick(BOUNDARIES), nth: 1 + choices.skewed(6), end: choices.chance(0.5) ? 'to' : 'from', action: choices.pick(['die', 'leave', 'stop', 'break'] as const),
        arrived: choices.chance(0.5), delay: choices.chance(0.5) ? choices.skewed(4 * latency) : 0,
      });
    }
  }
  // Some kinds of trouble need several things at once, which would come together too rarely by chance.
  let leaves = drawnLeaves;
  let threads = choices.between(1, 2);
  let slowChanges = choices.chance(0.15) ? 0.2 : 0;
  let serverLatency = choices.pick([10, 1000, 50_000]);
  let notice = 5_000;
  let pinned = choices.chance(0.3) ? 20_000 : 0;
  const die = (type: string, most: number, end: Trigger['end'], arrived: boolean, delay: number): void => {
    triggers.push({ type, nth: 1 + choices.skewed(most), end, action: 'die', arrived, delay: choices.skewed(delay) });
  };
  let operations = choices.between(4, 16);
  let span = choices.pick([2_000, 300, 10_000]);
  let slowness = choices.pick([500, 5_000]);
  let interleaving = choices.pick([0.2, 0, 0.6]);
  let ringLatency = choices.pick([15, 5, 15, 200]);
  let locality = choices.pick([0, 0, 0.7]);
  let lanes = choices.chance(0.75);
  const focus = choices.chance(0.5) ? choices.pick(['homes move', 'writers go', 'homes move', 'slow changes', 'late answers', 'migrations'] as const) : null;
  if (focus !== null) {
    if (focus !== 'homes move' || choices.chance(0.5)) pages.length = Math.min(pages.length, 2);
    operations = choices.between(8, 20);
    span = choices.pick([300, 2_000]);
    serverLatency = 10;
    notice = 4 * latency;
    if (choices.chance(0.7)) for (const kind of KINDS) weights[kind] = kind === 'read' || kind === 'write' ? 4 : 0;
  }
  if (focus === 'homes move') {
    // Members that have something of their own to do while the home moves, and fault in the instant in which it has moved.
    leaves = choices.between(1, 3);
    latency = choices.pick([20, 5, 100]);
    threads = choices.between(1, 3);
    interleaving = choices.pick([0.6, 0.2]);
    weights.add = choices.between(0, 4);
    weights.think = choices.between(0, 6);
    weights.scan = choices.between(0, 4);
    if (choices.chance(0.3)) {
      // What a home says last arrives when it has long been taken out of the view.
      const last = { type: 'request', nth: 1 + choices.skewed(12), end: 'to', arrived: true } as const;
      triggers.push({ ...last, action: 'stall', delay: 0 }, { ...last, action: 'die', delay: choices.skewed(2 * latency) });
    }
    operations = choices.between(12, 30);
    span = choices.pick([300, 100, 1_000]);
    locality = choices.pick([0.8, 0.5, 0]);
    if (choices.chance(0.8)) die(choices.pick(['handed', 'handover', 'handed', 'handover', 'handover-ack', 'data', 'request']), 3, 'to', true, 2 * latency);
  } else if (focus === 'writers go') {
    // Copies that were dropped and are wanted again while a write that invalidates them is given up: another copy, which
    // is pinned, makes the write wait.
    members = choices.between(3, 4);
    weights.read = 6;
    weights.write = choices.between(1, 3);
    weights.drop = choices.between(2, 6);
    weights.pin = choices.between(1, 3);
    pinned = choices.pick([20 * latency, 4 * latency, 20_000, 0]);
    for (let count = choices.between(1, 3); count > 0; count--) {
      if (choices.chance(0.7)) triggers.push({ type: 'invalidate', nth: 1 + choices.skewed(20), end: choices.pick(['requester', 'from'] as const), action: choices.pick(['leave', 'die'] as const), arrived: choices.chance(0.5), delay: choices.skewed(2 * latency) });
      else die(choices.pick(['request', 'invalidate', 'invalidated']), 30, 'from', choices.chance(0.7), 2 * latency);
    }
  } else if (focus === 'slow changes') {
    // Answers that find their page BUSY: one thread opens a page again that was squeezed, while another asks for more.
    threads = choices.between(2, 3);
    weights.squeeze = choices.between(2, 8);
    slowChanges = 0.5;
    slowness = choices.pick([20, 100, 1_000, 10_000]);
    if (choices.chance(0.4)) leaves = choices.between(1, 2);
    else if (choices.chance(0.5)) die('data', 8, 'from', true, 2 * latency);
  } else if (focus === 'late answers') {
    // A question that was asked at a home and at the next one. The first answer ends the claim; before the other one comes,
    // the page is written by way of a lane, sent home because memory is short, and wanted again.
    members = choices.between(3, 4);
    leaves = choices.between(1, 2);
    lanes = true;
    latency = choices.pick([20, 5, 100]);
    operations = choices.between(12, 30);
    weights.drop = choices.between(2, 6);
    weights.bump = choices.between(0, 4);
    if (choices.chance(0.5)) {
      // Answers for several pages at once, some of which are claimed no more, or anew.
      pages.splice(0, pages.length, ...[0, 1, 2].slice(0, choices.between(2, 3)));
      weights.pin = choices.between(2, 6);
      weights.prefetch = choices.between(0, 3);
    }
    for (let count = choices.between(1, 3); count > 0; count--) {
      triggers.push({ type: choices.pick(['request', 'handed', 'data'] as const), nth: 1 + choices.skewed(20), end: choices.pick(['to', 'from'] as const), action: 'stall', arrived: choices.chance(0.7), delay: choices.skewed(2 * latency) });
    }
  } else if (focus === 'migrations') {
    // One after the other reads the page, and then writes it; now and then somebody only reads.
    weights.bump = choices.between(6, 12);
    weights.read = choices.between(0, 2);
    weights.write = choices.between(0, 1);
    members = choices.between(2, 4);
    threads = 1;
  }
  // Barriers need all parties until their end.
  if (triggers.length + leaves + kills + pauses + breaks + partitions + stalls > 0) weights.barrier = 0;
  return {
    members, extents, pages, latency, weights, leaves, kills, pauses, breaks, partitions, stalls, triggers,
    threads, operations, span, serverLatency, notice, slowChanges, slowness, pinned, interleaving, ringLatency, locality,
    spread: choices.chance(0.5),
    slowMessages: choices.chance(0.3) ? 0.05 : 0,
    joins: sometimes(0.25, 2),
    serverGone: choices.chance(0.02),
    mappingFailures: choices.chance(0.15) ? 0.1 : 0,
    lanes,
    laneBreaks: choices.chance(0.3) ? 0.05 : 0,
  };
}
