/** Calls to the registrar that have no answer yet. They outlive a change of the registrar: the next one is asked again. */
import { fromWire } from '../../errors.js';
import type { Cancellation } from '../cancellation.js';
import type { CallMessage, ReplyMessage } from '../protocol/messages.js';

interface Open { message: CallMessage; resolve(value: unknown): void; reject(error: unknown): void; release(): void }

export class PendingCalls {
  private readonly open = new Map<number, Open>();
  private lastId = 0;

  constructor(private readonly send: (message: CallMessage) => void) {}

  /** Ids are negative, because questions to homes are answered by the same type of message and count upwards from 1. */
  static owns(reply: ReplyMessage): boolean {
    return reply.id < 0;
  }

  /** id: of a call that was begun in another way. */
  call(op: string, args: unknown, signal?: Cancellation, id = --this.lastId): Promise<unknown> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const message: CallMessage = { type: 'call', id, op, args };
      const abort = (): void => {
        this.take(message.id);
        reject(signal!.reason);
        // Whatever it was waiting for, or has been given meanwhile, is withdrawn.
        this.call('call-cancel', { call: message.id }).catch(() => undefined);
      };
      signal?.onAbort(abort);
      this.open.set(message.id, { message, resolve, reject, release: () => signal?.offAbort(abort) });
      this.send(message);
    });
  }

  answer(reply: ReplyMessage): void {
    const call = this.take(reply.id);
    if (reply.error !== undefined) call?.reject(fromWire(reply.error));
    else call?.resolve(reply.value ?? null);
  }

  again(): void {
    for (const { message } of this.open.values()) this.send(message);
  }

  fail(error: Error): void {
    for (const id of [...this.open.keys()]) this.take(id)?.reject(error);
  }

  private take(id: number): Open | undefined {
    const call = this.open.get(id);
    this.open.delete(id);
    call?.release();
    return call;
  }
}
