/**
 * The memory budget of a member (the option memoryLimit): what its regions take, all together, is kept below a limit by
 * taking away what it has of pages that are homed elsewhere. Which pages go first decides a clock, region by region (see
 * RegionProtocol.reclaim). What this member is the home of counts, but stays.
 */
import { native } from '../native.js';
import type { RegionProtocol } from './protocol/region.js';

/** Bytes that are kept free for what comes while the coordinator makes room: a part of the limit, within these bounds. */
const SLACK_PART = 1 / 16;
const LEAST_SLACK = 256 << 10;
const MOST_SLACK = 16 << 20;
/** Bytes that one step of the hand takes away; and ms of steps in one turn of the event loop, because others wait for it. */
const STEP = 1 << 20;
const TURN = 1;
/** Rounds of the hands after which nothing more is to be had: one closes, one drops, and one for what was in use meanwhile. */
const ROUNDS = 3;
/** ms until it looks again when owned pages are on their way home. */
const SHED_AGAIN = 5;
/** ms after a death in which nothing is taken away: a copy may be the last one that a new home can get. */
const MOURNING = 2_000;

interface Part { handle: number; protocol: RegionProtocol; rounds: number }

export class Budget {
  private readonly slack: number;
  private running = false;
  private timer: NodeJS.Timeout | null = null;
  private quietUntil = 0;
  private ended = false;

  /** limit: bytes. */
  constructor(
    private readonly member: number,
    private readonly limit: number,
    private readonly regions: () => { handle: number; protocol: RegionProtocol }[],
    private readonly flush: () => void,
  ) {
    this.slack = Math.min(limit / 2, MOST_SLACK, Math.max(LEAST_SLACK, limit * SLACK_PART));
    this.allow(limit);
  }

  /** Threads say that memory is short; or it is time to look. */
  look(): void {
    if (this.running || this.ended) return;
    if (this.measure() > this.slack / 2) return;
    if (performance.now() < this.quietUntil) return this.allow(this.slack);
    this.running = true;
    this.turn(this.regions().map(({ handle, protocol }) => ({ handle, protocol, rounds: 0 })));
  }

  /** Somebody has died. */
  memberDied(): void {
    this.quietUntil = performance.now() + MOURNING;
  }

  /** The member leaves, or stops. */
  end(): void {
    if (this.ended) return;
    this.ended = true;
    if (this.timer !== null) clearTimeout(this.timer);
    // Nobody makes room any more, and nobody is to wait for it.
    this.allow(Number.MAX_SAFE_INTEGER);
  }

  /** Bytes that are left; those who wait for them go on. */
  private measure(): number {
    let used = 0;
    for (const { handle } of this.regions()) used += native.regionMemory(handle);
    const left = Math.floor(this.limit - used);
    this.allow(left);
    return left;
  }

  private allow(left: number): void {
    native.setMemory(this.member, Math.floor(left), Math.floor(this.slack / 2));
  }

  private turn(parts: Part[]): void {
    if (this.ended) return;
    const until = performance.now() + TURN;
    do {
      // The one whose hand has come least far.
      const part = parts.reduce<Part | null>((least, other) => (least === null || other.rounds < least.rounds ? other : least), null);
      if (part === null || part.rounds === ROUNDS) return this.giveUp(parts);
      const { protocol } = part;
      if (protocol.reclaim(Math.max(1, Math.floor(STEP / protocol.info.pageSize)))) part.rounds++;
      if (this.measure() >= this.slack) {
        this.running = false;
        return this.flush();
      }
    } while (performance.now() < until);
    this.flush();
    // A region may be destroyed meanwhile.
    setImmediate(() => {
      const known = this.regions();
      this.turn(parts.filter(({ handle }) => known.some((other) => other.handle === handle)));
    });
  }

  /** What is left is this member's as a home, pinned, or in use: nobody is kept waiting for it. */
  private giveUp(parts: Part[]): void {
    this.running = false;
    this.flush();
    if (this.measure() < this.slack / 2) this.allow(this.slack);
    if (this.timer !== null || !parts.some(({ protocol }) => protocol.sheds)) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.look();
    }, SHED_AGAIN);
  }
}
