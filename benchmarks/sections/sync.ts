/** Locks, barriers, wait and notify: what it takes until the next one goes on. */
import { PAGE } from '../actions.js';
import type { Bench, Meter, Section } from '../bench.js';
import type { Party } from '../party.js';
import { zeromq } from '../references/zeromq.js';
import { COORDINATORS_WARM_UP, warmUpOf } from '../settings.js';
import type { State } from '../state.js';

const TIMEOUT_MS = 30_000;
const FEW = 10;
const MANY = 16_384;

/** ns of the machine's clock, which all processes share: there are enough bits for a month of it. */
const now = (): number => Number(process.hrtime.bigint());

export const actions = {
  /** [when it was had, when its release began], flattened. */
  contend(state: State, { name, count }: { name: string; count: number }): Float64Array {
    const stamps = new Float64Array(2 * count);
    for (let i = 0; i < count; i++) {
      const lock = state.cluster.lockSync(name, { timeout: TIMEOUT_MS });
      stamps[2 * i] = now();
      stamps[2 * i + 1] = now();
      lock.releaseSync();
    }
    return stamps;
  },

  /** ns of lockSync() where nobody else wants it. */
  alone(state: State, { name, count }: { name: string; count: number }): Float64Array {
    const samples = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const start = process.hrtime.bigint();
      const lock = state.cluster.lockSync(name, { timeout: TIMEOUT_MS });
      samples[i] = Number(process.hrtime.bigint() - start);
      lock.releaseSync();
    }
    return samples;
  },

  /** [entered, left], flattened. */
  barrier(state: State, { name, parties, count }: { name: string; parties: number; count: number }): Float64Array {
    const stamps = new Float64Array(2 * count);
    for (let i = 0; i < count; i++) {
      stamps[2 * i] = now();
      state.cluster.barrierSync(name, parties, { timeout: TIMEOUT_MS });
      stamps[2 * i + 1] = now();
    }
    return stamps;
  },

  /** When each wait was over. */
  sleep(state: State, { region, count }: { region: string; count: number }): Float64Array {
    const stamps = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      const woken = state.at(region).region.waitSync(0, 0, { timeout: TIMEOUT_MS });
      if (woken !== 'ok') throw new Error(`waitSync() said ${woken}`);
      stamps[i] = now();
    }
    return stamps;
  },

  /** When each notify began that found somebody. */
  wake(state: State, { region, count }: { region: string; count: number }): Float64Array {
    const stamps = new Float64Array(count);
    const until = Date.now() + TIMEOUT_MS;
    for (let i = 0; i < count;) {
      const start = now();
      if (state.at(region).region.notifySync(0, 1) === 1) stamps[i++] = start;
      else if (Date.now() > until) throw new Error('nobody waits');
    }
    return stamps;
  },
};

/** From one holder's release to the next one's going on, when that is another one. */
export function handOvers(stamps: readonly Float64Array[]): number[] {
  const turns = stamps.flatMap((own, member) => Array.from({ length: own.length / 2 }, (_, i) => ({ member, had: own[2 * i], released: own[2 * i + 1] })));
  turns.sort((a, b) => a.had - b.had);
  return turns.slice(1).flatMap((turn, i) => (turns[i].member === turn.member ? [] : [turn.had - turns[i].released]));
}

/** From the last one's coming to the last one's going on. */
export function barrierTimes(stamps: readonly Float64Array[]): number[] {
  return Array.from({ length: stamps[0].length / 2 }, (_, round) =>
    Math.max(...stamps.map((own) => own[2 * round + 1])) - Math.max(...stamps.map((own) => own[2 * round])));
}

/** All members but the first get copies of so many pages. */
async function cache(bench: Bench, party: Party, pages: number): Promise<void> {
  bench.progress(`${pages} pages cached at each of ${party.size} members`);
  await party.call(0, 'actions#create', { region: 'cached', size: pages * PAGE });
  await party.call(0, 'actions#fill', { region: 'cached', from: 0, count: pages, tag: 1 });
  for (let member = 1; member < party.size; member++) {
    await party.call(member, 'actions#open', { region: 'cached' });
    await party.call(member, 'actions#prefetch', { region: 'cached', from: 0, count: pages, access: 'read' });
  }
}

function lock(party: Party, pages: number): Meter {
  return {
    key: `lock-${pages === FEW ? 'few' : 'many'}`, what: `lockSync() hand-over between two members, ${pages} cached pages`,
    async take(count) {
      const samples: number[] = [];
      // The first one may be alone for a while.
      for (let tries = 0; samples.length < count && tries < 20; tries++) {
        const each = Math.ceil((count - samples.length) / 2) + 5;
        const stamps = await Promise.all([0, 1].map((member) => party.call<Float64Array>(member, 'sections/sync#contend', { name: 'contended', count: each })));
        samples.push(...handOvers(stamps));
      }
      if (samples.length < count) throw new Error('the two members did not take turns');
      return samples.slice(0, count);
    },
  };
}

function barrier(party: Party, pages: number): Meter {
  return {
    key: `barrier-${party.size}-${pages === FEW ? 'few' : 'many'}`, what: `barrierSync() of ${party.size}, ${pages} cached pages`, processes: party.size,
    async take(count) {
      const members = Array.from({ length: party.size }, (_, member) => member);
      return barrierTimes(await Promise.all(members.map((member) => party.call<Float64Array>(member, 'sections/sync#barrier', { name: 'step', parties: party.size, count }))));
    },
  };
}

async function waits(party: Party): Promise<Meter> {
  const region = 'waits';
  await party.call(0, 'actions#create', { region, size: PAGE });
  await party.call(1, 'actions#open', { region });
  return {
    key: 'notify', what: 'waitSync() at a member, notifySync() at the home, until the waiter goes on',
    async take(count) {
      const [slept, woke] = await Promise.all([
        party.call<Float64Array>(1, 'sections/sync#sleep', { region, count }),
        party.call<Float64Array>(0, 'sections/sync#wake', { region, count }),
      ]);
      return slept.map((at, i) => at - woke[i]);
    },
  };
}

export const section: Section = {
  name: 'sync',
  title: 'Locks, barriers, wait and notify',
  about: 'lock hand-over; barriers of 2, 4 and 8; few and many cached pages; wait/notify; beside raw zeromq.js',
  async run(bench) {
    const many = bench.settings.quick ? 512 : MANY;
    const meters: Meter[] = [await zeromq(bench, 0)];
    for (const pages of [FEW, many]) {
      for (const members of [2, 4, 8]) {
        const party = await bench.party({ members });
        await cache(bench, party, pages);
        if (members === 2) meters.push(lock(party, pages));
        if (members === 2 && pages === FEW) {
          meters.push({ key: 'lock-alone', what: 'lockSync() that nobody else wants', take: (count) => party.call(1, 'sections/sync#alone', { name: 'alone', count }) });
          meters.push(await waits(party));
        }
        meters.push(barrier(party, pages));
      }
    }
    await bench.measure(meters, { samples: Math.min(bench.settings.samples, 500), warmUp: warmUpOf(bench.settings, COORDINATORS_WARM_UP) });
  },
};
