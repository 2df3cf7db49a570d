/** Disjoint, sorted runs of pages, each with a value; neighbours with the same value (by `same`) are one run. */
export class RangeMap<V> {
  private runs: { first: number; end: number; value: V }[] = [];

  constructor(private readonly same: (a: V, b: V) => boolean) {}

  get(page: number): V | undefined {
    const at = this.after(page) - 1;
    const run = this.runs[at];
    return run !== undefined && page < run.end ? run.value : undefined;
  }

  set(first: number, count: number, value: V): void {
    this.delete(first, count);
    const at = this.after(first);
    const run = { first, end: first + count, value };
    const before = this.runs[at - 1];
    const next = this.runs[at];
    if (next !== undefined && next.first === run.end && this.same(next.value, value)) {
      run.end = next.end;
      this.runs.splice(at, 1);
    }
    if (before !== undefined && before.end === first && this.same(before.value, value)) before.end = run.end;
    else this.runs.splice(at, 0, run);
  }

  delete(first: number, count: number): void {
    const end = first + count;
    let at = this.after(first) - 1;
    if (at < 0 || this.runs[at].end <= first) at++;
    const kept: typeof this.runs = [];
    let next = at;
    for (; next < this.runs.length && this.runs[next].first < end; next++) {
      const run = this.runs[next];
      if (run.first < first) kept.push({ first: run.first, end: first, value: run.value });
      if (run.end > end) kept.push({ first: end, end: run.end, value: run.value });
    }
    if (next > at) this.runs.splice(at, next - at, ...kept);
  }

  /** [first, count, value] in order. */
  *entries(): Generator<[number, number, V]> {
    for (const run of this.runs) yield [run.first, run.end - run.first, run.value];
  }

  get size(): number {
    return this.runs.length;
  }

  /** Index of the first run that begins after `page`. */
  private after(page: number): number {
    let low = 0;
    let high = this.runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.runs[middle].first <= page) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Appends a page to a list of runs, merging with the last one. */
export function appendPage(runs: [number, number][], page: number): void {
  const last = runs[runs.length - 1];
  if (last !== undefined && last[0] + last[1] === page) last[1]++;
  else runs.push([page, 1]);
}

/** Calls back once for each stretch of equal results: (first, count, result). */
export function forEachStretch(first: number, count: number, out: Uint8Array, callback: (first: number, count: number, result: number) => void): void {
  for (let start = 0; start < count; ) {
    let end = start + 1;
    while (end < count && out[end] === out[start]) end++;
    callback(first + start, end - start, out[start]);
    start = end;
  }
}

/** [first, count, first, count, …], as messages have it. */
export function pairs(flat: number[]): [number, number][] {
  return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
}

