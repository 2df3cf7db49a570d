import assert from 'node:assert/strict';
import { checkRegisters, checkTickets, checkTurns, type Access } from './checker.js';

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
});

describe('chaos: the checkers of counters', () => {
  const at = (value: number, start: number, end: number) => ({ member: `m${value}`, location: 0, value, start, end, ownerDied: false });

  it('accept tickets in an order that times allow, and with gaps', () => {
    assert.deepEqual(checkTickets([at(0, 0, 3), at(1, 1, 2), at(5, 4, 5)]), []);
  });

  it('find a ticket given twice, and one that is smaller although it came later', () => {
    assert.match(checkTickets([at(3, 0, 1), at(3, 2, 3)]).join(), /both got 3/);
    assert.match(checkTickets([at(4, 0, 1), at(3, 2, 3)]).join(), /done before/);
  });

  it('find two that hold a lock at once, and a number that was not raised, or by too much', () => {
    assert.deepEqual(checkTurns([at(0, 0, 1), at(1, 2, 3), at(2, 4, 5)], 0), []);
    assert.match(checkTurns([at(0, 0, 3), at(1, 2, 4)], 0).join(), /before m0 gave it up/);
    assert.match(checkTurns([at(0, 0, 1), at(0, 2, 3)], 0).join(), /read 0/);
    assert.match(checkTurns([at(0, 0, 1), at(2, 2, 3)], 0).join(), /read 2/);
    assert.deepEqual(checkTurns([at(0, 0, 1), at(2, 2, 3)], 1), []);
  });
});
