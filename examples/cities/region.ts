/** Where what lies in the shared region. The first page says it, so that a reader needs to know nothing but the region's name. */

export const REGION_NAME = 'cities';
/** Bytes. More than the data needs: pages that nobody writes take no memory anywhere. */
export const REGION_SIZE = 64 * 1024 * 1024;
/** The index starts on a page of its own; flatbush wants a multiple of 8. */
export const INDEX_OFFSET = 4096;

/** Positions in the int32 array at the region's start. */
export const Header = { Ready: 0, IndexBytes: 1, PlacesOffset: 2, UsedBytes: 3 } as const;
export const HEADER_WORDS = 4;
/** The header word that readers wait on, in bytes. */
export const READY_OFFSET = Header.Ready * 4;

export function header(buffer: ArrayBufferLike): Int32Array {
  return new Int32Array(buffer, 0, HEADER_WORDS);
}
