/** The ratios that are asked for, from the rows of one run. */
import { placements, type PlacementName } from '../placement.js';
import { rowOf, type Run, type Target } from '../results.js';
import { round } from '../samples.js';

const MIB = 2 ** 20;
/** Of what is to stay as it is: at most so much more. */
const UNCHANGED = 1.1;
/** Heartbeats and the like come in between. */
const OTHER_MESSAGES = 0.1;

/** [section, key] of a row. */
type At = readonly [section: string, key: string];

interface Spec {
  what: string;
  /** Where it is asked for; 'all': measured once. */
  where: readonly PlacementName[] | 'all';
  atMost?: number;
  atLeast?: number;
  /** Shown in place of the number. */
  asked?: string;
  got(run: Run, placement: PlacementName): number | undefined;
  /** A row without which there is no saying whether it is met. */
  needs?: { at: At; note: string };
}

const both: readonly PlacementName[] = ['one', 'each'];
const everywhere: readonly PlacementName[] = ['one', 'each', 'free'];

function ratio(a: At, b: At): Spec['got'] {
  return (run, placement) => {
    const over = rowOf(run, ...a, placement);
    const under = rowOf(run, ...b, placement);
    return over && under ? round(over.median / under.median) : undefined;
  };
}

/** Of bandwidths. */
function speed(a: At, b: At): Spec['got'] {
  const slowness = ratio(a, b);
  return (run, placement) => {
    const got = slowness(run, placement);
    return got === undefined ? undefined : round(1 / got);
  };
}

function counted(section: string, key: string): Spec['got'] {
  return (run, placement) => run.counts.find((count) => count.section === section && count.key === key && count.placement === placement)?.value;
}

function largest(...all: Spec['got'][]): Spec['got'] {
  return (run, placement) => {
    const got = all.map((one) => one(run, placement)).filter((value) => value !== undefined);
    return got.length === all.length ? Math.max(...got) : undefined;
  };
}

/** The slowest of a section's rows with this prefix, by the fastest. */
function growth(prefix: string): Spec['got'] {
  return (run, placement) => {
    const medians = run.rows.filter((row) => row.section === 'growth' && row.placement === placement && row.key.startsWith(`${prefix}-`)).map((row) => row.median);
    return medians.length > 1 ? round(Math.max(...medians) / Math.min(...medians)) : undefined;
  };
}

const READ: At = ['read', 'read'];
const ZEROMQ: At = ['sync', 'zeromq-short'];
const at = (section: string, key: string): At => [section, key];

export const specs: readonly Spec[] = [
  { what: 'repeated local access ÷ plain SharedArrayBuffer', where: 'all', atMost: 1.03, got: largest(...['read', 'write', 'random'].map((kind) => ratio(['access', `region-${kind}`], ['access', `plain-${kind}`]))) },
  { what: 'fault that needs no other member, one page ÷ bare C trap with the same guard', where: everywhere, atMost: 1.5, got: ratio(['local', 'open-page'], ['local', 'trap-read']) },
  { what: 'cold remote read, lane ÷ C socket round trip, blocking', where: ['one'], atMost: 2.2, got: ratio(READ, ['read', 'c-unix-blocking']) },
  { what: 'cold remote read, lane ÷ C socket round trip, polling', where: ['each'], atMost: 1.6, got: ratio(READ, ['read', 'c-unix-polling']) },
  { what: 'cold remote read, lane ÷ ioredis GET of 4 KiB', where: ['one'], atMost: 1.0, got: ratio(READ, ['read', 'redis-get']) },
  { what: 'cold remote read, lane ÷ ioredis GET of 4 KiB', where: ['each'], atMost: 0.3, got: ratio(READ, ['read', 'redis-get']) },
  { what: 'cold remote read, lane ÷ raw zeromq.js', where: ['one'], atMost: 0.35, got: ratio(READ, ['read', 'zeromq']) },
  { what: 'cold remote read, lane ÷ raw zeromq.js', where: ['each'], atMost: 0.15, got: ratio(READ, ['read', 'zeromq']) },
  { what: 'cold remote read, coordinators ÷ raw zeromq.js', where: ['one'], atMost: 1.25, got: ratio(['read', 'read-off'], ['read', 'zeromq']) },
  { what: 'cold remote read, coordinators ÷ raw zeromq.js', where: ['each'], atMost: 1.6, got: ratio(['read', 'read-off'], ['read', 'zeromq']) },
  { what: 'write upgrade, no other copy ÷ cold remote read, lane', where: both, atMost: 1.2, got: ratio(['write', 'upgrade-0'], ['write', 'read']) },
  { what: 'cold remote write ÷ cold remote read, lane', where: both, atMost: 1.2, got: ratio(['write', 'write'], ['write', 'read']) },
  { what: 'hand-over, home and member ÷ cold remote read, lane', where: both, atMost: 1.5, got: ratio(['pingpong', 'home'], ['pingpong', 'read']) },
  { what: 'the same, one contended page', where: both, atMost: 1.5, got: ratio(['pingpong', 'home-contended'], ['pingpong', 'read']) },
  { what: 'hand-over, two members ÷ cold remote read, lane', where: both, asked: 'report', got: ratio(['pingpong', 'members'], ['pingpong', 'read']) },
  { what: 'lockSync hand-over ÷ raw zeromq.js', where: both, atMost: 1.5, got: ratio(['sync', 'lock-few'], ZEROMQ) },
  { what: 'barrierSync of 2 ÷ raw zeromq.js', where: both, atMost: 1.5, got: ratio(['sync', 'barrier-2-few'], ZEROMQ) },
  { what: 'lockSync hand-over, many ÷ few cached pages', where: both, atMost: UNCHANGED, asked: `unchanged (${UNCHANGED})`, got: ratio(['sync', 'lock-many'], ['sync', 'lock-few']) },
  { what: 'barrierSync of 2, many ÷ few cached pages', where: both, atMost: UNCHANGED, asked: `unchanged (${UNCHANGED})`, got: ratio(['sync', 'barrier-2-many'], ['sync', 'barrier-2-few']) },
  { what: 'sequential cold scan, lane ÷ C into new memfd pages (MB/s)', where: everywhere, atLeast: 0.6, got: speed(['scan', 'sequential-read'], ['scan', 'c-stream']) },
  { what: 'prefetch of 16 MiB ÷ the same (MB/s)', where: everywhere, atLeast: 0.8, got: speed(at('prefetch', `prefetch-${16 * MIB}`), at('prefetch', `c-stream-unix-${16 * MIB}`)) },
  { what: 'pages that came ÷ pages read at random, lane', where: everywhere, atMost: 1.1, got: counted('scan', 'random-waste') },
  ...['', '-off'].flatMap((suffix): Spec[] => {
    const path = suffix ? 'coordinators' : 'lane';
    return [
      { what: `messages of a read miss, ${path}`, where: 'all', atMost: 2 + OTHER_MESSAGES, asked: '2', got: counted('messages', `read${suffix}`) },
      ...[0, 1, 3].map((m): Spec => ({ what: `messages of a write miss with ${m} copies, ${path}`, where: 'all', atMost: 2 + 2 * m + OTHER_MESSAGES, asked: String(2 + 2 * m), got: counted('messages', `write-${m}${suffix}`) })),
      { what: `messages of a scan for 32 pages, ${path}`, where: 'all', atMost: 2 + OTHER_MESSAGES, asked: '2', got: counted('messages', `scan${suffix}`) },
    ];
  }),
  { what: 'alternating page states without a failure, userfaultfd', where: 'all', atLeast: 1_000_000, asked: '1,000,000', got: (run, placement) => (run.settings.quick ? undefined : rowOf(run, 'mappings', 'alternating-userfaultfd', placement)?.n) },
  { what: 'alternating page states without a failure, mprotect', where: 'all', atLeast: 32_752, asked: 'above 32,751', got: (run, placement) => (run.settings.quick ? undefined : rowOf(run, 'mappings', 'alternating-mprotect', placement)?.n) },
  { what: 'fault cost, largest ÷ smallest region', where: both, atMost: UNCHANGED, got: growth('size'), needs: { at: at('growth', `size-${MIB * MIB}`), note: 'not up to 1 TiB' } },
  { what: 'fault cost, most ÷ fewest cached pages', where: both, atMost: UNCHANGED, got: growth('cached'), needs: { at: at('growth', 'cached-100000'), note: 'not up to 100,000' } },
  { what: 'fault cost, most ÷ fewest members', where: both, atMost: UNCHANGED, got: growth('members') },
];

function judge(spec: Spec, run: Run, placement: PlacementName): Omit<Target, 'placement'> | undefined {
  const got = spec.got(run, placement);
  if (got === undefined) return undefined;
  const missing = spec.needs && !rowOf(run, ...spec.needs.at, placement) ? spec.needs.note : undefined;
  const met = missing !== undefined ? null : spec.atMost !== undefined ? got <= spec.atMost : spec.atLeast !== undefined ? got >= spec.atLeast : null;
  const asked = spec.asked ?? (spec.atMost !== undefined ? `≤ ${spec.atMost}` : `≥ ${spec.atLeast}`);
  return { what: spec.what, asked, got, met, ...(missing === undefined ? {} : { note: missing }) };
}

/** Those of which everything was measured. */
export function targets(run: Run): Target[] {
  return specs.flatMap((spec): Target[] => {
    const where = spec.where === 'all' ? placements.map(({ name }) => name) : spec.where;
    const found = where.flatMap((placement): Target[] => {
      const judged = judge(spec, run, placement);
      return judged ? [{ ...judged, placement: spec.where === 'all' ? 'all' : placement }] : [];
    });
    return spec.where === 'all' ? found.slice(0, 1) : found;
  });
}
