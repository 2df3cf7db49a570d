/**
 * The places beside the index, in the same region: typed arrays for the numbers, UTF-8 with a table of starts for the
 * strings. JavaScript objects can't be shared, but a layout can; whoever reads a name touches the page that has it.
 *
 *   offset 0          uint32   number of places
 *   8                 float64  longitude and latitude of each place
 *   then              uint32   start of each place's text, and the end of the last (bytes from the first text)
 *   then              UTF-8    two letters of country and the name, for each place
 */
import type { Place } from './places.js';

const COUNTRY_BYTES = 2;

interface Layout { coordinates: Float64Array; starts: Uint32Array; textOffset: number }

function layout(buffer: ArrayBufferLike, offset: number, count: number): Layout {
  const coordinates = new Float64Array(buffer, offset + 8, count * 2);
  const starts = new Uint32Array(buffer, offset + 8 + coordinates.byteLength, count + 1);
  return { coordinates, starts, textOffset: starts.byteOffset + starts.byteLength };
}

/**
 * Writes them at `offset`, a multiple of 8.
 * @returns the offset after the last byte
 */
export function writePlaces(buffer: ArrayBufferLike, offset: number, places: readonly Place[]): number {
  new Uint32Array(buffer, offset, 1)[0] = places.length;
  const { coordinates, starts, textOffset } = layout(buffer, offset, places.length);
  const text = new Uint8Array(buffer);
  let end = 0;
  places.forEach(({ name, country, longitude, latitude }, id) => {
    coordinates[id * 2] = longitude;
    coordinates[id * 2 + 1] = latitude;
    starts[id] = end;
    const bytes = Buffer.from(country + name);
    text.set(bytes, textOffset + end);
    end += bytes.length;
  });
  starts[places.length] = end;
  return textOffset + end;
}

/** Reads places out of any buffer, one at a time: nothing is copied before it is asked for. */
export class PlaceTable {
  readonly count: number;
  readonly #layout: Layout;
  readonly #buffer: ArrayBufferLike;

  constructor(buffer: ArrayBufferLike, offset: number) {
    this.#buffer = buffer;
    this.count = new Uint32Array(buffer, offset, 1)[0];
    this.#layout = layout(buffer, offset, this.count);
  }

  longitude(id: number): number { return this.#layout.coordinates[id * 2]; }
  latitude(id: number): number { return this.#layout.coordinates[id * 2 + 1]; }

  get(id: number): Place {
    const { starts, textOffset } = this.#layout;
    const text = Buffer.from(this.#buffer as ArrayBuffer, textOffset + starts[id], starts[id + 1] - starts[id]).toString();
    return { country: text.slice(0, COUNTRY_BYTES), name: text.slice(COUNTRY_BYTES), longitude: this.longitude(id), latitude: this.latitude(id) };
  }
}
