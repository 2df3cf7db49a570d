import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const ROOT = join(__dirname, '..', '..', '..');

describe('the model of the coherence protocol', function () {
  this.timeout(300_000);

  it('has no error in the short configurations, and every search is complete', function () {
    if (spawnSync('spin', ['-V']).error !== undefined) {
      this.test!.title += ' (skipped: spin is not installed)';
      this.skip();
    }
    const run = spawnSync(join(ROOT, 'scripts', 'model.sh'), ['--quick'], { encoding: 'utf8', timeout: 280_000 });
    assert.equal(run.status, 0, `${run.stdout}${run.stderr}`);
    assert.match(run.stdout, /\| progress +\| +\d+ /);
  });
});
