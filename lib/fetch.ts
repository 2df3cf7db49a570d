/** prefetch() and pin() bring what lanes can bring by a thread of the pool, at the speed of the sockets and without the coordinator. */
import { native } from './native.js';
import type { Run } from './ranges.js';

/** Bytes that a thread of the pool fetches at a time: whoever gives up, or the region's end, does not wait for more. */
const PIECE = 4 << 20;
/** ms that a piece may wait for a thread of the pool. */
const START = 5;

/**
 * @param member its native handle
 * @param region as well
 * @param access a native code
 * @param wanted false: nobody waits for the pages any more
 * @returns what is not here afterwards, from its first page on; null: nothing. That is the coordinator's, and so are its errors.
 */
export async function bring(member: number, region: number, pageSize: number, [first, pages]: Run, access: number, wanted: () => boolean): Promise<Run | null> {
  const end = first + pages;
  const absent = (): Run | null => {
    const page = native.firstAbsent(region, first, pages, access);
    return page < end ? [page, end - page] : null;
  };
  const missing = absent();
  if (missing === null || native.lanesConnected(member) === 0) return missing;
  const step = Math.max(1, Math.floor(PIECE / pageSize));
  for (let page = missing[0]; page < end && wanted();) {
    const upTo = Math.min(end, page + step);
    const [done, cancel] = native.laneFetch(region, page, upTo - page, access);
    if (await inTime(done, cancel) < upTo) break;
    page = upTo;
  }
  return wanted() ? absent() : null;
}

/** 0 if no thread of the pool is free soon. */
function inTime(done: Promise<number>, cancel: () => boolean): Promise<number> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => { if (cancel()) resolve(0); }, START);
    done.then(resolve, reject).finally(() => clearTimeout(late));
  });
}
