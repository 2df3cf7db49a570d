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

  it('strings: indexes stay in place, and a column is refused or right, never wrong in silence', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 20 });
    const given = { rows: 5000 };
    const bytes = await a.run((state, { rows }) => {
      const { tableFromArrays, tableToIPC } = state.require('apache-arrow');
      const ipc = tableToIPC(tableFromArrays({ name: Array.from({ length: rows }, (_, row) => `name ${row % 11}`) }), 'file') as Uint8Array;
      new Uint8Array(state.region.buffer, 0, ipc.length).set(ipc);
      return ipc.length;
    }, given);
    const seen = await b.run((state, { rows, bytes }) => {
      const { tableFromIPC } = state.require('apache-arrow');
      // What this Node says of shared memory decides what the library can say: it decodes with TextDecoder.
      let decodes = true;
      try {
        new TextDecoder().decode(new Uint8Array(state.region.buffer, 0, 8));
      } catch {
        decodes = false;
      }
      const names = tableFromIPC(new Uint8Array(state.region.buffer, 0, bytes)).getChild('name');
      const data = names.data[0];
      let wrong = 0;
      let refused = '';
      try {
        for (let row = 0; row < rows; row++) if (names.get(row) !== `name ${row % 11}`) wrong++;
      } catch (error) {
        refused = (error as Error).message;
      }
      const copied = tableFromIPC(new Uint8Array(state.region.buffer, 0, bytes).slice()).getChild('name');
      let wrongCopied = 0;
      for (let row = 0; row < rows; row++) if (copied.get(row) !== `name ${row % 11}`) wrongCopied++;
      return { decodes, wrong, refused, wrongCopied, inPlace: data.values.buffer === state.region.buffer, node: process.version };
    }, { ...given, bytes });
    if (process.env.FAULTLINE_SHOW) console.log('apache-arrow strings', seen);
    assert.equal(seen.wrong, 0);
    assert.equal(seen.wrongCopied, 0);
    assert.equal(seen.inPlace, true);
    assert.equal(seen.refused === '', seen.decodes, seen.refused);
  });
});
