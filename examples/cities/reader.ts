/** A process that answers queries: the unmodified library over region.buffer, so only the pages that a query touches come here. */
import { join } from '../../lib/index.js';
import { RemoteIndex } from './baseline.js';
import { buildIndex, loadFlatbush } from './build.js';
import { PlaceTable, writePlaces } from './names.js';
import { loadPlaces } from './places.js';
import { answer, difference, randomQueries, SHOW, type Answer, type Part, type Query } from './queries.js';
import { Header, header, INDEX_OFFSET, READY_OFFSET, REGION_NAME } from './region.js';
import { emit, serveOrders } from './roles.js';

export interface Asked { seed: number; count: number; part: Part }
/** µs for each query: of the first time, and of the same queries again. */
export interface Timed { first: number[]; again: number[] }
/** Pages and bytes that came here, faults that waited for another process, and what they waited (µs). */
export interface Moved { pages: number; bytes: number; faults: number; median: number; p99: number }
export interface Remote { times: number[]; messages: number; bytes: number; wrong: number }
export interface Checked { queries: number; wrong: string[] }

/** Queries between two reports of progress. */
const REPORT = 100;

async function main(): Promise<void> {
  const [, , clusterName, name] = process.argv;
  const cluster = await join({ cluster: clusterName, name });
  const region = await cluster.region(REGION_NAME, { mode: 'wait' });
  const words = header(region.buffer);
  while (Atomics.load(words, Header.Ready) === 0) await region.wait(READY_OFFSET, 0);
  const index = (await loadFlatbush()).from(region.buffer as unknown as ArrayBuffer, INDEX_OFFSET);
  const places = new PlaceTable(region.buffer, words[Header.PlacesOffset]);

  const ask = (query: Query): Answer => answer(index, places, query);
  function timed(queries: Query[]): number[] {
    return queries.map((query) => {
      const start = process.hrtime.bigint();
      ask(query);
      return Number(process.hrtime.bigint() - start) / 1000;
    });
  }

  await serveOrders({
    show: () => Promise.resolve(SHOW.map(({ query }) => ask(query))),
    time({ seed, count, part }: Asked): Promise<Timed> {
      const queries = randomQueries(seed, count, part);
      return Promise.resolve({ first: timed(queries), again: timed(queries) });
    },
    moved(): Promise<Moved> {
      const { pages, bytes, waits } = region.stats();
      return Promise.resolve({ pages: pages.in, bytes: bytes.in, faults: waits.count, median: waits.percentile(50), p99: waits.percentile(99) });
    },
    /** The same queries of a server that has the index, one message for each node. */
    async remote({ endpoint, seed, count, part }: Asked & { endpoint: string }): Promise<Remote> {
      const server = await RemoteIndex.connect(endpoint);
      const times: number[] = [];
      let wrong = 0;
      for (const query of randomQueries(seed, count, part)) {
        const start = process.hrtime.bigint();
        const remote = await server.answer(query);
        times.push(Number(process.hrtime.bigint() - start) / 1000);
        if (difference(ask(query), remote) !== undefined) wrong++;
      }
      const { messages, bytes } = server;
      server.close();
      return { times, messages, bytes, wrong };
    },
    /** Every answer beside that of the same index in private memory. */
    async check({ seed, count, part }: Asked): Promise<Checked> {
      const data = loadPlaces();
      const own = await buildIndex(data);
      const memory = new ArrayBuffer(region.size);
      writePlaces(memory, 0, data);
      const table = new PlaceTable(memory, 0);
      const wrong: string[] = [];
      const queries = [...SHOW.map(({ query }) => query), ...randomQueries(seed, count, part)];
      for (const [number, query] of queries.entries()) {
        const why = difference(answer(own, table, query), ask(query));
        if (why !== undefined) wrong.push(`${JSON.stringify(query)}: ${why}`);
        if (number % REPORT === 0) {
          emit('progress', number / queries.length);
          await new Promise((resolve) => setImmediate(resolve));
        }
      }
      return { queries: queries.length, wrong };
    },
    close: () => cluster.close(),
  });
}

void main();
