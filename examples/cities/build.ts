/** The index itself: flatbush, unmodified, over memory of any kind. */
import type Flatbush from 'flatbush' with { 'resolution-mode': 'import' };
import type { Place } from './places.js';

/** flatbush is an ES module only, and this is CommonJS. */
export async function loadFlatbush(): Promise<typeof Flatbush> {
  return (await import('flatbush')).default;
}

/**
 * Builds the index of all places, in memory that `allocate` gives for a number of bytes; by default in private memory.
 * flatbush makes its buffer by `new ArrayBufferType(bytes)`, with a type that it takes as a parameter. A constructor may
 * return any object, so one that returns a window of a region makes the unmodified library build right there.
 */
export async function buildIndex(places: readonly Place[], allocate: (bytes: number) => ArrayBufferLike = (bytes) => new ArrayBuffer(bytes)): Promise<Flatbush> {
  const Index = await loadFlatbush();
  const BufferType = function (bytes: number) { return allocate(bytes); } as unknown as SharedArrayBufferConstructor;
  const index = new Index(places.length, undefined, Float64Array, BufferType);
  for (const { longitude, latitude } of places) index.add(longitude, latitude);
  index.finish();
  return index;
}
