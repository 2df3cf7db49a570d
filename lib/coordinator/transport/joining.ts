/**
 * What a process and the registrar say to one another before the process is a member, and how anybody's message is
 * refused: a fixed prefix and JSON, never to be changed, so that two versions can at least tell one another apart.
 */
import os from 'node:os';
import { makeError } from '../../errors.js';
import { MalformedError } from './malformed.js';
import { PROTOCOL } from './wire.js';

const PREFIX = Buffer.from('faultline:join\n');

export interface Hello {
  kind: 'hello';
  protocol: { major: number; minor: number };
  arch: string;
  endianness: string;
  /** Of the package, for people. */
  version: string;
  name: string;
  pid: number;
}
/** silence in ms: what the registrar holds everybody to. */
export interface Welcome { kind: 'welcome'; id: number; clusterId: string; registrar: number; silence: number }
/** The newcomer listens at `endpoint` and holds its lock file. */
export interface Joined { kind: 'joined'; id: number; endpoint: string }
/** reason: 'protocol', 'architecture', 'full': for good. 'retry': not now, or not here. 'moved': ask at `endpoint`. 'malformed': a message that was dropped. */
export interface Refused { kind: 'refused'; reason: string; message: string; endpoint?: string }
export type JoinMessage = Hello | Welcome | Joined | Refused;

export function encodeJoin(message: JoinMessage): Uint8Array {
  return Buffer.concat([PREFIX, Buffer.from(JSON.stringify(message))]);
}

export function isJoin(frame: Uint8Array): boolean {
  // The first byte tells most messages apart at once: this is asked of every one.
  return frame[0] === PREFIX[0] && frame.byteLength >= PREFIX.length && PREFIX.equals(frame.subarray(0, PREFIX.length));
}

/** @throws MalformedError */
export function decodeJoin(frame: Uint8Array): JoinMessage {
  let value: Record<string, unknown> | null;
  try {
    value = JSON.parse(Buffer.from(frame.subarray(PREFIX.length)).toString()) as Record<string, unknown> | null;
  } catch {
    throw new MalformedError('a join message that is not JSON');
  }
  const are = (type: string, ...names: string[]): boolean => names.every((name) => typeof value?.[name] === type);
  const protocol = value?.protocol as { major?: unknown; minor?: unknown } | undefined;
  const right =
    value?.kind === 'hello' ? are('string', 'arch', 'endianness', 'version', 'name') && are('number', 'pid') && Number.isInteger(protocol?.major) && Number.isInteger(protocol?.minor)
      : value?.kind === 'welcome' ? are('number', 'id', 'registrar', 'silence') && are('string', 'clusterId')
        : value?.kind === 'joined' ? are('number', 'id') && are('string', 'endpoint')
          : value?.kind === 'refused' && are('string', 'reason', 'message') && are(value.reason === 'moved' ? 'string' : 'undefined', 'endpoint');
  if (!right) throw new MalformedError('a join message of the wrong shape');
  return value as unknown as JoinMessage;
}

export function hello(name: string): Hello {
  return { kind: 'hello', protocol: { ...PROTOCOL }, arch: process.arch, endianness: os.endianness(), version: packageVersion(), name, pid: process.pid };
}

/** Why this newcomer can't be a member of this member's cluster, or null. Names both sides' values. */
export function incompatible(newcomer: Hello): Refused | null {
  const mine = hello('');
  if (newcomer.protocol.major !== mine.protocol.major) {
    const spoken = ({ protocol, version }: Hello): string => `protocol ${protocol.major}.${protocol.minor} (faultline ${version})`;
    return { kind: 'refused', reason: 'protocol', message: `the cluster speaks ${spoken(mine)}, this process ${spoken(newcomer)}` };
  }
  if (newcomer.arch !== mine.arch || newcomer.endianness !== mine.endianness) {
    return { kind: 'refused', reason: 'architecture', message: `the cluster's members are ${mine.arch} (${mine.endianness}), this process is ${newcomer.arch} (${newcomer.endianness})` };
  }
  return null;
}

export function refusal({ reason, message }: Refused): Error {
  return makeError('ERR_FAULTLINE_JOIN_REFUSED', message, { reason });
}

function packageVersion(): string {
  // eslint-disable-next-line @typescript-eslint/no-require-imports
  return (require('../../../../package.json') as { version: string }).version;
}
