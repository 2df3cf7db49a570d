/** Sets of pages as sorted, disjoint runs that do not touch: [first page, pages]. */
export type Run = [first: number, pages: number];

export function union(...lists: readonly (readonly Run[])[]): Run[] {
  const all = lists.flat().filter(([, pages]) => pages > 0).sort(([left], [right]) => left - right);
  const merged: Run[] = [];
  for (const [first, pages] of all) {
    const last = merged.at(-1);
    if (last && first <= last[0] + last[1]) last[1] = Math.max(last[1], first + pages - last[0]);
    else merged.push([first, pages]);
  }
  return merged;
}

export function subtract(from: readonly Run[], removed: readonly Run[]): Run[] {
  const holes = union(removed);
  const rest: Run[] = [];
  let hole = 0;
  for (const [first, pages] of from) {
    let start = first;
    const end = first + pages;
    while (hole < holes.length && holes[hole][0] + holes[hole][1] <= start) hole++;
    // A hole may reach into the next run as well, so the index only moves on past holes that end before it.
    for (let index = hole; index < holes.length && holes[index][0] < end; index++) {
      if (holes[index][0] > start) rest.push([start, holes[index][0] - start]);
      start = Math.max(start, holes[index][0] + holes[index][1]);
    }
    if (start < end) rest.push([start, end - start]);
  }
  return rest;
}
