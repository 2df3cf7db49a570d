/**
 * Direct calls: what a thread that blocks asks the registrar without its own coordinator in between. Over a lane where
 * another process serves the cluster; by the ring of this process where its own coordinator does. Two of the threads that a
 * call would wake otherwise sleep on, and two messages less are made and read (docs/lanes.md).
 *
 * The call's number is this thread's own, so whoever loses the way asks again by messages, and the registrar knows it.
 */
import { DIRECT } from './calls.js';
import type { ClusterState, MemberId } from './coordinator/protocol/messages.js';
import { native } from './native.js';

/** Numbers of coordinators' own calls are greater than this. */
const FIRST = 2 ** 32;

export const directId = (client: number, count: number): number => -(client * FIRST + count);

/** An answer that says nothing but that the call is to be asked again, by messages: no ReplyMessage, as JSON. */
export const ASK_AGAIN = 'null';

export interface DirectCall {
  /** Blocks for so long at most. null: no answer yet; '': none will come; else {@link ASK_AGAIN}, or a ReplyMessage as JSON. */
  readonly wait: (ms: number) => string | null;
  /** Once, whatever came of it. */
  end(): void;
}

/** null: there is no such way now, and nothing was asked. */
export function startDirect(member: number, self: MemberId, state: ClusterState, text: string): DirectCall | null {
  if (state.registrar === self) {
    const slot = native.slotCreate(member, DIRECT + text);
    return { wait: (ms) => native.slotWait(member, slot, ms), end: () => native.slotClose(member, slot) };
  }
  const registrar = state.members.find(({ id }) => id === state.registrar);
  const call = registrar && native.callAsk(member, registrar.slot, registrar.id, text);
  if (!call) return null;
  // Whether it is this member that is over, or only the lane, is seen when it is asked again.
  const wait = (ms: number): string | null => {
    const answer = native.callWait(call, ms);
    return answer === '' ? ASK_AGAIN : answer;
  };
  return { wait, end: () => native.callEnd(call) };
}
