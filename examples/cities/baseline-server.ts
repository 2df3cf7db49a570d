/** The server of baseline.ts: a process with the index in private memory, and one zeromq Router. */
import { Router } from 'zeromq';
import { encodeNode, encodePlace } from './baseline.js';
import { buildIndex } from './build.js';
import { loadPlaces } from './places.js';
import { serveOrders } from './roles.js';

async function main(): Promise<void> {
  const places = loadPlaces();
  const index = await buildIndex(places);
  // flatbush's own arrays: a node is up to nodeSize neighbouring entries of one level, and a level ends at its bound.
  const { _boxes: boxes, _indices: indices, _levelBounds: levelEnds, nodeSize, numItems } = index;

  function value(key: string): Buffer {
    const [kind, text] = key.split(':');
    const number = Number(text);
    if (kind === 'place') return encodePlace(places[number]);
    if (kind === 'root') {
      const root = Buffer.alloc(4);
      root.writeUInt32LE(boxes.length - 4);
      return root;
    }
    const end = Math.min(number + nodeSize * 4, levelEnds.find((bound) => bound > number)!);
    return encodeNode(boxes.subarray(number, end) as Float64Array, indices.subarray(number / 4, end / 4) as Uint32Array, number < numItems * 4);
  }

  const router = new Router({ linger: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 });
  const endpoint = process.argv[2];
  await router.bind(endpoint);
  const served = (async () => {
    for await (const [client, request] of router) await router.send([client, value(request.toString().slice('GET '.length))]);
  })();
  await serveOrders({ close: async () => router.close() });
  await served;
}

void main();
