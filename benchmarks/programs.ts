/** The C programs of benchmarks/native: building and starting them. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { processorOf, type Placement } from './placement.js';

const root = path.resolve(__dirname, '..', '..');
const built = path.join(root, 'build', 'benchmarks');
/** What a program exits with when this machine can't do what it measures. */
const LEFT_OUT = 3;
const BUILD_MS = 120_000;
/** ms for a process to start, or to take one block of samples. */
const ANSWER_MS = 120_000;

/** This machine can't do it: the rows are left out, and the reason is shown. */
export class LeftOutError extends Error {}

export async function buildPrograms(): Promise<void> {
  const folder = path.join(root, 'benchmarks', 'native');
  try {
    await promisify(execFile)('make', ['-s', '-C', folder, `OUT=${built}`], { timeout: BUILD_MS });
  } catch (error) {
    throw new Error(`the C programs of the benchmark could not be built (make and a C compiler are needed): ${(error as { stderr?: string }).stderr || String(error)}`);
  }
}

export interface PlaceOptions {
  /** None of the kernel's large pages. */
  smallPages?: boolean;
  /** For what would not notice by itself that the benchmark has been killed. */
  endsWithUs?: boolean;
}

/** The command that runs another one where the placement says. */
export function placed(placement: Placement, index: number, command: string[], options: PlaceOptions = {}): string[] {
  const processor = processorOf(placement, index);
  const place = [...(processor === undefined ? [] : ['-c', String(processor)]), ...(options.smallPages ? ['-t'] : []), ...(options.endsWithUs ? ['-d'] : [])];
  return place.length === 0 ? command : [path.join(built, 'place'), ...place, ...command];
}

export function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: no answer within ${ms / 1000} s`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A running C program. See native/meter.h. */
export class Program {
  private readonly lines: AsyncIterableIterator<string>;
  private errors = '';
  private readonly ended: Promise<number | null>;

  private constructor(private readonly child: ChildProcess, private readonly name: string) {
    this.lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
    child.stderr!.on('data', (data: Buffer) => (this.errors += data.toString()));
    this.ended = once(child, 'close').then(([code]) => code as number | null, () => null);
    child.stdin!.on('error', () => undefined);
  }

  /** @returns the program, and what it said after "ready" */
  static async start(placement: Placement, index: number, name: string, args: (string | number)[]): Promise<{ program: Program; said: string }> {
    const [command, ...rest] = placed(placement, index, [path.join(built, name), ...args.map(String)], { endsWithUs: true });
    const program = new Program(spawn(command, rest, { stdio: ['pipe', 'pipe', 'pipe'] }), `${name} ${args.join(' ')}`);
    try {
      return { program, said: (await program.line()).replace(/^ready\s*/, '') };
    } catch (error) {
      await program.close();
      throw error;
    }
  }

  private async line(): Promise<string> {
    const { value, done } = await within(this.lines.next(), ANSWER_MS, this.name);
    if (!done) return value as string;
    const code = await within(this.ended, ANSWER_MS, this.name);
    const reason = this.errors.trim() || `ended with ${code}`;
    throw code === LEFT_OUT ? new LeftOutError(reason) : new Error(`${this.name}: ${reason}`);
  }

  async take(count: number): Promise<number[]> {
    this.child.stdin!.write(`${count}\n`);
    const samples = (await this.line()).split(' ').map(Number);
    if (samples.length !== count || !samples.every(Number.isFinite)) throw new Error(`${this.name} gave no ${count} samples`);
    return samples;
  }

  async close(): Promise<void> {
    this.child.stdin!.end();
    const late = setTimeout(() => this.child.kill('SIGKILL'), 5000);
    await this.ended;
    clearTimeout(late);
  }
}
