import assert from 'node:assert/strict';
import fc from 'fast-check';
import { BUSY, isBusy, parseProcess, parseStat } from '../../benchmarks/machine.js';
import { distribution, figures, round, shuffled } from '../../benchmarks/samples.js';
import { pagesOf, STRIDE } from '../../benchmarks/scans.js';
import { barrierTimes, handOvers } from '../../benchmarks/sections/sync.js';

/** What three digits of a histogram may be wrong by. */
const DIGITS = 0.002;

describe('figures of samples', () => {
  it('are the percentiles, in µs', () => {
    const samples = Array.from({ length: 1000 }, (_, i) => (i + 1) * 1000);
    const { n, median, p90, p99, max } = figures(samples);
    assert.equal(n, 1000);
    for (const [got, expected] of [[median, 500], [p90, 900], [p99, 990], [max, 1000]]) assert.ok(Math.abs(got / expected - 1) <= DIGITS, `${got} is not ${expected}`);
  });

  it('lie where sorting the samples puts them', () => {
    fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 10_000_000_000 }), { minLength: 1, maxLength: 300 }), (samples) => {
      const sorted = [...samples].sort((a, b) => a - b);
      const { median, p99, max } = figures(samples);
      for (const [got, part] of [[median, 0.5], [p99, 0.99], [max, 1]] as const) {
        const expected = sorted[Math.max(0, Math.ceil(part * sorted.length) - 1)] / 1000;
        assert.ok(Math.abs(got - expected) <= expected * DIGITS + 0.001, `${got} is not ${expected}`);
      }
    }));
  });

  it('of one sample are that sample', () => {
    assert.deepEqual(figures([1_234_000]), { n: 1, median: 1234, p90: 1234, p99: 1234, max: 1234 });
  });

  it('of no samples are an error, not zeros', () => {
    assert.throws(() => figures([]), RangeError);
  });

  it('keep the parts of a distribution whole, in ascending order', () => {
    fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 1_000_000_000 }), { minLength: 1, maxLength: 300 }), (samples) => {
      const parts = distribution(samples);
      assert.ok(Math.abs(parts.reduce((sum, [, part]) => sum + part, 0) - 1) < 1e-9);
      for (let i = 1; i < parts.length; i++) assert.ok(parts[i][0] > parts[i - 1][0]);
      assert.ok(parts.at(-1)![0] * 1000 >= Math.max(...samples) * 0.999);
    }));
  });

  it('are shown with four digits', () => {
    assert.deepEqual([0, 1.23456, 123456, 0.00012346].map(round), [0, 1.235, 123500, 0.0001235]);
  });
});

describe('orders of pages', () => {
  it('without a pattern have every page once, the same each time', () => {
    const order = shuffled(1000);
    assert.deepEqual([...order].sort((a, b) => a - b), Array.from({ length: 1000 }, (_, i) => i));
    assert.deepEqual(shuffled(1000), order);
    assert.notDeepEqual([...order], [...order].sort((a, b) => a - b));
  });

  it('of scans are what their names say', () => {
    assert.deepEqual([...pagesOf('sequential', 4)], [0, 1, 2, 3]);
    assert.deepEqual([...pagesOf('strided', 3 * STRIDE)], [0, STRIDE, 2 * STRIDE]);
    const runs = [...pagesOf(4, 64)];
    assert.deepEqual([...runs].sort((a, b) => a - b), Array.from({ length: 64 }, (_, i) => i));
    for (let i = 0; i < runs.length; i++) if (i % 4 !== 0) assert.equal(runs[i], runs[i - 1] + 1);
  });
});

describe('times between members', () => {
  it('of a lock are from one member\'s release to another\'s going on', () => {
    // Member 0 has it from 0 to 10 and from 12 to 20, member 1 from 25 to 30.
    assert.deepEqual(handOvers([Float64Array.of(0, 10, 12, 20), Float64Array.of(25, 30)]), [5]);
  });

  it('of a barrier are from the last one\'s coming to the last one\'s going on', () => {
    assert.deepEqual(barrierTimes([Float64Array.of(0, 12, 20, 31), Float64Array.of(10, 15, 18, 30)]), [5, 11]);
  });
});

describe('the noise check', () => {
  it('reads the time of all processors', () => {
    assert.deepEqual(parseStat('cpu  10 20 30 400 50 6 7 8 0 0'), { total: 531, busy: 73, steal: 8 });
  });

  it('reads a process with any name, and the children that it has waited for', () => {
    assert.deepEqual(parseProcess('42 (a) b (c) S 7 42 42 0 -1 0 1 2 3 4 100 20 3 4 20 0 1 0'), { parent: 7, ticks: 127 });
  });

  it('says when others used the machine, or the hypervisor took it away', () => {
    assert.equal(isBusy({ others: 0, steal: 0 }), false);
    assert.equal(isBusy({ others: BUSY.others * 2, steal: 0 }), true);
    assert.equal(isBusy({ others: 0, steal: BUSY.steal * 2 }), true);
  });
});
