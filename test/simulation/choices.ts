/**
 * Every decision of a run: drawn from a seed, or replayed. What was drawn is kept, so that a run is a list of small
 * numbers, and a shorter or smaller list is a simpler run. 0 is always the simplest choice.
 */
const RANGE = 1 << 16;

export class Choices {
  readonly taken: number[] = [];
  private state: number;

  /** replay: what to choose; after its end everything is 0. */
  constructor(seed: number, private readonly replay?: readonly number[]) {
    this.state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bf03635) >>> 0;
  }

  private draw(): number {
    const at = this.taken.length;
    let value: number;
    if (this.replay !== undefined) {
      value = at < this.replay.length ? this.replay[at] : 0;
    } else {
      // mulberry32, by Tommy Ettinger: one word of state, good enough to choose schedules.
      this.state = (this.state + 0x6d2b79f5) >>> 0;
      let mixed = this.state;
      mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      value = ((mixed ^ (mixed >>> 14)) >>> 0) % RANGE;
    }
    this.taken.push(value);
    return value;
  }

  /** 0 to count - 1. */
  below(count: number): number {
    return count <= 1 ? 0 : Math.floor((this.draw() * count) / RANGE);
  }

  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  chance(probability: number): boolean {
    if (probability <= 0) return false;
    return this.draw() >= (1 - probability) * RANGE;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)];
  }

  /** Small far more often than large: each doubling is half as likely. */
  skewed(most: number): number {
    return this.below(1 + this.below(most + 1));
  }
}
