/** What a run of the benchmark found; the JSON file has this shape. */
import type { Facts, Noise } from './machine.js';
import type { PlacementName } from './placement.js';
import type { Figures } from './samples.js';

/** Times in µs. */
export interface Row extends Figures {
  section: string;
  key: string;
  what: string;
  placement: PlacementName;
  /** The placement in words. */
  where: string;
  reference?: boolean;
  /** Bytes that each sample moved. */
  bytes?: number;
  note?: string;
  /** [upper bound in µs, part of all samples]. */
  distribution: [number, number][];
}

export interface Count { section: string; key: string; what: string; placement: PlacementName; value: number; unit: string }

export interface Point { x: number; y: number }
export interface Curve { plot: string; series: string; placement: PlacementName; points: Point[] }

/** Medians, µs, of the times between the stamps of one kind of fault. */
export interface Stages { path: string; placement: PlacementName; n: number; stages: { name: string; us: number }[] }

export interface SectionNoise extends Noise { section: string; placement: PlacementName; seconds: number; busy: boolean }

/** met: null where it is only to be reported, or where not all of it could be measured (see the note). */
export interface Target { what: string; placement: PlacementName | 'all'; asked: string; got: number; met: boolean | null; note?: string }

export interface Run {
  version: 1;
  machine: Facts;
  settings: Record<string, unknown>;
  rows: Row[];
  counts: Count[];
  curves: Curve[];
  stages: Stages[];
  noise: SectionNoise[];
  leftOut: string[];
  failed: string[];
  targets: Target[];
}

export function emptyRun(machine: Facts, settings: Record<string, unknown>): Run {
  return { version: 1, machine, settings, rows: [], counts: [], curves: [], stages: [], noise: [], leftOut: [], failed: [], targets: [] };
}

export function rowOf(run: Run, section: string, key: string, placement: PlacementName): Row | undefined {
  return run.rows.find((row) => row.section === section && row.key === key && row.placement === placement);
}
