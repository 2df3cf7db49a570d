import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { compare, readRun } from '../../benchmarks/report/compare.js';
import { drawPlots } from '../../benchmarks/report/plots.js';
import { changesText, sectionText, stagesText, targetsText } from '../../benchmarks/report/table.js';
import { targets } from '../../benchmarks/report/targets.js';
import { emptyRun, type Row, type Run } from '../../benchmarks/results.js';
import { distribution, figures } from '../../benchmarks/samples.js';
import { sections } from '../../benchmarks/sections/index.js';

function row(section: string, key: string, us: number, more: Partial<Row> = {}): Row {
  const samples = [us * 1000, us * 1000, us * 2000];
  return { section, key, what: `${section} ${key}`, placement: 'each', where: 'one core each', ...figures(samples), median: us, distribution: distribution(samples), ...more };
}

function run(...rows: Row[]): Run {
  return { ...emptyRun({ node: 'v0' }, {}), rows };
}

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'faultline-test-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('targets', () => {
  const of = (list: ReturnType<typeof targets>, what: string) => list.find((target) => target.what.includes(what));

  it('are ratios of medians of the same placement, met or not', () => {
    const list = targets(run(row('read', 'read', 20), row('read', 'zeromq', 200), row('read', 'redis-get', 50)));
    assert.deepEqual(of(list, 'raw zeromq.js'), { what: 'cold remote read, lane ÷ raw zeromq.js', placement: 'each', asked: '≤ 0.15', got: 0.1, met: true });
    assert.deepEqual(of(list, 'ioredis'), { what: 'cold remote read, lane ÷ ioredis GET of 4 KiB', placement: 'each', asked: '≤ 0.3', got: 0.4, met: false });
  });

  it('compare bandwidths the other way round', () => {
    const target = of(targets(run(row('scan', 'sequential-read', 200, { bytes: 4096 }), row('scan', 'c-stream', 100, { bytes: 4096 }))), 'sequential cold scan');
    assert.equal(target?.got, 0.5);
    assert.equal(target?.met, false);
  });

  it('are judged only when all that they need was measured, in the placement that they are asked for', () => {
    assert.deepEqual(targets(run(row('read', 'read', 20))), []);
    assert.deepEqual(targets(run(row('read', 'read', 20, { placement: 'each' }), row('read', 'zeromq', 200, { placement: 'one' }))), []);
  });

  it('count messages', () => {
    const counted = run();
    counted.counts.push({ section: 'messages', key: 'write-3', what: '', placement: 'free', value: 10.04, unit: '' });
    const [target] = targets(counted);
    assert.deepEqual([target.asked, target.got, target.met, target.placement], ['8', 10.04, false, 'all']);
  });

  it('that only are to be reported are neither met nor missed', () => {
    const [target] = targets(run(row('pingpong', 'members', 60), row('pingpong', 'read', 20)));
    assert.deepEqual([target.got, target.met], [3, null]);
  });
});

describe('a target that needs more than was measured', () => {
  it('is neither met nor missed, and says what is missing', () => {
    const some = [row('growth', 'size-1048576', 20), row('growth', 'size-67108864', 21)];
    const judged = (measured: Run) => targets(measured).map(({ got, met, note }) => ({ got, met, note }));
    assert.deepEqual(judged(run(...some)), [{ got: 1.05, met: null, note: 'not up to 1 TiB' }]);
    assert.deepEqual(judged(run(...some, row('growth', `size-${2 ** 40}`, 30))), [{ got: 1.5, met: false, note: undefined }]);
  });
});

describe('a comparison', () => {
  it('is the ratio of what both runs have', () => {
    const changes = compare(run(row('read', 'read', 30), row('read', 'new', 1)), run(row('read', 'read', 20), row('read', 'old', 1)));
    assert.deepEqual(changes.map(({ row: { key }, ratio }) => [key, ratio]), [['read', 1.5]]);
    assert.match(changesText(changes), /1\.5/);
  });

  it('reads what a run has written, and nothing else', () => {
    const file = path.join(folder, 'run.json');
    writeFileSync(file, JSON.stringify(run(row('read', 'read', 30))));
    assert.equal(readRun(file).rows.length, 1);
    for (const text of ['', '{}', '[]', 'null', '{"version":2,"rows":[]}']) {
      writeFileSync(file, text);
      assert.throws(() => readRun(file), /can't be compared with/, text);
    }
    assert.throws(() => readRun(path.join(folder, 'none.json')), /can't be compared with/);
  });
});

describe('the report', () => {
  it('marks references and busy times', () => {
    const busy = run(row('read', 'read', 20, { what: 'a fault' }), row('read', 'zeromq', 100, { what: 'something else', reference: true, bytes: 4096 }));
    busy.noise.push({ section: 'read', placement: 'each', others: 0.4, steal: 0, seconds: 1, busy: true });
    const text = sectionText(busy, sections.find(({ name }) => name === 'read')!);
    assert.match(text, /│ a fault +│/);
    assert.match(text, /│ {3}something else/);
    assert.match(text, /others used 40%/);
  });

  it('says nothing of what there is not', () => {
    assert.equal(stagesText(run()), '');
    assert.equal(targetsText(run()), '');
  });

  it('draws what was measured', async () => {
    const measured = run(row('read', 'read', 20, { what: 'a fault' }), row('read', 'zeromq', 100, { what: 'something else', reference: true }));
    measured.curves.push({ plot: 'runs', series: 'lane', placement: 'each', points: [{ x: 1, y: 10 }, { x: 256, y: 1000 }] });
    measured.stages.push({ path: 'a lane', placement: 'each', n: 3, stages: [{ name: 'trap', us: 1 }, { name: 'page server', us: 2 }] });
    const files = await drawPlots(measured, path.join(folder, 'plots'));
    assert.deepEqual(files.map((file) => path.basename(file)), ['fault-time-each.svg', 'stages-lanes-each.svg', 'scan-by-run-length.svg']);
    for (const file of files) assert.match(readFileSync(file, 'utf8'), /^<svg[^]*<path[^]*<\/svg>\s*$/);
    assert.match(readFileSync(files[0], 'utf8'), /something else/);
  });
});
