/**
 * ZeroMQ sockets: one Router to receive from everybody, one Dealer to send to each peer. So every pair of members has
 * two connections, and each is FIFO. Nothing here knows what a message means.
 *
 * A Dealer never reconnects: what was under way when a connection broke may be gone, and the protocol lives from losing
 * nothing. A broken connection is reported, and the membership decides what it means.
 */
import { Dealer, Router } from 'zeromq';

export interface TransportCounters { messagesSent: number; messagesReceived: number; bytesSent: number; bytesReceived: number }

/** Sends frames back on the connection on which a message came. */
export type Answer = (frame: Uint8Array) => void;
/** frames are views on zeromq's memory: copy what outlives the call. */
export type Receiver = (frames: Uint8Array[], answer: Answer) => void;

/**
 * Unlimited queues: the protocol bounds what is under way by itself, and a full queue would make send() wait. With a
 * send time-out of 0, send() hands the message to zeromq's I/O thread before it returns, always.
 */
const common = { linger: 0, sendTimeout: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 } as const;

/** Many members may connect in one instant when a big cluster learns of a newcomer. */
const BACKLOG = 1024;

export interface TransportOptions {
  /**
   * ms after which a connection whose other end does not even answer zeromq's own heartbeats is broken. Longer than the
   * membership's own bound, because a process that was stopped for a moment must not lose its connections.
   */
  silence: number;
}

/** zeromq resolves such addresses only if it is told to. */
const isIPv6 = (endpoint: string): boolean => endpoint.startsWith('tcp://[');

/** A Router and the one loop that reads from it. */
export class Listener {
  private readonly router: Router;
  private readonly loop: Promise<void>;
  private closed = false;

  constructor(options: TransportOptions, private readonly counters: TransportCounters, receive: Receiver) {
    this.router = new Router({ ...common, ...heartbeats(options), mandatory: true, handover: true, backlog: BACKLOG });
    this.loop = reported(this.receiveAll(receive));
  }

  /** Returns the endpoint with a port in place of '*'. Throws zeromq's error (code EADDRINUSE, EADDRNOTAVAIL, …). */
  bind(endpoint: string): string {
    this.router.ipv6 = isIPv6(endpoint);
    this.router.bindSync(endpoint);
    return this.router.lastEndpoint ?? endpoint;
  }

  close(): Promise<void> {
    this.closed = true;
    this.router.close();
    return this.loop;
  }

  private async receiveAll(receive: Receiver): Promise<void> {
    for (;;) {
      let parts: Buffer[];
      try {
        parts = await this.router.receive();
      } catch (error) {
        if (mayGoOn(error) && !this.closed) continue;
        return;
      }
      if (this.closed) return;
      this.counters.messagesReceived++;
      for (let i = 1; i < parts.length; i++) this.counters.bytesReceived += parts[i].length;
      const [connection] = parts;
      receive(parts.slice(1), (frame) => {
        // The connection may be gone by now; then nobody is there to be told.
        if (!this.closed) this.router.send([connection, frame]).catch(ignore);
      });
    }
  }
}

export class Transport {
  readonly counters: TransportCounters = { messagesSent: 0, messagesReceived: 0, bytesSent: 0, bytesReceived: 0 };
  private readonly main: Listener;
  private readonly doors = new Set<Listener>();
  private readonly channels = new Set<Channel>();
  private closing: Promise<void> | null = null;

  constructor(private readonly options: TransportOptions, receive: Receiver) {
    this.main = new Listener(options, this.counters, receive);
  }

  /** As {@link Listener.bind}, for what is received by this member for good. */
  bind(endpoint: string): string {
    return this.main.bind(endpoint);
  }

  /**
   * Listens at an address that will be given up again, on a socket of its own: zeromq.js can't give up one address of a
   * socket without blocking the socket meanwhile. Throws as bind() does.
   */
  openDoor(endpoint: string, receive: Receiver): Listener {
    const door = new Listener(this.options, this.counters, receive);
    try {
      door.bind(endpoint);
    } catch (error) {
      void door.close();
      throw error;
    }
    this.doors.add(door);
    return door;
  }

  closeDoor(door: Listener): Promise<void> {
    this.doors.delete(door);
    return door.close();
  }

  /** broken is called once, at most, and not after close(). */
  connect(endpoint: string, events: { receive(frames: Uint8Array[]): void; broken(): void }): Channel {
    const channel = new Channel(endpoint, heartbeats(this.options), this.counters, events, () => this.channels.delete(channel));
    this.channels.add(channel);
    return channel;
  }

  /** Resolves when no receive is pending any more: a worker that ends with one takes the whole process down. */
  close(): Promise<void> {
    this.closing ??= Promise.all([this.main, ...this.doors, ...this.channels].map((part) => part.close())).then(ignore);
    return this.closing;
  }
}

export class Channel {
  private readonly dealer: Dealer;
  private readonly loops: Promise<void>[];
  private closing: Promise<void> | null = null;
  private isBroken = false;

  constructor(
    readonly endpoint: string,
    options: ReturnType<typeof heartbeats>,
    private readonly counters: TransportCounters,
    private readonly events: { receive(frames: Uint8Array[]): void; broken(): void },
    private readonly onClose: () => void,
  ) {
    this.dealer = new Dealer({ ...common, ...options, ipv6: isIPv6(endpoint), reconnectInterval: -1 });
    this.loops = [reported(this.receiveAll()), reported(this.observe())];
    try {
      this.dealer.connect(endpoint);
    } catch {
      // Not an endpoint at all. The caller hears of it as of any other that nobody answers at.
      this.isBroken = true;
      queueMicrotask(() => { if (this.closing === null) this.events.broken(); });
    }
  }

  get broken(): boolean {
    return this.isBroken;
  }

  /** In the same turn. The bytes must not change afterwards: above 128 of them zeromq reads them later. */
  send(frame: Uint8Array, payload?: Uint8Array): void {
    if (this.closing !== null || this.isBroken) return;
    this.counters.messagesSent++;
    this.counters.bytesSent += frame.byteLength + (payload?.byteLength ?? 0);
    this.dealer.send(payload === undefined ? frame : [frame, payload]).catch(ignore);
  }

  /** linger: ms for which zeromq still tries to deliver what was sent. */
  close(linger = 0): Promise<void> {
    if (this.closing !== null) return this.closing;
    this.closing = Promise.all(this.loops).then(this.onClose);
    if (linger > 0) this.dealer.linger = linger;
    // The socket before its observer, which ends by itself: zeromq's one I/O thread would wait for ever to report an
    // event to an observer that is gone, and with it every connection of this process.
    this.dealer.close();
    return this.closing;
  }

  private async receiveAll(): Promise<void> {
    for (;;) {
      let frames: Buffer[];
      try {
        frames = await this.dealer.receive();
      } catch (error) {
        if (mayGoOn(error) && this.closing === null) continue;
        return;
      }
      if (this.closing !== null) return;
      this.events.receive(frames);
    }
  }

  private async observe(): Promise<void> {
    // Held here until it has ended: zeromq.js lets go of it as soon as the socket is closed, and once it is garbage the
    // thread that closes sockets waits for ever to report the end to it.
    const observer = this.dealer.events;
    for (;;) {
      let type: string;
      try {
        ({ type } = await observer.receive());
      } catch (error) {
        if (mayGoOn(error) && this.closing === null) continue;
        return;
      }
      if (type === 'end') return;
      if (this.closing !== null) continue;
      // 'close': the first attempt to connect failed, and there is no second one.
      if (type === 'disconnect' || type === 'close' || type.startsWith('handshake:error')) {
        if (!this.isBroken) {
          this.isBroken = true;
          this.events.broken();
        }
      }
    }
  }
}

function heartbeats({ silence }: TransportOptions): { heartbeatInterval: number; heartbeatTimeout: number; heartbeatTimeToLive: number } {
  return { heartbeatInterval: Math.max(50, Math.floor(silence / 4)), heartbeatTimeout: silence * 2, heartbeatTimeToLive: silence * 2 };
}

/**
 * A message that zeromq has announced may be gone when it is fetched, because its connection was closed between: the
 * receive then fails with EAGAIN, and the socket is as good as before.
 */
function mayGoOn(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'EAGAIN';
}

/**
 * What a loop throws comes from whoever received the message: an assumption is broken, and the whole coordinator must hear
 * of it. But close() still waits for the other loops, because a thread that ends with a receive pending takes the process
 * down: so the loop itself does not fail.
 */
function reported(loop: Promise<void>): Promise<void> {
  return loop.catch((error: unknown) => {
    process.nextTick(() => { throw error; });
  });
}

function ignore(): void {}
