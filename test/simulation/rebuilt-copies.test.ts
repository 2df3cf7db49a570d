/** A new home whose predecessor died, alone, with the real words: copies of different versions. */
import assert from 'node:assert/strict';
import type { ClusterState, Message } from '../../lib/coordinator/protocol/messages.js';
import { Placement } from '../../lib/coordinator/protocol/placement.js';
import { Access, Content, Held } from '../../lib/coordinator/protocol/ports.js';
import { Questions } from '../../lib/coordinator/protocol/questions.js';
import { RegionProtocol } from '../../lib/coordinator/protocol/region.js';
import { View } from '../../lib/coordinator/protocol/view.js';
import { buildWords, regionInfo, Words } from './words.js';

const PAGE = 4096;
const AT = 5;

type Sent = [to: number, message: Message];

/** Member 1, which becomes the home of all pages because member 9 has died. */
class Heir {
  readonly sent: Sent[] = [];
  private readonly home: RegionProtocol;
  private readonly round: number;

  constructor(words: Words) {
    const info = regionInfo({ home: 1, generation: 2, lostHome: 9 });
    const members = [1, 2, 3].map((id) => ({ id, slot: id - 1, name: String(id), pid: id, address: 'local', endpoint: 'ipc:///x', leaving: false }));
    const state: ClusterState = { clusterId: 'c', version: 1, epoch: 4, registrar: 1, members, regions: [info], died: [9] };
    const view = new View(1);
    view.apply(state);
    const network = { self: 1, send: (to: number, message: Message) => { this.sent.push([to, message]); }, suspect: () => undefined };
    const timers = { now: () => 0, after: () => ({ cancel: () => undefined }) };
    let id = 0;
    this.home = new RegionProtocol(info, words.memory, network, timers, view, { lost: () => undefined, found: () => undefined }, () => ++id);
    this.home.flush();
    this.round = this.take('rebuild')[0][1].round;
  }

  hear(from: number, message: Message, payload?: Uint8Array): void {
    this.home.message({ from, state: 1, message, ...(payload ? { payload } : {}) });
    this.home.flush();
  }

  /** `from` has a copy of that version. */
  reports(from: number, version: number): void {
    this.hear(from, { type: 'holdings', region: 1, generation: 2, first: 0, count: 64, round: this.round, records: [AT, 1, Held.Shared, version, 0], done: true });
  }

  gives(from: number, version: number, content: number): void {
    const grant = content === Content.Same ? Held.Invalid : Held.Shared;
    this.hear(from, { type: 'recalled', region: 1, generation: 2, segments: [{ first: AT, count: 1, version, grant, content }] }, content === Content.Bytes ? new Uint8Array(PAGE).fill(version) : undefined);
  }

  wants(from: number, access: number, held: number): void {
    this.hear(from, { type: 'request', region: 1, generation: 2, claim: 1, access, first: AT, count: 1, held: [held] });
  }

  take<T extends Message['type']>(type: T): [number, Extract<Message, { type: T }>][] {
    return this.sent.splice(0).filter((one): one is [number, Extract<Message, { type: T }>] => one[1].type === type);
  }
}

describe('a rebuilt directory', () => {
  let words: Words;
  let heir: Heir;
  before(buildWords);
  beforeEach(() => {
    words = new Words(PAGE);
    heir = new Heir(words);
  });
  afterEach(() => words.release());

  // A home that leaves in the middle of an invalidation counts the version up, and the next one dies.
  for (const [order, reports] of [['the older one first', [[3, 5], [2, 6]]], ['the newer one first', [[2, 6], [3, 5]]]] as const) {
    it(`has the holders of all versions, ${order}: all are invalidated before anybody writes`, () => {
      for (const [from, version] of reports) heir.reports(from, version);
      // The newest copy is fetched.
      assert.deepEqual(heir.take('recall').map(([to, { runs, keep }]) => [to, runs[0], keep]), [[2, { first: AT, count: 1, version: 6 }, true]]);
      heir.gives(2, 6, Content.Bytes);
      heir.sent.length = 0;
      heir.wants(2, Access.Write, 6);
      assert.deepEqual(heir.sent.splice(0).map(([to, { type }]) => [to, type]), [[3, 'invalidate']]);
      heir.hear(3, { type: 'invalidated', region: 1, generation: 2, runs: [{ first: AT, count: 1, version: 6 }] });
      assert.deepEqual(heir.take('data').map(([to, { segments }]) => [to, segments[0].grant]), [[2, Held.Exclusive]]);
    });
  }

  it('grants a page in a new version if whoever was asked for it first did not have it any more', () => {
    heir.reports(2, 6);
    heir.reports(3, 6);
    const [[first]] = heir.take('recall');
    const other = first === 2 ? 3 : 2;
    // It throws away what it is granted up to that version.
    heir.gives(first, 6, Content.Same);
    assert.deepEqual(heir.take('recall').map(([to]) => to), [other]);
    heir.gives(other, 6, Content.Bytes);
    heir.sent.length = 0;
    heir.wants(first, Access.Read, 0);
    const [[to, { segments: [{ version }] }]] = heir.take('data');
    assert.deepEqual([to, version], [first, 7]);
  });
});

describe('a question whose home died over it', () => {
  it('is asked again, and a page that was found meanwhile is not said to be restored', () => {
    const info = regionInfo({ home: 2 });
    const sent: Sent[] = [];
    const placement = new Placement(info);
    const network = { self: 1, send: (to: number, message: Message) => { sent.push([to, message]); }, suspect: () => undefined };
    let id = 0;
    const questions = new Questions(info, network, placement, () => ++id, () => assert.fail('it is no home'));
    const answers: unknown[] = [];
    questions.ask('restore', AT, [AT, 1], new Uint8Array(PAGE), (value, error) => answers.push(error?.code ?? value));
    placement.update(regionInfo({ home: 3, generation: 2, lostHome: 2 }).slices);
    questions.homesChanged((member) => member !== 2);
    assert.deepEqual(sent.map(([to]) => to), [2, 3]);
    const [, last] = sent[1];
    assert.ok(last.type === 'ask');
    questions.reply({ type: 'reply', id: last.id, error: { code: 'ERR_FAULTLINE_NOT_LOST', message: 'it is not lost' } });
    assert.deepEqual(answers, ['ERR_FAULTLINE_NOT_LOST']);
  });
});
