import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { checkCounters, checkRegisters, checkSections, COUNTER_STEP, type Access, type Add, type Section } from './checker.js';
import { addLines, emptyHistory, FULL_TRUST, readLines, type Line } from './history.js';

function access(kind: Access['kind'], value: number, start: number, end: number, location = 0): Access {
  return { member: kind, location, kind, value, start, end };
}
const rules = (accesses: Access[]): string[] => checkRegisters(accesses).map(({ rule }) => rule);

describe('chaos: the checker of registers', () => {
  it('accepts a read of the latest write, and of either of two writes that overlap it', () => {
    assert.deepEqual(rules([access('read', 0, 0, 1), access('write', 1, 2, 3), access('read', 1, 4, 5)]), []);
    for (const seen of [1, 2]) {
      assert.deepEqual(rules([access('write', 1, 0, 9), access('write', 2, 0, 9), access('read', seen, 10, 11)]), []);
    }
  });

  it('accepts that the last write of a member that died is seen, or never is', () => {
    const history = [access('write', 1, 0, 1), access('write', 2, 2, Infinity)];
    assert.deepEqual(rules([...history, access('read', 1, 5, 6)]), []);
    assert.deepEqual(rules([...history, access('read', 2, 5, 6)]), []);
  });

  it('finds a forged stale read', () => {
    assert.deepEqual(rules([access('write', 1, 0, 1), access('write', 2, 2, 3), access('read', 1, 4, 5)]), ['stale-read']);
  });

  it('finds a stale read of what was there before the first write', () => {
    assert.deepEqual(rules([access('write', 1, 0, 1), access('read', 0, 2, 3)]), ['stale-read']);
  });

  it('finds two readers that saw two writes in different orders', () => {
    const history = [access('write', 1, 0, 20), access('write', 2, 0, 20)];
    const reads = [access('read', 1, 1, 2), access('read', 2, 3, 4), access('read', 1, 5, 6), access('read', 2, 7, 8)];
    assert.deepEqual(rules([...history, ...reads]), ['order-of-reads']);
  });

  it('finds values that nobody wrote, or that were written only later', () => {
    assert.deepEqual(rules([access('read', 7, 0, 1)]), ['value-from-nowhere']);
    assert.deepEqual(rules([access('read', 7, 0, 1), access('write', 7, 2, 3)]), ['value-from-the-future']);
  });

  it('keeps locations apart', () => {
    assert.deepEqual(rules([access('write', 1, 0, 1, 0), access('write', 2, 2, 3, 1), access('read', 1, 4, 5, 0)]), []);
  });

  it('begins with what it is told', () => {
    const initial = new Map([[0, 9]]);
    assert.deepEqual(checkRegisters([access('read', 9, 0, 1), access('write', 1, 2, 3), access('read', 1, 4, 5)], initial), []);
    assert.deepEqual(checkRegisters([access('write', 1, 0, 1), access('read', 9, 2, 3)], initial).map(({ rule }) => rule), ['stale-read']);
  });

  it('finds a value that was written by a member which had been given up', () => {
    const ghost = { ...access('write', 2, 5, 6), ghost: true };
    assert.deepEqual(rules([access('write', 1, 0, 1), ghost, access('read', 1, 7, 8)]), []);
    assert.deepEqual(rules([access('write', 1, 0, 1), ghost, access('read', 2, 7, 8)]), ['ghost-seen']);
  });
});

describe('chaos: the checker of counters', () => {
  const add = (value: number | null, start: number, end = start + 1, kind: Add['kind'] = 'add'): Add => ({ member: 'm', location: 0, kind, value, start, end });
  const found = (adds: Add[], initial = 0): string[] => checkCounters(adds, new Map([[0, initial]])).map(({ rule }) => rule);

  it('accepts additions that each found another value, also at once', () => {
    assert.deepEqual(found([add(5, 0, 10), add(7, 0, 10), add(6, 0, 10), add(8, 20, 21, 'count')], 5), []);
  });

  it('accepts that the last addition of a member that died was counted, or was not', () => {
    assert.deepEqual(found([add(0, 0), add(null, 2, Infinity), add(1, 4, 5, 'count')]), []);
    assert.deepEqual(found([add(0, 0), add(null, 2, Infinity), add(2, 4, 5, 'count')]), []);
  });

  it('accepts that it begins anew after a loss, but not that it goes back to before', () => {
    const reset = add(COUNTER_STEP, 2, 3, 'reset');
    assert.deepEqual(found([add(0, 0), reset, add(COUNTER_STEP, 4)]), []);
    assert.deepEqual(found([add(0, 0), reset, add(1, 4)]), ['count-went-back']);
    assert.deepEqual(found([add(2 * COUNTER_STEP, 4)]), ['count-from-nowhere']);
  });

  it('finds a lost update', () => {
    assert.deepEqual(found([add(0, 0, 9), add(0, 0, 9)]), ['lost-update']);
    assert.deepEqual(found([add(0, 0), add(0, 2)]), ['lost-update', 'count-went-back']);
  });

  it('finds an addition that nobody made, and one that was counted before it was made', () => {
    assert.deepEqual(found([add(0, 0, 1), add(2, 0, 9)]), ['update-from-nowhere']);
    assert.deepEqual(found([add(1, 0, 1, 'count'), add(0, 2, 3)]), ['count-went-back', 'count-from-the-future']);
  });
});

describe('chaos: the checker of locks', () => {
  const section = (token: number, held: number, until: number, more: Partial<Section> = {}): Section =>
    ({ member: `m${token}`, lock: 'l', asked: 0, held, token, ownerDied: false, until, released: 'yes', withdrawn: false, ...more });
  const found = (sections: Section[], deaths = true): string[] => checkSections(sections, { deaths }).map(({ rule }) => rule);

  it('accepts holders one after the other, and a dead one of whom the next is told', () => {
    assert.deepEqual(found([section(1, 0, 1), section(2, 2, 3)], false), []);
    assert.deepEqual(found([section(1, 0, 1, { released: 'no' }), section(2, 2, 3, { ownerDied: true })]), []);
  });

  it('finds two holders, tokens that do not grow, and deaths that are not told or only told', () => {
    assert.deepEqual(found([section(1, 0, 5), section(2, 4, 6)]), ['two-holders']);
    assert.deepEqual(found([section(2, 0, 1), section(1, 2, 3)]), ['tokens-grow']);
    assert.deepEqual(found([section(1, 0, 1), section(1, 2, 3)]), ['tokens-grow']);
    assert.deepEqual(found([section(1, 0, 1, { released: 'no' }), section(2, 2, 3)]), ['owner-died-untold']);
    assert.deepEqual(found([section(1, 0, 1), section(2, 2, 3, { ownerDied: true })], false), ['owner-died-wrongly']);
  });
});

describe('chaos: what members write down', () => {
  const lines: Line[] = [
    ['plan', 1, 10, [['write', 0, 7], ['load', 0, 0], ['add', 1, 0]]],
    ['done', 1, [[11, 12, 7, ''], [13, 14, 7, ''], [15, 16, 0, 'ERR_FAULTLINE_PAGE_LOST']]],
    ['ask', 2, 'l', 20], ['held', 2, 21, 5, false],
    ['plan', 3, 22, [['write', 0, 8], ['write', 0, 9]]],
  ];

  it('is read again up to where a member was killed, in the middle of a line if need be', () => {
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'faultline-chaos-test-'));
    try {
      const file = path.join(directory, 'm.log');
      fs.writeFileSync(file, `${lines.map((line) => JSON.stringify(line)).join('\n')}\n["done",3,[[2`);
      assert.deepEqual(readLines(file, 0).lines, lines);
    } finally {
      fs.rmSync(directory, { recursive: true });
    }
  });

  it('leaves open whether what was under way has happened, and what an error has ended', () => {
    const history = emptyHistory();
    addLines(history, 'm', lines, { ...FULL_TRUST, struck: 30 });
    assert.deepEqual(history.accesses.filter(({ kind }) => kind === 'write').map(({ value, start, end }) => [value, start, end]), [[7, 11, 12], [8, 22, Infinity], [9, 22, Infinity]]);
    assert.deepEqual(history.adds.map(({ value, end }) => [value, end]), [[null, Infinity]]);
    assert.deepEqual(history.sections.map(({ until, released }) => [until, released]), [[30, 'no']]);
  });

  it('counts only as a perhaps once a member has gone on that had been given up', () => {
    const history = emptyHistory();
    addLines(history, 'm', lines.slice(0, 2), { struck: 5, zombieSince: 12.5 });
    assert.deepEqual(history.accesses.map(({ kind, end }) => [kind, end]), [['write', 12]]);
    assert.equal(history.adds.length, 0);
  });
});
