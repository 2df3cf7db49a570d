/** What is asked, and how: the same queries of the region, of private memory, and (baseline.ts) of a server. */
import type Flatbush from 'flatbush' with { 'resolution-mode': 'import' };
import { boxesAround, closest, distanceKm, type Box, type Neighbour } from './geography.js';
import type { PlaceTable } from './names.js';
import type { Place } from './places.js';

export type Query =
  | { kind: 'nearest'; longitude: number; latitude: number; count: number }
  | { kind: 'box'; box: Box };

export interface Answer {
  /** nearest: by distance. box: ascending. */
  ids: Uint32Array;
  /** nearest only: km to each. */
  km: number[];
  /** The first few of `ids`, read from beside the index. */
  places: Place[];
}

/** How many places of a box are looked up with their names. */
export const SHOWN = 3;

/** A part of the world that a reader is asked about, and therefore the part of the index that it needs. */
export interface Part { name: string; box: Box }

export const PARTS: Part[] = [
  { name: 'Western Europe', box: [-10, 36, 20, 60] },
  { name: 'East Asia', box: [100, 20, 145, 45] },
  { name: 'South America', box: [-80, -40, -35, 10] },
  { name: 'the whole world', box: [-180, -60, 180, 75] },
];

/** A sequence of numbers in [0, 1) that a seed of 32 bits determines (Mulberry32, by Tommy Ettinger; public domain). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One in three asks for a box of half a degree to two degrees, the others for the three nearest cities. */
export function randomQueries(seed: number, count: number, { box: [west, south, east, north] }: Part): Query[] {
  const random = randomNumbers(seed);
  return Array.from({ length: count }, (_, number): Query => {
    const longitude = west + random() * (east - west);
    const latitude = south + random() * (north - south);
    if (number % 3 !== 2) return { kind: 'nearest', longitude, latitude, count: 3 };
    const size = 0.5 + random() * 1.5;
    return { kind: 'box', box: [longitude, latitude, Math.min(180, longitude + size), latitude + size] };
  });
}

/** Asked first, and printed. */
export const SHOW: { title: string; query: Query }[] = [
  { title: 'Nearest to the Eiffel Tower', query: { kind: 'nearest', longitude: 2.2945, latitude: 48.8584, count: 3 } },
  { title: 'Nearest to the top of Mount Everest', query: { kind: 'nearest', longitude: 86.925, latitude: 27.9881, count: 3 } },
  { title: 'Nearest to the 180th meridian in Fiji', query: { kind: 'nearest', longitude: 180, latitude: -16.8, count: 3 } },
  { title: 'Nearest to the North Pole', query: { kind: 'nearest', longitude: 0, latitude: 90, count: 3 } },
  { title: 'In the box around Malta', query: { kind: 'box', box: [14.1, 35.7, 14.7, 36.15] } },
];

/** Answers from an index and a table in memory, wherever that memory is. */
export function answer(index: Flatbush, places: PlaceTable, query: Query): Answer {
  if (query.kind === 'box') {
    const ids = Uint32Array.from(index.search(...query.box)).sort();
    return { ids, km: [], places: lookUp(places, ids) };
  }
  const { longitude, latitude, count } = query;
  let bound = 0;
  for (const id of index.neighbors(longitude, latitude, count)) {
    bound = Math.max(bound, distanceKm(longitude, latitude, places.longitude(id), places.latitude(id)));
  }
  const found: Neighbour[] = [];
  for (const box of boxesAround(longitude, latitude, bound)) {
    // The filter sees the coordinates, which lie in the index itself, so what is farther away costs no other page.
    index.search(...box, (id, west, south) => {
      const km = distanceKm(longitude, latitude, west, south);
      if (km <= bound) found.push({ id, km });
      return false;
    });
  }
  return fromNeighbours(closest(found, count), (ids) => lookUp(places, ids));
}

function fromNeighbours(nearest: Neighbour[], look: (ids: Uint32Array) => Place[]): Answer {
  const ids = Uint32Array.from(nearest, ({ id }) => id);
  return { ids, km: nearest.map(({ km }) => km), places: look(ids) };
}

function lookUp(places: PlaceTable, ids: Uint32Array): Place[] {
  return Array.from(ids.subarray(0, SHOWN), (id) => places.get(id));
}

/** Why two answers differ, or undefined if they don't. */
export function difference(expected: Answer, actual: Answer): string | undefined {
  if (expected.ids.length !== actual.ids.length) return `${actual.ids.length} places instead of ${expected.ids.length}`;
  const id = expected.ids.findIndex((value, position) => value !== actual.ids[position]);
  if (id >= 0) return `place ${actual.ids[id]} instead of ${expected.ids[id]}`;
  const km = expected.km.findIndex((value, position) => value !== actual.km[position]);
  if (km >= 0) return `${actual.km[km]} km instead of ${expected.km[km]} km`;
  const [want, got] = [JSON.stringify(expected.places), JSON.stringify(actual.places)];
  return want === got ? undefined : `${got} instead of ${want}`;
}
