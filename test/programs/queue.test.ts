/** A lock-free queue for one producer and one consumer that others wrote, with its two ends in different processes. */
import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';

describe('programs: ringbuf.js', () => {
  it('hands every element over once and in order, many times around the ring', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 16 });
    const given = { capacity: 1500, count: 60_000, deadline: 30_000 };
    const [pushed, popped] = await Promise.all([
      a.run(async (state, { capacity, count, deadline }) => {
        const { RingBuffer } = state.require('ringbuf.js');
        const ring = new RingBuffer(state.region.window(0, 8 + (capacity + 1) * 4), Uint32Array);
        const until = Date.now() + deadline;
        let next = 0;
        while (next < count && Date.now() < until) {
          const part = Uint32Array.from({ length: Math.min(97, count - next) }, (_, index) => Math.imul(next + index, 2654435761));
          const taken = ring.push(part);
          next += taken;
          // The queue has no way to wait, so a full ring gives the core to the other end.
          if (taken === 0) await new Promise((resolve) => setImmediate(resolve));
        }
        return { next, capacity: ring.capacity(), pages: state.region.stats().pages.in };
      }, given, { within: 40_000 }),
      b.run(async (state, { capacity, count, deadline }) => {
        const { RingBuffer } = state.require('ringbuf.js');
        const ring = new RingBuffer(state.region.window(0, 8 + (capacity + 1) * 4), Uint32Array);
        const until = Date.now() + deadline;
        const part = new Uint32Array(61);
        let next = 0;
        let wrong = 0;
        while (next < count && Date.now() < until) {
          const taken = ring.pop(part);
          for (let index = 0; index < taken; index++) if (part[index] !== (Math.imul(next + index, 2654435761) >>> 0)) wrong++;
          next += taken;
          if (taken === 0) await new Promise((resolve) => setImmediate(resolve));
        }
        return { next, wrong, empty: ring.empty(), pages: state.region.stats().pages.in, messages: state.cluster.stats().messages.sent };
      }, given, { within: 40_000 }),
    ]);
    if (process.env.FAULTLINE_SHOW) console.log('ringbuf.js', { popped, pagesBack: pushed.pages });
    assert.equal(pushed.capacity, given.capacity);
    assert.equal(pushed.next, given.count);
    assert.equal(popped.next, given.count);
    assert.equal(popped.wrong, 0);
    assert.equal(popped.empty, true);
  });
});
