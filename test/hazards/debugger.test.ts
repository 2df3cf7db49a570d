import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Member, startMembers } from '../support/members.js';
import { joinedThread, openInThread } from '../support/steps.js';

const PAGE = 4096;
/** ms: longer than the silence after which a member is given up. */
const LONGER_THAN_SILENCE = 2600;

/** Uses, from `member` and for so many ms, what another member's coordinator serves as home and registrar; the number of rounds. */
async function useFor(member: Member, ms: number): Promise<number> {
  return member.run(async ({ cluster, region }, duration) => {
    const words = new Int32Array(region.buffer);
    const end = Date.now() + duration;
    let rounds = 0;
    for (; Date.now() < end; rounds++) {
      Atomics.add(words, 1024, 1);
      await region.prefetch();
      await (await cluster.lock('used')).release();
      await region.discard(2 * 4096, 4096);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return rounds;
  }, ms, { within: ms + 10_000 });
}

describe('hazards: a debugger', () => {
  it('an inspector that holds the main thread for longer than silence is allowed: its coordinator serves others, and faults in evaluated code end', async () => {
    // The one that is debugged is the registrar and the home of all pages.
    const [debugged, other] = await startMembers(2, { name: 'memory', size: 16 * PAGE });
    await other.run(({ region }) => { new Int32Array(region.buffer)[3 * 1024] = 33; });
    const ids = await other.run(({ cluster }) => cluster.view.members.map(({ id }) => id));
    const inspector = await joinedThread(debugged);
    await openInThread(inspector, 'memory');
    await inspector.run(async (state) => {
      const { Session } = state.require('node:inspector') as typeof import('node:inspector');
      const session = state.session = new Session();
      session.connectToMainThread();
      await new Promise<void>((resolve, reject) => session.post('Debugger.enable', (error) => { if (error) reject(error); else resolve(); }));
      const { region } = state;
      session.once('Debugger.paused', ({ params: { callFrames: [frame] } }) => {
        // The main thread is held now, so all that is said goes through the shared memory.
        session.post('Debugger.evaluateOnCallFrame', { callFrameId: frame.callFrameId, expression: 'words[3 * 1024]' }, (_, answer) => {
          const words = new Int32Array(region.buffer);
          Atomics.store(words, 1, Number(answer?.result.value));
          Atomics.store(words, 0, 1);
          region.notify(0).then(() => region.wait(0, 1)).finally(() => session.post('Debugger.resume'));
        });
      });
    });
    const held = debugged.run(({ region }) => {
      const words = new Int32Array(region.buffer);
      // eslint-disable-next-line no-debugger
      debugger;
      return Atomics.load(words, 0);
    });
    assert.notEqual(await other.run(({ region }) => region.wait(0, 0, { timeout: 10_000 })), 'timed-out');
    assert.equal(await other.run(({ region }) => new Int32Array(region.buffer)[1]), 33);
    assert.ok(await useFor(other, LONGER_THAN_SILENCE) > 10);
    await other.run(async ({ region }) => {
      Atomics.store(new Int32Array(region.buffer), 0, 2);
      await region.notify(0);
    });
    assert.equal(await held, 2);
    await inspector.run(({ session }) => session.disconnect());
    // Nobody was given up: an id is never used again.
    assert.deepEqual(await other.run(({ cluster }) => cluster.view.members.map(({ id }) => id)), ids);
    await debugged.leave();
  });

  it('gdb, attached while both sides fault: it passes the faults on, and no count is lost', async function () {
    try {
      execFileSync('gdb', ['--version'], { stdio: 'ignore' });
    } catch {
      this.skip();
    }
    const [debugged, other] = await startMembers(2, { name: 'memory', size: 16 * PAGE });
    const gdb = spawn('gdb', ['-nx', '-batch', '-p', String(debugged.pid), '-iex', 'set debuginfod enabled off',
      '-ex', 'handle SIGSEGV nostop noprint pass', '-ex', 'echo attached\\n', '-ex', 'continue'], { stdio: ['ignore', 'pipe', 'pipe'] });
    let said = '';
    const ended = once(gdb, 'close');
    try {
      const attached = new Promise<void>((resolve) => gdb.stdout.on('data', (text) => {
        said += text;
        if (said.includes('attached')) resolve();
      }));
      gdb.stderr.on('data', (text) => { said += text; });
      await Promise.race([attached, ended.then(() => { throw new Error(`gdb ended:\n${said}`); })]);
      if (/not permitted|ptrace:/i.test(said)) this.skip();
      await Promise.all([debugged, other].map((member) => member.run(({ region }) => {
        const words = new Int32Array(region.buffer);
        for (let step = 0; step < 320; step++) Atomics.add(words, (step % 16) * 1024, 1);
      })));
      // As Ctrl-C at gdb's prompt would: it stops the process, and batch mode lets it go.
    } finally {
      gdb.kill('SIGINT');
      const late = setTimeout(() => gdb.kill('SIGKILL'), 5000);
      await ended;
      clearTimeout(late);
    }
    for (const member of [debugged, other]) {
      assert.deepEqual(await member.run(({ region }) => Array.from({ length: 16 }, (_, page) => new Int32Array(region.buffer)[page * 1024])), Array(16).fill(40));
    }
    await debugged.leave();
  });
});
