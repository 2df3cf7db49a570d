/** Addresses, network namespaces and sockets of strangers, for tests of who may come in and what happens to the rest. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import { Dealer, Router } from 'zeromq';

/** A loopback port that nobody listens at. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** What newcomers and registrars say begins like this, in every version for all time. */
const JOIN_PREFIX = 'faultline:join\n';

export interface JoinReply { kind: string; reason?: string; message?: string; endpoint?: string; id?: number }

/** Says something to whoever listens at a zeromq endpoint, as a process that is no member; closes with the test's end. */
export class Stranger {
  readonly #dealer = new Dealer({ linger: 0, receiveTimeout: 5000 });

  constructor(endpoint: string) {
    this.#dealer.connect(endpoint);
  }

  async say(...frames: (Uint8Array | string)[]): Promise<void> {
    await this.#dealer.send(frames as (Buffer | string)[]);
  }

  async sayJoin(message: object): Promise<void> {
    await this.say(JOIN_PREFIX + JSON.stringify(message));
  }

  /** The next answer; rejects after 5 s. */
  async hear(): Promise<JoinReply> {
    const [frame] = await this.#dealer.receive();
    return parseJoin(frame);
  }

  close(): void {
    this.#dealer.close();
  }
}

function parseJoin(frame: Buffer): JoinReply {
  const text = frame.toString();
  if (!text.startsWith(JOIN_PREFIX)) throw new Error(`not a join message: ${JSON.stringify(text.slice(0, 80))}`);
  return JSON.parse(text.slice(JOIN_PREFIX.length)) as JoinReply;
}

/** Serves an address as a faultline process of another kind would: answers every hello with the same message. */
export class StrangeServer {
  readonly #router = new Router({ linger: 0 });
  readonly #loop: Promise<void>;
  readonly heard: { protocol?: { major: number; minor: number }; arch?: string }[] = [];

  private constructor(answer: object) {
    this.#loop = this.#serve(answer);
  }

  static async listen(endpoint: string, answer: object): Promise<StrangeServer> {
    const server = new StrangeServer(answer);
    await server.#router.bind(endpoint);
    return server;
  }

  async #serve(answer: object): Promise<void> {
    for (;;) {
      try {
        const [from, frame] = await this.#router.receive();
        this.heard.push(parseJoin(frame) as never);
        await this.#router.send([from, JOIN_PREFIX + JSON.stringify(answer)]);
      } catch {
        if (this.#router.closed) return;
      }
    }
  }

  async close(): Promise<void> {
    this.#router.close();
    await this.#loop;
  }
}

/** What a process of this protocol says first; change a field to be somebody else. */
export function helloOf(changed: object = {}): object {
  return { kind: 'hello', protocol: { major: 1, minor: 0 }, arch: process.arch, endianness: 'LE', version: '0.0.0', name: 'stranger', pid: process.pid, ...changed };
}

/** Two network namespaces with one link between them, and nothing else. */
export interface Namespaces { names: [string, string]; addresses: [string, string]; remove(): void }

/** @returns why it can't be done here, as text, if it can't */
export function makeNamespaces(): Namespaces | string {
  if (process.getuid!() !== 0) return 'network namespaces need root';
  const id = randomBytes(3).toString('hex');
  const names: [string, string] = [`flt-${id}-a`, `flt-${id}-b`];
  const addresses: [string, string] = ['10.213.77.1', '10.213.77.2'];
  const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });
  const remove = (): void => {
    for (const name of names) {
      try {
        ip('netns', 'del', name);
      } catch {
        // It was never made. The links go with their namespaces.
      }
    }
  };
  try {
    for (const name of names) ip('netns', 'add', name);
    ip('-n', names[0], 'link', 'add', 'link0', 'type', 'veth', 'peer', 'name', 'link0', 'netns', names[1]);
    names.forEach((name, index) => {
      ip('-n', name, 'addr', 'add', `${addresses[index]}/24`, 'dev', 'link0');
      ip('-n', name, 'link', 'set', 'link0', 'up');
      ip('-n', name, 'link', 'set', 'lo', 'up');
    });
  } catch (error) {
    remove();
    return `network namespaces can't be made here: ${((error as { stderr?: Buffer }).stderr ?? (error as Error).message).toString().trim()}`;
  }
  return { names, addresses, remove };
}

/** Takes the link between the two away, as a broken cable would. */
export function cutLink({ names }: Namespaces): void {
  execFileSync('ip', ['-n', names[0], 'link', 'set', 'link0', 'down']);
}
