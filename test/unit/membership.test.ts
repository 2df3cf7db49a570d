import assert from 'node:assert/strict';
import { type ChildProcess, fork } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Dealer } from 'zeromq';
import { openEmbedded } from '../../lib/coordinator/membership/embedded.js';
import type { Session } from '../../lib/coordinator/membership/session.js';
import type { ClusterState, Envelope } from '../../lib/coordinator/protocol/messages.js';
import { Cancellation } from '../../lib/coordinator/cancellation.js';
import { decodeJoin, encodeJoin, hello, type JoinMessage } from '../../lib/coordinator/transport/joining.js';
import { clusterHash, decode, encode } from '../../lib/coordinator/transport/wire.js';
import { native } from '../../lib/native.js';

/** ms; short, so that the tests are; much longer than anything that is not meant to be silent. */
const SILENCE = 1000;

interface Opened { session: Session; events: EventEmitter; states: ClusterState[]; messages: Envelope[]; over: Error | null; leases: number[] }

describe('membership', () => {
  let directory: string;
  let runtime: string | undefined;
  let count = 0;
  let port = 20_000 + (process.pid % 20_000);
  const sessions: Session[] = [];
  const children: Child[] = [];
  const local = (): string => `local:t${++count}`;
  const folder = (cluster: string): string => path.join(directory, 'faultline', `${cluster.replace('local:', '')}.v1`);

  before(() => {
    runtime = process.env.XDG_RUNTIME_DIR;
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'fl-'));
    process.env.XDG_RUNTIME_DIR = directory;
  });
  after(() => {
    if (runtime === undefined) delete process.env.XDG_RUNTIME_DIR;
    else process.env.XDG_RUNTIME_DIR = runtime;
    fs.rmSync(directory, { recursive: true });
  });
  afterEach(async () => {
    for (const child of children.splice(0)) child.end();
    await Promise.all(sessions.splice(0).map((session) => session.close()));
  });

  async function open(cluster: string, options: { signal?: AbortSignal; joinTimeout?: number; name?: string } = {}): Promise<Opened> {
    const opened: Omit<Opened, 'session'> = { events: new EventEmitter(), states: [], messages: [], over: null, leases: [] };
    const session = await openEmbedded({ cluster, name: options.name ?? 'test', insecure: false, silence: SILENCE, joinTimeout: options.joinTimeout ?? 10_000, setLease: (until) => opened.leases.push(until) }, {
      state: (state) => { opened.states.push(state); opened.events.emit('state', state); },
      message: (envelope) => { opened.messages.push({ ...envelope, payload: envelope.payload && Uint8Array.from(envelope.payload) }); opened.events.emit('message'); },
      tell: () => undefined,
      over: (error) => { opened.over = error; opened.events.emit('over'); },
      renewed: () => opened.events.emit('renewed'),
    }, options.signal);
    sessions.push(session);
    return { ...opened, session, get over() { return opened.over; } } as Opened;
  }

  class Child {
    readonly events = new EventEmitter();
    self = 0;
    clusterId = '';
    over: string | null = null;
    state!: ClusterState;
    private readonly process: ChildProcess;
    private ids = 0;

    constructor(cluster: string, name = 'child') {
      this.process = fork(path.join(__dirname, 'membership-child.js'), [cluster, name, String(SILENCE)]);
      this.process.on('message', (message: any) => {
        if (message.event === undefined) return this.events.emit(`answer ${message.id}`, message);
        if (message.event === 'over') this.over = message.code;
        if (message.event === 'state') this.state = message.state;
        return this.events.emit(message.event, message);
      });
      children.push(this);
    }

    static async start(cluster: string): Promise<Child> {
      const child = new Child(cluster);
      await child.opened();
      return child;
    }

    async opened(): Promise<void> {
      const failed = once(this.events, 'failed').then(([{ code, message }]) => { throw new Error(`${code}: ${message}`); });
      const [{ self, clusterId }] = await Promise.race([once(this.events, 'open'), failed]);
      Object.assign(this, { self, clusterId });
    }

    async call(op: string, args: unknown = {}): Promise<any> {
      const id = ++this.ids;
      this.process.send({ id, op, args });
      const [{ value, error }] = await once(this.events, `answer ${id}`);
      if (error !== undefined) throw Object.assign(new Error(error), { code: error });
      return value;
    }

    kill(signal: NodeJS.Signals = 'SIGKILL'): void {
      this.process.kill(signal);
    }

    end(): void {
      this.kill('SIGCONT');
      this.kill();
    }
  }

  async function until(opened: Opened, condition: (state: ClusterState) => boolean): Promise<ClusterState> {
    while (!condition(opened.session.state)) await once(opened.events, 'state');
    return opened.session.state;
  }
  const ids = (state: ClusterState): number[] => state.members.map(({ id }) => id);
  const leave = async (opened: Opened, handOver = (): Promise<void> => Promise.resolve()): Promise<void> => {
    await opened.session.leave(handOver, 5000);
    await opened.session.close();
  };
  const lock = (from: Session, name: string, more = {}, signal?: Cancellation): Promise<any> => from.call('lock', { name, shared: false, client: 1, try: false, ...more }, signal);
  /** A foreign socket that says something to where a member listens, and hears what it answers. */
  async function say(endpoint: string, frames: (Uint8Array | string)[]): Promise<Uint8Array> {
    const socket = new Dealer({ linger: 0 });
    socket.connect(endpoint);
    await socket.send(frames);
    const [answer] = await socket.receive();
    socket.close();
    return answer;
  }
  const endpointOf = (opened: Opened): string => opened.session.state.members.find(({ id }) => id === opened.session.self)!.endpoint;

  for (const kind of ['local', 'tcp'] as const) {
    const address = (): string => (kind === 'local' ? local() : `tcp://127.0.0.1:${++port}`);

    describe(`of a ${kind} cluster`, () => {
      it('the first forms it, the next join it, all see one state', async () => {
        const cluster = address();
        const a = await open(cluster, { name: 'first' });
        const b = await open(cluster);
        const c = await open(cluster);
        await until(a, (state) => state.members.length === 3);
        await until(b, (state) => state.members.length === 3);
        assert.deepEqual(a.session.state, c.session.state);
        assert.deepEqual(b.session.state, c.session.state);
        assert.deepEqual(ids(a.session.state), [1, 2, 3]);
        assert.equal(a.session.state.members[0].name, 'first');
        assert.equal(a.session.state.members[0].address, kind === 'local' ? 'local' : '127.0.0.1');
      });

      it('many that start at once form one', async () => {
        const cluster = address();
        const started = Array.from({ length: 6 }, () => new Child(cluster));
        await Promise.all(started.map((child) => child.opened()));
        assert.equal(new Set(started.map(({ clusterId }) => clusterId)).size, 1);
        assert.deepEqual(started.map(({ self }) => self).sort(), [1, 2, 3, 4, 5, 6]);
      });

      it('messages arrive in order, with their bytes, at others and at oneself', async () => {
        const cluster = address();
        const [a, b] = [await open(cluster), await open(cluster)];
        await until(a, (state) => state.members.length === 2);
        for (const to of [b, a]) {
          for (let i = 0; i < 50; i++) a.session.send(to.session.self, { type: 'returned', region: i, generation: 1, runs: [] }, i % 2 === 0 ? undefined : new Uint8Array(4096).fill(i));
          assert.equal(to.messages.length, 0, 'not before send() returned');
          while (to.messages.length < 50) await once(to.events, 'message');
          to.messages.forEach(({ from, message, payload }, i) => {
            assert.deepEqual([from, (message as { region: number }).region, payload?.length, payload?.[4095]], [a.session.self, i, ...(i % 2 === 0 ? [undefined, undefined] : [4096, i])]);
          });
        }
      });

      it('the serving passes on with all that it knows when the registrar leaves, whoever leaves and in which order', async () => {
        const cluster = address();
        const [a, b, c] = [await open(cluster), await open(cluster), await open(cluster)];
        const { info } = (await a.session.call('region-open', { name: 'r', mode: 'create', size: 1 << 20 })) as any;
        const held = await lock(c.session, 'l');
        const waiting = lock(b.session, 'l');
        let handedOver: ClusterState | null = null;
        await leave(a, async () => { handedOver = a.session.state; });
        const seen = handedOver as ClusterState | null;
        assert.ok(seen?.members[0].leaving);
        assert.deepEqual(seen?.regions[0].slices[0], { ...info.slices[0], home: 2, generation: 2, from: 1 });
        const state = await until(b, ({ members }) => members.length === 2);
        assert.deepEqual([state.registrar, state.died, state.regions[0].slices[0].from], [2, [], 0]);
        await c.session.call('unlock', { name: 'l', token: held.token, died: false });
        assert.ok(Number((await waiting).token) > Number(held.token));
        const d = await open(cluster);
        assert.deepEqual([d.session.self, d.session.state.clusterId], [4, state.clusterId]);
        await leave(c);
        await leave(b);
        await until(d, ({ members }) => members.length === 1);
        assert.deepEqual([d.session.state.registrar, d.over], [4, null]);
        await leave(d);
        const again = await open(cluster);
        assert.notEqual(again.session.state.clusterId, state.clusterId);
      });

      it('starts and leaves at the same time never make two clusters, and nobody is lost', async () => {
        const cluster = address();
        let living = 0;
        const inside = new Map<string, number>();
        const one = async (): Promise<void> => {
          for (let round = 0; round < 8; round++) {
            const member = await open(cluster);
            const { clusterId } = member.session.state;
            inside.set(clusterId, (inside.get(clusterId) ?? 0) + 1);
            living++;
            assert.equal(inside.get(clusterId), living, 'all who are in are in one cluster');
            living--;
            inside.set(clusterId, inside.get(clusterId)! - 1);
            await leave(member);
            assert.equal(member.over, null);
          }
        };
        await Promise.all([one(), one(), one()]);
      });

      it('a member that is killed is known to be dead at once; its locks pass on, its barriers break', async () => {
        const cluster = address();
        const [a, b] = [await open(cluster), await open(cluster)];
        const child = await Child.start(cluster);
        await child.call('lock', { name: 'l', shared: false, client: 1, try: false });
        const next = lock(b.session, 'l');
        const barrier = b.session.call('barrier', { name: 'b', parties: 2, client: 1 });
        const start = performance.now();
        child.kill();
        await assert.rejects(barrier, (error: any) => error.code === 'ERR_FAULTLINE_BARRIER_BROKEN' && error.members[0] === child.self);
        assert.equal((await next).ownerDied, true);
        assert.ok(performance.now() - start < SILENCE / 2, 'long before the silence');
        assert.deepEqual([ids(b.session.state), b.session.state.died], [[1, 2], [child.self]]);
        assert.equal(a.over, null);
      });

      it('a member that is stopped is given up, changes nothing afterwards, and learns it', async () => {
        const cluster = address();
        const a = await open(cluster);
        const child = await Child.start(cluster);
        const start = performance.now();
        child.kill('SIGSTOP');
        await until(a, (state) => state.members.length === 1);
        const time = performance.now() - start;
        assert.ok(time > SILENCE * 0.7 && time < SILENCE * 2, `${time} ms`);
        const over = once(child.events, 'over');
        child.kill('SIGCONT');
        await over;
        assert.equal(child.over, 'ERR_FAULTLINE_EVICTED');
        assert.equal(a.session.state.members.length, 1);
      });

      it('a member that is stopped for less stays, and its lease is renewed', async () => {
        const cluster = address();
        const a = await open(cluster);
        const child = await Child.start(cluster);
        const renewed = once(child.events, 'renewed');
        child.kill('SIGSTOP');
        await new Promise((resolve) => setTimeout(resolve, SILENCE * 0.85));
        child.kill('SIGCONT');
        await renewed;
        assert.equal(child.over, null);
        assert.equal(a.session.state.members.length, 2);
      });

      it('when the registrar is killed all others learn it at once, and a newcomer begins anew when they have gone', async () => {
        const cluster = address();
        const registrar = await Child.start(cluster);
        const [a, b] = [await open(cluster), await open(cluster)];
        const pending = lock(a.session, 'l').then(() => lock(a.session, 'l'));
        const start = performance.now();
        registrar.kill();
        await Promise.all([a, b].map(({ events }) => once(events, 'over')));
        assert.ok(performance.now() - start < SILENCE);
        for (const { over } of [a, b]) assert.deepEqual([(over as any).code, (over as any).member], ['ERR_FAULTLINE_CLUSTER_LOST', 1]);
        await assert.rejects(pending, { code: 'ERR_FAULTLINE_CLUSTER_LOST' });
        await assert.rejects(a.session.call('lock', {}), { code: 'ERR_FAULTLINE_CLUSTER_LOST' });
        const newcomer = open(cluster);
        await Promise.all([a, b].map(({ session }) => session.close()));
        assert.notEqual((await newcomer).session.state.clusterId, registrar.clusterId);
      });

      it('when the registrar is stopped the others give it up, bounded', async () => {
        const cluster = address();
        const registrar = await Child.start(cluster);
        const a = await open(cluster);
        registrar.kill('SIGSTOP');
        const start = performance.now();
        await once(a.events, 'over');
        assert.equal((a.over as any).code, 'ERR_FAULTLINE_CLUSTER_LOST');
        assert.ok(performance.now() - start < SILENCE * 3);
      });

      it('a registrar that was stopped for less gives nobody up', async () => {
        const cluster = address();
        const registrar = await Child.start(cluster);
        const a = await open(cluster);
        registrar.kill('SIGSTOP');
        await new Promise((resolve) => setTimeout(resolve, SILENCE * 1.3));
        const renewed = once(a.events, 'renewed');
        registrar.kill('SIGCONT');
        await renewed;
        assert.deepEqual([a.over, ids(a.session.state)], [null, [1, 2]]);
      });
    });
  }

  it('a newcomer beside survivors of a dead registrar makes no second cluster, and names them', async () => {
    const cluster = local();
    // A survivor that neither notices nor goes: all that can be seen of it is its lock.
    await leave(await open(cluster));
    const survivor = native.lockFile(path.join(folder(cluster), 'm7.lock'));
    fs.writeSync(survivor, JSON.stringify({ name: 'stubborn', pid: 4711 }));
    await assert.rejects(open(cluster), (error: any) => error.code === 'ERR_FAULTLINE_CLUSTER_LOST' && /member 7 \(stubborn, pid 4711\)/.test(error.message));
    native.closeFile(survivor);
    assert.equal((await open(cluster)).session.self, 1);
  });

  it('has left in order also if the news of that come later than the answer that it is not known any more', async () => {
    const cluster = local();
    const a = await open(cluster);
    const b = await open(cluster);
    await until(a, ({ members }) => members.length === 2);
    // What comes to b's own socket is late, as on a network that loses packets; the answers to b's heartbeats are not.
    await b.session.leave(async () => { (b.session as unknown as { received: () => void }).received = () => undefined; }, 20_000);
    assert.equal(b.over, null);
    assert.deepEqual(a.session.state.members.map(({ id }) => id), [a.session.self]);
    assert.deepEqual(a.session.state.died, []);
  });

  it('leaves nothing in the directory but what tells nobody anything', async () => {
    const cluster = local();
    const [a, b] = [await open(cluster), await open(cluster)];
    await leave(a);
    await leave(b);
    assert.deepEqual(fs.readdirSync(folder(cluster)).sort(), ['registrar.json', 'registrar.lock']);
  });

  it('refuses a directory that others may enter, and a name too long for a socket', async () => {
    const cluster = local();
    fs.mkdirSync(folder(cluster), { recursive: true, mode: 0o700 });
    fs.chmodSync(folder(cluster), 0o750);
    await assert.rejects(open(cluster), (error: any) => error.code === 'ERR_FAULTLINE_SYSTEM' && error.message.includes('750'));
    await assert.rejects(open(`local:${'x'.repeat(100)}`), { code: 'ERR_FAULTLINE_INVALID_ARGUMENT', argument: 'cluster' });
  });

  it('can be called off while it waits', async () => {
    const cluster = local();
    await leave(await open(cluster));
    const other = native.lockFile(path.join(folder(cluster), 'registrar.lock'));
    const controller = new AbortController();
    const opening = open(cluster, { signal: controller.signal });
    controller.abort(new Error('enough'));
    await assert.rejects(opening, /enough/);
    await assert.rejects(open(cluster, { joinTimeout: 100 }), { code: 'ERR_FAULTLINE_JOIN_TIMEOUT' });
    native.closeFile(other);
  });

  it('a call that is aborted is withdrawn', async () => {
    const cluster = local();
    const [a, b] = [await open(cluster), await open(cluster)];
    const held = await lock(a.session, 'l');
    const controller = new Cancellation();
    const aborted = lock(b.session, 'l', {}, controller);
    const last = lock(a.session, 'l', { client: 2 });
    controller.abort(new Error('no longer'));
    await assert.rejects(aborted, /no longer/);
    await b.session.call('client-gone', { client: 99 });
    await a.session.call('unlock', { name: 'l', token: held.token, died: false });
    assert.equal((await last).ownerDied, false);
  });

  it('leaving takes turns, and is bounded', async () => {
    const cluster = local();
    const [a, b, c] = [await open(cluster), await open(cluster), await open(cluster)];
    let busy = 0;
    const handOver = async (): Promise<void> => {
      assert.equal(++busy, 1);
      await new Promise((resolve) => setTimeout(resolve, 30));
      busy--;
    };
    await Promise.all([b, c].map((member) => leave(member, handOver)));
    const d = await open(cluster);
    await assert.rejects(d.session.leave(() => new Promise(() => undefined), 50), { code: 'ERR_FAULTLINE_TIMEOUT' });
    await until(a, ({ members }) => members.length === 1);
    assert.deepEqual(a.session.state.died, [d.session.self], 'what it had is lost, as if it had died');
  });

  it('of two that complain about one another the higher goes', async () => {
    const cluster = local();
    const [, b, c] = [await open(cluster), await open(cluster), await open(cluster)];
    await until(b, ({ members }) => members.length === 3);
    b.session.suspect(c.session.self);
    await once(c.events, 'over');
    assert.equal((c.over as any).code, 'ERR_FAULTLINE_EVICTED');
    await c.session.close();
    await until(b, ({ members }) => members.length === 2);
  });

  it('leases are counted from before they were asked for, and never run backwards', async () => {
    const cluster = local();
    await open(cluster);
    const b = await open(cluster);
    while (b.leases.length < 4) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.deepEqual(b.leases, [...b.leases].sort((one, other) => one - other));
    assert.ok(b.leases.at(-1)! - native.now() <= SILENCE * 750);
  });

  describe('drops and counts, and tells the sender of', () => {
    const refused = (frame: Uint8Array): JoinMessage => decodeJoin(frame);

    it('malformed messages', async () => {
      const a = await open(local());
      for (const frames of [['nonsense'], [''], ['a', 'b', 'c'], [encodeJoin({ kind: 'hello' } as JoinMessage)]]) {
        const answer = refused(await say(endpointOf(a), frames));
        assert.deepEqual([answer.kind, (answer as any).reason], ['refused', 'malformed']);
      }
      assert.equal(a.session.stats().malformed, 4);
      assert.equal(a.messages.length, 0);
    });

    it('messages of another cluster', async () => {
      const a = await open(local());
      const answer = refused(await say(endpointOf(a), [encode({ type: 'evicted', epoch: 1 }, 1, 1, clusterHash('other'))]));
      assert.match((answer as any).message, /another cluster/);
      assert.deepEqual([a.session.stats().malformed, a.over], [1, null]);
    });

    it('members that are out of the view', async () => {
      const cluster = local();
      const [a, b] = [await open(cluster), await open(cluster)];
      await leave(b);
      const { clusterId } = a.session.state;
      const answer = await say(endpointOf(a), [encode({ type: 'returned', region: 1, generation: 1, runs: [] }, b.session.self, 1, clusterHash(clusterId))]);
      assert.equal(decode(answer).message.type, 'evicted');
      assert.deepEqual([a.session.stats().fenced, a.messages.length], [1, 0]);
    });

    it('processes of another protocol version or architecture, which then fail with both values', async () => {
      const cluster = local();
      const a = await open(cluster);
      const answer = refused(await say(endpointOf(a), [encodeJoin({ ...hello('old'), protocol: { major: 7, minor: 1 } })]));
      assert.equal((answer as any).reason, 'protocol');
      assert.match((answer as any).message, /1\.0.*7\.1/);
      const other = refused(await say(endpointOf(a), [encodeJoin({ ...hello('other'), arch: 's390x' })]));
      assert.deepEqual([(other as any).reason, (other as any).message.includes('s390x')], ['architecture', true]);
    });
  });

  it('a refusal reaches whoever wants to join', async () => {
    const cluster = `tcp://127.0.0.1:${++port}`;
    const { Router } = await import('zeromq');
    const stranger = new Router({ linger: 0 });
    await stranger.bind(cluster);
    const answering = (async () => {
      const [connection, frame] = await stranger.receive();
      assert.equal(decodeJoin(frame).kind, 'hello');
      await stranger.send([connection, encodeJoin({ kind: 'refused', reason: 'protocol', message: 'the cluster speaks protocol 9.9, this process protocol 1.0' })]);
    })();
    await assert.rejects(open(cluster), (error: any) => error.code === 'ERR_FAULTLINE_JOIN_REFUSED' && error.reason === 'protocol' && error.message.includes('9.9'));
    await answering;
    stranger.close();
  });
});
