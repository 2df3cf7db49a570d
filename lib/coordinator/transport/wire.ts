/**
 * The wire format. A message is one frame, or two if it carries page bytes: a header of seven little-endian words, the
 * body, and the bytes as they are. What a page fault waits for travels as flat words; all else is JSON, because it is
 * rare and easier to look at. Joining has a format of its own (see joining.ts), because it must outlive versions.
 *
 * | word | header |
 * | --- | --- |
 * | 0 | 'FLT1' |
 * | 1 | protocol major << 16, minor |
 * | 2, 3 | hash of the cluster's id |
 * | 4 | type |
 * | 5 | sender |
 * | 6 | the sender's state version |
 */
import type { Envelope, MemberId, Message, Segment, VersionedRun } from '../protocol/messages.js';
import { checkCold } from './cold.js';
import { MalformedError } from './malformed.js';

export const PROTOCOL = { major: 1, minor: 0 } as const;

const MAGIC = 0x31544c46;
const VERSION = (PROTOCOL.major << 16) | PROTOCOL.minor;
const HEADER_WORDS = 7;
const HEADER = HEADER_WORDS * 4;
/** zeromq copies frames up to this many bytes when they are sent, so they may be built in a buffer that is used again. */
const COPIED_BY_SEND = 128;
/** Pages that one request may name: a bound on what a few bytes can make the receiver allocate. */
export const MAX_RUN = 1 << 20;

const JSON_TYPE = 0;
const HOT = { request: 1, data: 2, recall: 3, recalled: 4, 'give-back': 5, returned: 6, invalidate: 7, invalidated: 8 } as const;

type HotMessage = Extract<Message, { type: keyof typeof HOT }>;

/** FNV-1a with two starting points: which cluster a message is of, without its whole name in each. */
export function clusterHash(id: string): readonly [number, number] {
  const words = [0x811c9dc5, 0x9747b28c].map((start) => {
    let hash = start;
    for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 0x01000193);
    return hash >>> 0;
  });
  return [words[0], words[1]];
}

export interface Decoded extends Envelope {
  cluster: readonly [number, number];
}

export function encode(message: Message, from: MemberId, state: number, cluster: readonly [number, number]): Uint8Array {
  const type = (HOT as Record<string, number>)[message.type];
  if (type === undefined) {
    const text = Buffer.from(JSON.stringify(message));
    const frame = new Uint8Array(HEADER + text.length);
    frame.set(text, HEADER);
    writeHeader(new DataView(frame.buffer), JSON_TYPE, from, state, cluster);
    return frame;
  }
  const writer = Writer.take(bodyWords(message as HotMessage));
  writeBody(writer, message as HotMessage);
  writeHeader(writer.view, type, from, state, cluster);
  return writer.frame;
}

/**
 * Takes whatever bytes arrived. The payload stays a view on the frame that it came in.
 * @throws MalformedError, and nothing else
 */
export function decode(frame: Uint8Array, payload?: Uint8Array): Decoded {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.byteLength < HEADER || view.getUint32(0, true) !== MAGIC) throw new MalformedError('not a faultline message');
  const version = view.getUint32(4, true);
  if (version >>> 16 !== PROTOCOL.major) throw new MalformedError(`protocol ${version >>> 16}.${version & 0xffff}, and this member speaks ${PROTOCOL.major}.${PROTOCOL.minor}`);
  const type = view.getUint32(16, true);
  const message = type === JSON_TYPE ? readJson(frame.subarray(HEADER)) : readBody(type, new Reader(view));
  const decoded: Decoded = { from: view.getUint32(20, true), state: view.getUint32(24, true), message, cluster: [view.getUint32(8, true), view.getUint32(12, true)] };
  if (payload !== undefined) decoded.payload = payload;
  return decoded;
}

function writeHeader(view: DataView, type: number, from: MemberId, state: number, cluster: readonly [number, number]): void {
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, VERSION, true);
  view.setUint32(8, cluster[0], true);
  view.setUint32(12, cluster[1], true);
  view.setUint32(16, type, true);
  view.setUint32(20, from, true);
  view.setUint32(24, state, true);
}

// ---- the hot types ----------------------------------------------------------------------------------------------------

/** Upper bound of the words that a body takes. */
function bodyWords(message: HotMessage): number {
  if (message.type === 'request') return 8 + 2 * message.held.length;
  if ('segments' in message) return 4 + 5 * message.segments.length;
  return 6 + 3 * message.runs.length;
}

function writeBody(writer: Writer, message: HotMessage): void {
  writer.put(message.region);
  writer.put(message.generation);
  switch (message.type) {
    case 'request':
      writer.put(message.claim);
      writer.put(message.access);
      writer.put(message.first);
      writer.put(message.count);
      return writeHeld(writer, message.held);
    case 'data': case 'recalled': case 'give-back':
      if (message.type === 'data') writer.put(message.claim);
      writer.put(message.segments.length);
      for (const { first, count, version, grant, content } of message.segments) {
        writer.put(first); writer.put(count); writer.put(version); writer.put(grant); writer.put(content);
      }
      return;
    case 'recall':
      writer.put((message.keep ? 1 : 0) | (message.wantBytes ? 2 : 0));
      writer.put(message.requester);
      return writeRuns(writer, message.runs);
    case 'invalidate':
      writer.put(message.requester);
      return writeRuns(writer, message.runs);
    case 'returned': case 'invalidated':
      return writeRuns(writer, message.runs);
  }
}

/** Versions of neighbouring pages are mostly the same (0, none held), so they travel as (version, how many) pairs. */
function writeHeld(writer: Writer, held: number[]): void {
  if (held.length > MAX_RUN) throw new RangeError(`a request for ${held.length} pages; at most ${MAX_RUN} fit into one`);
  writer.put(held.length);
  for (let start = 0; start < held.length; ) {
    let end = start + 1;
    while (end < held.length && held[end] === held[start]) end++;
    writer.put(held[start]);
    writer.put(end - start);
    start = end;
  }
}

function writeRuns(writer: Writer, runs: VersionedRun[]): void {
  writer.put(runs.length);
  for (const { first, count, version } of runs) {
    writer.put(first); writer.put(count); writer.put(version);
  }
}

function readBody(type: number, reader: Reader): Message {
  const region = reader.get();
  const generation = reader.get();
  switch (type) {
    case HOT.request: {
      const claim = reader.get();
      const access = reader.get();
      const first = reader.get();
      const count = reader.get();
      return reader.last({ type: 'request', region, generation, claim, access, first, count, held: readHeld(reader, count) });
    }
    case HOT.data: {
      const claim = reader.get();
      return reader.last({ type: 'data', region, generation, claim, segments: readSegments(reader) });
    }
    case HOT.recalled: return reader.last({ type: 'recalled', region, generation, segments: readSegments(reader) });
    case HOT['give-back']: return reader.last({ type: 'give-back', region, generation, segments: readSegments(reader) });
    case HOT.recall: {
      const flags = reader.get();
      const requester = reader.get();
      return reader.last({ type: 'recall', region, generation, keep: (flags & 1) !== 0, wantBytes: (flags & 2) !== 0, requester, runs: readRuns(reader) });
    }
    case HOT.invalidate: {
      const requester = reader.get();
      return reader.last({ type: 'invalidate', region, generation, requester, runs: readRuns(reader) });
    }
    case HOT.returned: return reader.last({ type: 'returned', region, generation, runs: readRuns(reader) });
    case HOT.invalidated: return reader.last({ type: 'invalidated', region, generation, runs: readRuns(reader) });
    default: throw new MalformedError(`unknown type ${type}`);
  }
}

function readHeld(reader: Reader, count: number): number[] {
  const length = reader.get();
  if (length !== count || length > MAX_RUN) throw new MalformedError(`versions of ${length} pages in a request for ${count}`);
  const held: number[] = [];
  while (held.length < length) {
    const version = reader.get();
    const repeat = reader.get();
    if (repeat === 0 || repeat > length - held.length) throw new MalformedError('more versions than pages');
    for (let i = 0; i < repeat; i++) held.push(version);
  }
  return held;
}

function readSegments(reader: Reader): Segment[] {
  const length = reader.count(5);
  const segments: Segment[] = [];
  for (let i = 0; i < length; i++) segments.push({ first: reader.get(), count: reader.get(), version: reader.get(), grant: reader.get(), content: reader.get() });
  return segments;
}

function readRuns(reader: Reader): VersionedRun[] {
  const length = reader.count(3);
  const runs: VersionedRun[] = [];
  for (let i = 0; i < length; i++) runs.push({ first: reader.get(), count: reader.get(), version: reader.get() });
  return runs;
}

function readJson(bytes: Uint8Array): Message {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString());
  } catch {
    throw new MalformedError('a body that is not JSON');
  }
  return checkCold(value);
}

class Writer {
  private static readonly small = Buffer.alloc(COPIED_BY_SEND);
  private static readonly smallView = new DataView(Writer.small.buffer, Writer.small.byteOffset, COPIED_BY_SEND);

  /** The small buffer is one for all: its frame must be sent before the next is written. */
  static take(words: number): Writer {
    const bytes = HEADER + words * 4;
    if (bytes <= COPIED_BY_SEND) return new Writer(Writer.small, Writer.smallView);
    const buffer = Buffer.allocUnsafeSlow(bytes);
    return new Writer(buffer, new DataView(buffer.buffer, 0, bytes));
  }

  private at = HEADER;

  private constructor(private readonly buffer: Buffer, readonly view: DataView) {}

  put(value: number): void {
    this.view.setUint32(this.at, value, true);
    this.at += 4;
  }

  get frame(): Uint8Array {
    return this.buffer.subarray(0, this.at);
  }
}

class Reader {
  private at = HEADER;

  constructor(private readonly view: DataView) {}

  get(): number {
    if (this.at + 4 > this.view.byteLength) throw new MalformedError('a message that ends too early');
    const value = this.view.getUint32(this.at, true);
    this.at += 4;
    return value;
  }

  /** A number of items of `words` words each, all of which must be here. */
  count(words: number): number {
    const count = this.get();
    if (count * words * 4 > this.view.byteLength - this.at) throw new MalformedError(`${count} items announced, and fewer are here`);
    return count;
  }

  last<M>(message: M): M {
    if (this.at !== this.view.byteLength) throw new MalformedError('a message that is longer than it says');
    return message;
  }
}
