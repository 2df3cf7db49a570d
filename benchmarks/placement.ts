/** Where the processes run. */
import os from 'node:os';

export type PlacementName = 'one' | 'each' | 'free';

export interface Placement {
  readonly name: PlacementName;
  readonly what: string;
  /** Processors that the machine must have. */
  readonly cores: number;
}

export const placements: readonly Placement[] = [
  { name: 'one', what: 'one core', cores: 1 },
  { name: 'each', what: 'one core each', cores: 2 },
  { name: 'free', what: 'free', cores: 1 },
];

/** The processor of the process with that number; undefined: wherever the scheduler puts it. */
export function processorOf(placement: Placement, index: number, processors = os.availableParallelism()): number | undefined {
  if (placement.name === 'free') return undefined;
  return placement.name === 'one' ? 0 : index % processors;
}

/** What a row says of its placement: with more processes than cores, that some share one. */
export function describe(placement: Placement, processes: number, processors = os.availableParallelism()): string {
  if (processes === 1) return placement.name === 'free' ? 'free' : 'pinned';
  return placement.name === 'each' && processes > processors ? `${processes} on ${processors} cores` : placement.what;
}
