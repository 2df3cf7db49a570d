/** A new home whose predecessor died, alone, with the real words: copies of different versions. */
import assert from 'node:assert/strict';
import type { ClusterState, Message, RegionInfo } from '../../lib/coordinator/protocol/messages.js';
import { Access, Content, Held } from '../../lib/coordinator/protocol/ports.js';
import { RegionProtocol } from '../../lib/coordinator/protocol/region.js';
import { View } from '../../lib/coordinator/protocol/view.js';
import { Words } from './words.js';

const PAGE = 4096;
const AT = 5;

describe('a rebuilt directory', () => {
  let words: Words;
  beforeEach(() => { words = new Words(PAGE); });
  afterEach(() => words.release());

  // A home that leaves in the middle of an invalidation counts the version up, and the next one dies.
  for (const [order, reports] of [['the older one first', [[3, 5], [2, 6]]], ['the newer one first', [[2, 6], [3, 5]]]] as const) {
    it(`has the holders of all versions, ${order}: all are invalidated before anybody writes`, () => {
      const sent: [to: number, message: Message][] = [];
      const info: RegionInfo = {
        id: 1, name: 'r', size: 64 * PAGE, pageSize: PAGE, extentPages: 64, consistency: 'sequential', placement: 'creator', address: '4096', creator: 9,
        slices: [{ first: 0, count: 64, home: 1, generation: 2, from: 0, lostHome: 9 }],
      };
      const members = [1, 2, 3].map((id) => ({ id, slot: id - 1, name: String(id), pid: id, address: 'local', endpoint: 'ipc:///x', leaving: false }));
      const state: ClusterState = { clusterId: 'c', version: 1, epoch: 4, registrar: 1, members, regions: [info], died: [9] };
      const view = new View(1);
      view.apply(state);
      const network = { self: 1, send: (to: number, message: Message) => { sent.push([to, message]); }, suspect: () => undefined };
      const timers = { now: () => 0, after: () => ({ cancel: () => undefined }) };
      let id = 0;
      const home = new RegionProtocol(info, words.memory, network, timers, view, { lost: () => undefined, found: () => undefined }, () => ++id);
      const hear = (from: number, message: Message, payload?: Uint8Array): void => {
        home.message({ from, state: 1, message, ...(payload ? { payload } : {}) });
        home.flush();
      };
      const take = <T extends Message['type']>(type: T): [number, Extract<Message, { type: T }>][] =>
        sent.splice(0).filter((one): one is [number, Extract<Message, { type: T }>] => one[1].type === type);
      home.flush();
      const [[, { round }]] = take('rebuild');
      for (const [from, version] of reports) hear(from, { type: 'holdings', region: 1, generation: 2, first: 0, count: 64, round, records: [AT, 1, Held.Shared, version, 0], done: true });
      // The newest copy is fetched.
      assert.deepEqual(take('recall').map(([to, { runs, keep }]) => [to, runs[0], keep]), [[2, { first: AT, count: 1, version: 6 }, true]]);
      hear(2, { type: 'recalled', region: 1, generation: 2, segments: [{ first: AT, count: 1, version: 6, grant: Held.Shared, content: Content.Bytes }] }, new Uint8Array(PAGE).fill(6));
      sent.length = 0;
      hear(2, { type: 'request', region: 1, generation: 2, claim: 1, access: Access.Write, first: AT, count: 1, held: [6] });
      assert.deepEqual(sent.map(([to, { type }]) => [to, type]), [[3, 'invalidate']]);
      sent.length = 0;
      hear(3, { type: 'invalidated', region: 1, generation: 2, runs: [{ first: AT, count: 1, version: 6 }] });
      assert.deepEqual(take('data').map(([to, { segments }]) => [to, segments[0].grant]), [[2, Held.Exclusive]]);
    });
  }
});
