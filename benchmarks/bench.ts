/** What a section is given: processes, meters, and a place for its figures. */
import { Party, type PartyOptions } from './party.js';
import { describe, type Placement, type PlacementName } from './placement.js';
import { LeftOutError, Program } from './programs.js';
import { rowOf, type Curve, type Point, type Row, type Run, type Stages } from './results.js';
import { distribution, figures } from './samples.js';
import type { Settings } from './settings.js';

export interface Section {
  readonly name: string;
  /** For the table. */
  readonly title: string;
  /** For --list. */
  readonly about: string;
  /** The placement makes no difference: it is measured in this one, whichever are wanted. */
  readonly only?: PlacementName;
  run(bench: Bench): Promise<void>;
}

/** Something that can be measured in blocks, so that what disturbs one disturbs all that are measured in turn with it. */
export interface Meter {
  /** Stable: targets and comparisons find a row by it. */
  readonly key: string;
  readonly what: string;
  /** Something else than faultline, to compare with. */
  readonly reference?: boolean;
  /** Bytes that each sample moves. */
  readonly bytes?: number;
  /** Processes that take part. */
  readonly processes?: number;
  readonly note?: string;
  take(count: number): Promise<ArrayLike<number>>;
}

/** Samples in a block. */
const BLOCK = 50;

export class Bench {
  private readonly closers: (() => Promise<void>)[] = [];
  private static clusters = 0;

  constructor(readonly section: Section, readonly placement: Placement, readonly settings: Settings, private readonly run: Run, private readonly say: (text: string) => void) {}

  /** Done in reverse order when the section is over, or has failed. */
  onClose(close: () => Promise<void>): void {
    this.closers.push(close);
  }

  async close(): Promise<void> {
    for (let close = this.closers.pop(); close; close = this.closers.pop()) await close();
  }

  progress(text: string): void {
    this.say(`${this.section.name}, ${this.placement.what}: ${text}`);
  }

  async party(options: Omit<PartyOptions, 'cluster'> & { joined?: boolean }): Promise<Party> {
    const { joined = true, ...rest } = options;
    const cluster = joined ? `local:bench-${process.pid}-${++Bench.clusters}` : undefined;
    this.progress(`starting ${options.members} processes`);
    const party = await Party.start(this.placement, { ...rest, ...(cluster === undefined ? {} : { cluster }) });
    this.onClose(() => party.close());
    return party;
  }

  async program(index: number, name: string, args: (string | number)[]): Promise<{ program: Program; said: string }> {
    const started = await Program.start(this.placement, index, name, args);
    this.onClose(() => started.program.close());
    return started;
  }

  /** What this machine can't do is noted; other errors go on. */
  async unlessLeftOut<T>(what: string, make: () => Promise<T>): Promise<T | undefined> {
    try {
      return await make();
    } catch (error) {
      if (!(error instanceof LeftOutError)) throw error;
      this.leaveOut(what, error.message);
      return undefined;
    }
  }

  leaveOut(what: string, why: string): void {
    const text = `${what}: ${why}`;
    if (!this.run.leftOut.includes(text)) this.run.leftOut.push(text);
  }

  /** Takes blocks of all meters in turn, and adds a row for each. */
  async measure(meters: (Meter | undefined)[], options: { samples?: number; warmUp?: number; block?: number } = {}): Promise<void> {
    const { samples = this.settings.samples, warmUp = this.settings.warmUp, block = BLOCK } = options;
    const all = meters.filter((meter) => meter !== undefined);
    const taken = new Map<Meter, number[]>(all.map((meter) => [meter, []]));
    for (let done = 0; done < samples + warmUp;) {
      const count = Math.min(block, done < warmUp ? warmUp - done : samples + warmUp - done);
      for (const meter of all) {
        const got = await meter.take(count);
        if (done >= warmUp) taken.get(meter)!.push(...Array.from(got));
      }
      done += count;
      this.progress(`${Math.round((done / (samples + warmUp)) * 100)}%`);
    }
    for (const [meter, list] of taken) this.add(meter, list);
  }

  add(meter: Omit<Meter, 'take'>, nanoseconds: ArrayLike<number>): void {
    const { key, what, reference, bytes, note, processes } = meter;
    this.run.rows.push({
      section: this.section.name, key, what, placement: this.placement.name, where: describe(this.placement, processes ?? 2),
      ...figures(nanoseconds), distribution: distribution(nanoseconds),
      ...(reference ? { reference } : {}), ...(bytes === undefined ? {} : { bytes }), ...(note === undefined ? {} : { note }),
    } satisfies Row);
  }

  /** A figure that is no time: messages of a fault, for example. */
  count(key: string, what: string, value: number, unit: string): void {
    this.run.counts.push({ section: this.section.name, key, what, placement: this.placement.name, value, unit });
  }

  /** What add() has added here. */
  row(key: string): Row | undefined {
    return rowOf(this.run, this.section.name, key, this.placement.name);
  }

  stages(path: string, { n, stages }: { n: number; stages: Stages['stages'] }): void {
    this.run.stages.push({ path, placement: this.placement.name, n, stages });
  }

  /** A point of a curve that is plotted. */
  point(curve: Omit<Curve, 'points' | 'placement'>, point: Point): void {
    const known = this.run.curves.find((other) => other.plot === curve.plot && other.series === curve.series && other.placement === this.placement.name);
    if (known) known.points.push(point);
    else this.run.curves.push({ ...curve, placement: this.placement.name, points: [point] });
  }
}
