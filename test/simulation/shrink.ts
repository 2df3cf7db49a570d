/** A run that broke an invariant, made shorter: fewer choices, and simpler ones, that break the same one. */
import type { Simulation } from './addon.js';
import { Choices } from './choices.js';
import { type Outcome, simulate } from './world.js';

/**
 * Choices beyond the end of the list are 0, and 0 is always the simplest, so cutting the list short, leaving parts of it
 * out and setting parts to 0 all lead to runs that are valid, and mostly simpler.
 * @param budget ms; the best so far is returned when it is over
 */
export function shrink(native: Simulation, found: Outcome, budget: number, progress: (length: number) => void = () => undefined): Outcome {
  const invariant = found.violation!.invariant;
  const end = Date.now() + budget;
  let best = found;
  const attempt = (choices: number[]): boolean => {
    const outcome = simulate(native, new Choices(0, choices));
    if (outcome.violation?.invariant !== invariant) return false;
    // What the run did not get to choose does not matter.
    best = { ...outcome, choices: withoutZeros(choices.slice(0, outcome.choices.length)) };
    progress(best.choices.length);
    return true;
  };
  attempt(found.choices);
  for (let before = Infinity; cost(best.choices) < before && Date.now() < end; ) {
    before = cost(best.choices);
    for (let size = best.choices.length >> 1; size > 0 && Date.now() < end; size >>= 1) {
      for (let at = 0; at < best.choices.length && Date.now() < end; ) {
        const { choices } = best;
        const without = [...choices.slice(0, at), ...choices.slice(at + size)];
        if (attempt(without)) continue;
        const part = choices.slice(at, at + size);
        if (part.some((choice) => choice !== 0)) attempt([...choices.slice(0, at), ...part.map(() => 0), ...choices.slice(at + size)]);
        at += size;
      }
    }
  }
  return best;
}

/** Shorter is better, and among those of one length the one with fewer choices that are not the simplest. */
function cost(choices: readonly number[]): number {
  return choices.length * 1000 + choices.filter((choice) => choice !== 0).length;
}

function withoutZeros(choices: readonly number[]): number[] {
  let length = choices.length;
  while (length > 0 && choices[length - 1] === 0) length--;
  return choices.slice(0, length);
}
