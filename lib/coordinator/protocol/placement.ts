/** Which member is the home of which pages, and was before: the agreed slices of one region, by binary search. */
import type { MemberId, RegionInfo, Slice } from './messages.js';

export class Placement {
  slices: Slice[];
  /** By the first page of a slice: who was its home in which generation. */
  private readonly former = new Map<number, Map<number, MemberId>>();

  constructor(info: RegionInfo) {
    this.slices = info.slices;
  }

  /** Slices keep their pages; what changes is their home. */
  update(slices: Slice[]): void {
    for (const [index, { first, generation, home }] of this.slices.entries()) {
      if (slices[index].generation === generation) continue;
      const homes = this.former.get(first);
      if (homes === undefined) this.former.set(first, new Map([[generation, home]]));
      else homes.set(generation, home);
    }
    this.slices = slices;
  }

  /**
   * Was, or is, that member the page's home in that generation? What a home on its way out has said counts even when the
   * page has its next home, or the one after that: it is all under way before the directory goes over.
   */
  spokeAsHome(from: MemberId, page: number, generation: number): boolean {
    const slice = this.of(page);
    if (slice.generation === generation) return slice.home === from;
    return this.former.get(slice.first)?.get(generation) === from;
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
