/**
 * The other way: the same index in a server process, and every node of it fetched by request and response, as from Redis.
 *
 * The server (baseline-server.ts) has the index in its own memory behind a zeromq Router and answers one kind of request:
 * GET KEY, where KEY is `node:POSITION`, `place:ID` or `root`. The reader walks the same tree from the root with the same
 * two searches, and asks for each node by one message of about 16 bytes, answered by up to 584 (16 boxes of 32 bytes, 16
 * numbers of 4, and 8). What can be asked for at once is: a box search has all nodes of a level in flight together, and
 * so are the names of an answer. Only the nearest-first walk must wait for each node before it knows the next. It keeps
 * nothing between messages: no cache, so nothing to invalidate either. That is what faultline's pages are compared with.
 */
import { Dealer } from 'zeromq';
import { boxesAround, closest, distanceKm, type Box, type Neighbour } from './geography.js';
import type { Place } from './places.js';
import { SHOWN, type Answer, type Query } from './queries.js';

/** A node as it travels: uint32 number of children, uint32 1 if they are places, float64 boxes, uint32 positions or ids. */
export function encodeNode(boxes: Float64Array, children: Uint32Array, leaf: boolean): Buffer {
  const bytes = Buffer.alloc(8 + boxes.byteLength + children.byteLength);
  bytes.writeUInt32LE(children.length, 0);
  bytes.writeUInt32LE(leaf ? 1 : 0, 4);
  boxes.forEach((value, position) => bytes.writeDoubleLE(value, 8 + position * 8));
  children.forEach((value, position) => bytes.writeUInt32LE(value, 8 + boxes.byteLength + position * 4));
  return bytes;
}

interface Child { box: Box; /** Of the child's node, or the id of a place. */ position: number }
interface Node { leaf: boolean; children: Child[] }

function decodeNode(bytes: Buffer): Node {
  const count = bytes.readUInt32LE(0);
  const number = (position: number): number => bytes.readDoubleLE(8 + position * 8);
  const children = Array.from({ length: count }, (_, child): Child => ({
    box: [number(child * 4), number(child * 4 + 1), number(child * 4 + 2), number(child * 4 + 3)],
    position: bytes.readUInt32LE(8 + count * 32 + child * 4),
  }));
  return { leaf: bytes.readUInt32LE(4) === 1, children };
}

export function encodePlace({ longitude, latitude, country, name }: Place): Buffer {
  const text = Buffer.from(country + name);
  const bytes = Buffer.alloc(16 + text.length);
  bytes.writeDoubleLE(longitude, 0);
  bytes.writeDoubleLE(latitude, 8);
  text.copy(bytes, 16);
  return bytes;
}

function decodePlace(bytes: Buffer): Place {
  const text = bytes.toString('utf8', 16);
  return { country: text.slice(0, 2), name: text.slice(2), longitude: bytes.readDoubleLE(0), latitude: bytes.readDoubleLE(8) };
}

/** A connection to the server. It answers each client in the order of the requests, so no request needs a number. */
export class RemoteIndex {
  readonly #dealer = new Dealer({ linger: 0 });
  readonly #waiting: { resolve: (value: Buffer) => void; reject: (error: unknown) => void }[] = [];
  #sending = Promise.resolve();
  #root = 0;
  /** Messages to the server, and bytes of its answers. */
  messages = 0;
  bytes = 0;

  static async connect(endpoint: string): Promise<RemoteIndex> {
    const index = new RemoteIndex();
    index.#dealer.connect(endpoint);
    void index.#receive();
    index.#root = (await index.#get('root')).readUInt32LE(0);
    return index;
  }

  close(): void {
    this.#dealer.close();
  }

  async #receive(): Promise<void> {
    try {
      for await (const [value] of this.#dealer) {
        this.bytes += value.length;
        this.#waiting.shift()!.resolve(value);
      }
    } catch (error) {
      for (const { reject } of this.#waiting.splice(0)) reject(error);
    }
  }

  #get(key: string): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.messages++;
      // A socket takes one send at a time.
      this.#sending = this.#sending.then(() => this.#dealer.send(`GET ${key}`)).catch(reject);
    });
  }

  async #node(position: number): Promise<Node> {
    return decodeNode(await this.#get(`node:${position}`));
  }

  async answer(query: Query): Promise<Answer> {
    if (query.kind === 'box') {
      const found: number[] = [];
      await this.#search(query.box, (id) => found.push(id));
      const ids = Uint32Array.from(found).sort();
      return { ids, km: [], places: await this.#lookUp(ids) };
    }
    const { longitude, latitude, count } = query;
    const bound = await this.#bound(longitude, latitude, count);
    const found: Neighbour[] = [];
    for (const box of boxesAround(longitude, latitude, bound)) {
      await this.#search(box, (id, west, south) => {
        const km = distanceKm(longitude, latitude, west, south);
        if (km <= bound) found.push({ id, km });
      });
    }
    const nearest = closest(found, count);
    const ids = Uint32Array.from(nearest, ({ id }) => id);
    return { ids, km: nearest.map(({ km }) => km), places: await this.#lookUp(ids) };
  }

  #lookUp(ids: Uint32Array): Promise<Place[]> {
    return Promise.all(Array.from(ids.subarray(0, SHOWN), async (id) => decodePlace(await this.#get(`place:${id}`))));
  }

  async #search(box: Box, found: (id: number, west: number, south: number) => void): Promise<void> {
    const [west, south, east, north] = box;
    for (let level = [this.#root]; level.length > 0; ) {
      const nodes = await Promise.all(level.map((position) => this.#node(position)));
      level = [];
      for (const { leaf, children } of nodes) {
        for (const { box: [minX, minY, maxX, maxY], position } of children) {
          if (east < minX || north < minY || west > maxX || south > maxY) continue;
          if (leaf) found(position, minX, minY);
          else level.push(position);
        }
      }
    }
  }

  /** The greatest distance, in km, of the `count` places that are nearest on the flat map: best first. */
  async #bound(longitude: number, latitude: number, count: number): Promise<number> {
    type Entry = { degrees2: number; position: number; km?: number };
    const queue: Entry[] = [{ degrees2: 0, position: this.#root }];
    const distances: number[] = [];
    while (queue.length > 0 && distances.length < count) {
      const { position, km } = queue.pop()!;
      if (km !== undefined) {
        distances.push(km);
        continue;
      }
      const { leaf, children } = await this.#node(position);
      for (const { box: [minX, minY, maxX, maxY], position: child } of children) {
        const dx = Math.max(minX - longitude, longitude - maxX, 0);
        const dy = Math.max(minY - latitude, latitude - maxY, 0);
        queue.push({ degrees2: dx * dx + dy * dy, position: child, km: leaf ? distanceKm(longitude, latitude, minX, minY) : undefined });
      }
      queue.sort((left, right) => right.degrees2 - left.degrees2);
    }
    return Math.max(...distances);
  }
}
