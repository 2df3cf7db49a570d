/**
 * The litmus tests: small programs of two to four threads on variables that begin as zero. What they may end in is not
 * written here: model.ts derives it. The names are those of the literature (Alglave, Maranget, Sarkar, Sewell: "Litmus:
 * running tests against hardware", 2011; Sewell and others: "x86-TSO", 2010).
 */

/** Bytes that one access has. */
export type Size = 1 | 2 | 4 | 8;

export interface Store { kind: 'store'; variable: number; /** Bytes from the start of the variable. */ offset: number; size: Size; value: number }
export interface Load { kind: 'load'; variable: number; offset: number; size: Size }
export type Access = Store | Load;

export interface Shape {
  name: string;
  /** One letter each. Every variable is a cell of eight bytes. */
  variables: string;
  /** The variable whose cell lies half on one page and half on the next. No Atomics form: those must be aligned. */
  straddling?: number;
  threads: Access[][];
}

/** Plain typed array and DataView accesses, or Atomics.load and Atomics.store. */
export type Form = 'plain' | 'atomics';

/** The wide value with a one in each half. Only one byte of each half ever changes, so an access that is made of several can be seen torn between the halves only. */
const BOTH = 0x1_0000_0001;
/** Likewise with twos. */
const BOTH_TWO = 0x2_0000_0002;

const SHAPES: Shape[] = [
  shape('SB', 'xy', 'x=1 y', 'y=1 x'),
  shape('MP', 'xy', 'x=1 y=1', 'y x'),
  shape('LB', 'xy', 'x y=1', 'y x=1'),
  shape('S', 'xy', 'x=2 y=1', 'y x=1'),
  shape('R', 'xy', 'x=1 y=1', 'y=2 x'),
  shape('2+2W', 'xy', 'x=1 y=2', 'y=1 x=2'),
  shape('WRC', 'xy', 'x=1', 'x y=1', 'y x'),
  shape('IRIW', 'xy', 'x=1', 'y=1', 'x y', 'y x'),
  shape('RWC', 'xy', 'x=1', 'x y', 'y=1 x'),
  shape('ISA2', 'xyz', 'x=1 y=1', 'y z=1', 'z x'),
  shape('CoRR', 'x', 'x=1', 'x x'),
  shape('CoRW', 'x', 'x x=1', 'x=2'),
  shape('CoWR', 'x', 'x=1 x', 'x=2 x'),
  shape('CoWW', 'x', 'x=1 x=2', 'x x'),
  // A wide store that narrow loads read, in the order in which a torn store would show; and narrow stores that a wide
  // load reads. `x/4+4` is four bytes of x from its fourth byte on.
  shape('wide-narrow', 'x', `x/8=${BOTH}`, 'x/4+4 x/4', 'x/4 x/4+4'),
  shape('narrow-wide', 'x', 'x/4=1 x/4+4=1', 'x/8'),
  shape('bytes-word', 'x', 'x/1=1 x/1+1=1', 'x/2 x/2'),
  // Two writers of neighbouring bytes: neither may write back what the other has replaced.
  shape('neighbours', 'x', 'x/1=1 x/1=2', 'x/1+1=1 x/1+1=2', 'x/2 x/2'),
  shape('MP-mixed', 'xy', `x/8=${BOTH} y/1=1`, 'y/2 x/4+4'),
  // `s` lies over a page border. Each half keeps its place in the order of its thread.
  shape('MP-straddle', 'sf', `s/8=${BOTH} f=1`, 'f s/8'),
  shape('MP-straddled-flag', 'sf', `f=1 s/8=${BOTH}`, 's/8 f'),
  shape('SB-straddle', 'sf', `s/8=${BOTH} f`, 'f=1 s/8'),
  shape('CoRR-straddle', 'sf', `s/8=${BOTH} f=1`, 's/8 s/8'),
  shape('2W-straddle', 'sf', `s/8=${BOTH}`, `s/8=${BOTH_TWO}`, 's/4 s/4+4 f=1'),
];

export function allShapes(): readonly Shape[] { return SHAPES; }

export function formsOf({ straddling }: Shape): Form[] { return straddling === undefined ? ['plain', 'atomics'] : ['plain']; }

/** Reads the notation above: `x=1` stores, `x` loads; `/SIZE` and `+OFFSET` in bytes, of four and zero. */
export function shape(name: string, variables: string, ...threads: string[]): Shape {
  const straddling = variables.indexOf('s');
  return { name, variables, ...(straddling >= 0 ? { straddling } : {}), threads: threads.map((text) => text.split(' ').map((access) => parse(access, variables))) };
}

function parse(text: string, variables: string): Access {
  const match = /^([a-z])(?:\/([1248]))?(?:\+(\d))?(?:=(\d+))?$/.exec(text);
  const variable = match ? variables.indexOf(match[1]) : -1;
  if (!match || variable < 0) throw new Error(`no access: ${text}`);
  const size = Number(match[2] ?? 4) as Size;
  const offset = Number(match[3] ?? 0);
  if (offset % size !== 0 || offset + size > 8) throw new Error(`not aligned inside its variable: ${text}`);
  return match[4] === undefined ? { kind: 'load', variable, offset, size } : { kind: 'store', variable, offset, size, value: Number(match[4]) };
}
