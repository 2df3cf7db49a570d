/** The process that builds: the index and the names, straight into a region that the others read. */
import { join } from '../../lib/index.js';
import { buildIndex } from './build.js';
import { writePlaces } from './names.js';
import { loadPlaces } from './places.js';
import { Header, header, INDEX_OFFSET, READY_OFFSET, REGION_NAME, REGION_SIZE } from './region.js';
import { serveOrders } from './roles.js';

export interface Built { places: number; indexBytes: number; usedBytes: number; ms: number; faults: number }

async function main(): Promise<void> {
  const cluster = await join({ cluster: process.argv[2], name: 'builder' });
  const region = await cluster.region(REGION_NAME, { size: REGION_SIZE, mode: 'create' });
  await serveOrders({
    async build(): Promise<Built> {
      const places = loadPlaces();
      const start = performance.now();
      let indexBytes = 0;
      await buildIndex(places, (bytes) => {
        indexBytes = bytes;
        return region.window(INDEX_OFFSET, bytes);
      });
      const placesOffset = Math.ceil((INDEX_OFFSET + indexBytes) / 4096) * 4096;
      const usedBytes = writePlaces(region.buffer, placesOffset, places);
      const words = header(region.buffer);
      words[Header.IndexBytes] = indexBytes;
      words[Header.PlacesOffset] = placesOffset;
      words[Header.UsedBytes] = usedBytes;
      Atomics.store(words, Header.Ready, 1);
      await region.notify(READY_OFFSET);
      const { faults } = region.stats();
      return { places: places.length, indexBytes, usedBytes, ms: performance.now() - start, faults: faults.read + faults.write };
    },
    close: () => cluster.close(),
  });
}

void main();
