/**
 * Starting the processes of the example and talking with them: orders go down by Node's own IPC channel, answers come
 * back. The data never takes this way, only orders, answers and figures do.
 */
import { fork, type ChildProcess } from 'node:child_process';
import path from 'node:path';

type Order = { order: number; what: string; argument: unknown };
type Report =
  | { ready: true }
  | { order: number; value: unknown }
  | { order: number; error: string }
  | { event: string; value: unknown };

/** ms that a process gets to end by itself after its last order. */
const END_MS = 5000;

/** A process of the example, as main.ts sees it. */
export class Role {
  static readonly #all = new Set<Role>();

  readonly name: string;
  /** Rejects if the process ends before it was told to. */
  readonly ready: Promise<void>;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  readonly #events = new Map<string, (value: never) => void>();
  readonly #ended: Promise<void>;
  #orders = 0;
  #why: Error | undefined;

  constructor(name: string, script: string, args: string[]) {
    this.name = name;
    const child = (this.#child = fork(path.join(__dirname, script), args, { serialization: 'advanced', stdio: ['ignore', 2, 2, 'ipc'] }));
    Role.#all.add(this);
    this.ready = new Promise((resolve, reject) => {
      this.#waiting.set(0, { resolve, reject });
      child.on('message', (report: Report) => this.#received(report));
      child.on('error', (error) => this.#fail(error));
    });
    // Somebody may be interested only later.
    this.ready.catch(() => undefined);
    this.#ended = new Promise((resolve) => {
      child.on('exit', (code, signal) => {
        Role.#all.delete(this);
        this.#fail(new Error(`${name} (pid ${child.pid}) ended early: ${signal ?? `exit code ${code}`}`));
        resolve();
      });
    });
  }

  get pid(): number { return this.#child.pid ?? 0; }

  #fail(error: Error): void {
    this.#why ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#why);
    this.#waiting.clear();
  }

  #received(report: Report): void {
    if ('event' in report) {
      this.#events.get(report.event)?.(report.value as never);
      return;
    }
    const order = 'ready' in report ? 0 : report.order;
    const waiting = this.#waiting.get(order);
    this.#waiting.delete(order);
    if ('error' in report) waiting?.reject(new Error(`${this.name}: ${report.error}`));
    else waiting?.resolve(('ready' in report ? undefined : report.value) as never);
  }

  /** Calls back each time that the process reports this event. */
  on<V>(event: string, listener: (value: V) => void): void {
    this.#events.set(event, listener);
  }

  order<V>(what: string, argument?: unknown): Promise<V> {
    return new Promise((resolve, reject) => {
      if (this.#why) {
        reject(this.#why);
        return;
      }
      const order = ++this.#orders;
      this.#waiting.set(order, { resolve, reject });
      this.#child.send({ order, what, argument } satisfies Order, (error) => { if (error) this.#fail(error); });
    });
  }

  /** Orders it to close, and waits until the process is gone. */
  async close(): Promise<void> {
    await this.order('close');
    const late = setTimeout(() => this.kill(), END_MS);
    await this.#ended;
    clearTimeout(late);
  }

  /** SIGKILL: nothing in that process runs any more. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended;
  }

  /** The end of whatever is still there. */
  static killAll(): void {
    for (const role of Role.#all) role.#child.kill('SIGKILL');
  }
}

export function emit(event: string, value?: unknown): void {
  process.send?.({ event, value } satisfies Report);
}

/**
 * The other side: says that this process is ready, and does what it is told, one order after the other, until `close`.
 * A process whose parent is gone ends at once.
 */
export async function serveOrders(orders: { close: () => Promise<void> } & Record<string, (argument: never) => Promise<unknown>>): Promise<void> {
  process.on('disconnect', () => process.exit(1));
  await new Promise<void>((resolve) => {
    let queue = Promise.resolve();
    process.on('message', ({ order, what, argument }: Order) => {
      queue = queue.then(async () => {
        try {
          const value = await orders[what](argument as never);
          process.send?.({ order, value } satisfies Report);
        } catch (error) {
          process.send?.({ order, error: (error as Error).stack ?? String(error) } satisfies Report);
        }
        if (what === 'close') resolve();
      });
    });
    process.send?.({ ready: true } satisfies Report);
  });
  process.removeAllListeners('disconnect');
  process.disconnect();
}
