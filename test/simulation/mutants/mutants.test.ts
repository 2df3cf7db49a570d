import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { changedFiles, hunt } from './main.js';
import { mutants } from './list.js';

describe('mutants of the protocol', function () {
  this.timeout(120_000);

  before(() => {
    execFileSync(path.resolve(__dirname, '../../../../scripts/simulation.sh'), { stdio: ['ignore', 'ignore', 'inherit'] });
  });

  it('are at least 25, each with a name of its own, and still fit the code', () => {
    assert.ok(mutants.length >= 25);
    assert.equal(new Set(mutants.map(({ name }) => name)).size, mutants.length);
    for (const mutant of mutants) assert.ok(changedFiles(mutant).size > 0);
  });

  // One of each kind; npm run mutants tries all. What breaks first depends on the schedule.
  for (const [name, ...invariants] of [['invalidation-not-awaited', 'one-writer'], ['upgrade-after-invalidation', 'latest-value'], ['barrier-opens-early', 'barrier-waits-for-all', 'every-fault-ends'], ['recall-leaves-a-shared-copy', 'one-writer']]) {
    it(`${name} is found, by ${invariants.join(' or ')}`, async () => {
      const result = await hunt(mutants.find((mutant) => mutant.name === name)!, 5_000);
      assert.ok(invariants.includes(result.invariant!), `${result.invariant}: ${result.message} after ${result.seeds} seeds`);
    });
  }
});
