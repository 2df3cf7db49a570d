import assert from 'node:assert/strict';
import { Command, CommanderError } from 'commander';
import { describe as where, placements, processorOf } from '../../benchmarks/placement.js';
import { parseSettings, type Settings } from '../../benchmarks/settings.js';

const sections = ['read', 'write', 'scan'];
const [one, each, free] = placements;

function parse(...args: string[]): Settings {
  // Messages about bad arguments are expected, and would only confuse here.
  return parseSettings(args, sections, new Command().configureOutput({ writeErr: () => undefined, writeOut: () => undefined }));
}

describe('arguments of the benchmark', () => {
  it('are all sections in all placements unless told', () => {
    const settings = parse();
    assert.deepEqual(settings.sections, sections);
    assert.deepEqual(settings.placements, ['one', 'each', 'free']);
    assert.equal(settings.quick, false);
    assert.equal(settings.json, undefined);
  });

  it('select sections and placements, with commas or one by one, in the order of the list', () => {
    assert.deepEqual(parse('--section', 'scan,read').sections, ['read', 'scan']);
    assert.deepEqual(parse('-s', 'scan', '-s', 'write').sections, ['write', 'scan']);
    assert.deepEqual(parse('-s', 'all').sections, sections);
    assert.deepEqual(parse('-p', 'each').placements, ['each']);
  });

  it('take fewer samples with --quick, and as many as they say', () => {
    assert.ok(parse('--quick').samples < parse().samples);
    assert.equal(parse('--quick', '--samples', '77').samples, 77);
    assert.equal(parse('--warm-up', '0').warmUp, 0);
  });

  it('name files', () => {
    const { json, plots, compare } = parse('--json', 'a.json', '--plots', 'b', '--compare', 'c.json');
    assert.deepEqual({ json, plots, compare }, { json: 'a.json', plots: 'b', compare: 'c.json' });
  });

  for (const args of [['-s', 'nothing'], ['-s', ','], ['-p', 'two'], ['--samples', '3'], ['--samples', 'many'], ['--samples', ''], ['--samples', '1e9'], ['--unknown'], ['read']]) {
    it(`are refused: ${args.join(' ')}`, () => assert.throws(() => parse(...args), (error) => error instanceof CommanderError && error.exitCode !== 0));
  }
});

describe('placements', () => {
  it('put processes where they say', () => {
    assert.deepEqual([0, 1, 2].map((index) => processorOf(one, index, 2)), [0, 0, 0]);
    assert.deepEqual([0, 1, 2].map((index) => processorOf(each, index, 2)), [0, 1, 0]);
    assert.deepEqual([0, 1].map((index) => processorOf(free, index, 2)), [undefined, undefined]);
  });

  it('say when there are more processes than processors', () => {
    assert.equal(where(each, 2, 2), 'one core each');
    assert.equal(where(each, 5, 2), '5 on 2 cores');
    assert.equal(where(one, 5, 2), 'one core');
    assert.equal(where(free, 5, 2), 'free');
  });
});
