/**
 * Whom the registrar may call dead. Nobody is, before its lease is certainly over: a lease counts from when the member
 * asked for it, and is shorter than the silence after which it is given up. Times are µs of the registrar's clock.
 */
import type { MemberId } from './messages.js';

interface Pulse {
  heard: number;
  /** The member's lease is over by then at the latest, on whatever clock. */
  leaseEnds: number;
  /** It has to go: it gets no lease any more, and is dead when the last one is over. */
  condemned: boolean;
}

interface Suspicion { from: MemberId; about: MemberId; since: number }

/** Share of the silence that a lease lasts; the rest is what clocks and messages may be late. */
export const LEASE_SHARE = 0.75;
/** Share of the silence for which a complaint waits: the accused may be on its way out, or just dead. */
const GRACE_SHARE = 1 / 8;
/** Share of the silence after which the registrar's own tick was so late that it must hear the others before it judges. */
const LATE_SHARE = 1 / 4;
/** Share of the silence up to which a member counts as heard when two complain about one another. */
const HEARD_SHARE = 1 / 2;

export class Liveness {
  private readonly pulses = new Map<MemberId, Pulse>();
  private suspicions: Suspicion[] = [];
  private ticked: number;

  /** silence in µs. self is never given up. */
  constructor(private readonly self: MemberId, readonly silence: number, now: number) {
    this.ticked = now;
  }

  get leaseLength(): number {
    return this.silence * LEASE_SHARE;
  }

  add(member: MemberId, now: number): void {
    // Whoever served before may have given it a lease until now.
    if (member !== this.self) this.pulses.set(member, { heard: now, leaseEnds: now + this.leaseLength, condemned: false });
  }

  remove(member: MemberId): void {
    this.pulses.delete(member);
    this.suspicions = this.suspicions.filter(({ from, about }) => from !== member && about !== member);
  }

  heard(member: MemberId, now: number): void {
    const pulse = this.pulses.get(member);
    if (pulse !== undefined) pulse.heard = now;
  }

  /** A member asks for its lease: may it have one? */
  lease(member: MemberId, now: number): boolean {
    const pulse = this.pulses.get(member);
    if (pulse === undefined || pulse.condemned) return false;
    pulse.heard = now;
    pulse.leaseEnds = now + this.leaseLength;
    return true;
  }

  suspect(from: MemberId, about: MemberId, now: number): void {
    if (from === about || this.suspicions.some((other) => other.from === from && other.about === about)) return;
    this.suspicions.push({ from, about, since: now });
  }

  /** True if it was not condemned yet. */
  condemn(member: MemberId): boolean {
    const pulse = this.pulses.get(member);
    if (pulse === undefined || pulse.condemned) return false;
    pulse.condemned = true;
    return true;
  }

  /** Who is dead now, and who has been condemned and must be told. */
  tick(now: number): { dead: MemberId[]; condemned: MemberId[] } {
    // What the others sent while this process was stopped has not been read yet.
    if (now - this.ticked > this.silence * LATE_SHARE) for (const pulse of this.pulses.values()) pulse.heard = now;
    this.ticked = now;
    const condemned = this.judge(now);
    const dead = [...this.pulses].filter(([, pulse]) => now - pulse.heard > this.silence || (pulse.condemned && now > pulse.leaseEnds)).map(([member]) => member);
    return { dead, condemned };
  }

  private judge(now: number): MemberId[] {
    const due = this.suspicions.filter(({ since }) => now - since >= this.silence * GRACE_SHARE);
    this.suspicions = this.suspicions.filter((suspicion) => !due.includes(suspicion));
    const condemned: MemberId[] = [];
    for (const { from, about } of due) {
      // Of two that are both alive one has to go; a complaint about one that is being condemned anyway is settled.
      if (this.isCondemned(from) || this.isCondemned(about)) continue;
      const silent = [from, about].find((member) => !this.isHeard(member, now));
      const loser = silent ?? this.higher(from, about);
      if (this.condemn(loser)) condemned.push(loser);
    }
    return condemned;
  }

  private higher(one: MemberId, other: MemberId): MemberId {
    if (one === this.self) return other;
    if (other === this.self) return one;
    return Math.max(one, other);
  }

  private isHeard(member: MemberId, now: number): boolean {
    return member === this.self || now - (this.pulses.get(member)?.heard ?? 0) <= this.silence * HEARD_SHARE;
  }

  private isCondemned(member: MemberId): boolean {
    return this.pulses.get(member)?.condemned ?? false;
  }
}
