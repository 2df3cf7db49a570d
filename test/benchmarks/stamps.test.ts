import assert from 'node:assert/strict';
import { Stage } from '../../lib/coordinator/stamps.js';
import { STAGE_NAMES, stagesOf, WHOLE, type StampTuple } from '../../benchmarks/stamps.js';

const TRAPPED = 1;
const RESUMED = 18;
const REGION = 3;

/** Of one access to that page, from 1000 to 10000 ns. */
const access = { page: 7, start: 1000, end: 10_000 };
const stamp = (ns: number, stage: number, region = REGION, page = 7): StampTuple => [ns, region, page, stage];

describe('stamps of a fault', () => {
  it('become steps in the order of the fault, from several processes in any order', () => {
    const { n, stages } = stagesOf([access], [stamp(9000, RESUMED), stamp(4000, Stage.AtHome), stamp(2000, TRAPPED), stamp(3000, Stage.Asked)]);
    assert.equal(n, 1);
    assert.deepEqual(stages, [
      { name: 'trap', us: 1 }, { name: 'coordinator asks', us: 1 }, { name: 'zeromq: to the home', us: 1 },
      { name: 'thread goes on', us: 5 }, { name: 'return to the program', us: 1 }, { name: WHOLE, us: 9 },
    ]);
  });

  it('are those of the first try, and of the last of several who were asked', () => {
    const { stages } = stagesOf([access], [stamp(2000, TRAPPED), stamp(3000, TRAPPED), stamp(4000, Stage.Returned), stamp(6000, Stage.Returned)]);
    assert.deepEqual(stages.slice(0, 2), [{ name: 'trap', us: 1 }, { name: 'zeromq: back to the home', us: 4 }]);
  });

  it('of other regions, other pages and other times do not count', () => {
    const { stages } = stagesOf([access], [stamp(2000, TRAPPED), stamp(3000, Stage.Asked, REGION + 1), stamp(3000, Stage.Asked, REGION, 8), stamp(500, Stage.Asked), stamp(11_000, Stage.Asked)]);
    assert.ok(!stages.some(({ name }) => name === 'coordinator asks'));
  });

  it('leave out accesses that took no fault, and steps that few faults took', () => {
    const accesses = [7, 8, 9, 10].map((page) => ({ ...access, page }));
    const stamps = [7, 8, 9].map((page) => stamp(2000, TRAPPED, REGION, page)).concat([stamp(3000, Stage.Asked, REGION, 7)]);
    const { n, stages } = stagesOf(accesses, stamps);
    assert.equal(n, 3);
    assert.ok(!stages.some(({ name }) => name === 'coordinator asks'));
  });

  it('have a name for every point that a coordinator stamps', () => {
    for (const stage of Object.values(Stage)) {
      const { stages } = stagesOf([access], [stamp(2000, TRAPPED), stamp(3000, stage)]);
      assert.ok(stages[1].name !== 'return to the program' && STAGE_NAMES.includes(stages[1].name), String(stage));
    }
  });
});
