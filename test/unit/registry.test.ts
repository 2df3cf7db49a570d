import assert from 'node:assert/strict';
import { FaultlineError } from '../../lib/errors.js';
import { Liveness } from '../../lib/coordinator/protocol/liveness.js';
import type { ClusterState, MemberId, Message, RegionInfo, ReplyMessage, Slice } from '../../lib/coordinator/protocol/messages.js';
import { RegionTable } from '../../lib/coordinator/protocol/region-table.js';
import { Registry, type RegistrySnapshot } from '../../lib/coordinator/protocol/registry.js';

const SILENCE = 2_000_000;
const BEAT = 250_000;
const MIB = 1 << 20;

/** A registry with all it says, driven by hand. */
class Bench {
  now = 0;
  state!: ClusterState;
  states: ClusterState[] = [];
  said: { to: MemberId; message: Message }[] = [];
  evicted: MemberId[] = [];
  registry: Registry;
  /** One for all, as a member's ids go on from one registrar to the next. */
  private static ids = 0;

  constructor(members: number, origin: string | RegistrySnapshot = 'cluster', self = 1) {
    this.registry = new Registry(self, origin, SILENCE, this.now, {
      send: (to, message) => this.said.push({ to, message }),
      publish: (state) => { this.state = state; this.states.push(state); },
      evict: (member) => this.evicted.push(member),
    });
    for (let i = 0; i < members; i++) this.join();
  }

  join(): MemberId {
    const id = this.registry.reserve()!;
    this.registry.joined({ id, name: `m${id}`, pid: id, address: 'local', endpoint: `ipc://m${id}` }, this.now);
    return id;
  }

  call(from: MemberId, op: string, args: unknown = {}, id = --Bench.ids): { readonly id: number; readonly reply: ReplyMessage | undefined; readonly value: any; readonly error: any } {
    this.registry.call(from, { type: 'call', id, op, args }, this.now);
    const reply = (): ReplyMessage | undefined => this.said.filter(({ to, message }) => to === from && message.type === 'reply' && message.id === id).at(-1)?.message as ReplyMessage | undefined;
    return { id, get reply() { return reply(); }, get value() { return reply()?.value; }, get error() { return reply()?.error; } };
  }

  lock(from: MemberId, name: string, options: { shared?: boolean; try?: boolean; client?: number } = {}) {
    return this.call(from, 'lock', { name, shared: false, try: false, client: 1, ...options });
  }

  region(name: string): RegionInfo {
    return this.state.regions.find((region) => region.name === name)!;
  }

  homes(name: string): MemberId[] {
    return this.region(name).slices.map((slice) => slice.home);
  }

  /** Time passes; only these members are heard. */
  pass(time: number, heard: MemberId[]): void {
    for (const end = this.now + time; this.now < end; ) {
      this.now += BEAT;
      for (const member of heard) this.registry.heartbeat(member, this.now, this.now);
      this.registry.tick(this.now);
    }
  }

  members(): MemberId[] {
    return this.state.members.map(({ id }) => id);
  }
}

describe('registry: members', () => {
  it('gives ids once, and the lowest free slot', () => {
    const bench = new Bench(3);
    bench.registry.died([2]);
    assert.equal(bench.join(), 4);
    assert.deepEqual(bench.state.members.map(({ id, slot }) => [id, slot]), [[1, 0], [3, 2], [4, 1]]);
  });

  it('grows the epoch with every change of the members, the version with every change', () => {
    const bench = new Bench(2);
    const { epoch, version } = bench.state;
    bench.call(1, 'region-open', { name: 'r', mode: 'create', size: MIB });
    assert.deepEqual([bench.state.epoch, bench.state.version], [epoch, version + 1]);
    bench.join();
    assert.deepEqual([bench.state.epoch, bench.state.version], [epoch + 1, version + 2]);
  });

  it('names the dead in the state of their epoch, and not those who left', () => {
    const bench = new Bench(3);
    bench.registry.died([3]);
    assert.deepEqual(bench.state.died, [3]);
    bench.registry.left(2);
    assert.deepEqual(bench.state.died, []);
  });

  it('refuses member 1024 for want of slots', () => {
    const bench = new Bench(1023);
    assert.throws(() => bench.registry.reserve(), (error: FaultlineError) => error.code === 'ERR_FAULTLINE_JOIN_REFUSED' && (error as any).reason === 'full');
  });

  it('takes nobody in when all who are here are on their way out', () => {
    const bench = new Bench(1);
    bench.call(1, 'leave');
    assert.equal(bench.registry.reserve(), null);
  });

  it('lets one leave at a time; one that dies in its turn frees it', () => {
    const bench = new Bench(4);
    const [first, second, third] = [2, 3, 4].map((member) => bench.call(member, 'leave'));
    assert.deepEqual([first, second, third].map(({ reply }) => reply !== undefined), [true, false, false]);
    bench.call(2, 'left', { finished: true });
    assert.ok(second.reply);
    bench.registry.died([3]);
    assert.ok(third.reply);
    assert.deepEqual(bench.state.members.map(({ id, leaving }) => [id, leaving]), [[1, false], [4, true]]);
  });

  it('treats a member that left unfinished as dead', () => {
    const bench = new Bench(2);
    bench.call(2, 'leave');
    bench.call(2, 'left', { finished: false });
    assert.deepEqual(bench.state.died, [2]);
  });
});

describe('registry: liveness', () => {
  it('gives up whoever is silent for the silence, and not before', () => {
    const bench = new Bench(3);
    bench.pass(SILENCE, [2]);
    assert.deepEqual(bench.members(), [1, 2, 3]);
    bench.pass(BEAT, [2]);
    assert.deepEqual(bench.members(), [1, 2]);
    assert.deepEqual(bench.evicted, [3]);
  });

  it('a lease is shorter than the silence', () => {
    const bench = new Bench(2);
    bench.registry.heartbeat(2, 77, bench.now);
    assert.deepEqual(bench.said.at(-1), { to: 2, message: { type: 'lease', sentAt: 77, forMs: 1500 } });
  });

  it('hears the others first when its own tick comes late', () => {
    const bench = new Bench(2);
    bench.now += 10 * SILENCE;
    bench.registry.tick(bench.now);
    assert.deepEqual(bench.members(), [1, 2]);
    bench.pass(SILENCE + BEAT, []);
    assert.deepEqual(bench.members(), [1]);
  });

  it('of two that complain about one another the higher goes, after its lease is over', () => {
    const bench = new Bench(3);
    bench.pass(BEAT, [2, 3]);
    bench.call(2, 'suspect', { member: 3 });
    bench.pass(2 * BEAT, [2, 3]);
    assert.deepEqual([bench.evicted, bench.members()], [[3], [1, 2, 3]], 'told, and not dead while it has a lease');
    bench.pass(SILENCE, [2, 3]);
    assert.deepEqual(bench.members(), [1, 2]);
  });

  it('never gives itself up', () => {
    const bench = new Bench(2);
    bench.call(2, 'suspect', { member: 1 });
    bench.pass(2 * SILENCE, [2]);
    assert.deepEqual(bench.members(), [1]);
  });

  it('of two that complain the silent one goes, although its id is lower', () => {
    const liveness = new Liveness(1, SILENCE, 0);
    for (const member of [2, 3]) liveness.add(member, 0);
    let now = 0;
    const step = (): ReturnType<Liveness['tick']> => { now += BEAT; liveness.lease(3, now); return liveness.tick(now); };
    for (let i = 0; i < 4; i++) step();
    liveness.suspect(3, 2, now);
    assert.deepEqual(step().condemned, [2]);
  });
});

describe('registry: regions', () => {
  const open = (bench: Bench, from: MemberId, name: string, args: object = {}) => bench.call(from, 'region-open', { name, mode: 'open-or-create', ...args });

  it('is created once, and opened by the others', () => {
    const bench = new Bench(2);
    assert.equal(open(bench, 1, 'r', { size: MIB }).value.created, true);
    const again = open(bench, 2, 'r');
    assert.equal(again.value.created, false);
    assert.deepEqual(again.value.info, bench.region('r'));
  });

  for (const [option, wanted] of [['size', 2 * MIB], ['pageSize', 8192], ['placement', 'spread']] as const) {
    it(`refuses another ${option} and names both`, () => {
      const bench = new Bench(1);
      open(bench, 1, 'r', { size: MIB });
      const { error } = open(bench, 1, 'r', { [option]: wanted });
      assert.equal(error.code, 'ERR_FAULTLINE_REGION_EXISTS');
      assert.deepEqual([error.fields.option, error.fields.wanted, error.fields.existing], [option, wanted, (bench.region('r') as any)[option]]);
      for (const part of [option, String(wanted), String((bench.region('r') as any)[option])]) assert.ok(error.message.includes(part), error.message);
    });
  }

  for (const [args, argument] of [
    [{}, 'size'], [{ size: 5000 }, 'size'], [{ size: 0 }, 'size'], [{ size: -4096 }, 'size'], [{ size: '4096' }, 'size'], [{ size: NaN }, 'size'],
    [{ size: MIB, pageSize: 5000 }, 'pageSize'], [{ size: MIB, pageSize: 2048 }, 'pageSize'], [{ size: 4 * MIB, pageSize: 4 * MIB }, 'pageSize'],
    [{ size: MIB, placement: 'here' }, 'placement'], [{ size: MIB, consistency: 'release' }, 'consistency'],
  ] as const) {
    it(`refuses ${JSON.stringify(args)}`, () => {
      const { error } = open(new Bench(1), 1, 'r', args);
      assert.deepEqual([error.code, error.fields.argument], ['ERR_FAULTLINE_INVALID_ARGUMENT', argument]);
    });
  }

  it(`'create' refuses one that exists, 'open' one that does not`, () => {
    const bench = new Bench(1);
    assert.equal(open(bench, 1, 'r', { mode: 'open' }).error.code, 'ERR_FAULTLINE_REGION_NOT_FOUND');
    open(bench, 1, 'r', { size: MIB });
    assert.equal(open(bench, 1, 'r', { mode: 'create', size: MIB }).error.code, 'ERR_FAULTLINE_REGION_EXISTS');
  });

  it(`'wait' is answered when somebody creates it, with an error for other options`, () => {
    const bench = new Bench(4);
    const waits = [open(bench, 2, 'r', { mode: 'wait' }), open(bench, 3, 'r', { mode: 'wait', size: 2 * MIB }), open(bench, 4, 'r', { mode: 'wait' })];
    bench.call(4, 'call-cancel', { call: waits[2].id });
    assert.ok(waits.every(({ reply }) => reply === undefined));
    open(bench, 1, 'r', { size: MIB });
    assert.equal(waits[0].value.created, false);
    assert.equal(waits[1].error.code, 'ERR_FAULTLINE_REGION_EXISTS');
    assert.equal(waits[2].reply, undefined, 'withdrawn');
  });

  it('puts the state before the answer that depends on it', () => {
    const bench = new Bench(1);
    let statesAtAnswer = 0;
    const push = bench.said.push.bind(bench.said);
    bench.said.push = (...items) => { statesAtAnswer = bench.states.length; return push(...items); };
    open(bench, 1, 'r', { size: MIB });
    assert.equal(statesAtAnswer, bench.states.length);
    assert.ok(bench.region('r'));
  });

  it('readdresses while only the creator has it', () => {
    const bench = new Bench(2);
    const { address, id } = open(bench, 1, 'r', { size: MIB }).value.info as RegionInfo;
    const next = bench.call(1, 'region-readdress', { id, address }).value.info as RegionInfo;
    assert.notEqual(next.address, address);
    assert.equal(bench.call(1, 'region-readdress', { id, address }).value.info.address, next.address, 'asked twice, moved once');
    open(bench, 2, 'r');
    assert.equal(bench.call(1, 'region-readdress', { id, address: next.address }).error.code, 'ERR_FAULTLINE_ADDRESS_TAKEN');
  });

  it('destroys, and a new one of that name is another region elsewhere', () => {
    const bench = new Bench(1);
    const before = open(bench, 1, 'r', { size: MIB }).value.info as RegionInfo;
    bench.call(1, 'region-destroy', { id: before.id });
    assert.equal(bench.state.regions.length, 0);
    assert.equal(bench.call(1, 'region-destroy', { id: before.id }).error.code, 'ERR_FAULTLINE_REGION_DESTROYED');
    const after = open(bench, 1, 'r', { size: MIB }).value.info as RegionInfo;
    assert.notEqual(after.id, before.id);
    assert.notEqual(after.address, before.address);
  });

  it('never gives an address twice, keeps them aligned, apart and in range, and says when it is full', () => {
    const table = new RegionTable('some cluster');
    const taken: [number, number][] = [];
    const size = 0x100_0000_0000;
    for (let i = 0; ; i++) {
      try {
        const { address } = table.open({ name: `r${i}`, mode: 'create', size }, 1, [1])!.info;
        taken.push([Number(address), Number(address) + size]);
      } catch (error) {
        assert.equal((error as FaultlineError).code, 'ERR_FAULTLINE_OUT_OF_MEMORY');
        break;
      }
    }
    assert.ok(taken.length >= 17, `${taken.length} of 1 TiB in 20 TiB`);
    taken.sort(([one], [other]) => one - other);
    taken.forEach(([start, end], i) => {
      assert.equal(start % (2 * MIB), 0);
      assert.ok(start >= 0x4000_0000_0000 && end <= 0x5400_0000_0000);
      if (i > 0) assert.ok(start > taken[i - 1][1], 'a gap between two');
    });
  });

  it('starts in different places in different clusters', () => {
    const first = (cluster: string): string => new RegionTable(cluster).open({ name: 'r', mode: 'create', size: MIB }, 1, [1])!.info.address;
    assert.notEqual(first('a'), first('b'));
  });

  for (const [pageSize, extentPages] of [[4096, 64], [65536, 4], [2 * MIB, 1]]) {
    it(`has ${extentPages} pages of ${pageSize} bytes in an extent`, () => assert.equal(open(new Bench(1), 1, 'r', { size: 4 * MIB, pageSize }).value.info.extentPages, extentPages));
  }

  it('spreads in contiguous slices of whole extents over the members that stay', () => {
    const bench = new Bench(4);
    bench.call(4, 'leave');
    const { slices } = open(bench, 2, 'r', { size: 10 * 256 * 1024 + 4096, placement: 'spread' }).value.info as RegionInfo;
    assert.deepEqual(slices.map(({ home }) => home), [1, 2, 3]);
    let next = 0;
    for (const { first, count } of slices) {
      assert.equal(first, next);
      assert.equal(first % 64, 0);
      next = first + count;
    }
    assert.equal(next, 641);
  });
});

describe('registry: homes', () => {
  const created = (members: number): Bench => {
    const bench = new Bench(members);
    bench.call(members, 'region-open', { name: 'r', mode: 'create', size: MIB });
    return bench;
  };
  const slice = (bench: Bench): Slice => bench.region('r').slices[0];

  it('a dead home is replaced by the lowest member that stays', () => {
    const bench = created(3);
    bench.registry.died([3]);
    assert.deepEqual(slice(bench), { first: 0, count: 256, home: 1, generation: 2, from: 0, lostHome: 3 });
  });

  it('a leaving home hands over, and has done so when it has left', () => {
    const bench = created(3);
    bench.call(3, 'leave');
    assert.deepEqual(slice(bench), { first: 0, count: 256, home: 1, generation: 2, from: 3, lostHome: 0 });
    bench.call(3, 'left', { finished: true });
    assert.deepEqual(slice(bench), { first: 0, count: 256, home: 1, generation: 2, from: 0, lostHome: 0 });
  });

  it('a home that dies while it hands over has lost what it had not handed over', () => {
    const bench = created(3);
    bench.call(3, 'leave');
    bench.registry.died([3]);
    assert.deepEqual(slice(bench), { first: 0, count: 256, home: 1, generation: 2, from: 0, lostHome: 3 });
  });

  it('a receiver that dies meanwhile is replaced, and its pages are rebuilt', () => {
    const bench = created(3);
    bench.registry.died([2]);
    bench.join();
    const other = new Bench(0, bench.registry.snapshot(), 4);
    other.registry.takeOver();
    other.call(3, 'leave');
    assert.equal(other.homes('r')[0], 1);
    other.registry.died([1]);
    assert.deepEqual(slice(other), { first: 0, count: 256, home: 4, generation: 3, from: 0, lostHome: 1 });
  });

  it('the slices of one dead member are spread over those who stay', () => {
    const bench = new Bench(3);
    for (const name of ['a', 'b']) bench.call(3, 'region-open', { name, mode: 'create', size: MIB });
    bench.registry.died([3]);
    assert.deepEqual([...bench.homes('a'), ...bench.homes('b')], [1, 2]);
  });
});

describe('registry: locks', () => {
  it('grants in the order of asking, with growing tokens', () => {
    const bench = new Bench(3);
    const asked = [1, 2, 3].map((member) => bench.lock(member, 'l'));
    assert.deepEqual(asked.map(({ reply }) => reply !== undefined), [true, false, false]);
    bench.call(1, 'unlock', { name: 'l', token: asked[0].value.token });
    bench.call(2, 'unlock', { name: 'l', token: asked[1].value.token });
    const tokens = asked.map(({ value }) => Number(value.token));
    assert.ok(tokens[0] < tokens[1] && tokens[1] < tokens[2], String(tokens));
  });

  it('shares among neighbours, and a waiting exclusive request is not overtaken', () => {
    const bench = new Bench(5);
    const [a, b] = [1, 2].map((member) => bench.lock(member, 'l', { shared: true }));
    const writer = bench.lock(3, 'l');
    const late = [4, 5].map((member) => bench.lock(member, 'l', { shared: true }));
    assert.ok(a.reply && b.reply && !writer.reply && !late[0].reply);
    assert.equal(bench.lock(4, 'l', { shared: true, try: true }).value, null, 'a try does not overtake either');
    bench.call(1, 'unlock', { name: 'l', token: a.value.token });
    assert.equal(writer.reply, undefined);
    bench.call(2, 'unlock', { name: 'l', token: b.value.token });
    assert.ok(writer.reply && !late[0].reply);
    bench.call(3, 'unlock', { name: 'l', token: writer.value.token });
    assert.ok(late[0].reply && late[1].reply);
  });

  it('try answers null when it is held, and takes it when it is free', () => {
    const bench = new Bench(2);
    const held = bench.lock(1, 'l', { try: true });
    assert.ok(held.value.token);
    assert.equal(bench.lock(2, 'l', { try: true }).value, null);
  });

  it('a dead exclusive holder is named to the next one only', () => {
    const bench = new Bench(3);
    bench.lock(3, 'l');
    const next = bench.lock(2, 'l');
    const last = bench.lock(1, 'l');
    bench.registry.died([3]);
    assert.equal(next.value.ownerDied, true);
    bench.call(2, 'unlock', { name: 'l', token: next.value.token });
    assert.equal(last.value.ownerDied, false);
  });

  it('remembers a dead owner until somebody asks', () => {
    const bench = new Bench(2);
    bench.lock(2, 'l');
    bench.registry.died([2]);
    assert.equal(bench.lock(1, 'l').value.ownerDied, true);
  });

  it('a dead shared holder leaves nothing behind', () => {
    const bench = new Bench(2);
    bench.lock(2, 'l', { shared: true });
    bench.registry.died([2]);
    assert.equal(bench.lock(1, 'l').value.ownerDied, false);
  });

  it('a member that left in order has not died', () => {
    const bench = new Bench(2);
    bench.lock(2, 'l');
    bench.registry.left(2);
    assert.equal(bench.lock(1, 'l').value.ownerDied, false);
  });

  it(`a client that is gone lets go of its locks and its places, not of other clients'`, () => {
    const bench = new Bench(2);
    const [mine, others] = [bench.lock(1, 'a', { client: 1 }), bench.lock(1, 'b', { client: 2 })];
    const waiting = bench.lock(1, 'b', { client: 1 });
    bench.call(1, 'client-gone', { client: 1 });
    assert.ok(mine.reply && others.reply && !waiting.reply);
    assert.equal(bench.lock(2, 'a').value.ownerDied, true);
    const second = bench.lock(2, 'b');
    bench.call(1, 'unlock', { name: 'b', token: others.value.token });
    assert.ok(second.reply && !waiting.reply);
  });

  it('a withdrawn request is forgotten, and a grant that crossed the withdrawal is let go', () => {
    const bench = new Bench(3);
    const holder = bench.lock(1, 'l');
    const waiting = bench.lock(2, 'l');
    bench.call(2, 'call-cancel', { call: waiting.id });
    const last = bench.lock(3, 'l');
    bench.call(1, 'call-cancel', { call: holder.id });
    assert.equal(waiting.reply, undefined);
    assert.equal(last.value.ownerDied, false);
  });

  it('refuses to unlock what is not held by that member with that token', () => {
    const bench = new Bench(2);
    const { token } = bench.lock(1, 'l').value;
    for (const [member, given] of [[2, token], [1, '999']] as const) assert.equal(bench.call(member, 'unlock', { name: 'l', token: given }).error.code, 'ERR_FAULTLINE_CLOSED');
  });
});

describe('registry: barriers', () => {
  const wait = (bench: Bench, from: MemberId, parties = 2, client = 1) => bench.call(from, 'barrier', { name: 'b', parties, client });

  it('opens when all are there, and begins anew', () => {
    const bench = new Bench(2);
    for (let round = 0; round < 3; round++) {
      const [first, second] = [wait(bench, 1), wait(bench, 2)];
      assert.ok(first.reply && second.reply && !first.error);
    }
  });

  it('refuses other parties and names both', () => {
    const bench = new Bench(2);
    wait(bench, 1, 2);
    const { error } = wait(bench, 2, 3);
    assert.equal(error.code, 'ERR_FAULTLINE_INVALID_ARGUMENT');
    assert.match(error.message, /2 parties.*not for 3/);
  });

  it('breaks for all who wait when any member dies, and names it', () => {
    const bench = new Bench(3);
    const waiting = wait(bench, 1);
    bench.registry.died([3]);
    assert.equal(waiting.error.code, 'ERR_FAULTLINE_BARRIER_BROKEN');
    assert.deepEqual([waiting.error.fields.members, waiting.error.fields.epoch], [[3], bench.state.epoch]);
    assert.ok([wait(bench, 1), wait(bench, 2)].every(({ error }) => error === undefined), 'the next round is a new one');
  });

  it('does not break when a member leaves; a withdrawn party does not count', () => {
    const bench = new Bench(3);
    const waiting = wait(bench, 1);
    bench.registry.left(3);
    assert.equal(waiting.reply, undefined);
    bench.call(1, 'call-cancel', { call: waiting.id });
    const other = wait(bench, 2);
    assert.equal(other.reply, undefined);
    bench.call(2, 'client-gone', { client: 1 });
    wait(bench, 1);
    assert.equal(other.reply, undefined);
  });
});

describe('registry: direct calls', () => {
  /** What came on the direct way: replies, or null for 'ask again'. */
  function direct(bench: Bench, from: MemberId, op: string, args: object, id: number, open = true): (ReplyMessage | null)[] {
    const came: (ReplyMessage | null)[] = [];
    bench.registry.call(from, { type: 'call', id, op, args: { client: 1, ...args } }, bench.now, (reply) => open && came.push(reply) > 0);
    return came;
  }
  const messages = (bench: Bench, id: number): Message[] => bench.said.map(({ message }) => message).filter((message) => message.type === 'reply' && message.id === id);

  it('are answered on their own way, at once or when their turn comes, and not by a message', () => {
    const bench = new Bench(2);
    const [first] = direct(bench, 1, 'lock', { name: 'l' }, -5e9) as ReplyMessage[];
    const second = direct(bench, 2, 'lock', { name: 'l' }, -6e9);
    assert.deepEqual(second, []);
    assert.equal(direct(bench, 1, 'unlock', { name: 'l', token: (first.value as any).token }, -5e9 - 1)[0]!.error, undefined);
    const [granted] = second as ReplyMessage[];
    assert.equal(Number((granted.value as any).token), Number((first.value as any).token) + 1);
    for (const id of [-5e9, -6e9, -5e9 - 1]) assert.deepEqual(messages(bench, id), []);
  });

  it('are answered by a message if nobody waits on their way any more', () => {
    const bench = new Bench(2);
    direct(bench, 2, 'lock', { name: 'l' }, -6e9, false);
    assert.equal(messages(bench, -6e9).length, 1);
  });

  it('that are asked again by a message are answered by one, as they were or when they are done, and not carried out twice', () => {
    const bench = new Bench(2);
    const again = (from: MemberId, id: number): void => bench.registry.call(from, { type: 'call', id, op: 'lock', args: { name: 'l', client: 1 } }, bench.now);
    const done = direct(bench, 1, 'lock', { name: 'l' }, -5e9);
    again(1, -5e9);
    assert.deepEqual(messages(bench, -5e9), done);
    const waiting = direct(bench, 2, 'lock', { name: 'l' }, -6e9);
    again(2, -6e9);
    bench.call(1, 'unlock', { name: 'l', token: (done[0]!.value as any).token });
    assert.deepEqual([waiting.length, messages(bench, -6e9).length], [0, 1]);
    assert.ok(bench.lock(1, 'l', { try: true }).value === null, 'the second one holds it');
  });

  it('that arrive after their withdrawal, or after the news that their thread has ended, hold nothing', () => {
    const bench = new Bench(2);
    bench.call(2, 'call-cancel', { call: -6e9 });
    bench.call(1, 'client-gone', { client: 1 });
    assert.equal(direct(bench, 2, 'lock', { name: 'l' }, -6e9)[0]!.error!.code, 'ERR_FAULTLINE_CLOSED');
    assert.equal(direct(bench, 1, 'lock', { name: 'l' }, -5e9)[0]!.error!.code, 'ERR_FAULTLINE_CLOSED');
    assert.equal(direct(bench, 1, 'barrier', { name: 'b', parties: 1 }, -5e9 - 1)[0]!.error!.code, 'ERR_FAULTLINE_CLOSED');
    assert.equal(bench.lock(2, 'l', { client: 2 }).value.ownerDied, false);
    // The next registrar knows that, too.
    const next = new Bench(0, JSON.parse(JSON.stringify(bench.registry.snapshot())), 2);
    assert.equal(direct(next, 1, 'lock', { name: 'm' }, -5e9 - 2)[0]!.error!.code, 'ERR_FAULTLINE_CLOSED');
  });

  it('are to be asked again when another registrar takes over, and it answers them', () => {
    const bench = new Bench(3);
    const held = direct(bench, 2, 'lock', { name: 'l' }, -6e9);
    const waiting = direct(bench, 3, 'lock', { name: 'l' }, -7e9);
    bench.registry.endDirect();
    assert.deepEqual(waiting, [null]);
    const next = new Bench(0, JSON.parse(JSON.stringify(bench.registry.snapshot())), 2);
    next.registry.takeOver();
    next.registry.call(3, { type: 'call', id: -7e9, op: 'lock', args: { name: 'l', client: 1 } }, 0);
    assert.deepEqual(messages(next, -7e9), []);
    next.call(2, 'unlock', { name: 'l', token: (held[0]!.value as any).token });
    assert.equal(messages(next, -7e9).length, 1);
    assert.deepEqual(waiting, [null], 'the old way is not used any more');
  });

  it('of somebody who is no member are to be asked again', () => {
    const bench = new Bench(1);
    assert.deepEqual(direct(bench, 9, 'lock', { name: 'l' }, -5e9), [null]);
  });

  it('a client that left in order has not died', () => {
    const bench = new Bench(2);
    bench.lock(1, 'l', { client: 1 });
    bench.call(1, 'client-gone', { client: 1, left: true });
    assert.equal(bench.lock(2, 'l').value.ownerDied, false);
  });
});

describe('registry: calls', () => {
  it('answers a call that is sent again as before, and does not run it twice', () => {
    const bench = new Bench(2);
    const first = bench.lock(1, 'l');
    bench.registry.call(1, { type: 'call', id: first.id, op: 'lock', args: { name: 'l', shared: false, client: 1, try: false } }, 0);
    const replies = bench.said.filter(({ message }) => message.type === 'reply' && message.id === first.id);
    assert.equal(replies.length, 2);
    assert.deepEqual(replies[0], replies[1]);
  });

  it('goes on at the next registrar: regions, locks, barriers, waits, turns and answers', () => {
    const before = new Bench(4);
    before.call(2, 'region-open', { name: 'r', mode: 'create', size: MIB });
    const held = before.lock(2, 'l');
    const [lock, open, barrier, turn] = [before.lock(3, 'l'), before.call(3, 'region-open', { name: 'later', mode: 'wait' }), before.call(3, 'barrier', { name: 'b', parties: 2, client: 1 }), before.call(1, 'leave')];
    assert.ok(turn.reply);
    const after = new Bench(0, JSON.parse(JSON.stringify(before.registry.snapshot())) as RegistrySnapshot, 2);
    after.registry.takeOver();
    assert.deepEqual([after.state.registrar, after.state.epoch, after.state.version], [2, before.state.epoch, before.state.version + 1]);
    after.registry.left(1);
    assert.deepEqual(after.state.regions, before.state.regions);
    for (const call of [held, lock]) after.call(call === held ? 2 : 3, 'lock', { name: 'l', shared: false, client: 1, try: false }, call.id);
    const answer = (id: number) => after.said.filter(({ message }) => message.type === 'reply' && message.id === id).map(({ message }) => message as ReplyMessage);
    assert.deepEqual(answer(held.id), [held.reply], 'answered as before');
    assert.deepEqual(answer(lock.id), [], 'still waits');
    after.call(2, 'unlock', { name: 'l', token: held.value.token });
    assert.ok(Number((answer(lock.id)[0].value as { token: string }).token) > Number(held.value.token));
    after.call(4, 'region-open', { name: 'later', mode: 'create', size: MIB });
    assert.equal(answer(open.id).length, 1);
    after.call(4, 'barrier', { name: 'b', parties: 2, client: 1 });
    assert.equal(answer(barrier.id).length, 1);
    assert.ok(!after.state.regions.some(({ id }) => id === 1 && after.region('later').id === id), 'ids go on');
    assert.equal(after.join(), 5);
  });

  it('does not answer who is not in the view', () => {
    const bench = new Bench(1);
    bench.lock(9, 'l');
    assert.deepEqual(bench.said, []);
  });

  for (const [op, args] of [['nonsense', {}], ['lock', {}], ['lock', null], ['region-open', { name: 'r', mode: 'x' }], ['region-open', { name: 7, mode: 'open' }], ['barrier', { name: 'b', parties: 0 }], ['client-gone', 'x'], ['region-destroy', { id: 'x' }]] as const) {
    it(`refuses ${op} ${JSON.stringify(args)}`, () => assert.equal(new Bench(1).call(1, op, args).error.code, 'ERR_FAULTLINE_INVALID_ARGUMENT'));
  }
});
