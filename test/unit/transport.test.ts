import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Dealer } from 'zeromq';
import type { ClusterState, Message } from '../../lib/coordinator/protocol/messages.js';
import { decodeJoin, encodeJoin, hello, incompatible, isJoin } from '../../lib/coordinator/transport/joining.js';
import { MalformedError } from '../../lib/coordinator/transport/malformed.js';
import { type Channel, Transport } from '../../lib/coordinator/transport/transport.js';
import { MAX_RUN, clusterHash, decode, encode } from '../../lib/coordinator/transport/wire.js';

const about = { region: 3, generation: 7 };
const state: ClusterState = {
  clusterId: 'c', version: 4, epoch: 2, registrar: 1, died: [2],
  members: [{ id: 1, slot: 0, name: 'a', pid: 9, address: 'local', endpoint: 'ipc:///x', leaving: false }],
  regions: [{ id: 1, name: 'r', size: 4096, pageSize: 4096, extentPages: 64, consistency: 'sequential', placement: 'creator', address: '70368744177664', creator: 1, slices: [{ first: 0, count: 1, home: 1, generation: 1, from: 0, lostHome: 0 }] }],
};
const largest = 0xffff_ffff;

const messages: Message[] = [
  { type: 'request', ...about, claim: 1, access: 2, first: 5, count: 4, held: [0, 0, 9, largest] },
  { type: 'request', ...about, claim: 0, access: 1, first: 0, count: 0, held: [] },
  { type: 'request', ...about, claim: largest, access: 1, first: 0, count: 300, held: Array.from({ length: 300 }, (_, i) => i) },
  { type: 'data', ...about, claim: 9, segments: [{ first: 0, count: 2, version: 3, grant: 1, content: 0 }, { first: largest, count: 1, version: largest, grant: 3, content: 2 }] },
  { type: 'data', ...about, claim: largest, segments: [] },
  { type: 'recall', ...about, runs: [{ first: 1, count: 2, version: 3 }], keep: true, wantBytes: false, requester: 4 },
  { type: 'recall', ...about, runs: [{ first: 1, count: 2, version: 3 }], keep: false, wantBytes: true, requester: 4 },
  { type: 'recalled', ...about, segments: [{ first: 1, count: 2, version: 3, grant: 1, content: 1 }] },
  { type: 'give-back', ...about, segments: [{ first: 1, count: 2, version: 3, grant: 1, content: 1 }] },
  { type: 'returned', ...about, runs: [{ first: 1, count: 2, version: 3 }] },
  { type: 'invalidate', ...about, runs: Array.from({ length: 100 }, (_, i) => ({ first: 2 * i, count: 1, version: i })), requester: 1 },
  { type: 'invalidated', ...about, runs: [] },
  { type: 'rebuild', ...about, first: 0, count: 9, round: 1 },
  { type: 'holdings', ...about, first: 0, count: 9, round: 1, records: [0, 1, 2, 3, 0], done: true },
  { type: 'handover', ...about, first: 0, records: [1, 2, 3, 4, 5, 6, 0], copies: [[1, 2], []], done: false },
  { type: 'handover-ack', ...about, first: 0, done: true },
  { type: 'handed', ...about, first: 0 },
  { type: 'lost', ...about, runs: [1, 2], member: 3, epoch: 4 },
  { type: 'found', ...about, runs: [1, 2] },
  { type: 'ask', ...about, id: 8, op: 'wait', args: [0, -1] },
  { type: 'reply', id: -8, value: { text: 'ä€𝄞' } },
  { type: 'reply', id: 8, error: { code: 'ERR_FAULTLINE_TIMEOUT', message: 'late', fields: { timeout: 5 } } },
  { type: 'call', id: -1, op: 'lock', args: { name: 'l' } },
  { type: 'state', state },
  { type: 'heartbeat', sentAt: 123456.5 },
  { type: 'lease', sentAt: 1, forMs: 1500 },
  { type: 'evicted', epoch: 3 },
  { type: 'tell', topic: 't', value: [1] },
  { type: 'lane', machine: 'm', near: 'unix:a', far: 'tcp:127.0.0.1:1', token: '0123456789abcdef0123456789abcdef' },
];
const cluster = clusterHash('c');
const copy = (message: Message, from = 2, version = 6): Uint8Array => Uint8Array.from(encode(message, from, version, cluster));

describe('wire format', () => {
  messages.forEach((message, i) => {
    it(`${message.type} arrives as it was sent (${i})`, () => {
      const payload = Uint8Array.of(1, 2, 3);
      assert.deepEqual(decode(copy(message, largest, largest), payload), { from: largest, state: largest, cluster, message, payload });
    });
  });

  it('reads frames that do not begin at a multiple of four', () => {
    const frame = copy(messages[0]);
    const shifted = new Uint8Array(frame.length + 1);
    shifted.set(frame, 1);
    assert.deepEqual(decode(shifted.subarray(1)).message, messages[0]);
  });

  it('hands the payload on without copying it', () => {
    const payload = new Uint8Array(4096);
    assert.equal(decode(copy(messages[3]), payload).payload, payload);
  });

  it('does not write into a frame that zeromq may still be reading', () => {
    const long = encode(messages[10], 1, 1, cluster);
    const before = Uint8Array.from(long);
    encode({ ...messages[10], requester: 99 } as Message, 5, 5, cluster);
    assert.deepEqual(Uint8Array.from(long), before);
  });

  it('sends a request for many pages of which none is held in a few bytes', () => {
    const frame = copy({ type: 'request', ...about, claim: 1, access: 1, first: 0, count: 100_000, held: new Array<number>(100_000).fill(0) });
    assert.ok(frame.length <= 128, String(frame.length));
  });

  it('tells clusters apart', () => assert.notDeepEqual(clusterHash('a'), clusterHash('b')));

  describe('refuses with a MalformedError', () => {
    const u32 = (frame: Uint8Array, word: number, value: number): Uint8Array => {
      new DataView(frame.buffer).setUint32(word * 4, value, true);
      return frame;
    };
    const cases: [string, Uint8Array][] = [
      ['nothing', new Uint8Array()],
      ['half a header', copy(messages[0]).subarray(0, 20)],
      ['another magic', u32(copy(messages[0]), 0, 0x20544547)],
      ['another protocol version', u32(copy(messages[0]), 1, 2 << 16)],
      ['an unknown type', u32(copy(messages[0]), 4, 99)],
      ['a count beyond the frame', u32(copy(messages[3]), 10, 1000)],
      ['a count that overflows', u32(copy(messages[3]), 10, largest)],
      ['fewer items than are here', u32(copy(messages[3]), 10, 1)],
      ['more versions than pages', u32(copy(messages[0]), 15, 1000)],
      ['no version at a time, for ever', u32(copy(messages[0]), 15, 0)],
      ['versions of another number of pages', u32(copy(messages[0]), 12, 3)],
      ['more pages than one request may name', u32(u32(copy(messages[0]), 12, MAX_RUN + 1), 13, MAX_RUN + 1)],
      ...['{', 'null', '7', '[]', '{}', '{"type":"constructor"}', '{"type":"request"}', '{"type":"reply"}', '{"type":"lost","region":1,"generation":1,"runs":[-1],"member":1,"epoch":1}', '{"type":"state","state":{}}', '{"type":"holdings","region":1,"generation":1,"first":0,"count":1,"records":["x"],"done":true}']
        .map((text): [string, Uint8Array] => [text, Buffer.concat([copy(messages[16]).subarray(0, 28), Buffer.from(text)])]),
    ];
    for (const [name, frame] of cases) it(name, () => assert.throws(() => decode(frame), MalformedError));

    it('every message that was cut off anywhere', () => {
      for (const message of messages) {
        const frame = copy(message);
        for (let length = 0; length < frame.length; length++) assert.throws(() => decode(frame.subarray(0, length)), MalformedError, `${message.type} cut to ${length}`);
      }
    });

    it('or else understands messages with bytes changed at random, and throws nothing else', () => {
      let seed = 12345;
      const random = (below: number): number => { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; return seed % below; };
      for (let i = 0; i < 20_000; i++) {
        const frame = copy(messages[random(messages.length)]);
        for (let n = random(4); n >= 0; n--) frame[random(frame.length)] = random(256);
        try {
          decode(frame);
        } catch (error) {
          assert.ok(error instanceof MalformedError, String(error));
        }
      }
    });
  });
});

describe('join messages', () => {
  const mine = hello('me');

  it('arrive as they were sent, and are no other messages', () => {
    for (const message of [mine, { kind: 'welcome', id: 2, clusterId: 'c', registrar: 1, silence: 2000 }, { kind: 'joined', id: 2, endpoint: 'ipc:///x' }, { kind: 'refused', reason: 'retry', message: 'later' }] as const) {
      assert.ok(isJoin(encodeJoin(message)));
      assert.deepEqual(decodeJoin(encodeJoin(message)), message);
    }
    for (const message of messages) assert.equal(isJoin(copy(message)), false);
  });

  for (const text of ['', 'x', '{}', 'null', '{"kind":"hello"}', '{"kind":"hello","arch":"x64","endianness":"LE","version":"1","name":"n","pid":1}', '{"kind":"welcome","id":"1"}', '{"kind":"refused","reason":"moved","message":"m"}']) {
    it(`refuse ${text || 'nothing'}`, () => assert.throws(() => decodeJoin(Buffer.from(`faultline:join\n${text}`)), MalformedError));
  }

  it('another protocol version is refused with both versions named', () => {
    const refused = incompatible({ ...mine, protocol: { major: 2, minor: 5 }, version: '7.8.9' });
    assert.equal(refused?.reason, 'protocol');
    for (const part of ['1.0', '2.5', mine.version, '7.8.9']) assert.ok(refused.message.includes(part), refused.message);
  });

  it('another architecture is refused by name, another minor version is not', () => {
    const refused = incompatible({ ...mine, arch: 'riscv64' });
    assert.equal(refused?.reason, 'architecture');
    assert.ok(refused.message.includes('riscv64') && refused.message.includes(process.arch));
    assert.equal(incompatible({ ...mine, endianness: 'BE' })?.reason, 'architecture');
    assert.equal(incompatible({ ...mine, protocol: { major: 1, minor: 9 } }), null);
  });
});

describe('transport', () => {
  let directory: string;
  const open: Transport[] = [];

  beforeEach(() => { directory = mkdtempSync(path.join(os.tmpdir(), 'fl-')); });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((transport) => transport.close()));
    rmSync(directory, { recursive: true });
  });

  const endpoint = (name: string): string => `ipc://${directory}/${name}`;
  function listen(name: string, receive: ConstructorParameters<typeof Transport>[1] = () => undefined): Transport {
    const transport = new Transport({ silence: 2000 }, receive);
    transport.bind(endpoint(name));
    open.push(transport);
    return transport;
  }
  const connect = (to: string, events: Partial<Parameters<Transport['connect']>[1]> = {}): Channel => listen(`from-${Math.random()}`).connect(to, { receive: () => undefined, broken: () => undefined, ...events });

  it('delivers in the order of sending, with payloads as they were', async () => {
    const numbers: number[] = [];
    const arrived = new Promise<void>((resolve) => listen('a', (frames) => {
      numbers.push(decode(frames[0]).from);
      assert.equal(frames[1]?.length, numbers.length % 2 === 1 ? undefined : 5000);
      if (frames[1] !== undefined) assert.ok(frames[1].every((byte) => byte === numbers.length % 251));
      if (numbers.length === 2000) resolve();
    }));
    const channel = connect(endpoint('a'));
    for (let i = 1; i <= 2000; i++) channel.send(encode(messages[i % messages.length], i, 0, cluster), i % 2 === 1 ? undefined : new Uint8Array(5000).fill(i % 251));
    await arrived;
    assert.deepEqual(numbers, Array.from({ length: 2000 }, (_, i) => i + 1));
  });

  it('answers on the connection that a message came on', async () => {
    listen('a', (frames, answer) => answer(Buffer.concat([frames[0], Buffer.from('!')])));
    const answers = await Promise.all(['x', 'y'].map((text) => new Promise<string>((resolve) => connect(endpoint('a'), { receive: ([frame]) => resolve(Buffer.from(frame).toString()) }).send(Buffer.from(text)))));
    assert.deepEqual(answers, ['x!', 'y!']);
  });

  it('reports a connection that breaks, once', async () => {
    let times = 0;
    const far = listen('a', (_, answer) => answer(Buffer.from('here')));
    let channel!: Channel;
    const broken = new Promise<void>((resolve) => { channel = connect(endpoint('a'), { receive: () => void far.close(), broken: () => { times++; resolve(); } }); });
    channel.send(Buffer.from('hi'));
    await broken;
    assert.equal(channel.broken, true);
    channel.send(Buffer.from('into nothing'));
    await channel.close();
    assert.equal(times, 1);
  });

  for (const to of ['ipc:///nowhere/at/all', 'tcp://127.0.0.1:1', 'what:is:this']) {
    it(`reports that nobody is at ${to}`, () => new Promise<void>((resolve) => void connect(to, { broken: resolve })));
  }

  it('gives an address up and leaves the other ones alone', async () => {
    const transport = listen('a', (_, answer) => answer(Buffer.from('main')));
    const door = transport.openDoor(endpoint('door'), (_, answer) => answer(Buffer.from('door')));
    const ask = (to: string): Promise<string> => new Promise((resolve) => connect(to, { receive: ([frame]) => resolve(Buffer.from(frame).toString()), broken: () => resolve('nobody') }).send(Buffer.from('?')));
    assert.deepEqual([await ask(endpoint('a')), await ask(endpoint('door'))], ['main', 'door']);
    await transport.closeDoor(door);
    for (let answer = 'door'; answer === 'door'; ) answer = await ask(endpoint('door'));
    assert.equal(await ask(endpoint('a')), 'main');
  });

  it('closes with nothing pending, and any number of times', async () => {
    const transport = listen('a');
    const channel = transport.connect(endpoint('a'), { receive: () => undefined, broken: () => undefined });
    channel.send(Buffer.from('x'));
    await Promise.all([transport.close(), transport.close(), channel.close()]);
    await transport.close();
  });

  it('takes messages of many frames and empty ones from foreign sockets', async () => {
    const counts: number[] = [];
    const arrived = new Promise<void>((resolve) => listen('a', (frames) => { counts.push(frames.length); if (counts.length === 2) resolve(); }));
    const foreign = new Dealer({ linger: 0 });
    foreign.connect(endpoint('a'));
    await foreign.send(['a', 'b', 'c', 'd']);
    await foreign.send('');
    await arrived;
    foreign.close();
    assert.deepEqual(counts, [4, 1]);
  });
});
