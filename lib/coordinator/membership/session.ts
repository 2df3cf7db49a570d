/**
 * What the coordinator sees of the cluster: who is in it, a way to send to each, and calls to the registrar. One
 * session is one member's stay in one cluster. The embedded membership implements it (embedded.ts); etcd will.
 */
import type { Cancellation } from '../cancellation.js';
import type { ClusterState, Envelope, MemberId, Message } from '../protocol/messages.js';
import type { Direct } from '../protocol/registry.js';

export interface SessionEvents {
  /** A newer agreed state; also the first one, before open() resolves. */
  state(state: ClusterState): void;
  /** A coherence message or reply (not the registry's own) whose sender is in the view, in order for each sender. */
  message(envelope: Envelope): void;
  /** Out-of-band news for handles, e.g. topic 'lock-lost'. */
  tell(topic: string, value: unknown): void;
  /** Terminal: this member is out (ERR_FAULTLINE_EVICTED) or the registrar is gone (ERR_FAULTLINE_CLUSTER_LOST). Called once. */
  over(error: Error): void;
  /** The lease was over and has been renewed: a member that the native watchdog froze may go on. */
  renewed(): void;
  /** Before each message that has come, whatever it is; close() may be called in it. */
  arrived?(): void;
}

export interface SessionOptions {
  /** 'local:NAME' or 'tcp://HOST:PORT', already checked and normalised. */
  cluster: string;
  /** The member's name for people; default `${hostname}:${pid}`. */
  name: string;
  insecure: boolean;
  /** A live peer that is silent longer than this is given up, ms (default 2000). Members are told the registrar's. */
  silence: number;
  /** Longest time that open() tries, ms. */
  joinTimeout: number;
  /** Called with µs times (native.now() scale): until then this member may serve. */
  setLease(until: number): void;
}

export interface SessionStats {
  messagesSent: number; messagesReceived: number; bytesSent: number; bytesReceived: number;
  /** dropped: not decodable, or of a foreign cluster */ malformed: number;
  /** dropped: from a member that is not in the view */ fenced: number;
}

export interface Session {
  readonly self: MemberId;
  readonly state: ClusterState;
  /** Never blocks; FIFO for each member; a send to a member that is not in the view is dropped. To self: delivered in order, not before the caller returns. Payload must not be changed afterwards. */
  send(to: MemberId, message: Message, payload?: Uint8Array): void;
  /** Asks the registrar. Rejects with FaultlineErrors. An aborted call is withdrawn at the registrar (a lock that was granted meanwhile is released again). */
  call(op: string, args: unknown, signal?: Cancellation): Promise<unknown>;
  /** Goes on with a call that was begun as {@link direct}: the id is the one that it had there. */
  again(id: number, op: string, args: unknown, signal?: Cancellation): Promise<unknown>;
  /** A member's call (CallMessage as JSON), which came by another way than messages. `answer` is called at most once, with null if it has to be asked {@link again}. */
  direct(from: MemberId, text: string, answer: Direct): void;
  /** This peer did not answer in time although it is in the view: the registrar decides who has to go. */
  suspect(member: MemberId): void;
  /** Leaves in order: waits for its turn, then state() shows this member leaving and its slices at their new homes; handOver must resolve when everything is handed over; then the membership's serving is handed over if it is here, and the view goes on without this member. Bounded by timeoutMs. */
  leave(handOver: () => Promise<void>, timeoutMs: number): Promise<void>;
  stats(): SessionStats;
  /** Closes all sockets and locks, without a word to anybody. No receive stays pending. */
  close(): Promise<void>;
}

export type OpenSession = (options: SessionOptions, events: SessionEvents, signal?: AbortSignal) => Promise<Session>;
