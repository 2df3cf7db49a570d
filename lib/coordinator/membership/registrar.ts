/** What the member that serves the cluster does: it runs the registry, lets newcomers in, and hands all that over when it leaves. */
import { FaultlineError } from '../../errors.js';
import type { CallMessage, ClusterState, MemberId, Message } from '../protocol/messages.js';
import { type Direct, Registry, type RegistrySnapshot } from '../protocol/registry.js';
import { encodeJoin, type Hello, incompatible, type JoinMessage } from '../transport/joining.js';
import type { Answer } from '../transport/transport.js';
import type { EmbeddedSession } from './member.js';

/** 'tell' topics that are the membership's own. */
export const TAKE_OVER = 'membership.take-over';
export const NOT_TAKEN = 'membership.not-taken';

/** ms that a newcomer has between its id and being there. */
const ARRIVAL = 10_000;
/** ms between two tries to take what another process is about to let go of. */
const AGAIN = 5;
/** ms that the next registrar has to take over. */
const TAKING = 1500;

export class Registrar {
  private readonly registry: Registry;
  private readonly welcomed = new Map<MemberId, { newcomer: Hello; at: number }>();
  /** Handing over: nothing may change any more. */
  private frozen = false;
  private refusedBy: MemberId = 0;

  /** origin: the id of a new cluster, or what the registrar before this one handed over. */
  constructor(private readonly session: EmbeddedSession, origin: string | RegistrySnapshot) {
    const { host, membership } = session;
    this.registry = new Registry(session.self, origin, membership.silence * 1000, host.now(), {
      send: (to, message) => this.send(to, message),
      publish: (state, left) => this.publish(state, left),
      evict: (member, epoch) => session.send(member, { type: 'evicted', epoch }),
    });
  }

  /** The cluster begins with this member. */
  begin(): void {
    const { session, registry } = this;
    registry.reserve();
    registry.joined({ id: session.self, name: session.options.name, pid: process.pid, address: addressOf(session.membership.endpoint), endpoint: session.membership.endpoint }, session.host.now());
  }

  /** The registrar before this one has left, or is about to be out: everybody is told who serves now. */
  succeed(predecessor: MemberId, finished: boolean): void {
    this.registry.takeOver();
    if (finished) this.registry.left(predecessor);
    else this.registry.abandoned(predecessor);
  }

  stop(): void {
    this.frozen = true;
    this.registry.endDirect();
  }

  // ---- newcomers ----------------------------------------------------------------------------------------------------

  joinMessage(message: JoinMessage, answer: Answer): void {
    if (this.frozen) return answer(encodeJoin({ kind: 'refused', reason: 'retry', message: 'the serving of the cluster changes hands' }));
    if (message.kind === 'hello') answer(encodeJoin(this.welcome(message)));
    else if (message.kind === 'joined') this.arrived(message.id, message.endpoint, answer);
  }

  private welcome(newcomer: Hello): JoinMessage {
    const { session, registry } = this;
    const refused = incompatible(newcomer);
    if (refused !== null) return refused;
    try {
      const id = registry.reserve();
      if (id === null) return { kind: 'refused', reason: 'retry', message: 'the cluster ends' };
      this.welcomed.set(id, { newcomer, at: session.host.now() });
      return { kind: 'welcome', id, clusterId: session.state.clusterId, registrar: session.self, silence: session.membership.silence };
    } catch (error) {
      if (error instanceof FaultlineError) return { kind: 'refused', reason: String((error as FaultlineError & { reason?: string }).reason), message: error.message };
      throw error;
    }
  }

  private arrived(id: MemberId, endpoint: string, answer: Answer): void {
    const { session, registry } = this;
    const welcomed = this.welcomed.get(id);
    this.welcomed.delete(id);
    if (welcomed !== undefined && /^(ipc|tcp):\/\//.test(endpoint)) {
      const { name, pid } = welcomed.newcomer;
      registry.joined({ id, name, pid, address: addressOf(endpoint), endpoint }, session.host.now());
    }
    if (!registry.has(id)) answer(encodeJoin({ kind: 'refused', reason: 'retry', message: 'nobody waits for this member' }));
  }

  // ---- members ------------------------------------------------------------------------------------------------------

  heartbeat(from: MemberId, sentAt: number): void {
    // The next registrar counts from when it took over: leases that were given later could outlast its patience.
    if (!this.frozen) this.registry.heartbeat(from, sentAt, this.session.host.now());
  }

  heard(from: MemberId): void {
    this.registry.heard(from, this.session.host.now());
  }

  /** Calls are sent again to whoever serves next. */
  call(from: MemberId, message: CallMessage): void {
    if (!this.frozen) this.registry.call(from, message, this.session.host.now());
  }

  /** One that did not come as a message, of a member of the view. */
  direct(from: MemberId, message: CallMessage, direct: Direct): void {
    if (this.frozen) direct(null);
    else this.registry.call(from, message, this.session.host.now(), direct);
  }

  /** Somebody who is not in the view, and perhaps does not know it. */
  stranger(from: MemberId, answer: Answer): void {
    if (!this.frozen && this.registry.knew(from) && !this.welcomed.has(from)) answer(this.session.encode({ type: 'evicted', epoch: this.session.state.epoch }));
  }

  died(member: MemberId): void {
    if (!this.frozen) this.registry.died([member]);
  }

  condemn(member: MemberId): void {
    this.registry.condemn(member);
  }

  tick(): void {
    const { session } = this;
    if (this.frozen) return;
    const now = session.host.now();
    for (const [id, { at }] of this.welcomed) if (now - at > ARRIVAL * 1000) this.welcomed.delete(id);
    // Nobody else can give this member up; the lease only keeps a stopped process from going on as if nothing had been.
    session.renew(now + session.leaseLength);
    this.registry.tick(now);
  }

  private send(to: MemberId, message: Message): void {
    this.session.send(to, message);
  }

  private publish(state: ClusterState, left: MemberId[]): void {
    const { session } = this;
    session.connect(state);
    const message: Message = { type: 'state', state };
    for (const { id } of state.members) if (id !== session.self) session.send(id, message);
    for (const id of left) if (id !== session.self) session.send(id, message);
    session.apply(state);
  }

  // ---- handing over -------------------------------------------------------------------------------------------------

  /** finished: this member's pages are handed over, too. Resolves when another serves, or nobody is left; deadline in µs. */
  async handOver(finished: boolean, deadline: number): Promise<void> {
    const { session } = this;
    // In the same turn as the look at who is there: nobody may come to a cluster that is about to end.
    this.stop();
    const patience = (): number => Math.max(deadline, session.host.now() + TAKING * 1000);
    for (let tries = 0; tries < 3; tries++) {
      const [successor] = session.others.filter((member) => member !== this.refusedBy);
      if (successor === undefined) return;
      this.letGo(successor);
      session.send(successor, { type: 'tell', topic: TAKE_OVER, value: { snapshot: this.registry.snapshot(), finished } });
      const settled = (): boolean => !session.has(session.self) || this.refusedBy === successor || !this.reaches(successor);
      await session.until(settled, patience());
      if (session.ended !== null || !session.has(session.self)) return;
      // It could not, or died over it. Unless it has the lock after all, this member serves on and asks the next one.
      // On another machine no lock says so, and two that serve would be worse than none.
      if ((!session.isHere(successor) && this.refusedBy !== successor) || !session.directory.takeRegistrar()) return void (await session.until(() => !session.has(session.self), patience()));
      this.resume(successor);
    }
  }

  notTaken(by: MemberId): void {
    this.refusedBy = by;
    this.session.changed();
  }

  private reaches(member: MemberId): boolean {
    return this.session.isHere(member) ? this.session.directory.isAlive(member) : this.session.has(member);
  }

  private letGo(successor: MemberId): void {
    const { session } = this;
    session.closeDoor();
    // Whoever starts on this machine finds the next registrar there, wherever it is.
    const endpoint = session.state.members.find(({ id }) => id === successor)!.endpoint;
    session.directory.writeHint({ endpoint, clusterId: session.state.clusterId, member: successor });
    session.directory.releaseRegistrar();
  }

  private resume(failed: MemberId): void {
    const { session } = this;
    session.openDoor();
    session.directory.writeHint({ endpoint: session.membership.endpoint, clusterId: session.state.clusterId, member: session.self });
    if (!this.reaches(failed)) this.registry.died([failed]);
  }
}

/** The registrar leaves and wants this member to serve. */
export async function takeOver(session: EmbeddedSession, predecessor: MemberId, { snapshot, finished }: { snapshot: RegistrySnapshot; finished: boolean }): Promise<void> {
  const deadline = session.host.now() + TAKING * 1000;
  // A process that starts just now may hold the lock for a moment, to see whether anybody is there.
  const taken = (await again(session, deadline, () => session.directory.takeRegistrar())) && (await again(session, deadline, () => session.openDoor() !== 'EADDRINUSE'));
  if (session.ended !== null) return;
  if (!taken) {
    session.closeDoor();
    session.directory.releaseRegistrar();
    return session.send(predecessor, { type: 'tell', topic: NOT_TAKEN, value: null });
  }
  session.directory.writeHint({ endpoint: session.membership.endpoint, clusterId: session.state.clusterId, member: session.self });
  session.registrar = new Registrar(session, snapshot);
  session.registrar.succeed(predecessor, finished);
}

async function again(session: EmbeddedSession, deadline: number, attempt: () => boolean): Promise<boolean> {
  while (session.ended === null) {
    if (attempt()) return true;
    if (session.host.now() > deadline) return false;
    await new Promise<void>((resolve) => setTimeout(resolve, AGAIN));
  }
  return false;
}

/** A member's host address as people know it. */
function addressOf(endpoint: string): string {
  return /^tcp:\/\/(.*):\d+$/.exec(endpoint)?.[1] ?? 'local';
}
