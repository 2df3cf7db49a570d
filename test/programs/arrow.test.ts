/** Apache Arrow: one member writes IPC bytes into the region, and the others read the table where it lies. */
import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';

describe('programs: apache-arrow', () => {
  for (const format of ['file', 'stream'] as const) {
    it(`numbers of an IPC ${format}: the vectors of two other members lie in region.buffer`, async () => {
      const members = await startMembers(3, { size: 1 << 21 });
      const given = { format, rows: 40_000 };
      const bytes = await members[0].run((state, { format, rows }) => {
        const { tableFromArrays, tableToIPC } = state.require('apache-arrow');
        const table = tableFromArrays({
          number: Int32Array.from({ length: rows }, (_, row) => Math.imul(row, 40503)),
          half: Float64Array.from({ length: rows }, (_, row) => row / 2),
        });
        const ipc = tableToIPC(table, format) as Uint8Array;
        new Uint8Array(state.region.buffer, 0, ipc.length).set(ipc);
        return ipc.length;
      }, given);
      const read = (member: typeof members[0]) => member.run((state, { rows, bytes }) => {
        const { tableFromIPC } = state.require('apache-arrow');
        const table = tableFromIPC(new Uint8Array(state.region.buffer, 0, bytes));
        const opened = state.region.stats().pages.in;
        const buffers = ['number', 'half'].flatMap((name) => table.getChild(name).data.map((data: { values: { buffer: unknown } }) => data.values.buffer));
        let wrong = 0;
        for (let row = 0; row < rows; row++) {
          if (table.getChild('number').get(row) !== Math.imul(row, 40503) || table.getChild('half').get(row) !== row / 2) wrong++;
        }
        const { pages, faults } = state.region.stats();
        return {
          rows: table.numRows as number, wrong, opened, pages: pages.in, faults: faults.read,
          inPlace: buffers.length >= 2 && buffers.every((buffer) => buffer === state.region.buffer),
          messages: state.cluster.stats().messages.sent,
        };
      }, { ...given, bytes });
      for (const seen of await Promise.all(members.slice(1).map(read))) {
        if (process.env.FAULTLINE_SHOW) console.log('apache-arrow', format, bytes, seen);
        assert.equal(seen.rows, given.rows);
        assert.equal(seen.wrong, 0);
        assert.equal(seen.inPlace, true);
        assert.ok(seen.pages * 4096 >= 0.9 * bytes, `${seen.pages} pages came here for ${bytes} bytes`);
      }
    });
  }
});
