/**
 * Nearest cities by distance on the globe, asked of an index that knows only a flat map.
 *
 * flatbush orders neighbours by degrees, as if longitude and latitude were x and y: wrong far from the equator, and at the
 * 180th meridian. So its answer is only a bound: the k neighbours on the map have some greatest distance on the globe, and
 * the k nearest on the globe can't be farther away than that. The boxes around that circle are searched, and what is in
 * them is sorted by great-circle distance (haversine, on a sphere). The result is exact, by two calls of the index's own.
 */
export const EARTH_RADIUS_KM = 6371.0088;

const DEGREE = Math.PI / 180;
/** Degrees by which boxes are larger than the circle: rounding must never exclude what lies exactly on it. */
const MARGIN_DEGREES = 1e-9;

/** [west, south, east, north], degrees, west <= east. */
export type Box = [number, number, number, number];

export interface Neighbour { id: number; km: number }

/** Haversine. */
export function distanceKm(fromLongitude: number, fromLatitude: number, toLongitude: number, toLatitude: number): number {
  const half = (degrees: number): number => Math.sin((degrees * DEGREE) / 2) ** 2;
  const a = half(toLatitude - fromLatitude) + Math.cos(fromLatitude * DEGREE) * Math.cos(toLatitude * DEGREE) * half(toLongitude - fromLongitude);
  return 2 * EARTH_RADIUS_KM * Math.asin(Math.sqrt(Math.min(1, a)));
}

/** One box, or two where the circle crosses the 180th meridian, that together contain every point within `km`. */
export function boxesAround(longitude: number, latitude: number, km: number): Box[] {
  const angle = km / EARTH_RADIUS_KM;
  const south = latitude - angle / DEGREE - MARGIN_DEGREES;
  const north = latitude + angle / DEGREE + MARGIN_DEGREES;
  // A circle around a pole has every longitude in it.
  if (south <= -90 || north >= 90) return [[-180, south, 180, north]];
  // The widest point of the circle is not at the latitude of its centre, but nearer to the pole.
  const width = Math.asin(Math.min(1, Math.sin(Math.min(angle, Math.PI / 2)) / Math.cos(latitude * DEGREE))) / DEGREE + MARGIN_DEGREES;
  const west = longitude - width;
  const east = longitude + width;
  if (west < -180) return [[-180, south, east, north], [west + 360, south, 180, north]];
  if (east > 180) return [[west, south, 180, north], [-180, south, east - 360, north]];
  return [[west, south, east, north]];
}

/** The nearest `k`, ties by number, so that every way of asking gives the same answer. */
export function closest(found: Neighbour[], k: number): Neighbour[] {
  return found.sort((left, right) => left.km - right.km || left.id - right.id).slice(0, k);
}
