/** What each member does in a round of chaos: planned here, carried out there, reported access by access. */
import type { Member } from '../support/members.js';

export const PAGE = 4096;
/** Pages of registers; then one for tickets, and one for the number under the lock. */
export const REGISTERS = 8;
export const TICKETS = REGISTERS;
export const LOCKED = REGISTERS + 1;
export const PAGES = REGISTERS + 2;

export type Planned =
  | { kind: 'load' | 'atomic load'; page: number }
  | { kind: 'store' | 'atomic store'; page: number; value: number }
  | { kind: 'ticket' | 'turn' };
/** Times are ns of CLOCK_MONOTONIC; those of a turn are of having the lock. */
export interface Done { start: number; end: number; value: number; asked: number; ownerDied?: boolean; code?: string }

export function plan(count: number, below: (n: number) => number, nextValue: () => number): Planned[] {
  return Array.from({ length: count }, (): Planned => {
    const what = below(20);
    if (what === 0) return { kind: 'turn' };
    if (what < 3) return { kind: 'ticket' };
    const page = below(REGISTERS);
    const atomic = below(2) === 0;
    return below(2) ? { kind: atomic ? 'atomic store' : 'store', page, value: nextValue() } : { kind: atomic ? 'atomic load' : 'load', page };
  });
}

/** Carries it out as far as it goes: after an error other than the loss of a page it ends. */
export function work(member: Member, planned: Planned[], within: number): Promise<Done[]> {
  return member.run(async (state, given) => {
    const cells = new Int32Array(state.region.buffer);
    const done: Done[] = [];
    const now = (): number => Number(process.hrtime.bigint());
    const wordOf = (page: number): number => page * (given.PAGE / 4);
    state.tell('working');
    for (const one of given.planned) {
      let start = now();
      const asked = start;
      try {
        let value = 0;
        let ownerDied = false;
        let end: number | undefined;
        switch (one.kind) {
          case 'load': value = state.attempt(() => cells[wordOf(one.page)]); break;
          case 'atomic load': value = state.attempt(() => Atomics.load(cells, wordOf(one.page))); break;
          case 'store': state.attempt(() => { cells[wordOf(one.page)] = one.value; }); break;
          case 'atomic store': state.attempt(() => { Atomics.store(cells, wordOf(one.page), one.value); }); break;
          case 'ticket': value = state.attempt(() => Atomics.add(cells, wordOf(given.TICKETS), 1)); break;
          case 'turn': {
            const lock = await state.cluster.lock('turn', { signal: AbortSignal.timeout(given.within) });
            try {
              start = now();
              ({ ownerDied } = lock);
              value = state.attempt(() => cells[wordOf(given.LOCKED)]);
              state.attempt(() => { cells[wordOf(given.LOCKED)] = value + 1; });
              end = now();
            } finally {
              await lock.release();
            }
          }
        }
        done.push({ asked, start, end: end ?? now(), value, ownerDied });
      } catch (error) {
        const { code } = error as { code?: string };
        done.push({ asked, start, end: now(), value: 0, code: code ?? String(error) });
        if (code !== 'ERR_FAULTLINE_PAGE_LOST') break;
      }
      if (done.length % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return done;
  }, { planned, within, PAGE, TICKETS, LOCKED }, { within });
}
