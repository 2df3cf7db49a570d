/**
 * Lanes, as far as the coordinator has to do with them: it starts the member's page server, tells every other member
 * where it listens and what to say there, and closes what belongs to those who are gone. See native/lanes.h.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { native } from '../native.js';
import type { Session } from './membership/session.js';
import type { ClusterState, LaneMessage, MemberId } from './protocol/messages.js';

const TOKEN_BYTES = 16;

/** Two processes that say the same can reach each other's Unix sockets: the machine since it started, its network, the user. */
const MACHINE = machine();

function machine(): string {
  try {
    return `${readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()} ${readlinkSync('/proc/self/ns/net')} ${process.geteuid!()}`;
  } catch {
    // Without /proc nobody is known to be near.
    return `unknown ${randomBytes(TOKEN_BYTES).toString('hex')}`;
  }
}

export class Lanes {
  /** Members that have been told, by id. */
  private readonly peers = new Map<MemberId, number>();
  private stopped = false;

  /** near: a Unix socket, for whoever is on the same machine; far: by TCP, '' if all members are on this machine. */
  private constructor(private readonly member: number, private readonly session: Session, private readonly near: string, private readonly far: string) {}

  /** null: this machine does not give it a socket or a thread; then all faults go through the coordinators. */
  static open(member: number, session: Session): Lanes | null {
    const endpoint = session.state.members.find(({ id }) => id === session.self)?.endpoint ?? '';
    const host = /^tcp:\/\/\[?([^\]]+?)\]?:\d+$/.exec(endpoint)?.[1] ?? '';
    try {
      return new Lanes(member, session, ...native.lanesOpen(member, session.self, host));
    } catch (error) {
      process.emitWarning(`faults go through the coordinators, because the page server can't start: ${(error as Error).message}`, { code: 'FAULTLINE_NO_LANES' });
      return null;
    }
  }

  /**
   * Before the protocol hears of a state: nothing of those who are not in it, or hand over what they have, is under way
   * after this.
   */
  closeGone(state: ClusterState): void {
    for (const [id, slot] of this.peers) {
      if (state.members.some((member) => member.id === id && !member.leaving)) continue;
      this.peers.delete(id);
      native.lanesClosePeer(this.member, slot, id);
    }
  }

  /** After the protocol has heard of it: lanes for those who are new. */
  apply(state: ClusterState): void {
    // On its way out: whoever says something new when the others have let it go looks like one that does not know it.
    if (this.stopped) return;
    for (const { id, slot, leaving } of state.members) {
      if (id === this.session.self || leaving || this.peers.has(id)) continue;
      this.peers.set(id, slot);
      const token = randomBytes(TOKEN_BYTES);
      native.lanesExpect(this.member, slot, id, token);
      this.session.send(id, { type: 'lane', machine: MACHINE, near: this.near, far: this.far, token: token.toString('hex') });
    }
  }

  /** Another member has told where its page server listens. */
  told(from: MemberId, { machine, near, far, token }: LaneMessage): void {
    const slot = this.peers.get(from);
    const address = machine === MACHINE ? near : far;
    if (slot !== undefined && address !== '') native.lanesConnect(this.member, slot, from, address, Buffer.from(token, 'hex'));
  }

  stop(): void {
    this.stopped = true;
    native.lanesStop(this.member);
    this.peers.clear();
  }
}
