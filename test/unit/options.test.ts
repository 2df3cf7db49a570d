import assert from 'node:assert/strict';
import { FaultlineError } from '../../lib/errors.js';
import {
  checkJoin, checkPinRanges, checkRange, checkRegion, exitTimeout, parseCluster, DEFAULT_EXIT_TIMEOUT_MS, DEFAULT_FAULT_TIMEOUT_MS, MAX_NAME_BYTES,
} from '../../lib/options.js';
import { subtract, union, type Run } from '../../lib/ranges.js';
import { histogram } from '../../lib/stats.js';

function refused(code: string, fields: Record<string, unknown> = {}): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof FaultlineError, String(error));
    assert.equal(error.code, `ERR_FAULTLINE_${code}`);
    for (const [field, value] of Object.entries(fields)) assert.equal((error as unknown as Record<string, unknown>)[field], value, field);
    return true;
  };
}

describe('cluster addresses', () => {
  for (const [given, key, loopback] of [
    ['local:default', 'local:default', true],
    ['local:A.b_c-9', 'local:A.b_c-9', true],
    [`local:${'x'.repeat(64)}`, `local:${'x'.repeat(64)}`, true],
    ['tcp://127.0.0.1:7700', 'tcp://127.0.0.1:7700', true],
    ['tcp://localhost:07700', 'tcp://127.0.0.1:7700', true],
    ['tcp://LocalHost:1', 'tcp://127.0.0.1:1', true],
    ['tcp://127.9.8.7:65535', 'tcp://127.9.8.7:65535', true],
    ['tcp://[::1]:7700', 'tcp://[::1]:7700', true],
    ['tcp://[0:0:0:0:0:0:0:1]:7700', 'tcp://[::1]:7700', true],
    ['tcp://[::ffff:127.0.0.1]:7700', 'tcp://127.0.0.1:7700', true],
    ['tcp://10.0.0.1:7700', 'tcp://10.0.0.1:7700', false],
    ['tcp://[2001:DB8:0:0::1]:7700', 'tcp://[2001:db8::1]:7700', false],
  ] as const) {
    it(`${given} is ${key}`, () => assert.deepEqual(parseCluster(given), { key, loopback }));
  }

  for (const given of [
    '', 'default', 'local:', 'local:.', 'local:..', 'local:.hidden', 'local:a/b', 'local:../x', 'local:a\\b', 'local:a b', 'local:ä', 'local:a\u0000', 'local:a\n', `local:${'x'.repeat(65)}`,
    'tcp://', 'tcp://127.0.0.1', 'tcp://127.0.0.1:', 'tcp://127.0.0.1:0', 'tcp://127.0.0.1:65536', 'tcp://127.0.0.1:1/x', 'tcp://:1', 'tcp://example.org:1', 'tcp://::1:1',
    'tcp://0.0.0.0:1', 'tcp://[::]:1', 'tcp://[::ffff:0.0.0.0]:1', 'tcp://[fe80::1%eth0]:1', 'tcp://127.1:1', 'tcp://127.0.0.01:1', 'tcp://[127.0.0.1]:1', 'tcp://a@127.0.0.1:1', 'udp://127.0.0.1:1', 'TCP://127.0.0.1:1',
    7, null, {},
  ]) {
    it(`${JSON.stringify(given)} is refused`, () => assert.throws(() => parseCluster(given), refused('INVALID_ARGUMENT', { argument: 'cluster' })));
  }

  it('a path in a cluster name is named as the reason', () => assert.throws(() => parseCluster('local:../x'), /path/));
});

describe('join options', () => {
  const none = {};
  it('has defaults', () => {
    const { settings, given, loopback } = checkJoin(undefined, none);
    assert.equal(settings.key, 'local:default');
    assert.equal(settings.faultTimeout, DEFAULT_FAULT_TIMEOUT_MS);
    assert.equal(settings.insecure, false);
    assert.match(settings.name, new RegExp(`:${process.pid}$`));
    assert.deepEqual(given, {});
    assert.equal(loopback, true);
  });

  it('remembers what was given, also if it is the default', () => {
    assert.deepEqual(checkJoin({ name: 'a', faultTimeout: DEFAULT_FAULT_TIMEOUT_MS, insecure: false }, none).given, { name: 'a', faultTimeout: DEFAULT_FAULT_TIMEOUT_MS, insecure: false });
  });

  it('FAULTLINE_CLUSTER is the default cluster, and is checked as such', () => {
    assert.equal(checkJoin({}, { FAULTLINE_CLUSTER: 'local:x' }).settings.key, 'local:x');
    assert.equal(checkJoin({ cluster: 'local:y' }, { FAULTLINE_CLUSTER: '/bad' }).settings.key, 'local:y');
    assert.equal(checkJoin({}, { FAULTLINE_CLUSTER: '' }).settings.key, 'local:default');
    assert.throws(() => checkJoin({}, { FAULTLINE_CLUSTER: '/bad' }), refused('INVALID_ARGUMENT', { argument: 'FAULTLINE_CLUSTER' }));
  });

  it('FAULTLINE_SYSTEM_CALLS is the default of systemCalls, and gives way to a guard that can\'t serve them', () => {
    const here = (options: object, environment: NodeJS.ProcessEnv): boolean => checkJoin(options, environment).settings.systemCalls;
    assert.deepEqual([here({}, none), here({ systemCalls: true }, none), here({}, { FAULTLINE_SYSTEM_CALLS: '1' }), here({}, { FAULTLINE_SYSTEM_CALLS: '0' }), here({ systemCalls: false }, { FAULTLINE_SYSTEM_CALLS: '1' })], [false, true, true, false, false]);
    assert.equal(here({ guard: 'mprotect' }, { FAULTLINE_SYSTEM_CALLS: '1' }), false);
    assert.equal(checkJoin({ systemCalls: true }, { FAULTLINE_GUARD: 'mprotect' }).settings.guard, 'auto');
    assert.throws(() => checkJoin({ systemCalls: true, guard: 'mprotect' }, none), refused('INVALID_ARGUMENT', { argument: 'systemCalls' }));
    assert.throws(() => checkJoin({}, { FAULTLINE_SYSTEM_CALLS: 'yes' }), refused('INVALID_ARGUMENT', { argument: 'FAULTLINE_SYSTEM_CALLS' }));
  });

  it('an address that is not loopback needs keys, or insecure: true', () => {
    assert.throws(() => checkJoin({ cluster: 'tcp://10.0.0.1:7700' }, none), refused('KEYS_NEEDED', { cluster: 'tcp://10.0.0.1:7700' }));
    assert.throws(() => checkJoin({ cluster: 'tcp://10.0.0.1:7700', insecure: false }, none), refused('KEYS_NEEDED'));
    assert.equal(checkJoin({ cluster: 'tcp://10.0.0.1:7700', insecure: true }, none).settings.insecure, true);
  });

  for (const [argument, options] of [
    ['options', 7], ['options', null], ['options', []],
    ['name', { name: '' }], ['name', { name: 7 }], ['name', { name: 'x'.repeat(MAX_NAME_BYTES + 1) }], ['name', { name: 'ä'.repeat(128) }], ['name', { name: 'a\nb' }], ['name', { name: '\ud800' }],
    ['faultTimeout', { faultTimeout: 0 }], ['faultTimeout', { faultTimeout: 499 }], ['faultTimeout', { faultTimeout: 600_001 }], ['faultTimeout', { faultTimeout: NaN }], ['faultTimeout', { faultTimeout: 1000.5 }], ['faultTimeout', { faultTimeout: '2000' }],
    ['insecure', { insecure: 1 }],
    ['signal', { signal: {} }],
  ] as const) {
    it(`${argument}: ${JSON.stringify(options)?.slice(0, 50)} is refused`, () => assert.throws(() => checkJoin(options, none), refused('INVALID_ARGUMENT', { argument })));
  }

  it('FAULTLINE_EXIT_TIMEOUT is a number of milliseconds', () => {
    assert.equal(exitTimeout({}), DEFAULT_EXIT_TIMEOUT_MS);
    assert.equal(exitTimeout({ FAULTLINE_EXIT_TIMEOUT: '0' }), 0);
    assert.equal(exitTimeout({ FAULTLINE_EXIT_TIMEOUT: '1500' }), 1500);
    for (const text of ['-1', 'soon', '1e3', '600001']) assert.throws(() => exitTimeout({ FAULTLINE_EXIT_TIMEOUT: text }), refused('INVALID_ARGUMENT', { argument: 'FAULTLINE_EXIT_TIMEOUT' }));
  });
});

describe('region options', () => {
  it('what was not given stays open, so that it matches every region', () => {
    assert.deepEqual(checkRegion('grid', undefined).args, { name: 'grid', mode: 'open-or-create' });
    assert.deepEqual(checkRegion('grid', { size: 65536, pageSize: 65536, placement: 'spread', consistency: 'sequential', mode: 'create' }).args,
      { name: 'grid', size: 65536, pageSize: 65536, placement: 'spread', consistency: 'sequential', mode: 'create' });
  });

  for (const [argument, name, options] of [
    ['region name', '', {}], ['region name', 7, {}], ['region name', 'a\u0000b', {}],
    ['size', 'g', { size: 0 }], ['size', 'g', { size: -4096 }], ['size', 'g', { size: 4097 }], ['size', 'g', { size: 1e300 }], ['size', 'g', { size: NaN }], ['size', 'g', { size: '4096' }], ['size', 'g', { size: 4096n }], ['size', 'g', { size: 4096, pageSize: 8192 }],
    ['size', 'g', { mode: 'create' }],
    ['pageSize', 'g', { pageSize: 0 }], ['pageSize', 'g', { pageSize: 2048 }], ['pageSize', 'g', { pageSize: 12288 }], ['pageSize', 'g', { pageSize: 4 << 20 }],
    ['mode', 'g', { mode: 'append' }], ['mode', 'g', { mode: 7 }], ['placement', 'g', { placement: 'here' }], ['consistency', 'g', { consistency: 'eventual' }],
    ['signal', 'g', { signal: 'now' }], ['options', 'g', 'size'],
  ] as const) {
    it(`${argument}: ${JSON.stringify(name)} ${Object.entries(options).map(([key, value]) => `${key}=${String(value)}`).join(' ')} is refused`, () => {
      assert.throws(() => checkRegion(name, options), refused('INVALID_ARGUMENT', { argument }));
    });
  }

  it('a size that is no whole number of pages is told the next one that is', () => assert.throws(() => checkRegion('g', { size: 5000 }), /8192/));
});

describe('ranges in a region', () => {
  it('inside, empty and whole are fine', () => {
    for (const [offset, length] of [[0, 0], [0, 100], [99, 1], [100, 0]]) checkRange(offset, length, 100);
  });

  it('outside is out of range, nonsense is invalid', () => {
    for (const [offset, length] of [[-1, 1], [0, 101], [100, 1], [50, -1], [1, Number.MAX_SAFE_INTEGER]]) assert.throws(() => checkRange(offset, length, 100), refused('OUT_OF_RANGE', { offset, length, size: 100 }));
    for (const [offset, length] of [[0.5, 1], [NaN, 1], ['0', 1], [0, Infinity], [0, undefined], [0n, 1]]) assert.throws(() => checkRange(offset, length, 100), refused('INVALID_ARGUMENT'));
  });

  it('pins are whole pages, in address order, merged', () => {
    assert.deepEqual(checkPinRanges({ offset: 5000, length: 1 }, 1 << 20, 4096), [{ offset: 4096, length: 4096 }]);
    assert.deepEqual(checkPinRanges([{ offset: 40960, length: 1 }, { offset: 0, length: 4097 }, { offset: 8192, length: 10 }, { offset: 100, length: 1 }], 1 << 20, 4096),
      [{ offset: 0, length: 12288 }, { offset: 40960, length: 4096 }]);
  });

  it('pins of nothing, or outside, are refused', () => {
    for (const ranges of [[], undefined, 7, [null], { offset: 0, length: 0 }, { offset: 0 }]) assert.throws(() => checkPinRanges(ranges, 8192, 4096), refused('INVALID_ARGUMENT'));
    assert.throws(() => checkPinRanges({ offset: 0, length: 8193 }, 8192, 4096), refused('OUT_OF_RANGE'));
  });
});

describe('sets of pages', () => {
  const pages = (runs: readonly Run[]): number[] => runs.flatMap(([first, count]) => Array.from({ length: count }, (_, index) => first + index));
  const isCanonical = (runs: readonly Run[]): boolean => runs.every(([first, count], index) => count > 0 && (index === 0 || first > runs[index - 1][0] + runs[index - 1][1]));

  it('union and subtraction agree with sets of numbers', () => {
    let seed = 1;
    const random = (below: number): number => (seed = (seed * 48271) % 2147483647) % below;
    const some = (): Run[] => Array.from({ length: random(6) }, () => [random(40), random(6)]);
    for (let round = 0; round < 2000; round++) {
      const [left, right] = [some(), some()];
      const both = union(left, right);
      assert.deepEqual(pages(both), [...new Set([...pages(left), ...pages(right)])].sort((a, b) => a - b));
      assert.ok(isCanonical(both));
      const rest = subtract(union(left), right);
      assert.deepEqual(pages(rest), pages(union(left)).filter((page) => !pages(right).includes(page)));
      assert.ok(isCanonical(rest));
    }
  });
});

describe('histograms', () => {
  it('a percentile is the upper bound of its bucket', () => {
    const waits = histogram([10, 20, Infinity], [90, 9, 1]);
    assert.equal(waits.count, 100);
    assert.equal(waits.percentile(0), 10);
    assert.equal(waits.percentile(90), 10);
    assert.equal(waits.percentile(91), 20);
    assert.equal(waits.percentile(99), 20);
    assert.equal(waits.percentile(100), Infinity);
  });

  it('of nothing has no percentiles', () => assert.ok(Number.isNaN(histogram([10, Infinity], [0, 0]).percentile(50))));
});
