import assert from 'node:assert/strict';
import { setTimeout as delay } from 'node:timers/promises';
import { build } from 'hdr-histogram-js';
import { Member } from '../support/members.js';
import { seeded } from '../support/steps.js';
import { makeBridge, type Bridge } from './bridge.js';
import { checkRegisters, type Access } from './checker.js';

const PAGE = 4096;
const PAGES = 8;
const OPERATIONS = 400;
/** ms: after 2 s of silence a member is given up (docs/failure.md); the rest is for a busy machine. */
const SURVIVOR_MS = 15_000;
const FAULTS = ['none', 'kill', 'pause', 'stop', 'partition'] as const;

interface Planned { page: number; write: number | null }
interface Done { start: number; end: number; value: number; code?: string }

async function startMember(bridge: Bridge, index: number, name: string): Promise<Member> {
  const cluster = `tcp://${bridge.addresses[0]}:7420`;
  const member = await Member.start({ cluster, name, netns: bridge.names[index], join: { insecure: true } });
  await member.open('chaos', { size: PAGES * PAGE });
  return member;
}

/** Carries out what was planned; each access has its own times, and its own error if it had one. */
function work(member: Member, plan: Planned[]): Promise<Done[]> {
  return member.run(async (state, given) => {
    const cells = new Int32Array(state.region.buffer);
    const done: { start: number; end: number; value: number; code?: string }[] = [];
    const now = (): number => Number(process.hrtime.bigint());
    state.tell('working');
    for (const { page, write } of given) {
      const start = now();
      try {
        const value = state.attempt(() => (write === null ? Atomics.load(cells, page * 1024) : Atomics.store(cells, page * 1024, write)));
        done.push({ start, end: now(), value });
      } catch (error) {
        const { code } = error as { code?: string };
        done.push({ start, end: now(), value: 0, code: code ?? String(error) });
        if (code !== 'ERR_FAULTLINE_PAGE_LOST') break;
      }
      if (done.length % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return done;
  }, plan, { within: SURVIVOR_MS });
}

describe('chaos on real processes in network namespaces', () => {
  let bridge: Bridge | string;
  // after() does not run when the run is interrupted; members end by themselves then, or are ended here if they are stopped.
  const current: Member[] = [];
  const remove = (): void => {
    for (const member of current) if (!member.ended) process.kill(member.pid, 'SIGKILL');
    if (typeof bridge !== 'string') bridge.remove();
  };
  const interrupted = (): void => {
    remove();
    process.exit(130);
  };
  before(() => {
    process.prependListener('SIGINT', interrupted);
    process.prependListener('SIGTERM', interrupted);
    bridge = makeBridge(4);
  });
  after(() => {
    process.off('SIGINT', interrupted);
    process.off('SIGTERM', interrupted);
    remove();
  });

  it('leaves every page a linearizable register, and every fault an end', async function () {
    const seconds = Number(process.env.FAULTLINE_CHAOS_SECONDS ?? 30);
    this.timeout(seconds * 1000 + 120_000);
    const network = bridge;
    if (typeof network === 'string') {
      console.log(`      skipped: ${network}`);
      return this.skip();
    }
    const seed = Number(process.env.FAULTLINE_CHAOS_SEED ?? 1);
    const random = seeded(seed);
    const below = (n: number): number => Math.floor(random() * n);
    const members = current;
    members.push(await startMember(network, 0, 'm0'));
    await members[0].run((state) => {
      state.cluster.on('member-died', () => state.tell('died', Number(process.hrtime.bigint())));
    });
    const detection = Object.fromEntries((['kill', 'stop', 'partition'] as const).map((fault) => [fault, build()]));
    for (let index = 1; index < 4; index++) members.push(await startMember(network, index, `m${index}`));
    for (let index = 0; index < 4; index++) network.setWeather(index, { delay: below(3), loss: below(2), reorder: below(2) * 5 });
    if (network.means.missing.length > 0) console.log(`      not there: ${network.means.missing.join('; ')}`);
    const accesses: Access[] = [];
    const incarnations = new Array<number>(PAGES).fill(0);
    const counts: Record<string, number> = {};
    const count = (what: string): void => { counts[what] = (counts[what] ?? 0) + 1; };
    const until = performance.now() + seconds * 1000;
    let values = 0;
    for (let round = 0; performance.now() < until; round++) {
      const fault = FAULTS[below(FAULTS.length)];
      const victim = 1 + below(3);
      count(fault);
      const sent = Number(process.hrtime.bigint());
      const plans = members.map(() => Array.from({ length: OPERATIONS }, (): Planned => ({ page: below(PAGES), write: below(2) ? ++values : null })));
      const works = members.map((member, index) => work(member, plans[index]).then((done) => ({ done }), (failed: Error) => ({ failed })));
      await Promise.all(members.map((member) => member.told('working')));
      const pid = members[victim];
      const struck = Number(process.hrtime.bigint());
      if (fault === 'kill') await pid.kill('SIGKILL');
      if (fault === 'pause' || fault === 'stop') {
        await pid.kill('SIGSTOP');
        await delay(fault === 'pause' ? 300 : 4000);
        await pid.kill('SIGCONT');
      }
      if (fault === 'partition') {
        network.setLink(victim, 'down');
        await delay(4000);
        network.setLink(victim, 'up');
      }
      if (fault in detection) {
        // A member that is not given up within the time of a step fails the run here.
        const died = await members[0].told('died') as number;
        detection[fault].recordValue(Math.max(0, Math.round((died - struck) / 1000)));
      }
      const outcomes = await Promise.all(works);
      let gone = fault === 'kill';
      outcomes.forEach((outcome, index) => {
        const done = 'done' in outcome ? outcome.done : [];
        const hurt = index === victim && (fault === 'kill' || fault === 'stop' || fault === 'partition');
        if ('failed' in outcome && !hurt) throw outcome.failed;
        const odd = done.find(({ code }) => code && code !== 'ERR_FAULTLINE_PAGE_LOST');
        if (odd) {
          assert.ok(hurt, `seed ${seed}, round ${round}, ${fault} of m${victim}: m${index} got ${odd.code}`);
          assert.match(odd.code!, /EVICTED|CLUSTER_LOST/);
        }
        if ('failed' in outcome || odd) gone ||= index === victim;
        plans[index].forEach(({ page, write }, nth) => {
          const said = done[nth] as Done | undefined;
          const location = page + PAGES * incarnations[page];
          const member = `m${index}`;
          if (said?.code === 'ERR_FAULTLINE_PAGE_LOST') count('accesses to lost pages');
          // A write that nobody can vouch for may have happened at any time, or never.
          if (write !== null) accesses.push({ member, location, kind: 'write', value: write, start: said?.start ?? sent, end: said && !said.code ? said.end : Infinity });
          else if (said && !said.code) accesses.push({ member, location, kind: 'read', value: said.value, start: said.start, end: said.end });
        });
      });
      if (fault === 'stop' || fault === 'partition') {
        // It may have finished its work before it was given up: it goes, and comes back as somebody else.
        gone = true;
      }
      if (gone) {
        await members[victim].destroy();
        members[victim] = await startMember(network, victim, `m${victim}-${round}`);
        count('joined again');
      }
      const restored = await members[0].run(async ({ region, attempt }, pages) => {
        const lost: number[] = [];
        for (let page = 0; page < pages; page++) {
          try {
            attempt(() => Atomics.load(new Int32Array(region.buffer), page * 1024));
          } catch (error) {
            if ((error as { code?: string }).code !== 'ERR_FAULTLINE_PAGE_LOST') throw error;
            lost.push(page);
            await region.restore(page * 4096, new Uint8Array(4096));
          }
        }
        return lost;
      }, PAGES);
      for (const page of restored) {
        incarnations[page]++;
        count('pages restored');
      }
    }
    console.log(`      seed ${seed}: ${accesses.length} accesses; ${JSON.stringify(counts)}`);
    for (const [fault, times] of Object.entries(detection)) {
      if (times.totalCount === 0) continue;
      const ms = (us: number): string => (us / 1000).toFixed(1);
      console.log(`      detection of ${fault}, ms: n ${times.totalCount}, p50 ${ms(times.getValueAtPercentile(50))}, p99 ${ms(times.getValueAtPercentile(99))}, max ${ms(times.maxValue)}`);
    }
    const writers = new Map(accesses.filter(({ kind }) => kind === 'write').map(({ value, member }) => [value, member]));
    assert.ok(accesses.some(({ kind, value, member }) => kind === 'read' && value !== 0 && writers.get(value) !== member), 'nobody ever read what another wrote');
    const violations = checkRegisters(accesses);
    assert.deepEqual(violations.slice(0, 5), [], `seed ${seed}: ${violations.length} violations`);
  });
});
