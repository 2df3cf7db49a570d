/** Checks that a parsed JSON body is one of the messages that travel as JSON, so that whoever handles it can rely on its type. */
import type { ClusterState, Message } from '../protocol/messages.js';
import { MalformedError } from './malformed.js';

type Check = (value: unknown) => boolean;

const integer: Check = (value) => Number.isSafeInteger(value);
const count: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const text: Check = (value) => typeof value === 'string';
const flag: Check = (value) => typeof value === 'boolean';
const finite: Check = (value) => Number.isFinite(value);
const anything: Check = () => true;
const listOf = (check: Check): Check => (value) => Array.isArray(value) && value.every(check);
const shape = (fields: Record<string, Check>): Check => {
  const checks = Object.entries(fields);
  return (value) => typeof value === 'object' && value !== null && checks.every(([name, check]) => check((value as Record<string, unknown>)[name]));
};
const optional = (check: Check): Check => (value) => value === undefined || check(value);

const about = { region: count, generation: count };
const slice = shape({ first: count, count, home: count, generation: count, from: count, lostHome: count });
const member = shape({ id: count, slot: count, name: text, pid: count, address: text, endpoint: text, leaving: flag });
const region = shape({ id: count, name: text, size: count, pageSize: count, extentPages: count, consistency: text, placement: text, address: text, creator: count, slices: listOf(slice) });
const clusterState = shape({ clusterId: text, version: count, epoch: count, registrar: count, members: listOf(member), regions: listOf(region), died: listOf(count) });
const error = shape({ code: text, message: text });

const types: Record<string, Check> = {
  rebuild: shape({ ...about, first: count, count, round: count }),
  holdings: shape({ ...about, first: count, count, round: count, records: listOf(finite), done: flag }),
  handover: shape({ ...about, first: count, records: listOf(finite), copies: listOf(listOf(count)), done: flag }),
  'handover-ack': shape({ ...about, first: count, done: flag }),
  handed: shape({ ...about, first: count }),
  lost: shape({ ...about, runs: listOf(count), member: count, epoch: count }),
  found: shape({ ...about, runs: listOf(count) }),
  discarded: shape({ ...about, runs: listOf(count) }),
  ask: shape({ ...about, id: integer, op: text, args: listOf(finite) }),
  reply: shape({ id: integer, error: optional(error) }),
  call: shape({ id: integer, op: text, args: anything }),
  state: shape({ state: clusterState }),
  heartbeat: shape({ sentAt: finite }),
  lease: shape({ sentAt: finite, forMs: finite }),
  evicted: shape({ epoch: count }),
  tell: shape({ topic: text }),
  lane: shape({ machine: text, near: text, far: text, token: (value) => typeof value === 'string' && /^[0-9a-f]{32}$/.test(value) }),
};

/** @throws MalformedError */
export function checkCold(value: unknown): Message {
  const type = (value as { type?: unknown } | null)?.type;
  if (typeof type !== 'string' || !Object.hasOwn(types, type)) throw new MalformedError('a body without a known type');
  if (!types[type](value)) throw new MalformedError(`a '${type}' message of the wrong shape`);
  return value as Message;
}

/** The same check for a state that came inside something else. */
export function isClusterState(value: unknown): value is ClusterState {
  return clusterState(value);
}
