/**
 * What a run is like, drawn before it begins, so that most runs have only some kinds of trouble, and those often ("swarm
 * testing", Groce and others 2012): a fault that hides another one does not do so in every run.
 */
import type { Choices } from './choices.js';

/** Trouble at a message boundary: when the nth message of that type is sent, or has arrived, at one of its ends. */
export interface Trigger { type: string; nth: number; end: 'from' | 'to'; action: 'die' | 'leave' | 'stop' | 'break'; arrived: boolean; /** µs. */ delay: number }

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
  /** Relative weights of what threads do. */
  weights: Record<Kind, number>;
}

export const KINDS = ['read', 'write', 'add', 'straddle', 'lock', 'wait', 'prefetch', 'pin', 'discard', 'drop', 'think', 'scan', 'barrier', 'squeeze'] as const;
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
  const latency = choices.pick([20, 5, 100, 600]);
  const weights = Object.fromEntries(KINDS.map((kind) => [kind, kind === 'read' || kind === 'write' ? 4 : choices.chance(0.4) ? choices.between(1, 4) : 0])) as Record<Kind, number>;
  const members = choices.between(2, 4);
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
  const focus = choices.chance(0.2) ? choices.pick(['homes move', 'writers die'] as const) : null;
  if (focus !== null) pages.length = Math.min(pages.length, 2);
  if (focus === 'homes move') {
    leaves = choices.between(1, 3);
    if (choices.chance(0.5)) triggers.push({ type: choices.pick(['handover', 'handover-ack', 'handed', 'data', 'request']), nth: 1 + choices.skewed(4), end: 'to', action: 'die', arrived: true, delay: choices.skewed(6 * latency) });
  } else if (focus === 'writers die') {
    for (let count = choices.between(1, 2); count > 0; count--) triggers.push({ type: choices.pick(['request', 'invalidate', 'invalidated']), nth: 1 + choices.skewed(30), end: 'from', action: 'die', arrived: choices.chance(0.7), delay: choices.skewed(2 * latency) });
  }
  // Barriers need all parties until their end.
  if (triggers.length + leaves + kills + pauses + breaks + partitions + stalls > 0) weights.barrier = 0;
  return {
    members, extents, pages, latency, weights, leaves, kills, pauses, breaks, partitions, stalls, triggers,
    threads: choices.between(1, 2),
    operations: choices.between(4, 16),
    spread: choices.chance(0.5),
    serverLatency: choices.pick([10, 1000, 50_000]),
    slowMessages: choices.chance(0.3) ? 0.05 : 0,
    span: choices.pick([2_000, 300, 10_000]),
    joins: sometimes(0.25, 2),
    serverGone: choices.chance(0.02),
    mappingFailures: choices.chance(0.15) ? 0.1 : 0,
    lanes: choices.chance(0.75),
    laneBreaks: choices.chance(0.3) ? 0.05 : 0,
    interleaving: choices.pick([0.2, 0, 0.6]),
  };
}
