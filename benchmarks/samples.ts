/** Samples of one thing that was measured, in nanoseconds, and the figures that are shown of them. */
import { build, type Histogram } from 'hdr-histogram-js';

/** µs. */
export interface Figures { n: number; median: number; p90: number; p99: number; max: number }

/** Of what took longer only the longest time is known exactly. */
const LONGEST_NS = 600e9;

function histogramOf(nanoseconds: ArrayLike<number>): Histogram {
  const histogram = build({ lowestDiscernibleValue: 1, highestTrackableValue: LONGEST_NS, numberOfSignificantValueDigits: 3, bitBucketSize: 64 });
  for (let i = 0; i < nanoseconds.length; i++) histogram.recordValue(Math.min(LONGEST_NS, Math.max(1, Math.round(nanoseconds[i]))));
  return histogram;
}

export function figures(nanoseconds: ArrayLike<number>): Figures {
  if (nanoseconds.length === 0) throw new RangeError('no samples');
  const histogram = histogramOf(nanoseconds);
  const at = (percentile: number): number => round(Math.min(histogram.getValueAtPercentile(percentile), histogram.maxValue) / 1000);
  return { n: nanoseconds.length, median: at(50), p90: at(90), p99: at(99), max: round(histogram.maxValue / 1000) };
}

/** How many part the whole range of a plot into, for each power of ten. */
const BUCKETS_PER_DECADE = 20;

/** [upper bound in µs, part of all samples] of the buckets that have any; equally wide on a logarithmic axis. */
export function distribution(nanoseconds: ArrayLike<number>): [number, number][] {
  const counts = new Map<number, number>();
  for (let i = 0; i < nanoseconds.length; i++) {
    const bucket = Math.floor(Math.log10(Math.max(1, nanoseconds[i])) * BUCKETS_PER_DECADE);
    counts.set(bucket, (counts.get(bucket) ?? 0) + 1);
  }
  return [...counts].sort(([a], [b]) => a - b).map(([bucket, count]) => [round(10 ** ((bucket + 1) / BUCKETS_PER_DECADE) / 1000), count / nanoseconds.length]);
}

/** Four digits that mean something. */
export function round(value: number): number {
  return value === 0 ? 0 : Number(value.toPrecision(4));
}

/** Page numbers in an order without a pattern, the same in every process: nothing to read ahead, no two in one request. */
export function shuffled(count: number): Uint32Array {
  const list = Uint32Array.from({ length: count }, (_, i) => i);
  let seed = 12345;
  for (let i = count - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 2 ** 32) * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}
