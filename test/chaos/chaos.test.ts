import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { Member } from '../support/members.js';
import { makeBridge, type Bridge } from './bridge.js';
import type { FaultName } from './faults.js';
import type { Line } from './history.js';
import { makeLimits } from './limits.js';
import { runChaos, type Report } from './run.js';

/** Two rounds at least; the last one may begin just before the end. */
const SHORT_MS = 12_000;

/** What this suite has put on the machine, by names that say whose it is. */
function remains(pid: number): string[] {
  const list = (directory: string): string[] => (fs.existsSync(directory) ? fs.readdirSync(directory) : []);
  return [
    ...list('/run/netns').filter((name) => name.startsWith(`fltc-${pid}-`)),
    ...['/sys/fs/cgroup', '/sys/fs/cgroup/memory'].flatMap(list).filter((name) => name.startsWith(`faultline-chaos-${pid}-`)),
  ];
}

describe('chaos on real processes in network namespaces', function () {
  this.timeout(120_000);

  /** A run that can't be made here is skipped, and says why. */
  async function chaos(test: Mocha.Context, only: FaultName[], ms: number, members: number, forge?: (lines: Line[], member: string) => void): Promise<Report> {
    const report = await runChaos({ seed: 1, ms, members, only, forge });
    if (typeof report === 'string') {
      console.log(`      skipped: ${report}`);
      return test.skip();
    }
    assert.deepEqual(remains(process.pid), []);
    return report;
  }

  it('keeps every promise while members are killed, starved, stopped, cut off, and leave', async function () {
    const report = await chaos(this, ['calm', 'kill', 'memory', 'stop', 'cut', 'mute', 'leave', 'pause'], SHORT_MS, 4);
    assert.deepEqual(report.problems, []);
    assert.ok(report.rounds >= 2 && report.sharedReads > 0 && report.sections > 0, JSON.stringify(report));
    console.log(`      ${report.rounds} rounds, ${report.operations} accesses, ${report.sections} sections; ${JSON.stringify(report.faults)}${report.leftOut.length > 0 ? `; not here: ${report.leftOut.join('; ')}` : ''}`);
  });

  it('keeps every promise on one machine, over Unix sockets, while members are killed and stopped in the middle of faults', async function () {
    const report = await runChaos({ seed: 2, ms: 6_000, members: 3, only: ['kill', 'stop', 'pause'], near: true });
    if (typeof report === 'string') {
      console.log(`      skipped: ${report}`);
      return this.skip();
    }
    assert.deepEqual(report.problems, []);
    assert.ok(report.counts['faults over lanes'] > 100, JSON.stringify(report.counts));
  });

  it('ends in order for everybody when the registrar is killed, and begins anew', async function () {
    const report = await chaos(this, ['registrar-kill'], 1, 3);
    assert.deepEqual(report.problems, []);
    assert.deepEqual(report.times.map(({ measure, n }) => [measure, n]), [['detection', 2], ['recovery', 1]]);
  });

  it('is found out if one of its histories is forged', async function () {
    let forged: Line | undefined;
    const report = await chaos(this, ['calm'], 1, 3, (lines) => {
      // What was last seen of some register is replaced by what was seen of it first, if that has changed.
      const first = new Map<number, number>();
      const plans = new Map(lines.filter((line) => line[0] === 'plan').map((line) => [line[1], line[3]]));
      for (const line of lines) {
        if (line[0] !== 'done') continue;
        for (const [index, outcome] of line[2].entries()) {
          const [kind, location] = plans.get(line[1])![index];
          if (kind !== 'load' && kind !== 'read') continue;
          const old = first.get(location);
          if (old === undefined) first.set(location, outcome[2]);
          else if (forged === undefined && old !== outcome[2]) {
            outcome[2] = old;
            forged = line;
          }
        }
      }
    });
    fs.rmSync(report.logs ?? '', { recursive: true, force: true });
    assert.ok(forged, 'nothing changed in this run');
    assert.ok(report.problems.some(({ rule }) => rule === 'stale-read' || rule === 'order-of-reads'), JSON.stringify(report.problems));
  });

  it('leaves nothing behind when it is interrupted', async function () {
    const main = spawn(process.execPath, [path.join(__dirname, 'main.js'), '--minutes', '1', '--members', '3', '--only', 'stop'], { stdio: ['ignore', 'ignore', 'pipe'] });
    const exited = once(main, 'exit') as Promise<[number | null]>;
    let said = '';
    for await (const text of main.stderr.setEncoding('utf8')) {
      said += text as string;
      if (said.includes('have joined') && !said.includes('interrupted')) main.kill('SIGINT');
    }
    const [code] = await exited;
    if (code === 2 && said.startsWith("chaos can't be run here")) {
      console.log(`      skipped: ${said.trim()}`);
      return this.skip();
    }
    assert.equal(code, 130, said);
    assert.deepEqual(remains(main.pid!), []);
  });
});

describe('chaos: what is done to packets', () => {
  let bridge: Bridge | string;
  before(() => { bridge = makeBridge(2); });
  after(() => { if (typeof bridge !== 'string') bridge.remove(); });

  /** Sends datagrams from the second member to the first, which sends them back: what comes, in the order of its coming. */
  async function echoes(test: Mocha.Context, prepare: (bridge: Bridge) => void, count: number): Promise<number[]> {
    const network = bridge;
    if (typeof network === 'string') {
      console.log(`      skipped: ${network}`);
      return test.skip();
    }
    const [echo, asker] = await Promise.all(network.names.map((netns) => Member.start({ netns, join: false, load: 'none' })));
    await echo.run(async ({ require }, address) => {
      const { createSocket } = require('node:dgram') as typeof import('node:dgram');
      const socket = createSocket('udp4', (message, { port, address: from }) => socket.send(message, port, from));
      await new Promise<void>((resolve) => socket.bind(5555, address, resolve));
    }, network.addresses[0]);
    prepare(network);
    const came = await asker.run(async ({ require }, given) => {
      const { createSocket } = require('node:dgram') as typeof import('node:dgram');
      const came: number[] = [];
      const socket = createSocket('udp4', (message) => came.push(message.readInt32LE()));
      for (let sent = 0; sent < given.count; sent++) {
        const message = Buffer.alloc(1000);
        message.writeInt32LE(sent);
        socket.send(message, 5555, given.address);
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      // What has not come by then is late enough to count as lost.
      await new Promise((resolve) => setTimeout(resolve, 500));
      return came;
    }, { count, address: network.addresses[0] });
    await Promise.all([echo.destroy(), asker.destroy()]);
    return came;
  }

  it('nothing by default', async function () {
    assert.equal((await echoes(this, () => undefined, 100)).length, 100);
  });

  for (const direction of ['mute', 'deaf'] as const) {
    it(`all are lost in one direction (${direction}) until it is healed`, async function () {
      const lost = await echoes(this, (network) => {
        if (network.means.oneWay === null) this.skip();
        network.cut(1, direction);
      }, 50);
      assert.deepEqual(lost, []);
      const back = await echoes(this, (network) => network.heal(1), 50);
      assert.equal(back.length, 50);
    });
  }

  it('some are lost, and some overtaken', async function () {
    // One is overtaken only if the next one is sent before it has left its slow queue: on a machine that is busy, in one of several runs.
    let overtaken = false;
    for (let run = 0; run < 5 && !overtaken; run++) {
      const came = await echoes(this, (network) => {
        if (network.means.weather === null) this.skip();
        network.setWeather(1, { delay: 3, loss: 20, reorder: 25 });
      }, 400);
      assert.ok(came.length > 200 && came.length < 390, `${came.length} of 400 came`);
      overtaken = came.some((number, index) => index > 0 && number < came[index - 1]);
    }
    assert.ok(overtaken, 'all came in the order of sending');
  });
});

describe('chaos: limits of memory', () => {
  for (const means of [undefined, 'rlimit'] as const) {
    it(`a process that goes beyond its limit is killed, or gets an error (${means ?? 'the best there is here'})`, async () => {
      const limits = makeLimits(means);
      console.log(`      by ${limits.means}`);
      const member = await Member.start({ join: false, load: 'none' });
      try {
        const hoard = (bytes: number): Promise<string> => member.run((_, wanted) => {
          const ballast: Buffer[] = [];
          while (ballast.length << 20 < wanted) ballast.push(Buffer.alloc(1 << 20, 1));
          return 'all of it';
        }, bytes).catch(({ code, message }: { code?: string; message: string }) => code ?? message);
        limits.limit(member.pid, 32 << 20);
        limits.lift(member.pid);
        assert.equal(await hoard(64 << 20), 'all of it');
        limits.limit(member.pid, 32 << 20);
        const came = await hoard(256 << 20);
        // Node.js ends itself where it can't go on without memory, and throws where it can.
        assert.match(came, /ERR_MEMBER_EXITED|ERR_MEMORY_ALLOCATION_FAILED|allocation failed/i);
        if (limits.means !== 'rlimit') assert.equal((await member.exit()).signal, 'SIGKILL');
      } finally {
        await member.destroy();
        limits.remove();
      }
      assert.ok(!remains(process.pid).some((name) => name.startsWith('faultline-chaos')));
    });
  }
});
