/**
 * When a fault passed which point at a coordinator: for the benchmark, which shows where its time goes. Off unless the
 * process was started with FAULTLINE_STAMPS. See native/stamps.h, which has the points of the handler and of lanes.
 */
import { native } from '../native.js';
import type { Message } from './protocol/messages.js';

/** They follow Stage::kRung, and come before Stage::kInstalled. */
export const Stage = {
  /** The coordinator has found the fault on the ring. */ Awake: 8,
  /** It is about to hand the request to ZeroMQ. */ Asked: 9,
  /** The home's coordinator has it. */ AtHome: 10,
  /** The home asks the owner, or the others who have copies. */ Recalled: 11,
  /** The owner's, or the last copy holder's, coordinator has that. */ AtOwner: 12,
  /** It is about to answer. */ GivenBack: 13,
  /** The home has the last of these answers. */ Returned: 14,
  /** The home is about to hand its answer to ZeroMQ. */ Answered: 15,
  /** The requester's coordinator has it. */ Arrived: 16,
} as const;

export const stamping = Number(process.env.FAULTLINE_STAMPS ?? 0) > 0;

export function stampFault(region: number, page: number): void {
  native.stamp(region, page, Stage.Awake);
}

const SENT: Partial<Record<Message['type'], number>> = { request: Stage.Asked, recall: Stage.Recalled, invalidate: Stage.Recalled, recalled: Stage.GivenBack, invalidated: Stage.GivenBack, data: Stage.Answered };
const RECEIVED: Partial<Record<Message['type'], number>> = { request: Stage.AtHome, recall: Stage.AtOwner, invalidate: Stage.AtOwner, recalled: Stage.Returned, invalidated: Stage.Returned, data: Stage.Arrived };

function stampPages(message: Message, stage: number | undefined): void {
  if (stage === undefined) return;
  if (message.type === 'request') native.stamp(message.region, message.first, stage);
  else if (message.type === 'data' || message.type === 'recalled') for (const { first, count } of message.segments) stampRun(message.region, first, count, stage);
  else if (message.type === 'recall' || message.type === 'invalidate' || message.type === 'invalidated') for (const { first, count } of message.runs) stampRun(message.region, first, count, stage);
}

function stampRun(region: number, first: number, count: number, stage: number): void {
  for (let page = first; page < first + count; page++) native.stamp(region, page, stage);
}

export function stampSent(message: Message): void {
  stampPages(message, SENT[message.type]);
}

export function stampReceived(message: Message): void {
  stampPages(message, RECEIVED[message.type]);
}
