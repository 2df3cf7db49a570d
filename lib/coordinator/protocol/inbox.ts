/**
 * What arrives from the others, in the order in which it may count: a message from a state that this member has not heard
 * of yet waits for it, and with it everything that its sender sent later. So a join or a death elsewhere loses nothing.
 */
import type { Envelope, MemberId } from './messages.js';

interface Item<Extra> { envelope: Envelope; extra: Extra }

/** Messages that may wait for a state in which their sender is a member: more come from nobody who is one. */
const MOST_EARLY = 1 << 16;

export class Inbox<Extra = undefined> {
  /** Of the agreed state that this member has. */
  private version = 0;
  private readonly early = new Map<MemberId, Item<Extra>[]>();
  private count = 0;

  constructor(private readonly isMember: (id: MemberId) => boolean, private readonly deliver: (envelope: Envelope, extra: Extra) => void) {}

  /** false: thrown away, because too much waits already. */
  accept(envelope: Envelope, extra: Extra): boolean {
    const waiting = this.early.get(envelope.from);
    if (waiting === undefined && envelope.state <= this.version) {
      this.deliver(envelope, extra);
      return true;
    }
    if (!this.isMember(envelope.from) && this.count >= MOST_EARLY) return false;
    this.count++;
    if (waiting !== undefined) waiting.push({ envelope, extra });
    else this.early.set(envelope.from, [{ envelope, extra }]);
    return true;
  }

  /** This member has that state now: delivers what waited for it, in order for each sender. */
  advance(version: number): void {
    this.version = version;
    for (const [from, waiting] of [...this.early]) {
      const due = waiting.findIndex(({ envelope }) => envelope.state > version);
      const ready = waiting.splice(0, due < 0 ? waiting.length : due);
      this.count -= ready.length;
      if (waiting.length === 0) this.early.delete(from);
      for (const { envelope, extra } of ready) this.deliver(envelope, extra);
    }
  }
}
