/** Forming and joining a cluster that one of its own members serves. */
import { randomBytes } from 'node:crypto';
import dgram from 'node:dgram';
import net from 'node:net';
import { makeError } from '../../errors.js';
import { native } from '../../native.js';
import type { MemberId } from '../protocol/messages.js';
import { decodeJoin, encodeJoin, hello, isJoin, type JoinMessage, refusal, type Welcome } from '../transport/joining.js';
import { type Channel, Transport } from '../transport/transport.js';
import { Directory, type Host } from './directory.js';
import { EmbeddedSession } from './member.js';
import { Registrar } from './registrar.js';
import type { OpenSession, Session, SessionEvents, SessionOptions } from './session.js';

/** ms between two attempts. */
const AGAIN = 20;
/** ms that a registrar may take for an answer before somebody else is asked: it may be stopped, or gone. */
const ANSWER = 1500;
/**
 * ms from being welcome to being in the view. The registrar, which was there a moment ago, connects back for that, and a
 * lost first packet of TCP is sent again after 1 s, then after 2 s more. To come again would take as long, and leave a
 * member behind that everybody has to see die.
 */
const ARRIVAL = 4000;
/** Survivors of a registrar that died notice it and go; whoever finds them waits for that, in shares of the silence. */
const SURVIVORS = 2.5;
const FIRST: MemberId = 1;

export const openEmbedded: OpenSession = (options, events, signal) => new Opening(native, options, events, signal).run();

class Opening {
  private readonly directory: Directory;
  private readonly tcp: { host: string; port: number } | null;
  private readonly deadline: number;
  private survivorsSince: number | null = null;

  constructor(private readonly host: Host, private readonly options: SessionOptions, private readonly events: SessionEvents, private readonly signal?: AbortSignal) {
    this.tcp = parseTcp(options);
    this.directory = Directory.open(options.cluster, host);
    this.deadline = host.now() + options.joinTimeout * 1000;
  }

  async run(): Promise<Session> {
    try {
      for (;;) {
        this.signal?.throwIfAborted();
        const session = this.directory.takeRegistrar() ? await this.serveOrFollow() : await this.followHint();
        if (session !== null) return session;
        if (this.host.now() > this.deadline) throw this.late();
        await this.pause();
      }
    } catch (error) {
      this.directory.close();
      throw error;
    }
  }

  /** The lock is ours: on this machine nobody serves. */
  private async serveOrFollow(): Promise<Session | null> {
    const { directory } = this;
    const hint = directory.readHint();
    if (this.tcp !== null && hint !== null) {
      // Whoever served on this machine may have handed over to somebody on another one.
      const session = await this.follow(hint.endpoint);
      if (session !== null || !directory.takeRegistrar()) return session;
    }
    const survivors = directory.liveMembers();
    if (survivors.length > 0) {
      directory.releaseRegistrar();
      // They may just be choosing who serves next; or theirs has died, and they will go.
      this.survivorsSince ??= this.host.now();
      if (this.host.now() - this.survivorsSince > this.options.silence * SURVIVORS * 1000) throw this.lost(survivors);
      return null;
    }
    this.survivorsSince = null;
    return this.form();
  }


  private async followHint(): Promise<Session | null> {
    const hint = this.directory.readHint();
    return hint === null ? null : this.follow(hint.endpoint);
  }

  // ---- forming ------------------------------------------------------------------------------------------------------

  private async form(): Promise<Session | null> {
    const { directory, options, tcp } = this;
    directory.clean();
    const clusterId = randomBytes(16).toString('hex');
    let session: EmbeddedSession | null = null;
    const transport = new Transport({ silence: options.silence }, (frames, answer) => session?.received(frames, answer));
    try {
      if (!(await this.takeMember(FIRST))) throw makeError('ERR_FAULTLINE_SYSTEM', `'${directory.path}': the first member's lock is taken, and nobody else can be here`);
      let endpoint: string | null;
      try {
        endpoint = transport.bind(tcp === null ? `ipc://${directory.socket(FIRST)}` : `tcp://${tcp.host}:*`);
      } catch (error) {
        if (tcp === null || !isElsewhere((error as NodeJS.ErrnoException).code)) throw cantListen(options.cluster, error);
        endpoint = null;
      }
      if (endpoint !== null) session = new EmbeddedSession(this.host, options, this.events, directory, transport, { clusterId, self: FIRST, registrar: FIRST, silence: options.silence, endpoint });
      const obstacle = session?.openDoor() ?? null;
      if (session === null || endpoint === null || obstacle === 'EADDRINUSE') {
        // The address is another machine's, or somebody has it here: that one is the cluster, whoever runs it.
        await (session ?? transport).close();
        directory.close();
        return await this.follow(options.cluster);
      }
      if (obstacle !== null) throw cantListen(options.cluster, obstacle);
      session.registrar = new Registrar(session, clusterId);
      session.registrar.begin();
      directory.writeHint({ endpoint, clusterId, member: FIRST });
      return session;
    } catch (error) {
      await (session ?? transport).close();
      throw error;
    }
  }

  // ---- joining ------------------------------------------------------------------------------------------------------

  /** Null if nobody there takes us now. Whoever answers there serves, whatever the lock of this machine says. */
  private async follow(endpoint: string): Promise<Session | null> {
    this.directory.releaseRegistrar();
    let session: EmbeddedSession | null = null;
    let welcome: Welcome | null = null;
    const transport = new Transport({ silence: this.options.silence }, (frames, answer) => session?.received(frames, answer));
    const registrar = new Conversation(transport, endpoint, (frames) => session?.receivedBack(frames));
    const give = async (): Promise<null> => {
      await (session ?? transport).close();
      return null;
    };
    try {
      registrar.say(hello(this.options.name));
      const answer = await registrar.answer(this.patience(), this.signal);
      if (answer?.kind === 'refused' && answer.reason === 'moved' && endpoint !== answer.endpoint) {
        await give();
        return await this.follow(answer.endpoint!);
      }
      if (answer?.kind === 'refused' && answer.reason !== 'retry') throw refusal(answer);
      if (answer?.kind !== 'welcome') return await give();
      welcome = answer;
      if (!(await this.takeMember(welcome.id))) return await give();
      const own = transport.bind(this.tcp === null ? `ipc://${this.directory.socket(welcome.id)}` : `tcp://${await localAddress(endpoint)}:*`);
      let arrived = (): void => undefined;
      let opened = false;
      const inView = new Promise<void>((resolve) => { arrived = resolve; });
      const events: SessionEvents = {
        ...this.events,
        state: (state) => { this.events.state(state); arrived(); },
        // Before it was open it only failed to open, and there may be another way in.
        over: (error) => { if (opened) this.events.over(error); else arrived(); },
      };
      session = new EmbeddedSession(this.host, this.options, events, this.directory, transport, { clusterId: welcome.clusterId, self: welcome.id, registrar: welcome.registrar, silence: welcome.silence, endpoint: own });
      session.adopt(welcome.registrar, registrar.channel);
      registrar.member = { session, id: welcome.registrar };
      registrar.say({ kind: 'joined', id: welcome.id, endpoint: own });
      await Promise.race([inView, registrar.answer(this.patience(ARRIVAL), this.signal)]);
      if (session.ended !== null || session.state.version === 0) return await give();
      opened = true;
      return session;
    } catch (error) {
      await give();
      throw error;
    }
  }

  private patience(most = ANSWER): number {
    return Math.min(most, Math.max(1, (this.deadline - this.host.now()) / 1000));
  }

  /** Whoever only looks whether the file is locked keeps it for a moment. */
  private async takeMember(id: MemberId): Promise<boolean> {
    for (let tries = 0; tries < 5; tries++) {
      if (this.directory.takeMember(id, this.options.name)) return true;
      await this.pause();
    }
    return false;
  }

  private pause(): Promise<void> {
    return new Promise((resolve) => setTimeout(resolve, AGAIN));
  }

  // ---- errors -------------------------------------------------------------------------------------------------------

  private late(): Error {
    const survivors = this.directory.liveMembers();
    if (this.survivorsSince !== null && survivors.length > 0) return this.lost(survivors);
    return makeError('ERR_FAULTLINE_JOIN_TIMEOUT', `nobody at ${this.options.cluster} answered within ${this.options.joinTimeout} ms`, { cluster: this.options.cluster });
  }

  private lost(survivors: MemberId[]): Error {
    const names = survivors.map((member) => this.directory.describe(member)).join(', ');
    return makeError('ERR_FAULTLINE_CLUSTER_LOST', `${this.options.cluster} has lost the process that served it, and these of its members are still there: ${names}. A new cluster can begin when they have gone`, { cluster: this.options.cluster, members: survivors });
  }
}

/** The talk with a registrar on the channel that will later be this member's channel to it. */
class Conversation {
  readonly channel: Channel;
  member: { session: EmbeddedSession; id: MemberId } | null = null;
  private waiting: ((message: JoinMessage | null) => void) | null = null;
  private isBroken = false;

  constructor(transport: Transport, endpoint: string, receive: (frames: Uint8Array[]) => void) {
    this.channel = transport.connect(endpoint, {
      receive: (frames) => {
        const message = readJoin(frames[0]);
        if (message !== null && this.waiting !== null) this.waiting(message);
        else receive(frames);
      },
      broken: () => {
        this.isBroken = true;
        this.waiting?.(null);
        this.member?.session.broken(this.member.id);
      },
    });
  }

  say(message: JoinMessage): void {
    this.channel.send(encodeJoin(message));
  }

  /** The next answer; null if none comes within `patience` ms or the connection breaks. Rejects when the signal is aborted. */
  answer(patience: number, signal?: AbortSignal): Promise<JoinMessage | null> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        this.waiting = null;
      };
      const abort = (): void => {
        end();
        reject(signal!.reason);
      };
      const timer = setTimeout(() => this.waiting?.(null), patience);
      this.waiting = (message) => {
        end();
        resolve(message);
      };
      signal?.addEventListener('abort', abort, { once: true });
      if (this.isBroken) this.waiting(null);
    });
  }
}

function readJoin(frame: Uint8Array): JoinMessage | null {
  try {
    return isJoin(frame) ? decodeJoin(frame) : null;
  } catch {
    return null;
  }
}

function parseTcp({ cluster }: SessionOptions): { host: string; port: number } | null {
  if (cluster.startsWith('local:')) return null;
  const match = /^tcp:\/\/(.+):(\d+)$/.exec(cluster);
  const host = match?.[1] ?? '';
  if (match === null || !net.isIP(host.replace(/^\[|\]$/g, ''))) throw makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `cluster '${cluster}' is neither local:NAME nor tcp://ADDRESS:PORT`, { argument: 'cluster' });
  return { host, port: Number(match[2]) };
}

/** The address belongs to another machine. */
function isElsewhere(code: string | undefined): boolean {
  return code === 'EADDRNOTAVAIL' || code === 'ENODEV';
}

function cantListen(cluster: string, cause: unknown): Error {
  const { message, errno } = cause instanceof Error ? (cause as NodeJS.ErrnoException) : { message: String(cause), errno: undefined };
  return makeError('ERR_FAULTLINE_SYSTEM', `can't listen at ${cluster}: ${message}`, { errno, syscall: 'bind' });
}

/** This machine's address on the way to an endpoint: connecting a datagram socket asks the routing table, and sends nothing. */
function localAddress(endpoint: string): Promise<string> {
  const [, host, port] = /^tcp:\/\/\[?([^\]]+?)\]?:(\d+)$/.exec(endpoint)!;
  const family = net.isIPv6(host) ? 'udp6' : 'udp4';
  return new Promise((resolve, reject) => {
    const socket = dgram.createSocket(family);
    socket.once('error', (error: NodeJS.ErrnoException) => {
      socket.close();
      reject(makeError('ERR_FAULTLINE_SYSTEM', `no way to ${endpoint}: ${error.message}`, { errno: error.errno, syscall: error.syscall }));
    });
    socket.connect(Number(port), host, () => {
      const { address } = socket.address();
      socket.close();
      resolve(family === 'udp6' ? `[${address}]` : address);
    });
  });
}
