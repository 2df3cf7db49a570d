/** A process that runs seeds for main.ts, some at a time. */
import { loadSimulation } from './addon.js';
import { Choices } from './choices.js';
import { simulate } from './world.js';

export interface Order { first: number; count: number }
export interface Failure { seed: number; invariant: string; message: string }
export interface Report { seeds: number; events: number; messages: number; accesses: number; failures: Failure[] }

const native = loadSimulation();

process.on('message', ({ first, count }: Order) => {
  const report: Report = { seeds: count, events: 0, messages: 0, accesses: 0, failures: [] };
  for (let seed = first; seed < first + count; seed++) {
    const { violation, events, messages, accesses } = simulate(native, new Choices(seed));
    report.events += events;
    report.messages += messages;
    report.accesses += accesses;
    if (violation !== null) report.failures.push({ seed, invariant: violation.invariant, message: violation.message });
  }
  process.send!(report);
});
// Its parent may die without saying so.
process.on('disconnect', () => process.exit());
