/**
 * Pages that the program asks for before it touches them: prefetches, which end when every page has been here once,
 * and pins, which end with every page here at the same time. All pages of a pin are asked for together, but it takes hold
 * of them one by one in address order, each as soon as it is here: so two pins can't each hold what the other waits for,
 * and one of them always gets on. If it still takes too long it lets go and starts again.
 */
import { Claim, type RegionMemory, type Timer, type Timers } from './ports.js';
import type { Loss } from './home.js';

export interface Run { first: number; count: number }

export interface WantResult { done(): void; failed(page: number, loss: Loss): void }

/** Pages of one want that are asked for at a time: enough to keep a link busy, few enough not to flood a home. */
const WINDOW = 256;
/** Pages claimed by one call. */
const STEP = 64;
/** µs that a pin may hold some of its pages while it waits for others. */
const PATIENCE = 1_000_000;
/** µs before a pin looks again at pages that are held, but not open: the member is frozen, or has no mapping left. */
const LOOK_AGAIN = 1_000;
/** µs before a pin that let go tries again, for each unit of the member's id: two that collide must differ. */
const BACK_OFF = 2_000;

interface Want {
  runs: Run[];
  access: number;
  /** The next page to claim: index of its run, offset in it. */
  run: number;
  next: number;
  open: Set<number>;
  result: WantResult;
  ended: boolean;
  pin: Pin | null;
}

interface Pin {
  /** Pinned is everything before this page: index of its run, offset in it. */
  run: number;
  offset: number;
  /** When it took hold of the first one. */
  since: number;
  timer: Timer | null;
  /** Nothing was waited for since a page was found that is held but can't be pinned. */
  inVain: boolean;
}

export class Wants {
  private readonly byPage = new Map<number, Want[]>();
  private readonly all = new Set<Want>();

  constructor(
    private readonly memory: RegionMemory,
    private readonly timers: Timers,
    private readonly self: number,
    private readonly claim: (page: number, access: number) => number,
    private readonly lossOf: (page: number) => Loss,
    /** Sends what this turn asked, for calls from timers. */
    private readonly flush: () => void,
  ) {}

  /** Returns a function that withdraws it. */
  prefetch(runs: Run[], access: number, result: WantResult): () => void {
    return this.begin(runs, access, result, null);
  }

  /** runs: sorted, disjoint. When done() is called all of them are pinned; the caller unpins. */
  pin(runs: Run[], access: number, result: WantResult): () => void {
    return this.begin(runs, access, result, { run: 0, offset: 0, since: 0, timer: null, inVain: false });
  }

  /** Something happened to this page. */
  settled(page: number, loss?: Loss): void {
    const wants = this.byPage.get(page);
    if (wants === undefined) return;
    this.byPage.delete(page);
    for (const want of wants) {
      want.open.delete(page);
      if (want.ended) continue;
      if (loss !== undefined) this.fail(want, page, loss);
      else {
        this.take(want, page);
        if (!want.ended && want.pin !== null) this.hold(want);
        this.pump(want);
      }
    }
  }

  /** Everything that is not done yet fails through `failed`'s caller instead: the region goes down here. */
  clear(): void {
    for (const want of this.all) {
      want.ended = true;
      this.letGo(want);
    }
    this.all.clear();
    this.byPage.clear();
  }

  private begin(runs: Run[], access: number, result: WantResult, pin: Pin | null): () => void {
    const want: Want = { runs, access, run: 0, next: 0, open: new Set(), result, ended: false, pin };
    this.all.add(want);
    // What is here already need not be claimed.
    if (pin !== null) {
      this.hold(want);
      this.fromPinned(want, pin);
    }
    this.pump(want);
    return () => this.end(want);
  }

  private pump(want: Want): void {
    while (!want.ended && want.run < want.runs.length && want.open.size < WINDOW) {
      const run = want.runs[want.run];
      const stop = Math.min(run.count, want.next + STEP);
      // claim() may settle pages on the way, and so come back here: take the pages before claiming them.
      const first = run.first + want.next;
      const last = run.first + stop;
      want.next = stop;
      if (stop === run.count) {
        want.run++;
        want.next = 0;
      }
      for (let page = first; page < last && !want.ended; page++) this.take(want, page);
    }
    if (!want.ended && want.open.size === 0 && want.run === want.runs.length) this.complete(want);
  }

  private take(want: Want, page: number): void {
    want.open.add(page);
    const state = this.claim(page, want.access);
    if (state === Claim.Held) {
      want.open.delete(page);
      return;
    }
    if (state === Claim.Lost) {
      want.open.delete(page);
      this.fail(want, page, this.lossOf(page));
      return;
    }
    if (want.pin !== null) want.pin.inVain = false;
    const wants = this.byPage.get(page);
    if (wants === undefined) this.byPage.set(page, [want]);
    else if (!wants.includes(want)) wants.push(want);
  }

  /** Every page has been here; a pin now takes hold of them in order, and asks again for those that went away. */
  private complete(want: Want): void {
    if (want.pin === null) {
      this.end(want);
      want.result.done();
      return;
    }
    const { pin } = want;
    if (this.hold(want)) {
      this.all.delete(want);
      want.ended = true;
      want.result.done();
    } else if (holdsAny(pin) && this.timers.now() - pin.since > PATIENCE) {
      this.letGo(want);
      this.againAfter(want, pin, BACK_OFF * (1 + (this.self % 8)));
    } else if (pin.inVain) {
      this.againAfter(want, pin, LOOK_AGAIN);
    } else {
      pin.inVain = true;
      this.again(want);
    }
  }

  /** Pins the pages that are here, up to the first one that is not. true: all of them. */
  private hold(want: Want): boolean {
    const pin = want.pin!;
    for (; pin.run < want.runs.length; pin.run++, pin.offset = 0) {
      const { first, count } = want.runs[pin.run];
      const before = holdsAny(pin);
      // Usually all of a run is here.
      if (pin.offset === 0 && this.memory.pin(first, count, want.access)) pin.offset = count;
      while (pin.offset < count && this.memory.pin(first + pin.offset, 1, want.access)) pin.offset++;
      if (!before && holdsAny(pin)) pin.since = this.timers.now();
      if (pin.offset < count) return false;
    }
    return true;
  }

  private againAfter(want: Want, pin: Pin, delay: number): void {
    pin.timer = this.timers.after(delay, () => {
      pin.timer = null;
      pin.inVain = false;
      this.again(want);
      this.flush();
    });
  }

  /** Asks anew for what is not pinned yet. */
  private again(want: Want): void {
    if (want.ended) return;
    this.fromPinned(want, want.pin!);
    this.pump(want);
  }

  private fromPinned(want: Want, { run, offset }: Pin): void {
    want.run = run;
    want.next = offset;
  }

  private fail(want: Want, page: number, loss: Loss): void {
    this.end(want);
    want.result.failed(page, loss);
  }

  private end(want: Want): void {
    if (want.ended) return;
    want.ended = true;
    this.all.delete(want);
    this.letGo(want);
  }

  private letGo(want: Want): void {
    if (want.pin === null) return;
    const { pin } = want;
    pin.timer?.cancel();
    want.runs.slice(0, pin.run + 1).forEach(({ first, count }, index) => {
      const held = index < pin.run ? count : pin.offset;
      if (held > 0) this.memory.unpin(first, held, want.access);
    });
    pin.run = 0;
    pin.offset = 0;
  }
}

function holdsAny({ run, offset }: Pin): boolean {
  return run > 0 || offset > 0;
}

/** Sorted, disjoint runs of at most `longest` pages that cover the given ones: what a pin takes hold of at a time. */
export function normaliseRuns(runs: Run[], longest = STEP): Run[] {
  const sorted = [...runs].filter((run) => run.count > 0).sort((a, b) => a.first - b.first);
  const merged: Run[] = [];
  for (const run of sorted) {
    const last = merged[merged.length - 1];
    if (last !== undefined && run.first <= last.first + last.count) last.count = Math.max(last.count, run.first + run.count - last.first);
    else merged.push({ ...run });
  }
  return merged.flatMap((run) => {
    const parts: Run[] = [];
    for (let done = 0; done < run.count; done += longest) parts.push({ first: run.first + done, count: Math.min(longest, run.count - done) });
    return parts;
  });
}

