import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { loadSimulation, type Simulation } from './addon.js';
import { Choices } from './choices.js';
import { simulate } from './world.js';

/** Seeds of the run in the suite; `npm run simulate` runs more. */
const SEEDS = 6_000;

describe('the protocol in the simulator', function () {
  this.timeout(180_000);
  let native: Simulation;

  before(() => {
    execFileSync(path.resolve(__dirname, '../../../scripts/simulation.sh'), { stdio: ['ignore', 'ignore', 'inherit'] });
    native = loadSimulation();
  });

  it(`keeps its promises in ${SEEDS} seeds of members that join, leave, stop and die, and connections that break`, () => {
    const seen = { kills: 0, leaves: 0, joins: 0, pauses: 0, breaks: 0, partitions: 0, stalls: 0, mappingFailures: 0 };
    for (let seed = 1; seed <= SEEDS; seed++) {
      const { violation, plan, accesses } = simulate(native, new Choices(seed));
      assert.equal(violation, null, `seed ${seed}: ${violation?.invariant}: ${violation?.message}`);
      if (accesses > 0) for (const kind of Object.keys(seen) as (keyof typeof seen)[]) seen[kind] += plan[kind] > 0 ? 1 : 0;
    }
    for (const [kind, count] of Object.entries(seen)) assert.ok(count > SEEDS / 50, `${kind} happened in ${count} runs only`);
  });

  it('runs a seed twice in exactly the same way, and a list of its choices, too', () => {
    for (let seed = 100; seed < 110; seed++) {
      const first = simulate(native, new Choices(seed), true);
      const again = simulate(native, new Choices(seed), true);
      const replayed = simulate(native, new Choices(0, first.choices), true);
      assert.deepEqual(again.trace, first.trace);
      assert.deepEqual(replayed.trace, first.trace);
      assert.ok(first.trace.length > 10);
    }
  });
});
