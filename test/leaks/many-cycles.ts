/**
 * What is left of many cycles of joining and leaving: `npm run leaks -- --cycles N`. Not part of the suite, where
 * lifecycle/hygiene.test.ts does a few of the same cycles and counts descriptors, mappings and threads. Memory needs more
 * cycles, because caches fill first.
 */
import assert from 'node:assert/strict';
import { joinAndLeave, resources } from '../support/leaks.js';
import { Member, uniqueCluster } from '../support/members.js';
import type { Resources } from '../support/leaks.js';

const cycles = Number(process.env.LEAK_CYCLES ?? 1000);
/** ms that a cycle may take on a busy machine. */
const CYCLE_MS = 3_000;
const STRETCHES = 10;
/** The stretches that may still fill caches: code is compiled, the allocator's arenas and the heap find their size. */
const WARM = 5;
/**
 * Bytes of growth for each cycle, above which something is kept. JavaScript's heap gives back all but the records of code
 * that was compiled for each worker; of the process's memory a few KiB for each cycle are region structs, which are kept
 * on purpose (a handler may still look at one), and fragmentation.
 */
const HEAP_LIMIT = 4 << 10;
const RESIDENT_LIMIT = 48 << 10;

function line(label: string, { files, sockets, mappings, threads, heap, external, resident }: Resources): string {
  const mebibytes = (bytes: number): string => (bytes / (1 << 20)).toFixed(1).padStart(7);
  return `${label.padEnd(16)} ${String(files).padStart(5)} ${String(sockets).padStart(7)} ${String(mappings).padStart(8)} ${String(threads).padStart(7)} ${mebibytes(heap)} ${mebibytes(external)} ${mebibytes(resident)}`;
}

describe(`${cycles} cycles of joining and leaving`, () => {
  it('leave no descriptor, mapping, thread or memory behind, in who comes and in who stays', async function () {
    this.timeout(60_000 + cycles * CYCLE_MS);
    const each = Math.max(1, Math.floor(cycles / STRETCHES));
    const stays = await Member.start({ cluster: uniqueCluster(), execArgv: ['--expose-gc'] });
    const cluster = await stays.run(({ cluster: joined }) => joined.address);
    await stays.open('shared', { size: 1 << 20 });
    const comes = await Member.start({ join: false, execArgv: ['--expose-gc'] });
    const samples: { comes: Resources; stays: Resources }[] = [];
    console.log('                 files sockets mappings threads  heap/MiB ext/MiB rss/MiB');
    for (let stretch = 1; stretch <= STRETCHES; stretch++) {
      await joinAndLeave(comes, cluster, each, each * CYCLE_MS);
      const sample = { comes: await resources(comes), stays: await resources(stays) };
      samples.push(sample);
      console.log(line(`${stretch * each} comes`, sample.comes));
      console.log(line(`${stretch * each} stays`, sample.stays));
    }
    for (const who of ['comes', 'stays'] as const) {
      const [warm, last] = [samples[WARM - 1][who], samples[STRETCHES - 1][who]];
      const grown = (STRETCHES - WARM) * each;
      const heap = (last.heap - warm.heap) / grown;
      const resident = (last.resident - warm.resident) / grown;
      console.log(`${who}: ${heap.toFixed(0)} bytes of heap and ${resident.toFixed(0)} bytes of the process for each of the last ${grown} cycles`);
      assert.ok(last.files <= warm.files + 1, `${who}: ${warm.files} descriptors became ${last.files}`);
      assert.ok(last.threads <= warm.threads + 1, `${who}: ${warm.threads} threads became ${last.threads}`);
      assert.equal(last.mappings, warm.mappings, `${who}: mappings`);
      // In few cycles one collection more or less is all that these would show.
      if (cycles < 300) continue;
      assert.ok(heap < HEAP_LIMIT, `${who}: ${heap} bytes of heap for each cycle`);
      assert.ok(resident < RESIDENT_LIMIT, `${who}: ${resident} bytes of the process for each cycle`);
    }
    assert.equal(samples[STRETCHES - 1].comes.mappings, 0);
  });
});
