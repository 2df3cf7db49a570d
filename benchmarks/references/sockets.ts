/** Sockets in C, without Node: a round trip of the sizes that a lane has, and a stream into new memory. */
import type { Bench, Meter } from '../bench.js';

/** Bytes of a lane's question, and of its answer for one page without the page. */
export const LANE_QUESTION = 40;
export const LANE_ANSWER = 36;

export type Kind = 'unix' | 'tcp';
let names = 0;

/**
 * @param poll µs that both sides look before they sleep
 * @param fresh the page goes into new memory, as that of a fault does; else always into the same
 */
export async function socket(bench: Bench, kind: Kind, poll: number, page: number, fresh = false): Promise<Meter> {
  const where = kind === 'tcp' ? '0' : `faultline-bench-${process.pid}-${++names}`;
  const sizes = fresh ? [poll, LANE_QUESTION, LANE_ANSWER, page] : [poll, LANE_QUESTION, LANE_ANSWER + page];
  const { said } = await bench.program(0, 'socket', ['server', kind, where, ...sizes]);
  const { program } = await bench.program(1, 'socket', ['client', kind, kind === 'tcp' ? said : where, ...sizes]);
  return {
    key: `c-${kind}-${poll > 0 ? 'polling' : 'blocking'}${fresh ? '-fresh' : ''}`, reference: true,
    what: `C, ${kind} socket, ${poll > 0 ? `polling ${poll} µs` : 'blocking'}, ${LANE_QUESTION} B there, ${LANE_ANSWER} B${page > 0 ? ` + ${page / 1024} KiB` : ''} back${fresh ? ', into new memfd pages' : ''}`,
    take: (count) => program.take(count),
  };
}

export async function stream(bench: Bench, kind: Kind, bytes: number): Promise<Meter> {
  const where = kind === 'tcp' ? '0' : `faultline-bench-${process.pid}-${++names}`;
  const { said } = await bench.program(0, 'stream', ['server', kind, where]);
  const { program } = await bench.program(1, 'stream', ['client', kind, kind === 'tcp' ? said : where, bytes]);
  return {
    key: `c-stream-${kind}-${bytes}`, reference: true, bytes,
    what: `C: ${size(bytes)} over a ${kind} socket into new memfd pages, and read`,
    take: (count) => program.take(count),
  };
}

export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${bytes / 2 ** (10 * power)} ${units[power]}`;
}
