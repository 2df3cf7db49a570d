'use strict';
// The spec reporter, which also appends one line to the file FAULTLINE_COUNTS for each test: passed, failed or skipped.
// As each ends, so that the count is true also if the process dies in the middle. What failed goes to FAULTLINE_FAILURES,
// with its stack, to be told once more at the end: a log's last lines are what is read of it.
const { appendFileSync } = require('node:fs');
const { reporters, Runner } = require('mocha');

module.exports = class Counts extends reporters.Spec {
  constructor(runner, options) {
    super(runner, options);
    const file = process.env.FAULTLINE_COUNTS;
    if (file === undefined) return;
    const { EVENT_TEST_PASS, EVENT_TEST_FAIL, EVENT_TEST_PENDING } = Runner.constants;
    runner.on(EVENT_TEST_PASS, () => appendFileSync(file, 'passed\n'));
    runner.on(EVENT_TEST_FAIL, () => appendFileSync(file, 'failed\n'));
    const failures = process.env.FAULTLINE_FAILURES;
    if (failures !== undefined) {
      runner.on(EVENT_TEST_FAIL, (test, error) => appendFileSync(failures, `${test.fullTitle()}\n${error?.stack ?? String(error)}\n\n`));
    }
    runner.on(EVENT_TEST_PENDING, () => appendFileSync(file, 'skipped\n'));
  }
};
