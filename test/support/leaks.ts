/** What a member keeps of what it has used, and the cycle of joining and leaving that should leave nothing. */
import type { Member } from './members.js';

export interface Resources {
  files: number; sockets: number; mappings: number; threads: number;
  /** Bytes: JavaScript's heap, what is allocated outside of it for buffers, and what the process has in memory. */
  heap: number; external: number; resident: number;
}

/** Descriptors, mappings, threads and memory of a member started with --expose-gc, after collection. */
export function resources(member: Member): Promise<Resources> {
  return member.run(async ({ require }) => {
    const fs = require('node:fs') as typeof import('node:fs');
    for (let i = 0; i < 5; i++) {
      (globalThis as unknown as { gc(): void }).gc();
      await new Promise((resolve) => setImmediate(resolve));
    }
    const links = fs.readdirSync('/proc/self/fd').map((fd) => { try { return fs.readlinkSync(`/proc/self/fd/${fd}`); } catch { return ''; } });
    const memory = process.memoryUsage();
    return {
      files: links.length,
      sockets: links.filter((link) => link.startsWith('socket:')).length,
      // Of the regions only: the allocator's own come and go.
      mappings: fs.readFileSync('/proc/self/maps', 'utf8').split('\n').filter((line) => line.includes('memfd:faultline')).length,
      threads: fs.readdirSync('/proc/self/task').length,
      heap: memory.heapUsed, external: memory.external, resident: memory.rss,
    };
  });
}

/** Joins, uses regions of its own and of others, a lock, a pin and now and then a worker that joins too, and leaves; so often. */
export function joinAndLeave(comes: Member, cluster: string, times: number, within: number): Promise<void> {
  return comes.run(async ({ join, require }, given) => {
    const { Worker } = require('node:worker_threads') as typeof import('node:worker_threads');
    for (let cycle = 0; cycle < given.times; cycle++) {
      const joined = await join({ cluster: given.cluster });
      const shared = await joined.region('shared');
      const own = await joined.region(`own ${cycle % 3}`, { size: 1 << 16 });
      new Int32Array(own.buffer)[0] = ++new Int32Array(shared.buffer)[0];
      await joined.lock('never released');
      await own.pin({ offset: 0, length: 100 }, 'write');
      if (cycle % 5 === 0) {
        const worker = new Worker(`
          const { join } = require(${JSON.stringify(require.resolve('faultline'))});
          join({ cluster: ${JSON.stringify(given.cluster)} }).then(async (cluster) => {
            const region = await cluster.region('shared');
            new Int32Array(region.buffer)[1]++;
            if (${cycle % 2}) await cluster.close();
            process.exit();
          });`, { eval: true });
        await new Promise((resolve) => worker.once('exit', resolve));
      }
      await joined.close();
    }
  }, { cluster, times }, { within });
}
