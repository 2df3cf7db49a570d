/** Properties of the wire formats over messages and bytes that fast-check draws. A failure prints its seed and path, which replay it. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { Message } from '../../lib/coordinator/protocol/messages.js';
import { decodeJoin, encodeJoin, isJoin } from '../../lib/coordinator/transport/joining.js';
import { MalformedError } from '../../lib/coordinator/transport/malformed.js';
import { decode, encode } from '../../lib/coordinator/transport/wire.js';
import type { JoinMessage } from '../../lib/coordinator/transport/joining.js';

/** FUZZ_RUNS: how many cases each property draws. */
const numRuns = Number(process.env.FUZZ_RUNS ?? 500);

const word = fc.nat({ max: 0xffffffff });
const count = fc.nat({ max: Number.MAX_SAFE_INTEGER });
// What JSON can carry and gives back as it was: -0 comes back as 0.
const finite = fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0);
const json = fc.jsonValue({ noUnicodeString: false, maxDepth: 3 }).map((value): unknown => JSON.parse(JSON.stringify(value)));
const text = fc.string({ unit: 'grapheme' });

const hotAbout = { region: word, generation: word };
const segments = fc.array(fc.record({ first: word, count: word, version: word, grant: word, content: word }), { maxLength: 40 });
const runs = fc.array(fc.record({ first: word, count: word, version: word }), { maxLength: 40 });
// Long stretches of one version as well as versions that all differ: they travel as pairs.
const held = fc.array(fc.tuple(fc.oneof(fc.constant(0), word), fc.integer({ min: 1, max: 50 })), { maxLength: 20 })
  .map((stretches) => stretches.flatMap(([version, length]) => new Array<number>(length).fill(version)));
const hot: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ type: fc.constant('request' as const), ...hotAbout, claim: word, access: word, first: word, held }).map((request) => ({ ...request, count: request.held.length })),
  fc.record({ type: fc.constant('data' as const), ...hotAbout, claim: word, segments }),
  fc.record({ type: fc.constantFrom('recalled' as const, 'give-back' as const), ...hotAbout, segments }),
  fc.record({ type: fc.constant('recall' as const), ...hotAbout, keep: fc.boolean(), wantBytes: fc.boolean(), requester: word, runs }),
  fc.record({ type: fc.constant('invalidate' as const), ...hotAbout, requester: word, runs }),
  fc.record({ type: fc.constantFrom('returned' as const, 'invalidated' as const), ...hotAbout, runs }),
);

const about = { region: count, generation: count };
const slice = fc.record({ first: count, count, home: count, generation: count, from: count, lostHome: count });
const state = fc.record({
  clusterId: text, version: count, epoch: count, registrar: count, died: fc.array(count),
  members: fc.array(fc.record({ id: count, slot: count, name: text, pid: count, address: text, endpoint: text, leaving: fc.boolean() }), { maxLength: 5 }),
  regions: fc.array(fc.record({
    id: count, name: text, size: count, pageSize: count, extentPages: count, consistency: fc.constant('sequential' as const),
    placement: fc.constantFrom('creator' as const, 'spread' as const), address: text, creator: count, slices: fc.array(slice, { maxLength: 4 }),
  }), { maxLength: 3 }),
});
const cold: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ type: fc.constant('rebuild' as const), ...about, first: count, count, round: count }),
  fc.record({ type: fc.constant('holdings' as const), ...about, first: count, count, round: count, records: fc.array(finite), done: fc.boolean() }),
  fc.record({ type: fc.constant('handover' as const), ...about, first: count, records: fc.array(finite), copies: fc.array(fc.array(count)), done: fc.boolean() }),
  fc.record({ type: fc.constant('lost' as const), ...about, runs: fc.array(count), member: count, epoch: count }),
  fc.record({ type: fc.constant('ask' as const), ...about, id: fc.maxSafeInteger(), op: text, args: fc.array(finite) }),
  fc.record({ type: fc.constant('reply' as const), id: fc.maxSafeInteger(), value: json }),
  fc.record({ type: fc.constant('call' as const), id: fc.maxSafeInteger(), op: text, args: json }),
  fc.record({ type: fc.constant('state' as const), state }),
  fc.record({ type: fc.constant('lease' as const), sentAt: finite, forMs: finite }),
  fc.record({ type: fc.constant('tell' as const), topic: text, value: json }),
  fc.record({ type: fc.constant('lane' as const), machine: text, near: text, far: text, token: fc.stringMatching(/^[0-9a-f]{32}$/) }),
) as fc.Arbitrary<Message>;

const join: fc.Arbitrary<JoinMessage> = fc.oneof(
  fc.record({ kind: fc.constant('hello' as const), protocol: fc.record({ major: fc.maxSafeInteger(), minor: fc.maxSafeInteger() }), arch: text, endianness: text, version: text, name: text, pid: fc.integer() }),
  fc.record({ kind: fc.constant('welcome' as const), id: count, clusterId: text, registrar: count, silence: count }),
  fc.record({ kind: fc.constant('joined' as const), id: count, endpoint: text }),
  fc.record({ kind: fc.constant('refused' as const), reason: text.filter((reason) => reason !== 'moved'), message: text }),
  fc.record({ kind: fc.constant('refused' as const), reason: fc.constant('moved'), message: text, endpoint: text }),
);

/** A frame of its own: small ones are built in a buffer that the next encode() writes over. */
const frameOf = (message: Message): Uint8Array => Uint8Array.from(encode(message, 1, 2, [3, 4]));

/** What fast-check draws may have no prototype, and JSON gives back objects that have one. */
const plain = <T>(value: T): T => structuredClone(value);

/** Whatever the bytes are, decoding them gives a value or a MalformedError. */
function decodes(decoder: (frame: Uint8Array) => unknown, frame: Uint8Array): boolean {
  try {
    decoder(frame);
    return true;
  } catch (error) {
    assert.ok(error instanceof MalformedError, `not a MalformedError: ${String(error)}`);
    return false;
  }
}

/** Bytes changed, cut off and added, in ways that keep most of the frame as it was. */
const damage = fc.record({
  bytes: fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), { maxLength: 6 }),
  cut: fc.oneof(fc.constant(0), fc.nat({ max: 40 })),
  added: fc.uint8Array({ maxLength: 12 }),
});
function damaged(frame: Uint8Array, { bytes, cut, added }: { bytes: [number, number][]; cut: number; added: Uint8Array }): Uint8Array {
  const whole = Uint8Array.from(frame);
  for (const [at, change] of bytes) whole[at % whole.length] ^= change;
  return Buffer.concat([whole.subarray(0, Math.max(0, whole.length - cut)), added]);
}

describe('wire formats, over drawn messages', () => {
  it('every message comes back as it was sent, with its envelope', () => {
    fc.assert(fc.property(fc.oneof(hot, cold), word, word, fc.tuple(word, word), fc.option(fc.uint8Array({ maxLength: 64 }), { nil: undefined }), (message, from, version, cluster, payload) => {
      const decoded = decode(Uint8Array.from(encode(message, from, version, cluster)), payload);
      assert.deepEqual(plain(decoded), plain(payload === undefined ? { from, state: version, message, cluster } : { from, state: version, message, cluster, payload }));
    }), { numRuns });
  });

  it('a message has one form: what decodes encodes to the same bytes (flat types)', () => {
    // Runs of equal versions could be written in two pairs, and unused flag bits be set: no member sends that.
    fc.assert(fc.property(hot, (message) => {
      const frame = frameOf(message);
      assert.deepEqual(frameOf(decode(frame).message), frame);
    }), { numRuns });
  });

  it('arbitrary bytes are refused as malformed, or are a message', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => { decodes(decode, bytes); }), { numRuns });
  });

  it('a flat message with a body of arbitrary words is refused as malformed, or is a message', () => {
    let accepted = 0;
    let refused = 0;
    const small = fc.oneof({ weight: 3, arbitrary: fc.nat({ max: 5 }) }, { weight: 1, arbitrary: word });
    fc.assert(fc.property(fc.integer({ min: 1, max: 9 }), fc.array(small, { maxLength: 30 }), (type, body) => {
      const words = Uint32Array.from([...new Uint32Array(frameOf({ type: 'returned', region: 1, generation: 1, runs: [] }).slice(0, 28).buffer), ...body]);
      words[4] = type;
      if (decodes(decode, new Uint8Array(words.buffer))) accepted++;
      else refused++;
    }), { numRuns: Math.max(numRuns, 300) });
    assert.ok(accepted > 0 && refused > 0, `${accepted} accepted and ${refused} refused: the cases reach one side only`);
  });

  it('a damaged message is refused as malformed, or is another message', () => {
    fc.assert(fc.property(fc.oneof(hot, cold), damage, (message, how) => { decodes(decode, damaged(frameOf(message), how)); }), { numRuns });
  });

  it('what a short frame announces does not make its receiver allocate', () => {
    // The length of the list is at word 7 + 2, behind the claim for data; 0xffffffff items would be many gigabytes.
    fc.assert(fc.property(fc.constantFrom<Message['type']>('data', 'recalled', 'give-back', 'returned', 'invalidated'), fc.integer({ min: 1, max: 0xffffffff }), (type, announced) => {
      const message = (type === 'returned' || type === 'invalidated' ? { type, region: 1, generation: 1, runs: [] } : { type, region: 1, generation: 1, claim: 1, segments: [] }) as Message;
      const frame = frameOf(message);
      new DataView(frame.buffer).setUint32(type === 'data' ? 40 : 36, announced, true);
      assert.throws(() => decode(frame), MalformedError);
    }), { numRuns });
  });
});

describe('join messages, over drawn messages', () => {
  it('every one comes back as it was sent', () => {
    fc.assert(fc.property(join, (message) => {
      const frame = encodeJoin(message);
      assert.ok(isJoin(frame));
      assert.deepEqual(plain(decodeJoin(frame)), plain(message));
    }), { numRuns });
  });

  it('no other message is taken for one', () => {
    fc.assert(fc.property(fc.oneof(hot, cold), (message) => { assert.equal(isJoin(frameOf(message)), false); }), { numRuns });
  });

  it('a damaged one, and any JSON after the prefix, is refused as malformed, or is a join message', () => {
    fc.assert(fc.property(join, damage, (message, how) => { decodes(decodeJoin, damaged(encodeJoin(message), how)); }), { numRuns });
    fc.assert(fc.property(json, (value) => { decodes(decodeJoin, Buffer.from(`faultline:join\n${JSON.stringify(value)}`)); }), { numRuns });
  });
});
