/**
 * Every tunable of a handle, read and checked in one place, with its default and its meaning. Nothing here touches the
 * addon, so a bad option is refused before anything has been started.
 */
import net from 'node:net';
import os from 'node:os';
import type { CoordinatorSettings } from './calls.js';
import { makeError } from './errors.js';

/** The cluster that join() means when neither its options nor FAULTLINE_CLUSTER name one. */
export const DEFAULT_CLUSTER = 'local:default';
/** ms of silence after which a live peer is given up. Long enough for a garbage collection or a busy machine. */
export const DEFAULT_FAULT_TIMEOUT_MS = 2000;
/** ms. Members are heard four times a second: below two heartbeats a healthy cluster would give itself up. */
export const MIN_FAULT_TIMEOUT_MS = 500;
/** ms. Ten minutes: a longer silence is no failure detection any more. */
export const MAX_FAULT_TIMEOUT_MS = 600_000;
/** ms that joining may take, with the start of the coordinator and the search for the cluster. An AbortSignal can shorten it. */
export const JOIN_TIMEOUT_MS = 10_000;
/**
 * Bytes of address space that joining must find free. The coordinator's thread was measured to take 940 MiB of it (512 of
 * them are V8's range for code), and hardly any memory. V8 ends the whole process when it can't have its part.
 */
export const JOIN_ADDRESS_SPACE = 1280 * 1024 * 1024;
/** ms, default and longest: a pin keeps everybody else from the page, so whoever needs longer says so by renewing. */
export const MAX_PIN_MS = 5000;
/** ms that a process which exits gives its members to hand over what they hold (FAULTLINE_EXIT_TIMEOUT overrides it). */
export const DEFAULT_EXIT_TIMEOUT_MS = 5000;
/** ms that threads which are inside a fault handler at the exit get before the process leaves without them. */
export const EXIT_GRACE_MS = 500;
/** ms: blocking calls come back to JavaScript this often, because only there worker.terminate() can end them. */
export const SYNC_SLICE_MS = 50;
/** Bytes in UTF-8 of the name of a member, region, lock or barrier. */
export const MAX_NAME_BYTES = 255;
export const MIN_PAGE_SIZE = 4096;
/** Bytes: less would be a handful of pages. */
export const MIN_MEMORY_LIMIT = 1024 * 1024;
/** 2 MiB: a larger page would travel whole for every byte in it. */
export const MAX_PAGE_SIZE = 2 * 1024 * 1024;
/** What notify() sends for "all of them": the largest count that survives every encoding on the way. */
export const NOTIFY_ALL = 0x7fff_ffff;
/** More parties than a cluster can ever have threads: a barrier of so many is a mistake. */
export const MAX_PARTIES = 0xffff_ffff;

export interface JoinOptions {
  /**
   * `'local:NAME'`: a cluster of this user's processes on this machine; NAME is 1 to 64 of `A-Z a-z 0-9 . _ -` and
   * does not start with a dot. `'tcp://HOST:PORT'`: HOST is an IP literal (IPv6 in brackets) or `localhost`.
   * Default: the environment variable FAULTLINE_CLUSTER, else `'local:default'`.
   */
  cluster?: string;
  /** This member's name, for people: 1 to 255 bytes of UTF-8 without control characters. Default `HOSTNAME:PID`. */
  name?: string;
  /** ms of silence of a live peer after which it is given up; 500 to 600,000, default 2000. It does not bound pins, locks or barriers. */
  faultTimeout?: number;
  /**
   * Allows an address that is not loopback, without keys: everybody who can reach the port may read and change the
   * memory. For isolated networks and tests; the process says so once in a warning (code FAULTLINE_INSECURE).
   */
  insecure?: boolean;
  /**
   * `'auto'` (default): faults that one other member alone can serve go over a socket straight to its page server.
   * `'off'`: all go through the coordinators. Default: the environment variable FAULTLINE_LANE, else `'auto'`.
   */
  lane?: 'auto' | 'off';
  /**
   * What stops an access to a page that is not here. `'userfaultfd'`: page tables change, mappings never; needs Linux 6.4
   * or so, and works without privilege. `'mprotect'`: everywhere. `'auto'` (default): userfaultfd where it works.
   * Default: the environment variable FAULTLINE_GUARD, else `'auto'`. Members of one cluster may differ.
   */
  guard?: 'mprotect' | 'userfaultfd' | 'auto';
  /**
   * A page that is not here is also fetched when the kernel touches it, in a system call such as `fs.readSync(fd, view)`;
   * without this, such a call fails with EFAULT unless the page is pinned. Needs the userfaultfd guard, Linux 6.6, and a
   * privilege: CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd = 1. Every fault costs two changes
   * of threads more. Default: whether the environment variable FAULTLINE_SYSTEM_CALLS is 1, else false.
   */
  systemCalls?: boolean;
  /**
   * Bytes of memory, 1 MiB or more, that this member's regions may take all together; so a region may be larger than the
   * machine's memory. When it is reached, pages that have not been used for a while are given up: copies are dropped, and
   * owned pages go to their homes. Pages that this member is the home of, and pinned ones, count and stay. The limit is
   * exceeded for moments, and where nothing else can be given up. Default: the environment variable FAULTLINE_MEMORY_LIMIT,
   * else none.
   */
  memoryLimit?: number;
  /** Aborts the join: it rejects with the signal's reason, and what was begun is undone in the background. */
  signal?: AbortSignal;
}

export interface RegionOptions {
  /** Bytes, a multiple of pageSize. Needed to create; to open, it must be the region's size if it is given. */
  size?: number;
  /** Bytes, a power of two from 4096 to 2 MiB. Default 4096. */
  pageSize?: number;
  /** `'sequential'` (default): all threads of all members behave as if they ran on one multicore machine. */
  consistency?: 'sequential';
  /** Where the pages' homes are: all at the creator (default), or one contiguous slice at each member of the view. */
  placement?: 'creator' | 'spread';
  /** `'wait'`: as soon as somebody creates it. Default `'open-or-create'`. */
  mode?: 'open-or-create' | 'create' | 'open' | 'wait';
  signal?: AbortSignal;
}

/** Bytes of a region. */
export interface Range { offset: number; length: number }

const LANES = ['auto', 'off'] as const;
const GUARDS = ['mprotect', 'userfaultfd', 'auto'] as const;

/** Options that a second join() of one process must agree about, if it gives them. */
export type Given = Partial<Pick<CoordinatorSettings, 'name' | 'faultTimeout' | 'insecure' | 'lane' | 'guard' | 'systemCalls' | 'memoryLimit'>>;

export interface CheckedJoin {
  settings: CoordinatorSettings;
  /** Only what the caller wrote down, without defaults. */
  given: Given;
  loopback: boolean;
  signal: AbortSignal | undefined;
}

export function invalid(argument: string, message: string, fields: Record<string, unknown> = {}): Error {
  return makeError('ERR_FAULTLINE_INVALID_ARGUMENT', message, { argument, ...fields });
}

/** A value as an error message shows it: short, and on one line. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 80 ? `${value.slice(0, 77)}...` : value);
  if (typeof value === 'bigint') return `${value}n`;
  if (value === null || ['number', 'boolean', 'undefined'].includes(typeof value)) return String(value);
  return typeof value === 'function' ? 'a function' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
}

export function checkObject(argument: string, value: unknown): Record<string, unknown> {
  if (value === undefined) return {};
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid(argument, `${argument} must be an object, not ${show(value)}`);
  return value as Record<string, unknown>;
}

export function checkName(argument: string, value: unknown): string {
  if (typeof value !== 'string') throw invalid(argument, `${argument} must be a string, not ${show(value)}`);
  const bytes = Buffer.byteLength(value);
  if (bytes === 0) throw invalid(argument, `${argument} must not be empty`);
  if (bytes > MAX_NAME_BYTES) throw invalid(argument, `${argument} has ${bytes} bytes; at most ${MAX_NAME_BYTES} are allowed`);
  // Names stand in one-line messages on stderr, also in those that are written while the process dies.
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(value)) throw invalid(argument, `${argument} ${show(value)} has control characters`);
  if (/\p{Surrogate}/u.test(value)) throw invalid(argument, `${argument} is not well-formed Unicode`);
  return value;
}

export function checkBoolean(argument: string, value: unknown): boolean {
  if (value === undefined) return false;
  if (typeof value !== 'boolean') throw invalid(argument, `${argument} must be true or false, not ${show(value)}`);
  return value;
}

export function checkChoice<const T extends readonly string[]>(argument: string, value: unknown, choices: T): T[number] {
  if (!choices.includes(value as string)) throw invalid(argument, `${argument} must be ${choices.map((choice) => `'${choice}'`).join(' or ')}, not ${show(value)}`);
  return value as T[number];
}

export function checkInteger(argument: string, value: unknown, least: number, most: number, unit = ''): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value)) throw invalid(argument, `${argument} must be an integer, not ${show(value)}`);
  if (value < least || value > most) throw invalid(argument, `${argument} must be from ${least} to ${most}${unit}, not ${value}`);
  return value;
}

/** undefined and Infinity mean: no time limit. */
export function checkTimeout(argument: string, value: unknown): number | undefined {
  if (value === undefined || value === Infinity) return undefined;
  if (typeof value !== 'number' || !(value >= 0)) throw invalid(argument, `${argument} must be a number of milliseconds, 0 or more, not ${show(value)}`);
  return value;
}

export function checkSignal(argument: string, value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  if (!(value instanceof AbortSignal)) throw invalid(argument, `${argument} must be an AbortSignal, not ${show(value)}`);
  return value;
}

/** @throws InvalidArgumentError if they are no such numbers, OutOfRangeError if the range is not inside [0, size). */
export function checkRange(offset: unknown, length: unknown, size: number): void {
  if (typeof offset !== 'number' || !Number.isSafeInteger(offset)) throw invalid('offset', `offset must be an integer, not ${show(offset)}`);
  if (typeof length !== 'number' || !Number.isSafeInteger(length)) throw invalid('length', `length must be an integer, not ${show(length)}`);
  if (offset < 0 || length < 0 || offset > size || length > size - offset) {
    throw makeError('ERR_FAULTLINE_OUT_OF_RANGE', `bytes ${offset} to ${offset + length} are not inside a region of ${size} bytes`, { offset, length, size });
  }
}

export function checkAligned(offset: number, alignment: number, what: string): void {
  if (offset % alignment !== 0) throw makeError('ERR_FAULTLINE_MISALIGNED', `${what} ${offset} is not a multiple of ${alignment}`, { offset, alignment });
}

export interface ClusterAddress {
  /** Normalised: two spellings of one address give one key. */
  key: string;
  loopback: boolean;
}

/** @throws InvalidArgumentError (argument `source`) */
export function parseCluster(text: unknown, source = 'cluster'): ClusterAddress {
  if (typeof text !== 'string') throw invalid(source, `${source} must be a string, not ${show(text)}`);
  if (text.startsWith('local:')) {
    const name = text.slice('local:'.length);
    if (name.includes('/') || name.includes('\\') || name.startsWith('.')) throw invalid(source, `${source} ${show(text)}: a cluster's name is no path and does not start with a dot`);
    if (!/^[A-Za-z0-9._-]{1,64}$/.test(name)) throw invalid(source, `${source} ${show(text)}: a cluster's name is 1 to 64 of A-Z a-z 0-9 . _ -`);
    return { key: text, loopback: true };
  }
  if (text.startsWith('tcp://')) {
    const match = /^tcp:\/\/(\[[^\]]*\]|[^:/[\]]*):(\d{1,5})$/.exec(text);
    if (!match) throw invalid(source, `${source} ${show(text)}: expected tcp://HOST:PORT`);
    const port = Number(match[2]);
    if (port < 1 || port > 65535) throw invalid(source, `${source} ${show(text)}: the port must be from 1 to 65535`);
    const { host, loopback } = parseHost(match[1], text, source);
    return { key: `tcp://${host}:${port}`, loopback };
  }
  throw invalid(source, `${source} ${show(text)}: expected 'local:NAME' or 'tcp://HOST:PORT'`);
}

function parseHost(given: string, text: string, source: string): { host: string; loopback: boolean } {
  if (given.toLowerCase() === 'localhost') return { host: '127.0.0.1', loopback: true };
  if (net.isIPv4(given)) return ipv4(given, text, source);
  const inner = given.startsWith('[') ? given.slice(1, -1) : '';
  // A zone ('%eth0') means something on one machine only, so it can't name a cluster.
  if (net.isIPv6(inner) && !inner.includes('%')) {
    // The URL parser has the canonical spelling of RFC 5952: lower case, longest run of zeros left out.
    const host = new URL(`http://[${inner}]/`).hostname;
    const mapped = /^\[::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})\]$/.exec(host);
    if (mapped) {
      const [high, low] = [parseInt(mapped[1], 16), parseInt(mapped[2], 16)];
      return ipv4(`${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`, text, source);
    }
    if (host === '[::]') throw wildcard(text, source);
    return { host, loopback: host === '[::1]' };
  }
  throw invalid(source, `${source} ${show(text)}: the host must be an IP address (IPv6 in brackets) or localhost`);
}

function ipv4(host: string, text: string, source: string): { host: string; loopback: boolean } {
  if (host === '0.0.0.0') throw wildcard(text, source);
  return { host, loopback: host.startsWith('127.') };
}

function wildcard(text: string, source: string): Error {
  return invalid(source, `${source} ${show(text)}: this address means any interface; name the one where the others can find the cluster`);
}

/**
 * @throws InvalidArgumentError, KeysNeededError
 */
export function checkJoin(options: unknown, environment: NodeJS.ProcessEnv = process.env): CheckedJoin {
  const { cluster, name, faultTimeout, insecure, lane, guard, systemCalls, memoryLimit, signal } = checkObject('options', options);
  const fromEnvironment = environment.FAULTLINE_CLUSTER;
  const { key, loopback } =
    cluster !== undefined ? parseCluster(cluster)
      : fromEnvironment ? parseCluster(fromEnvironment, 'FAULTLINE_CLUSTER')
        : parseCluster(DEFAULT_CLUSTER);
  const given: Given = {};
  if (name !== undefined) given.name = checkName('name', name);
  if (faultTimeout !== undefined) given.faultTimeout = checkInteger('faultTimeout', faultTimeout, MIN_FAULT_TIMEOUT_MS, MAX_FAULT_TIMEOUT_MS, ' ms');
  if (insecure !== undefined) given.insecure = checkBoolean('insecure', insecure);
  if (lane !== undefined) given.lane = checkChoice('lane', lane, LANES);
  if (guard !== undefined) given.guard = checkChoice('guard', guard, GUARDS);
  if (systemCalls !== undefined) given.systemCalls = checkBoolean('systemCalls', systemCalls);
  if (memoryLimit !== undefined) given.memoryLimit = checkInteger('memoryLimit', memoryLimit, MIN_MEMORY_LIMIT, Number.MAX_SAFE_INTEGER, ' bytes');
  const laneHere = environment.FAULTLINE_LANE;
  const guardHere = environment.FAULTLINE_GUARD;
  const systemCallsHere = environment.FAULTLINE_SYSTEM_CALLS;
  const limitHere = environment.FAULTLINE_MEMORY_LIMIT;
  if (!loopback && !given.insecure) {
    throw makeError('ERR_FAULTLINE_KEYS_NEEDED', `${key} is not a loopback address: members would have to prove who they are, and this version has no keys yet. On an isolated network, insecure: true allows it without`, { cluster: key });
  }
  // What the environment asks for gives way to what this call says, also where the two don't go together.
  const guardAsked = guardHere ? checkChoice('FAULTLINE_GUARD', guardHere, GUARDS) : 'auto';
  const guardChosen = given.guard ?? (given.systemCalls === true && guardAsked === 'mprotect' ? 'auto' : guardAsked);
  const asked = systemCallsHere ? checkChoice('FAULTLINE_SYSTEM_CALLS', systemCallsHere, ['0', '1']) === '1' : false;
  const served = given.systemCalls ?? (asked && guardChosen !== 'mprotect');
  if (served && guardChosen === 'mprotect') throw invalid('systemCalls', "systemCalls needs the guard 'userfaultfd' or 'auto', not 'mprotect'");
  return {
    settings: {
      key,
      name: given.name ?? defaultName(),
      insecure: given.insecure ?? false,
      faultTimeout: given.faultTimeout ?? DEFAULT_FAULT_TIMEOUT_MS,
      joinTimeout: JOIN_TIMEOUT_MS,
      lane: given.lane ?? (laneHere ? checkChoice('FAULTLINE_LANE', laneHere, LANES) : 'auto'),
      guard: guardChosen,
      systemCalls: served,
      memoryLimit: given.memoryLimit ?? (limitHere ? checkInteger('FAULTLINE_MEMORY_LIMIT', wholeNumber(limitHere), MIN_MEMORY_LIMIT, Number.MAX_SAFE_INTEGER, ' bytes') : null),
    },
    given,
    loopback,
    signal: checkSignal('signal', signal),
  };
}

function defaultName(): string {
  return `${os.hostname()}:${process.pid}`;
}

/** ms; FAULTLINE_EXIT_TIMEOUT, 0 to 600,000. @throws InvalidArgumentError */
export function exitTimeout(environment: NodeJS.ProcessEnv = process.env): number {
  const text = environment.FAULTLINE_EXIT_TIMEOUT;
  if (text === undefined || text === '') return DEFAULT_EXIT_TIMEOUT_MS;
  return checkInteger('FAULTLINE_EXIT_TIMEOUT', wholeNumber(text), 0, 600_000, ' ms');
}

/** A number that an environment variable gives; what is none stays as it is, for the error. */
function wholeNumber(text: string): number | string {
  return /^\d+$/.test(text) ? Number(text) : text;
}

export interface CheckedRegion {
  args: { name: string; mode: 'open-or-create' | 'create' | 'open' | 'wait'; size?: number; pageSize?: number; consistency?: 'sequential'; placement?: 'creator' | 'spread' };
  signal: AbortSignal | undefined;
}

/** @throws InvalidArgumentError. Options that were not given stay absent, so that they match every existing region. */
export function checkRegion(name: unknown, options: unknown): CheckedRegion {
  const given = checkObject('options', options);
  const args: CheckedRegion['args'] = { name: checkName('region name', name), mode: 'open-or-create' };
  if (given.mode !== undefined) args.mode = checkChoice('mode', given.mode, ['open-or-create', 'create', 'open', 'wait']);
  if (given.pageSize !== undefined) {
    args.pageSize = checkInteger('pageSize', given.pageSize, MIN_PAGE_SIZE, MAX_PAGE_SIZE, ' bytes');
    if (!Number.isInteger(Math.log2(args.pageSize))) throw invalid('pageSize', `pageSize must be a power of two, not ${args.pageSize}`);
  }
  if (given.size !== undefined) {
    const unit = args.pageSize ?? MIN_PAGE_SIZE;
    args.size = checkInteger('size', given.size, 1, Number.MAX_SAFE_INTEGER, ' bytes');
    if (args.size % unit !== 0) throw invalid('size', `size ${args.size} is not a multiple of the page size of ${unit} bytes; ${Math.ceil(args.size / unit) * unit} would be`);
  }
  if (given.consistency !== undefined) args.consistency = checkChoice('consistency', given.consistency, ['sequential']);
  if (given.placement !== undefined) args.placement = checkChoice('placement', given.placement, ['creator', 'spread']);
  if (args.mode === 'create' && args.size === undefined) throw invalid('size', `size is needed to create a region`);
  return { args, signal: checkSignal('signal', given.signal) };
}

/**
 * Whole pages that cover the ranges, in address order, overlaps and neighbours merged: whoever pins several ranges takes
 * them in this order, so that two who want the same ones never wait for each other in a circle.
 * @throws InvalidArgumentError, OutOfRangeError
 */
export function checkPinRanges(ranges: unknown, size: number, pageSize: number): Range[] {
  const list: unknown[] = Array.isArray(ranges) ? ranges : [ranges];
  if (list.length === 0) throw invalid('ranges', 'ranges must not be empty');
  const rounded = list.map((item) => {
    if (typeof item !== 'object' || item === null) throw invalid('ranges', `a range must be { offset, length }, not ${show(item)}`);
    const { offset, length } = item as Range;
    checkRange(offset, length, size);
    if (length === 0) throw invalid('ranges', 'a range must have at least one byte');
    const start = Math.floor(offset / pageSize) * pageSize;
    return { start, end: Math.ceil((offset + length) / pageSize) * pageSize };
  });
  rounded.sort((left, right) => left.start - right.start);
  const merged: { start: number; end: number }[] = [];
  for (const range of rounded) {
    const last = merged.at(-1);
    if (last && range.start <= last.end) last.end = Math.max(last.end, range.end);
    else merged.push(range);
  }
  return merged.map(({ start, end }) => ({ offset: start, length: end - start }));
}
