/** The cluster's barriers by name. A round begins with the first who waits and ends when `parties` wait, or when a member dies. */
import { type FaultlineError, makeError } from '../../errors.js';
import type { MemberId } from './messages.js';
import type { Asker } from './locks.js';

interface Round { parties: number; waiting: Asker[] }

export type BarriersSnapshot = [string, Round][];

export class Barriers {
  private readonly rounds: Map<string, Round>;

  constructor(private readonly ended: (asker: Asker, error?: FaultlineError) => void, snapshot: BarriersSnapshot = []) {
    this.rounds = new Map(snapshot);
  }

  snapshot(): BarriersSnapshot {
    return [...this.rounds];
  }

  /** Throws ERR_FAULTLINE_INVALID_ARGUMENT if this round was begun with other parties. */
  wait(name: string, parties: number, asker: Asker): void {
    const round = this.rounds.get(name) ?? { parties, waiting: [] };
    if (round.parties !== parties) {
      throw makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `barrier '${name}' is for ${round.parties} parties in this round, not for ${parties}`, { argument: 'parties', parties, existing: round.parties });
    }
    round.waiting.push(asker);
    this.rounds.set(name, round);
    if (round.waiting.length < parties) return;
    this.rounds.delete(name);
    for (const waiting of round.waiting) this.ended(waiting);
  }

  withdraw(member: MemberId, call: number): void {
    this.drop((asker) => asker.member === member && asker.call === call);
  }

  clientGone(member: MemberId, client: number): void {
    this.drop((asker) => asker.member === member && asker.client === client);
  }

  memberLeft(member: MemberId): void {
    this.drop((asker) => asker.member === member);
  }

  /** Nobody knows whether the dead were on their way to a barrier: every incomplete round breaks, for all who wait. */
  membersDied(members: MemberId[], epoch: number): void {
    for (const [name, round] of [...this.rounds]) {
      this.rounds.delete(name);
      const message = `barrier '${name}' broke with ${round.waiting.length} of ${round.parties} parties there: member ${members.join(', ')} died (epoch ${epoch})`;
      for (const asker of round.waiting) {
        if (!members.includes(asker.member)) this.ended(asker, makeError('ERR_FAULTLINE_BARRIER_BROKEN', message, { barrier: name, members, epoch }));
      }
    }
  }

  private drop(matches: (asker: Asker) => boolean): void {
    for (const [name, round] of [...this.rounds]) {
      round.waiting = round.waiting.filter((asker) => !matches(asker));
      if (round.waiting.length === 0) this.rounds.delete(name);
    }
  }
}
