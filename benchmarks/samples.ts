/** Samples of one thing that was measured, in nanoseconds, and the figures that are shown of them. */
import { build } from 'hdr-histogram-js';

export interface Figures { n: number; p50: number; p90: number; p99: number; max: number }

/** µs, to one decimal. */
export function figures(nanoseconds: number[]): Figures {
  const histogram = build({ lowestDiscernibleValue: 1, highestTrackableValue: 60_000_000_000, numberOfSignificantValueDigits: 3 });
  for (const sample of nanoseconds) histogram.recordValue(Math.max(1, Math.round(sample)));
  const us = (percentile: number): number => Math.round(histogram.getValueAtPercentile(percentile) / 100) / 10;
  return { n: nanoseconds.length, p50: us(50), p90: us(90), p99: us(99), max: Math.round(histogram.maxValue / 100) / 10 };
}

/** ns of a fixed piece of work, best of a few: more than usual means that the machine was busy. */
export function calibrate(): number {
  let best = Infinity;
  for (let round = 0; round < 5; round++) {
    const start = process.hrtime.bigint();
    let x = 1;
    for (let i = 0; i < 2_000_000; i++) x = (Math.imul(x, 1664525) + 1013904223) | 0;
    best = Math.min(best, Number(process.hrtime.bigint() - start) + (x & 1));
  }
  return best;
}
