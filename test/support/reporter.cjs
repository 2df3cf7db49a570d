'use strict';
// The spec reporter, plus one closing line with the counts of everything, the native tests included:
// FAULTLINE_NATIVE_COUNTS is "passed failed", as scripts/test.sh read them from the native tests' own lines.
const { reporters, Runner } = require('mocha');

module.exports = class Counts extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options);
    runner.once(Runner.constants.EVENT_RUN_END, () => {
      const [passed = 0, failed = 0] = (process.env.FAULTLINE_NATIVE_COUNTS ?? '').split(' ').map(Number);
      const { passes, failures, pending } = this.stats;
      process.once('exit', () => {
        process.stdout.write(`${passes + passed} passed, ${failures + failed} failed, ${pending} skipped\n`);
      });
    });
  }
};
