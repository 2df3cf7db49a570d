/** Which member is the home of which pages: the agreed slices of one region, by binary search. */
import type { RegionInfo, Slice } from './messages.js';

export class Placement {
  slices: Slice[];

  constructor(info: RegionInfo) {
    this.slices = info.slices;
  }

  of(page: number): Slice {
    let low = 0;
    let high = this.slices.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.slices[middle].first <= page) low = middle;
      else high = middle - 1;
    }
    return this.slices[low];
  }

  /** Splits a run at the borders of slices. */
  *split(first: number, count: number): Generator<[slice: Slice, first: number, count: number]> {
    const end = first + count;
    while (first < end) {
      const slice = this.of(first);
      const stop = Math.min(end, slice.first + slice.count);
      yield [slice, first, stop - first];
      first = stop;
    }
  }
}
