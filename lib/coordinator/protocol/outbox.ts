/**
 * What one turn has to say to the others, gathered so that neighbouring pages travel in one message. A page is merged
 * only into the message that was added last for its receiver, so the order of sending stays the order of deciding.
 */
import type { MemberId, Segment, VersionedRun } from './messages.js';
import { Content, Held, type Network, type RegionMemory } from './ports.js';

type RunsMessage =
  | { type: 'invalidate'; runs: VersionedRun[]; generation: number; requester: MemberId }
  | { type: 'recall'; runs: VersionedRun[]; generation: number; requester: MemberId; keep: boolean; wantBytes: boolean }
  | { type: 'invalidated' | 'returned'; runs: VersionedRun[]; generation: number };
type DataMessage = { type: 'data'; segments: Segment[]; generation: number; claim: number };
type Pending = RunsMessage | DataMessage;

/** Longest stretch of pages in one message, bytes: bounds the memory that one answer takes. */
const LONGEST_PAYLOAD = 4 << 20;

export class Outbox {
  private readonly queues = new Map<MemberId, Pending[]>();

  constructor(
    private readonly region: number,
    private readonly memory: RegionMemory,
    private readonly network: Network,
    /** Pages and bytes that left this member. */
    readonly onPages: (pages: number, bytes: number) => void,
  ) {}

  /** content is Same, or Bytes: whether a page is all zero is seen when it is read. */
  data(to: MemberId, generation: number, claim: number, page: number, version: number, grant: number, content: number): void {
    const last = this.last(to);
    const open = last?.type === 'data' && last.generation === generation && last.claim === claim ? last : undefined;
    const message = open ?? this.push(to, { type: 'data', segments: [], generation, claim });
    const segment = message.segments[message.segments.length - 1];
    if (segment !== undefined && segment.first + segment.count === page && segment.version === version && segment.grant === grant && segment.content === content) segment.count++;
    else message.segments.push({ first: page, count: 1, version, grant, content });
  }

  invalidate(to: MemberId, generation: number, page: number, version: number, requester: MemberId): void {
    const last = this.last(to);
    const open = last?.type === 'invalidate' && last.generation === generation && last.requester === requester ? last : undefined;
    this.run(open ?? this.push(to, { type: 'invalidate', runs: [], generation, requester }), page, 1, version);
  }

  recall(to: MemberId, generation: number, page: number, version: number, requester: MemberId, keep: boolean, wantBytes: boolean): void {
    const last = this.last(to);
    const open = last?.type === 'recall' && last.generation === generation && last.requester === requester && last.keep === keep && last.wantBytes === wantBytes ? last : undefined;
    this.run(open ?? this.push(to, { type: 'recall', runs: [], generation, requester, keep, wantBytes }), page, 1, version);
  }

  acknowledge(type: 'invalidated' | 'returned', to: MemberId, generation: number, first: number, count: number, version: number): void {
    const last = this.last(to);
    const open = last?.type === type && last.generation === generation ? last : undefined;
    this.run(open ?? this.push(to, { type, runs: [], generation }), first, count, version);
  }

  /** Sends everything. Bytes are read here: nothing can have changed them since the decision, in the same turn. */
  flush(): void {
    for (const [to, messages] of this.queues) {
      if (messages.length === 0) continue;
      this.queues.set(to, []);
      for (const message of messages) {
        if (message.type === 'data') this.sendData(to, message);
        else this.network.send(to, { ...message, region: this.region });
      }
    }
  }

  private sendData(to: MemberId, message: DataMessage): void {
    const { pageSize } = this.memory;
    const most = Math.max(1, Math.floor(LONGEST_PAYLOAD / pageSize));
    let segments: Segment[] = [];
    let pages = 0;
    const send = (): void => {
      if (segments.length > 0) this.sendSegments(to, message, segments, pages);
      segments = [];
      pages = 0;
    };
    for (const segment of message.segments) {
      if (segment.content !== Content.Bytes || segment.grant === Held.Lost) {
        segments.push(segment);
        continue;
      }
      for (let done = 0; done < segment.count; ) {
        const count = Math.min(segment.count - done, most - pages);
        segments.push({ ...segment, first: segment.first + done, count });
        pages += count;
        done += count;
        if (pages === most) send();
      }
    }
    send();
  }

  private sendSegments(to: MemberId, { generation, claim }: DataMessage, wanted: Segment[], pages: number): void {
    const { pageSize } = this.memory;
    const segments: Segment[] = [];
    const payload = this.memory.allocate(pages * pageSize);
    let used = 0;
    let answered = 0;
    for (const segment of wanted) {
      if (segment.grant !== Held.Lost) answered += segment.count;
      if (segment.content !== Content.Bytes || segment.grant === Held.Lost) {
        segments.push(segment);
        continue;
      }
      used = appendBytes(this.memory, segment, payload, used, segments);
    }
    this.onPages(answered, used);
    this.network.send(to, { type: 'data', region: this.region, generation, claim, segments }, used > 0 ? payload.subarray(0, used) : undefined);
  }

  private run(message: RunsMessage, first: number, count: number, version: number): void {
    const last = message.runs[message.runs.length - 1];
    if (last !== undefined && last.first + last.count === first && last.version === version) last.count += count;
    else message.runs.push({ first, count, version });
  }

  private last(to: MemberId): Pending | undefined {
    const queue = this.queues.get(to);
    return queue?.[queue.length - 1];
  }

  private push<M extends Pending>(to: MemberId, message: M): M {
    const queue = this.queues.get(to);
    if (queue === undefined) this.queues.set(to, [message]);
    else queue.push(message);
    return message;
  }
}

/** Reads a run's bytes into payload at `used`, leaving zero pages out, and appends the segments that describe it. Returns the new `used`. */
export function appendBytes(memory: RegionMemory, run: Segment, payload: Uint8Array, used: number, segments: Segment[]): number {
  const { pageSize } = memory;
  const zero = new Uint8Array(run.count);
  // readPages puts page i at its own place; with zero pages between, the stretches of others are moved together.
  memory.readPages(run.first, run.count, payload, used, zero);
  const base = used;
  for (let start = 0; start < run.count; ) {
    let end = start + 1;
    while (end < run.count && zero[end] === zero[start]) end++;
    const count = end - start;
    if (zero[start] === 0) {
      const from = base + start * pageSize;
      if (from !== used) payload.copyWithin(used, from, from + count * pageSize);
      used += count * pageSize;
    }
    segments.push({ ...run, first: run.first + start, count, content: zero[start] === 0 ? Content.Bytes : Content.Zero });
    start = end;
  }
  return used;
}
