/** Spatial indexes that others wrote, built by one member in the region and searched by the others where they lie. */
import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';

describe('programs: spatial indexes', () => {
  for (const library of ['flatbush', 'kdbush'] as const) {
    it(`${library}: three members find in region.buffer what a private index finds`, async () => {
      const members = await startMembers(3, { size: 1 << 22 });
      const given = { library, count: 20_000, queries: 60 };
      await members[0].run(async (state, { library, count }) => {
        const Index = (await state.import(library)).default;
        // A constructor may return any object, and the library calls this one with `new`: so it builds in the region.
        const BufferType = function (): SharedArrayBuffer { return state.region.buffer; };
        const index = new Index(count, undefined, Float64Array, BufferType);
        for (let item = 0; item < count; item++) index.add((item * 7919) % 10_007, (item * 104_729) % 9973);
        index.finish();
      }, given);
      const search = (member: typeof members[0]) => member.run(async (state, { library, count, queries }) => {
        const Index = (await state.import(library)).default;
        const before = { region: state.region.stats(), cluster: state.cluster.stats() };
        const shared = Index.from(state.region.buffer);
        const own = new Index(count);
        for (let item = 0; item < count; item++) own.add((item * 7919) % 10_007, (item * 104_729) % 9973);
        own.finish();
        const find = (index: { search?(...box: number[]): number[]; range?(...box: number[]): number[] }, box: number[]) =>
          (index.search ? index.search(...box) : index.range!(...box));
        let wrong = 0;
        let found = 0;
        for (let query = 0; query < queries; query++) {
          const x = (query * 1571) % 9000;
          const y = (query * 2749) % 9000;
          const mine = find(own, [x, y, x + 500, y + 400]);
          if (mine.join() !== find(shared, [x, y, x + 500, y + 400]).join()) wrong++;
          found += mine.length;
        }
        const after = { region: state.region.stats(), cluster: state.cluster.stats() };
        return {
          inPlace: shared.data === state.region.buffer, wrong, found,
          pages: after.region.pages.in - before.region.pages.in,
          messages: after.cluster.messages.sent - before.cluster.messages.sent,
          faults: after.region.faults.read - before.region.faults.read,
          writes: after.region.faults.write - before.region.faults.write,
        };
      }, given);
      for (const seen of await Promise.all(members.slice(1).map(search))) {
        if (process.env.FAULTLINE_SHOW) console.log(library, seen);
        assert.equal(seen.inPlace, true);
        assert.equal(seen.wrong, 0);
        assert.ok(seen.found > 1000, `the queries found ${seen.found} items`);
        assert.ok(seen.pages > 0, 'the index came from the other member');
        assert.equal(seen.writes, 0);
      }
    });
  }
});
