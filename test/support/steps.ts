/** What lifecycle tests ask of members again and again. */
import type { Member, Thread } from './members.js';

/**
 * Resolves when all that this member or thread has asked of the registrar until now has arrived there: calls keep their
 * order, and a barrier of one party is answered at once.
 */
export async function arrived(who: Member | Thread): Promise<void> {
  await who.run(async (state) => {
    state.arrivals = ((state.arrivals as number | undefined) ?? 0) + 1;
    await state.cluster.barrier(`arrived ${process.pid} ${Math.random()} ${state.arrivals}`, 1);
  });
}

/** A thread of the member that has joined the member's cluster itself: `cluster` in its state is its own handle. */
export async function joinedThread(member: Member): Promise<Thread> {
  const address = await member.run(({ cluster }) => cluster.address);
  const thread = await member.thread(undefined, { load: true });
  await thread.run(async (state, given) => { state.cluster = await state.join({ cluster: given }); }, address);
  return thread;
}

/** Opens a region in a thread that has joined: `region` of its state. */
export async function openInThread(thread: Thread, name: string): Promise<void> {
  await thread.run(async (state, given) => { state.region = await state.cluster.region(given, { mode: 'open' }); }, name);
}

/** From here on the member tells `event NAME` at each of these events: with a member's id, an error's code, or what else the event says. */
export async function tellEvents(member: Member, ...events: string[]): Promise<void> {
  await member.run((state, names) => {
    for (const name of names) {
      (state.cluster as NodeJS.EventEmitter).on(name, (what: { id?: number; pid?: number; code?: string }) => {
        state.tell(`event ${name}`, what instanceof Error ? what.code : what.pid !== undefined ? what.id : what);
      });
    }
  }, events);
}

/** The code of what a step of a member threw, or 'ok'. */
export function codeOf(step: Promise<unknown>): Promise<string> {
  return step.then(() => 'ok', (error: { code?: string; message: string }) => error.code ?? error.message);
}

/** Numbers that look random and are the same in every run. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Modest counts for every day, larger ones for whoever asks for them by FAULTLINE_LONG=1. */
export function counted(modest: number, long: number): number {
  return process.env.FAULTLINE_LONG ? long : modest;
}
