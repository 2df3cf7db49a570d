/**
 * The threads of this process that use this member: their channels, what each of them holds, and their requests on the
 * way. What a request means is service.ts's business.
 */
import { BroadcastChannel } from 'node:worker_threads';
import { DIRECT, toClient, toCoordinator, type Answer, type Cancel, type Notice, type Request } from '../calls.js';
import { makeError, toWire } from '../errors.js';
import { native } from '../native.js';
import type { Direct } from './protocol/registry.js';
import { Cancellation } from './cancellation.js';

export interface Client {
  readonly id: number;
  /** Pins, by their number. */
  readonly pins: Set<number>;
  /** Regions that it has open: id -> how often. */
  readonly regions: Map<number, number>;
  readonly requests: Map<number, Cancellation>;
  readonly channel: BroadcastChannel;
  /** It has sent 'detach': it counts no more. */
  closing: boolean;
}

/** A direct call (direct.ts) of a thread of this process; answer(null): not here, not now. */
export type DirectHandler = (text: string, answer: Direct) => void;
export type Handler = (client: Client, request: Request, signal: Cancellation) => Promise<unknown> | unknown;

export class Clients {
  private readonly clients = new Map<number, Client>();
  /** Threads that ended without a word. Their numbers never come again. */
  private readonly ended = new Set<number>();
  private readonly incoming: BroadcastChannel;
  private over: unknown = null;

  constructor(private readonly key: string, private readonly member: number, private readonly handle: Handler, private readonly direct: DirectHandler) {
    this.incoming = new BroadcastChannel(toCoordinator(key));
    this.incoming.onmessage = (event): void => this.receive((event as { data: Request | Cancel }).data);
  }

  get size(): number {
    return this.clients.size;
  }

  get(id: number): Client | undefined {
    return this.clients.get(id);
  }

  /** This thread has ended. What it sent before may arrive after this news, and must not bring it back. */
  threadEnded(id: number): Client | undefined {
    this.ended.add(id);
    return this.clients.get(id);
  }

  all(): Client[] {
    return [...this.clients.values()];
  }

  notify(notice: Notice): void {
    for (const client of this.clients.values()) client.channel.postMessage(notice);
  }

  /** From now on every request, also those on the way, fails with this. */
  fail(error: unknown): void {
    this.over = error;
    for (const client of this.clients.values()) for (const controller of client.requests.values()) controller.abort(error);
  }

  remove(client: Client): void {
    if (!this.clients.delete(client.id)) return;
    for (const controller of client.requests.values()) controller.abort(makeError('ERR_FAULTLINE_CLOSED', 'this handle was closed'));
    client.channel.close();
  }

  close(): void {
    for (const client of this.clients.values()) client.channel.close();
    this.clients.clear();
    this.incoming.close();
  }

  /** A blocking call, which came by way of the ring; null: nobody waits for it any more. */
  call(slot: number, text: string | null): void {
    if (text === null) return;
    if (text.startsWith(DIRECT)) this.direct(text.slice(DIRECT.length), (reply) => native.slotComplete(this.member, slot, JSON.stringify(reply)));
    else this.receive({ ...(JSON.parse(text) as Request), slot });
  }

  private receive(message: Request | Cancel): void {
    if ('cancel' in message) {
      this.clients.get(message.client)?.requests.get(message.cancel)?.abort(makeError('ERR_FAULTLINE_CLOSED', 'the request was withdrawn'));
      return;
    }
    if (this.ended.has(message.client)) return;
    let client = this.clients.get(message.client);
    if (client === undefined) {
      client = { id: message.client, pins: new Set(), regions: new Map(), requests: new Map(), closing: false, channel: new BroadcastChannel(toClient(this.key, message.client)) };
      this.clients.set(client.id, client);
    }
    void this.answer(client, message);
  }

  private async answer(client: Client, request: Request): Promise<void> {
    const signal = new Cancellation();
    client.requests.set(request.id, signal);
    let answer: Answer;
    try {
      if (this.over !== null) throw this.over;
      answer = { id: request.id, value: (await this.handle(client, request, signal)) ?? null };
    } catch (error) {
      // What ended the coordinator says more than what that led to.
      answer = { id: request.id, error: toWire(this.over ?? error) };
    }
    client.requests.delete(request.id);
    if (request.slot !== undefined) native.slotComplete(this.member, request.slot, JSON.stringify(answer));
    // Whoever has gone meanwhile hears nothing any more: the channel is closed.
    else if (this.clients.get(client.id) === client) client.channel.postMessage(answer);
    if (request.op === 'detach') this.remove(client);
  }
}
