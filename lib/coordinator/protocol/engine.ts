/**
 * The protocol at one member: all regions, the view, and the order in which things happen. Pure: every input is a
 * method call, every output goes through the ports. After each turn (a batch of inputs) the owner calls flush().
 */
import type { ClusterState, Envelope, MemberId, MemberInfo, RegionInfo, ReplyMessage } from './messages.js';
import type { Network, RegionEvents, RegionMemory, Timers } from './ports.js';
import { RegionProtocol } from './region.js';
import { View } from './view.js';

export interface EngineEvents {
  /** Makes the native side of a region; called once for each region of the cluster. */
  openMemory(info: RegionInfo): RegionMemory;
  /** The region was destroyed: its memory goes away. */
  closeMemory(info: RegionInfo): void;
  region(info: RegionInfo): RegionEvents;
}

export interface EngineSettings {
  /** µs of silence of a live peer after which it is reported to the membership. */
  faultTimeout: number;
}

interface Probe { sentAt: number; answered: boolean; region: number; page: number; peer: MemberId }

export class Engine {
  readonly view: View;
  readonly regions = new Map<number, RegionProtocol>();
  private members: MemberInfo[] = [];
  private readonly probes = new Map<number, Probe>();
  private ids = 0;
  /** Questions whose answers say that all that was sent before has arrived. */
  private readonly flushes = new Map<number, { peer: MemberId; done: () => void }>();

  constructor(
    private readonly network: Network,
    private readonly timers: Timers,
    private readonly events: EngineEvents,
    private readonly settings: EngineSettings,
  ) {
    this.view = new View(network.self);
  }

  /** A newer agreed state; states come in order. */
  apply(state: ClusterState): void {
    const gone = this.members.filter((member) => !state.members.some((other) => other.id === member.id));
    this.members = state.members;
    this.view.apply(state);
    for (const member of gone) this.memberGone(member);
    const ids = new Set(state.regions.map((info) => info.id));
    for (const [id, region] of [...this.regions]) {
      if (ids.has(id)) continue;
      this.regions.delete(id);
      region.fail({ code: 'ERR_FAULTLINE_REGION_DESTROYED', message: `region '${region.info.name}' was destroyed`, fields: { region: region.info.name } });
      this.events.closeMemory(region.info);
    }
    for (const info of state.regions) {
      const region = this.regions.get(info.id);
      if (region === undefined) this.regions.set(info.id, new RegionProtocol(info, this.events.openMemory(info), this.network, this.timers, this.view, this.events.region(info), () => ++this.ids));
      else region.update(info);
    }
  }

  message(envelope: Envelope): void {
    const { message } = envelope;
    if (message.type === 'reply') return this.reply(envelope.from, message);
    if (!('region' in message)) return;
    const region = this.regions.get(message.region);
    if (region !== undefined) region.message(envelope);
    // A region that was destroyed here first: the asker only wants to know that its messages arrived.
    else if (message.type === 'ask' && message.op === 'probe') this.network.send(envelope.from, { type: 'reply', id: message.id, value: false });
  }

  fault(region: number, page: number, access: number, held: number): void {
    this.regions.get(region)?.fault(page, access, held);
  }

  free(region: number, page: number): void {
    this.regions.get(region)?.free(page);
  }

  /** Sends what this turn decided. */
  flush(): void {
    for (const region of this.regions.values()) region.flush();
  }

  /** To be called a few times in each faultTimeout: asks silent peers whether they are there, reports those who are not. */
  tick(): void {
    const now = this.timers.now();
    const half = this.settings.faultTimeout / 2;
    for (const [id, probe] of [...this.probes]) {
      if (!this.view.has(probe.peer) || probe.answered) {
        if (now - probe.sentAt > half || !this.view.has(probe.peer)) this.probes.delete(id);
      } else if (now - probe.sentAt > half) {
        this.probes.delete(id);
        this.network.suspect(probe.peer);
      }
    }
    const asked = new Set([...this.probes.values()].map((probe) => probe.peer));
    for (const region of this.regions.values()) {
      for (const [peer, page] of region.awaited(now - half)) {
        if (asked.has(peer) || peer === this.network.self || !this.view.has(peer)) continue;
        asked.add(peer);
        const id = ++this.ids;
        this.probes.set(id, { sentAt: now, answered: false, region: region.info.id, page, peer });
        this.network.send(peer, { type: 'ask', region: region.info.id, generation: 0, id, op: 'probe', args: [page] });
      }
    }
  }

  /**
   * Leaving: to be called with the views closed and the state showing this member as leaving. Calls back when nothing
   * that anybody needs is here any more.
   */
  leave(done: () => void): void {
    const others = this.view.others();
    if (others.length === 0) return done();
    const regions = [...this.regions.values()];
    for (const region of regions) region.wants.clear();
    this.whenReceived(regions, () => {
      for (const region of regions) region.drain();
      this.flush();
      // The answers to these come after all that was sent before: every grant has then arrived where it was going.
      this.each(this.view.others(), (member, one) => this.askFlushed(member, regions[0], one), () => {
        this.each(regions, (region, one) => region.handOver(one), done);
      });
      this.flush();
    });
  }

  /** Everything that anybody waits for here ends with this error. */
  fail(error: { code: string; message: string; fields?: Record<string, unknown> }): void {
    for (const region of this.regions.values()) region.fail(error);
  }

  // ---- within -------------------------------------------------------------------------------------------------------

  private memberGone(member: MemberInfo): void {
    for (const region of this.regions.values()) region.memberGone(member.id, member.slot);
    for (const [id, flush] of [...this.flushes]) if (flush.peer === member.id) this.finishFlush(id);
  }

  private askFlushed(member: MemberId, region: RegionProtocol | undefined, done: () => void): void {
    if (region === undefined || !this.view.has(member)) return done();
    const id = ++this.ids;
    this.flushes.set(id, { peer: member, done });
    this.network.send(member, { type: 'ask', region: region.info.id, generation: 0, id, op: 'probe', args: [-1] });
  }

  private finishFlush(id: number): void {
    const flush = this.flushes.get(id);
    this.flushes.delete(id);
    flush?.done();
  }

  private reply(from: MemberId, message: ReplyMessage): void {
    if (this.flushes.has(message.id)) return this.finishFlush(message.id);
    const probe = this.probes.get(message.id);
    if (probe !== undefined && probe.peer === from) {
      probe.answered = true;
      this.regions.get(probe.region)?.probed(probe.page, message.value === true);
      return;
    }
    for (const region of this.regions.values()) if (region.reply(message)) return;
  }

  private whenReceived(regions: RegionProtocol[], then: () => void): void {
    if (!regions.some((region) => region.isReceiving)) return then();
    this.timers.after(RECEIVING_AGAIN, () => {
      this.whenReceived(regions, then);
      this.flush();
    });
  }

  private each<T>(items: T[], start: (item: T, one: () => void) => void, done: () => void): void {
    let left = items.length + 1;
    const one = (): void => void (--left === 0 && done());
    for (const item of items) start(item, one);
    one();
  }
}

/** µs between looks whether a directory that comes in is complete. */
const RECEIVING_AGAIN = 1_000;
