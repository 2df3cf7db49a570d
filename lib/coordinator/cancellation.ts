/**
 * Whether a request of a thread is still wanted. It does what an AbortController and its signal do, without an Event and a
 * prototype of its own for each: requests come by the thousand, and few are withdrawn (docs/optimisations.md).
 */
export class Cancellation {
  reason: unknown;
  private isAborted = false;
  private listeners: (() => void)[] = [];

  get aborted(): boolean {
    return this.isAborted;
  }

  throwIfAborted(): void {
    if (this.isAborted) throw this.reason;
  }

  /** The first reason counts; listeners run once, now. */
  abort(reason: unknown): void {
    if (this.isAborted) return;
    this.isAborted = true;
    this.reason = reason;
    const { listeners } = this;
    this.listeners = [];
    for (const listener of listeners) listener();
  }

  onAbort(listener: () => void): void {
    this.listeners.push(listener);
  }

  offAbort(listener: () => void): void {
    const at = this.listeners.indexOf(listener);
    if (at >= 0) this.listeners.splice(at, 1);
  }
}
