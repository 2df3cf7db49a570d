/**
 * The member's side alone, with the real words: answers that come when their claim has ended. The simulator meets them once in
 * several hundred thousand seeds, because a home has to move, an owner to be asked, a lane to be free and memory to be short.
 */
import assert from 'node:assert/strict';
import { Member } from '../../lib/coordinator/protocol/member.js';
import type { DataMessage, Message, RequestMessage } from '../../lib/coordinator/protocol/messages.js';
import { Outbox } from '../../lib/coordinator/protocol/outbox.js';
import { Placement } from '../../lib/coordinator/protocol/placement.js';
import { Access, Claim, Content, Held, type RegionMemory } from '../../lib/coordinator/protocol/ports.js';
import { buildWords, regionInfo, Words } from './words.js';

const PAGE = 4096;
const HOME = 2;

class Asker {
  readonly sent: Message[] = [];
  onSettled: (page: number) => void = () => undefined;
  readonly member: Member;
  private readonly placement: Placement;

  constructor(private readonly words: Words) {
    const { memory } = words;
    const info = regionInfo({ home: HOME });
    this.placement = new Placement(info);
    const network = { self: 1, send: (_: number, message: Message) => { this.sent.push(message); }, suspect: () => undefined };
    const timers = { now: () => 0, after: () => ({ cancel: () => undefined }) };
    const outbox = new Outbox(1, memory, network, () => undefined);
    const own = { request: () => assert.fail('it is no home') };
    this.member = new Member(info, memory, network, timers, this.placement, outbox, own, (page) => this.onSettled(page));
  }

  /** @returns the numbers of the claims, as the home hears them */
  ask(access: number, ...pages: number[]): number[] {
    for (const page of pages) assert.equal(this.member.claim(page, access), Claim.Claimed);
    this.member.flush();
    const requests = this.sent.splice(0).filter((message): message is RequestMessage => message.type === 'request');
    return requests.map(({ claim }) => claim);
  }

  answer(claim: number, version: number, grant: number, content: number, first: number, count = 1): void {
    const message: DataMessage = { type: 'data', region: 1, generation: 1, claim, segments: [{ first, count, version, grant, content }] };
    this.member.data(HOME, message, content === Content.Bytes ? new Uint8Array(count * PAGE).fill(version) : undefined);
  }

  get memory(): RegionMemory {
    return this.words.memory;
  }

  first(page: number): number {
    return this.memory.load32(page * PAGE) & 0xff;
  }

  recall(home: number, generation: number, version: number): void {
    this.member.recall(home, { type: 'recall', region: 1, generation, runs: [{ first: 5, count: 1, version }], requester: 4, keep: false, wantBytes: true });
  }

  homeMovesTo(home: number): void {
    this.placement.update(regionInfo({ home, generation: 2, from: HOME }).slices);
    this.member.homeMoves(0, 64);
  }

  /** Memory is short: an owned page that nobody has used for a while goes home. */
  sendHome(page: number, version: number): void {
    this.words.later();
    this.member.shed(page, 1, version);
    assert.deepEqual(this.sent.splice(0).map(({ type }) => type), ['give-back']);
  }
}

describe('answers that come late', () => {
  let words: Words;
  let asker: Asker;
  before(buildWords);
  beforeEach(() => {
    words = new Words(PAGE);
    asker = new Asker(words);
  });
  afterEach(() => words.release());

  /** Reads page 5 in version 6, writes version 7, and sends it home. @returns the claim of the read */
  const readWriteAndSendHome = (): number => {
    const [read] = asker.ask(Access.Read, 5);
    asker.answer(read, 6, Held.Shared, Content.Bytes, 5);
    const [write] = asker.ask(Access.Write, 5);
    asker.answer(write, 7, Held.Exclusive, Content.Same, 5);
    asker.sendHome(5, 7);
    return read;
  };

  it('with bytes: they do not stand for what this member has written since', () => {
    const read = readWriteAndSendHome();
    const [again] = asker.ask(Access.Read, 5);
    assert.notEqual(again, read);
    asker.answer(read, 6, Held.Shared, Content.Bytes, 5);
    assert.deepEqual([asker.memory.held(5), asker.member.pendingPages], [Held.Invalid, 1]);
    asker.answer(again, 8, Held.Shared, Content.Bytes, 5);
    assert.deepEqual([asker.memory.held(5), asker.first(5), asker.member.pendingPages], [Held.Shared, 8, 0]);
  });

  it('without bytes: there is no copy any more that they could mean', () => {
    const [read] = asker.ask(Access.Read, 5);
    asker.answer(read, 6, Held.Shared, Content.Bytes, 5);
    const [write] = asker.ask(Access.Write, 5);
    asker.answer(write, 7, Held.Exclusive, Content.Same, 5);
    asker.sendHome(5, 7);
    const [again] = asker.ask(Access.Write, 5);
    asker.answer(write, 9, Held.Exclusive, Content.Same, 5);
    assert.deepEqual([asker.memory.held(5), asker.member.pendingPages], [Held.Invalid, 1]);
    // The home counts on this member's bytes now: it hears that there are none.
    assert.deepEqual(asker.sent.splice(0).map(({ type }) => type), ['recalled']);
    asker.answer(again, 10, Held.Exclusive, Content.Bytes, 5);
    assert.deepEqual([asker.memory.held(5), asker.first(5)], [Held.Exclusive, 10]);
  });

  it('without bytes, to a claim that was made again since its copy went: the page is asked for anew', () => {
    const [read] = asker.ask(Access.Read, 5);
    asker.answer(read, 6, Held.Shared, Content.Bytes, 5);
    words.later();
    const [write] = asker.ask(Access.Write, 5);
    asker.member.invalidate(HOME, { type: 'invalidate', region: 1, generation: 1, requester: 3, runs: [{ first: 5, count: 1, version: 6 }] });
    // The next home has died, which forgets the poison; what this one, on its way out, has said still counts.
    asker.member.homeLost(0, 64, () => true);
    asker.answer(write, 7, Held.Exclusive, Content.Same, 5);
    assert.deepEqual([asker.memory.held(5), asker.member.pendingPages], [Held.Invalid, 1]);
    asker.member.flush();
    const asked = asker.sent.splice(0).filter((message): message is RequestMessage => message.type === 'request');
    assert.deepEqual(asked.map(({ claim, held }) => [claim, held[0]]).at(-1), [write, 0]);
  });

  it('that the page is lost: a claim that was made since it was found goes on', () => {
    const read = readWriteAndSendHome();
    asker.ask(Access.Read, 5);
    asker.answer(read, 3, Held.Lost, 4, 5);
    assert.deepEqual([asker.memory.held(5), asker.member.pendingPages], [Held.Invalid, 1]);
  });

  it('of the kind that waits, a recall: for a home that has handed over since it poisons nothing', () => {
    const [write] = asker.ask(Access.Write, 5);
    asker.answer(write, 7, Held.Exclusive, Content.Bytes, 5);
    // The page has only just come.
    asker.recall(HOME, 1, 7);
    assert.deepEqual(asker.sent, []);
    asker.homeMovesTo(3);
    words.later();
    asker.recall(3, 2, 7);
    assert.deepEqual(asker.sent.splice(0).map(({ type }) => type), ['recalled']);
    asker.member.returned(5, 1, 7);
    const [read] = asker.ask(Access.Read, 5);
    asker.member.free(5);
    asker.sent.length = 0;
    asker.answer(read, 7, Held.Shared, Content.Bytes, 5);
    assert.deepEqual([asker.memory.held(5), asker.member.pendingPages], [Held.Shared, 0]);
  });

  it('for several pages: a claim that is made while they are taken does not end with them', () => {
    const [claim] = asker.ask(Access.Read, 5, 6);
    let claimed = false;
    asker.onSettled = (page) => {
      if (page !== 5 || claimed) return;
      // A budget takes the page that has come with it.
      asker.memory.drop(6, 1);
      claimed = asker.member.claim(6, Access.Read) === Claim.Claimed;
    };
    asker.answer(claim, 6, Held.Shared, Content.Bytes, 5, 2);
    assert.deepEqual([claimed, asker.memory.held(5), asker.member.pendingPages], [true, Held.Shared, 1]);
  });

  it('for several pages, of which one is claimed anew: the others are taken', () => {
    const [claim] = asker.ask(Access.Read, 5, 6);
    asker.answer(claim, 6, Held.Shared, Content.Bytes, 6);
    asker.memory.drop(6, 1);
    const [again] = asker.ask(Access.Read, 6);
    asker.answer(claim, 7, Held.Shared, Content.Bytes, 5, 2);
    assert.deepEqual([asker.memory.held(5), asker.first(5), asker.memory.held(6), asker.member.pendingPages], [Held.Shared, 7, Held.Invalid, 1]);
    asker.answer(again, 8, Held.Shared, Content.Bytes, 6);
    assert.equal(asker.first(6), 8);
  });
});
