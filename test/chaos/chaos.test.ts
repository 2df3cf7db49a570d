import assert from 'node:assert/strict';
import { report } from './main.js';
import { FAULTS, NotHere, type Result, runChaos } from './runner.js';

describe('chaos on real processes in network namespaces', () => {
  it('leaves every page a linearizable register, every lock to one at a time, and every access an end', async function () {
    const seconds = Number(process.env.FAULTLINE_CHAOS_SECONDS ?? 40);
    this.timeout(seconds * 1000 + 120_000);
    let result: Result;
    try {
      result = await runChaos({ seed: Number(process.env.FAULTLINE_CHAOS_SEED ?? 1), seconds, members: 4 });
    } catch (error) {
      if (!(error instanceof NotHere)) throw error;
      console.log(`      skipped: ${error.message}`);
      return this.skip();
    }
    console.log(report(result).replace(/^/gm, '      '));
    assert.deepEqual(result.violations, []);
    assert.ok(result.accesses > 1000);
    if (result.rounds >= FAULTS.length) assert.ok(result.counts['members replaced'] > 0 && result.counts['clusters begun anew'] > 0);
  });
});
