/** The protocol's Timers on this worker's event loop. */
import { native } from '../native.js';
import type { Timer, Timers } from './protocol/ports.js';

/** µs below which a delay is waited for turn by turn: setTimeout() counts in whole milliseconds. */
const SHORT = 2_000;

export class LoopTimers implements Timers {
  /** Called after each callback, to send what it decided. */
  constructor(private readonly turn: () => void) {}

  now(): number {
    return native.now();
  }

  after(delay: number, callback: () => void): Timer {
    let cancelled = false;
    const run = (): void => {
      if (cancelled) return;
      cancelled = true;
      callback();
      this.turn();
    };
    if (delay > SHORT) {
      const timeout = setTimeout(run, Math.ceil(delay / 1000));
      return { cancel: () => { cancelled = true; clearTimeout(timeout); } };
    }
    const due = native.now() + delay;
    const look = (): void => {
      if (cancelled) return;
      if (native.now() >= due) run();
      else setImmediate(look);
    };
    setImmediate(look);
    return { cancel: () => { cancelled = true; } };
  }
}
