/**
 * What a litmus test may end in, derived by trying every interleaving of two abstract machines:
 *
 * - sequential consistency: every access acts on the memory at once, in the order of its thread;
 * - x86-TSO (Sewell and others, 2010): every thread has a first-in first-out buffer of its stores. A load takes each byte
 *   from the newest store in its own buffer that has it, else from memory. The oldest store may go to memory at any time.
 *
 * Aligned accesses are one step. One that lies over a page border is two, a half each, in either order. A load that
 * finds only some of its bytes in its thread's buffer takes the others from memory: the manuals leave open whether it
 * may, so the model is the wider of the two readings.
 */
import type { Access, Form, Shape } from './shapes.js';

/** Every load's value in the order of threads and accesses, then what each variable's eight bytes hold in the end. */
export type Outcome = readonly number[];
/** `sc`: sequentially consistent; `tso`: allowed, but only because stores are buffered; else it must never happen. */
export type Verdict = 'sc' | 'tso' | 'forbidden';

export class Model {
  readonly sc: ReadonlySet<string>;
  readonly tso: ReadonlySet<string>;

  constructor(readonly shape: Shape) {
    this.sc = outcomes(shape, false);
    this.tso = outcomes(shape, true);
  }

  /** With Atomics only what is sequentially consistent may happen. */
  judge(form: Form, outcome: Outcome): Verdict {
    const key = outcome.join();
    if (this.sc.has(key)) return 'sc';
    return form === 'plain' && this.tso.has(key) ? 'tso' : 'forbidden';
  }

  /** What may happen because of store buffers alone. */
  get weak(): string[] { return [...this.tso].filter((key) => !this.sc.has(key)); }

  /** For people: `0:y=0 1:x=0`, with a variable's last value where the model leaves it open, or where it is wrong. */
  describe(outcome: Outcome): string {
    const { threads, variables } = this.shape;
    const words: string[] = [];
    let at = 0;
    for (const [thread, accesses] of threads.entries()) {
      for (const { kind, variable, offset, size } of accesses) {
        if (kind === 'load') words.push(`${thread}:${variables[variable]}${size === 4 && offset === 0 ? '' : `/${size}${offset ? `+${offset}` : ''}`}=${number(outcome[at++])}`);
      }
    }
    for (const variable of variables) {
      const last = new Set([...this.tso].map((key) => key.split(',')[at]));
      if (last.size > 1 || !last.has(String(outcome[at]))) words.push(`${variable}=${number(outcome[at])}`);
      at++;
    }
    return words.join(' ');
  }
}

function number(value: number): string {
  return value > 9 ? `0x${value.toString(16)}` : String(value);
}

/** One step of the machine. A load's `slot` is the place of its value, `shift` that of its first byte there. */
type Step = { store: true; at: number; bytes: number[] } | { store: false; at: number; length: number; slot: number; shift: number };

function outcomes(shape: Shape, buffered: boolean): Set<string> {
  const found = new Set<string>();
  let loads = 0;
  const alternatives = shape.threads.map((accesses) => orders(accesses.map((access) => steps(access, shape, access.kind === 'load' ? loads++ : 0))));
  for (const threads of product(alternatives)) explore(threads, shape.variables.length, loads, buffered, found);
  return found;
}

/** The ways in which an access can be done: one step, or two halves in either order. */
function steps(access: Access, shape: Shape, slot: number): Step[][] {
  const { variable, offset, size } = access;
  const at = variable * 8 + offset;
  const part = (first: number, length: number): Step => access.kind === 'load'
    ? { store: false, at: at + first, length, slot, shift: first }
    : { store: true, at: at + first, bytes: bytesOf(access.value).slice(first, first + length) };
  if (variable !== shape.straddling || size !== 8) return [[part(0, size)]];
  return [[part(0, 4), part(4, 4)], [part(4, 4), part(0, 4)]];
}

/** All ways of a thread, each a plain list of steps. */
function orders(accesses: Step[][][]): Step[][] {
  return product(accesses).map((choice) => choice.flat());
}

function product<T>(lists: T[][]): T[][] {
  return lists.reduce<T[][]>((rows, list) => rows.flatMap((row) => list.map((item) => [...row, item])), [[]]);
}

function bytesOf(value: number): number[] {
  return Array.from({ length: 8 }, (_, byte) => Math.floor(value / 2 ** (8 * byte)) % 256);
}

function valueOf(bytes: ArrayLike<number>): number {
  let value = 0;
  for (let byte = bytes.length - 1; byte >= 0; byte--) value = value * 256 + bytes[byte];
  return value;
}

interface Machine { memory: number[]; next: number[]; buffers: number[][]; values: number[] }

function explore(threads: Step[][], variables: number, loads: number, buffered: boolean, found: Set<string>): void {
  const seen = new Set<string>();
  const open: Machine[] = [{
    memory: Array<number>(variables * 8).fill(0),
    next: threads.map(() => 0),
    // Which stores of the thread are in its buffer, oldest first.
    buffers: threads.map(() => []),
    values: Array<number>(loads).fill(0),
  }];
  for (let machine = open.pop(); machine; machine = open.pop()) {
    const key = JSON.stringify(machine);
    if (seen.has(key)) continue;
    seen.add(key);
    let ended = true;
    for (const [thread, program] of threads.entries()) {
      const oldest = machine.buffers[thread][0];
      if (oldest !== undefined) {
        ended = false;
        const after = structuredClone(machine);
        after.buffers[thread].shift();
        write(after.memory, program[oldest]);
        open.push(after);
      }
      if (machine.next[thread] < program.length) {
        ended = false;
        const after = structuredClone(machine);
        const index = after.next[thread]++;
        const step = program[index];
        if (!step.store) {
          const bytes = Array.from({ length: step.length }, (_, byte) => read(after, program, thread, step.at + byte));
          after.values[step.slot] += valueOf(bytes) * 2 ** (8 * step.shift);
        } else if (buffered) {
          after.buffers[thread].push(index);
        } else {
          write(after.memory, step);
        }
        open.push(after);
      }
    }
    if (ended) {
      const last = Array.from({ length: variables }, (_, variable) => valueOf(machine.memory.slice(variable * 8, variable * 8 + 8)));
      found.add([...machine.values, ...last].join());
    }
  }
}

function write(memory: number[], step: Step): void {
  if (step.store) for (const [byte, value] of step.bytes.entries()) memory[step.at + byte] = value;
}

function read(machine: Machine, program: Step[], thread: number, at: number): number {
  for (const index of machine.buffers[thread].toReversed()) {
    const step = program[index];
    if (step.store && at >= step.at && at < step.at + step.bytes.length) return step.bytes[at - step.at];
  }
  return machine.memory[at];
}
