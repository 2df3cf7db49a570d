/**
 * The agreed list of members as the protocol uses it: who is in, and copysets as 64-bit masks of slots in two halves.
 * Slots from 63 on share the last bit (a coarse vector, after Gupta, Weber and Mowry 1990): an invalidation then goes
 * to all of them, which is correct, because dropping what one does not hold is answered like any other.
 */
import type { ClusterState, MemberId, MemberInfo } from './messages.js';

const COARSE = 63;

export class View {
  epoch = 0;
  private members = new Map<MemberId, MemberInfo>();
  private slots = new Map<number, MemberId>();

  constructor(readonly self: MemberId) {}

  apply(state: ClusterState): void {
    this.epoch = state.epoch;
    this.members = new Map(state.members.map((member) => [member.id, member]));
    this.slots = new Map(state.members.map((member) => [member.slot, member.id]));
  }

  has(member: MemberId): boolean {
    return this.members.has(member);
  }

  get(member: MemberId): MemberInfo | undefined {
    return this.members.get(member);
  }

  others(): MemberId[] {
    return [...this.members.keys()].filter((member) => member !== this.self);
  }

  all(): MemberId[] {
    return [...this.members.keys()];
  }

  slotOf(member: MemberId): number {
    const info = this.members.get(member);
    if (info === undefined) throw new Error(`member ${member} is not in the view`);
    return info.slot;
  }

  atSlot(slot: number): MemberId | undefined {
    return this.slots.get(slot);
  }

  inCopyset(slot: number, low: number, high: number): boolean {
    const bit = Math.min(slot, COARSE);
    return ((bit < 32 ? low >>> bit : high >>> (bit - 32)) & 1) === 1;
  }

  withSlot(slot: number, low: number, high: number): [number, number] {
    const bit = Math.min(slot, COARSE);
    return bit < 32 ? [(low | (1 << bit)) >>> 0, high] : [low, (high | (1 << (bit - 32))) >>> 0];
  }

  withoutSlot(slot: number, low: number, high: number): [number, number] {
    // The coarse bit stands for others, too.
    if (slot >= COARSE) return [low, high];
    return slot < 32 ? [(low & ~(1 << slot)) >>> 0, high] : [low, (high & ~(1 << (slot - 32))) >>> 0];
  }

  /** The members of a copyset that are in the view. */
  copyset(low: number, high: number): MemberId[] {
    if (low === 0 && high === 0) return [];
    const members: MemberId[] = [];
    for (const [slot, member] of this.slots) if (this.inCopyset(slot, low, high)) members.push(member);
    return members.sort((a, b) => a - b);
  }
}
