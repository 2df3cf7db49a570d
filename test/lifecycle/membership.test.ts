import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Member, startMembers, uniqueCluster } from '../support/members.js';
import { freePort, helloOf, makeNamespaces, cutLink, Stranger, StrangeServer } from '../support/network.js';
import { arrived, codeOf, counted, tellEvents } from '../support/steps.js';

async function idsOf(members: Member[]): Promise<string[]> {
  return Promise.all(members.map((member) => member.run(({ cluster }) => cluster.id)));
}

/** Processes that wait for the word to join: the slow part, their start, is over. */
function readyMembers(count: number): Promise<Member[]> {
  return Promise.all(Array.from({ length: count }, () => Member.start({ join: false })));
}

function joinAll(members: Member[], cluster: string): Promise<void[]> {
  return Promise.all(members.map((member) => member.run(async (state, address) => { state.cluster = await state.join({ cluster: address }); }, cluster)));
}

describe('processes that join', () => {
  it('form one cluster when two start at once, again and again', async () => {
    const members = await readyMembers(2);
    for (let round = 0; round < counted(8, 50); round++) {
      await joinAll(members, uniqueCluster());
      const [one, two] = await idsOf(members);
      assert.equal(one, two);
      await Promise.all(members.map((member) => member.leave()));
    }
  });

  it('form one cluster when eight start at once, and agree on its view', async () => {
    const members = await readyMembers(8);
    await joinAll(members, uniqueCluster());
    assert.equal(new Set(await idsOf(members)).size, 1);
    await members[0].run(async ({ cluster }) => {
      while (cluster.view.members.length < 8) await new Promise((resolve) => cluster.once('view', resolve));
    });
    for (const member of members) await arrived(member);
    const views = await Promise.all(members.map((member) => member.run(({ cluster }) => ({ self: cluster.self, view: cluster.view }))));
    for (const { view, self } of views) {
      assert.deepEqual(view, views[0].view);
      assert.equal(new Set(view.members.map(({ id }) => id)).size, 8);
      assert.deepEqual(view.members.find(({ id }) => id === self.id), self);
    }
    assert.deepEqual(new Set(views.map(({ self }) => self.pid)), new Set(members.map(({ pid }) => pid)));
    await Promise.all(members.map((member) => member.leave()));
  });

  it('join the same cluster when its registrar is just leaving and others stay', async () => {
    const [a, b, c] = await readyMembers(3);
    for (let round = 0; round < counted(6, 50); round++) {
      const address = uniqueCluster();
      await joinAll([a], address);
      await joinAll([b], address);
      const [id] = await idsOf([b]);
      await Promise.all([a.leave(), joinAll([c], address)]);
      assert.equal((await idsOf([c]))[0], id);
      await Promise.all([b.leave(), c.leave()]);
    }
  });

  it('join the cluster or begin a new one when its last member is just leaving, and are never in two beside each other', async () => {
    const [a, b, c] = await readyMembers(3);
    for (let round = 0; round < counted(6, 50); round++) {
      const address = uniqueCluster();
      await joinAll([a], address);
      await Promise.all([a.leave(), joinAll([b], address), joinAll([c], address)]);
      const [one, two] = await idsOf([b, c]);
      assert.equal(one, two);
      await b.run(({ cluster }) => cluster.barrier('together', 1));
      await Promise.all([b.leave(), c.leave()]);
    }
  });

  it('hear of those who join, leave and die, each after the view that says so', async () => {
    const [a] = await startMembers(1);
    await tellEvents(a, 'member-joined', 'member-left', 'member-died');
    await a.run((state) => {
      state.epochs = [];
      state.cluster.on('view', (view) => {
        state.epochs.push(view.epoch);
        state.latest = view.members.map(({ id }) => id);
      });
      for (const event of ['member-joined', 'member-left', 'member-died'] as const) {
        state.cluster.on(event, ({ id }) => state.tell('consistent', state.latest.includes(id) === (event === 'member-joined')));
      }
    });
    const address = await a.run(({ cluster }) => cluster.address);
    const b = await Member.start({ cluster: address, name: 'bea' });
    const c = await Member.start({ cluster: address });
    const [beaId, cId] = await Promise.all([b, c].map((member) => member.run(({ cluster }) => cluster.self.id)));
    assert.deepEqual([await a.told('event member-joined'), await a.told('event member-joined')], [beaId, cId]);
    assert.deepEqual(await a.run(({ cluster }, id) => cluster.view.members.find((member) => member.id === id), beaId), { id: beaId, name: 'bea', pid: b.pid, address: 'local' });
    await b.leave();
    assert.equal(await a.told('event member-left'), beaId);
    await c.kill('SIGKILL');
    assert.equal(await a.told('event member-died', { within: 3000 }), cId);
    for (let i = 0; i < 4; i++) assert.equal(await a.told('consistent'), true);
    const epochs: number[] = await a.run(({ epochs: seen }) => seen);
    assert.deepEqual(epochs, [...new Set(epochs)].sort((one, other) => one - other));
    const again = await Member.start({ cluster: address });
    assert.ok(await again.run(({ cluster }) => cluster.self.id) > cId, 'an id is never used again');
  });

  it('leave by one call of close() and are as if they had never joined: they can join again', async () => {
    const [a, b] = await startMembers(2);
    const before = await b.run(({ cluster }) => cluster.self.id);
    const address = await a.run(({ cluster }) => cluster.address);
    await b.run(async ({ cluster }) => { await Promise.all([cluster.close(), cluster.close()]); });
    await joinAll([b], address);
    assert.notEqual(await b.run(({ cluster }) => cluster.self.id), before);
    assert.equal(new Set(await idsOf([a, b])).size, 1);
  });

  it('keep their sockets and locks in a directory that only this user may enter', async () => {
    const base = mkdtempSync(path.join(tmpdir(), 'flt-'));
    try {
      const a = await Member.start({ cluster: 'local:private', env: { XDG_RUNTIME_DIR: base } });
      assert.equal(statSync(path.join(base, 'faultline')).mode & 0o777, 0o700);
      assert.equal(statSync(path.join(base, 'faultline', 'private.v1')).mode & 0o777, 0o700);
      await a.leave();
    } finally {
      rmSync(base, { recursive: true });
    }
  });

  it('are stopped by an AbortSignal with its reason, and leave nobody behind', async () => {
    const [a, b] = await readyMembers(2);
    const address = uniqueCluster();
    await joinAll([a], address);
    for (const delay of [0, 1, 5, 20, 60]) {
      const outcome = await b.run(async (state, given) => {
        const controller = new AbortController();
        setTimeout(() => controller.abort(Object.assign(new Error('enough'), { code: 'ENOUGH' })), given.delay);
        try {
          const joined = await state.join({ cluster: given.address, signal: controller.signal });
          await joined.close();
          return 'joined';
        } catch (error) {
          return (error as { code: string }).code;
        }
      }, { delay, address });
      assert.ok(['joined', 'ENOUGH'].includes(outcome), outcome);
    }
    assert.equal(await codeOf(b.run(async ({ join }, given) => { await join({ cluster: given, signal: AbortSignal.abort(Object.assign(new Error('no'), { code: 'MINE' })) }); }, address)), 'MINE');
    await a.run(async ({ cluster }) => { while (cluster.view.members.length > 1) await new Promise((resolve) => cluster.once('view', resolve)); });
  });

  it('are one member when several threads of a process join, which leaves with the last handle', async () => {
    const [a, b] = await startMembers(2);
    const address = await a.run(({ cluster }) => cluster.address);
    await tellEvents(a, 'member-left');
    const thread = await b.thread(undefined, { load: true });
    const ids = [
      await b.run(({ cluster }) => cluster.self.id),
      await b.run(async (state, given) => { state.second = await state.join({ cluster: given }); return state.second.self.id; }, address),
      await thread.run(async (state, given) => { state.cluster = await state.join({ cluster: given }); return state.cluster.self.id; }, address),
    ];
    assert.equal(new Set(ids).size, 1);
    assert.equal(await a.run(({ cluster }) => cluster.view.members.length), 2);
    await b.run(async ({ cluster, second }) => { await cluster.close(); await second.close(); });
    assert.equal(await codeOf(b.run(({ cluster }) => cluster.lock('x'))), 'ERR_FAULTLINE_CLOSED');
    // The thread's handle keeps the member in.
    await thread.run(async ({ cluster }) => { await (await cluster.lock('still in')).release(); });
    await thread.run(({ cluster }) => cluster.close());
    assert.equal(await a.told('event member-left'), ids[0]);
  });

  it('are refused a second join with other options, by a typed error', async () => {
    const address = uniqueCluster();
    const a = await Member.start({ cluster: address, name: 'one' });
    await assert.rejects(a.run(async ({ join }, given) => { await join({ cluster: given, name: 'two' }); }, address), { name: 'JoinRefusedError', code: 'ERR_FAULTLINE_JOIN_REFUSED', reason: 'options' });
    assert.equal(await codeOf(a.run(async ({ join }, given) => { await join({ cluster: given, faultTimeout: 777 }); }, address)), 'ERR_FAULTLINE_JOIN_REFUSED');
    await a.run(async ({ join }, given) => { await (await join({ cluster: given, name: 'one' })).close(); }, address);
    await arrived(a);
  });

  it('are told what to do when a worker joins and the main thread never imported the package', async () => {
    const a = await Member.start({ join: false, load: 'none' });
    const thread = await a.thread(undefined, { load: true });
    await assert.rejects(thread.run(async ({ join }, given) => { await join({ cluster: given }); }, uniqueCluster()), (error: Error & { code: string }) => {
      assert.equal(error.name, 'NotOnMainError');
      assert.equal(error.code, 'ERR_FAULTLINE_NOT_ON_MAIN');
      assert.match(error.message, /import 'faultline' on the main thread/);
      return true;
    });
  });

  it('join from a worker whose main thread only imported the package', async () => {
    const a = await Member.start({ join: false });
    const thread = await a.thread(undefined, { load: true });
    const address = uniqueCluster();
    await thread.run(async (state, given) => { state.cluster = await state.join({ cluster: given }); state.region = await state.cluster.region('grid', { size: 1 << 14 }); new Int32Array(state.region.buffer)[0] = 5; }, address);
    const b = await Member.start({ cluster: address });
    await b.open('grid', { mode: 'open' });
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 5);
    await thread.run(({ cluster }) => cluster.close());
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 5);
  });

  it('can be members of several clusters at once', async () => {
    const addresses = [uniqueCluster(), uniqueCluster()];
    const a = await Member.start({ cluster: addresses[0] });
    const b = await Member.start({ cluster: addresses[1] });
    const c = await Member.start({ cluster: addresses[0] });
    await c.run(async (state, address) => {
      state.other = await state.join({ cluster: address });
      const mine = await state.cluster.region('same', { size: 1 << 14 });
      const others = await state.other.region('same', { size: 1 << 14 });
      new Int32Array(mine.buffer)[0] = 1;
      new Int32Array(others.buffer)[0] = 2;
    }, addresses[1]);
    await a.open('same');
    await b.open('same');
    assert.deepEqual(await Promise.all([a, b].map((member) => member.run(({ region }) => new Int32Array(region.buffer)[0]))), [1, 2]);
    await c.run(({ other }) => other.close());
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 2);
    assert.equal(await c.run(async ({ cluster }) => (await cluster.tryLock('still'))?.shared), false);
  });
});

describe('a cluster at a TCP address', () => {
  for (const host of ['127.0.0.1', '[::1]']) it(`is formed and joined over loopback (${host}), and its address moves with the registrar`, async () => {
    const cluster = `tcp://${host}:${await freePort()}`;
    const [a, b] = await startMembers(2, { name: 'grid', size: 1 << 16 }, { cluster });
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 1; });
    await b.run(({ region }) => { new Int32Array(region.buffer)[1024] = 2; });
    await a.leave();
    const c = await Member.start({ cluster: cluster.replace('127.0.0.1', 'localhost') });
    assert.equal((await idsOf([c]))[0], (await idsOf([b]))[0]);
    await c.open('grid', { mode: 'open' });
    assert.deepEqual(await c.run(({ region }) => [0, 1024].map((at) => new Int32Array(region.buffer)[at])), [1, 2]);
    await b.leave();
    assert.deepEqual(await c.run(({ region }) => [0, 1024].map((at) => new Int32Array(region.buffer)[at])), [1, 2]);
  });

  it('is one cluster when four start at once', async () => {
    const members = await readyMembers(4);
    await joinAll(members, `tcp://127.0.0.1:${await freePort()}`);
    assert.equal(new Set(await idsOf(members)).size, 1);
  });

  it('is refused when it is not loopback, with an error that speaks of keys', async () => {
    const a = await Member.start({ join: false });
    for (const cluster of ['tcp://192.0.2.1:7700', 'tcp://[2001:db8::1]:7700']) {
      await assert.rejects(a.run(async ({ join }, given) => { await join({ cluster: given }); }, cluster), (error: Error & { code: string; cluster: string }) => {
        assert.deepEqual([error.name, error.code, error.cluster], ['KeysNeededError', 'ERR_FAULTLINE_KEYS_NEEDED', cluster]);
        assert.match(error.message, /keys/);
        assert.match(error.message, /insecure: true/);
        return true;
      });
    }
  });

  it('spans two network namespaces with insecure: true, which warns; when the link is cut both sides hear of it, and nobody hangs', async function () {
    const made = makeNamespaces();
    if (typeof made === 'string') {
      console.error(`      skipped: ${made}`);
      return this.skip();
    }
    try {
      const cluster = `tcp://${made.addresses[0]}:7700`;
      const a = await Member.start({ cluster, netns: made.names[0], join: { insecure: true } });
      const b = await Member.start({ cluster, netns: made.names[1], join: { insecure: true } });
      for (const member of [a, b]) assert.match(member.stderr, /FAULTLINE_INSECURE.*without keys/);
      assert.equal(new Set(await idsOf([a, b])).size, 1);
      await b.open('grid', { size: 1 << 16 });
      await a.open('grid');
      await b.run(({ region }) => { new Int32Array(region.buffer).fill(7); });
      assert.equal(await a.run(({ region }) => new Int32Array(region.buffer)[5000]), 7);
      await a.run(({ region }) => { new Int32Array(region.buffer)[5000] = 8; });
      assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[5000]), 8);
      assert.deepEqual(await a.run(({ cluster: joined }) => joined.view.members.map(({ address }) => address)), [...made.addresses]);
      await tellEvents(a, 'member-died');
      await tellEvents(b, 'lost', 'evicted');
      cutLink(made);
      await a.told('event member-died', { within: 8000 });
      // Nobody can tell b, so its lease runs out.
      assert.equal(await b.told('event lost', { within: 8000 }), 'ERR_FAULTLINE_CLUSTER_LOST');
      assert.equal(await codeOf(b.run(({ cluster: joined }) => joined.lock('x'))), 'ERR_FAULTLINE_CLUSTER_LOST');
      await Promise.all([a.leave(), b.leave()]);
    } finally {
      made.remove();
    }
  });

  it('is taken over by a member on the other machine when the registrar leaves', async function () {
    const made = makeNamespaces();
    if (typeof made === 'string') {
      console.error(`      skipped: ${made}`);
      return this.skip();
    }
    try {
      const cluster = `tcp://${made.addresses[0]}:7700`;
      const a = await Member.start({ cluster, netns: made.names[0], join: { insecure: true } });
      const b = await Member.start({ cluster, netns: made.names[1], join: { insecure: true } });
      await a.open('grid', { size: 1 << 16 });
      await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 5; });
      await b.open('grid');
      await a.leave();
      assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[0]), 5);
      assert.equal(await codeOf(b.run(async ({ cluster: joined }) => { await (await joined.lock('x')).release(); })), 'ok');
    } finally {
      made.remove();
    }
  });
});

describe('strangers', () => {
  async function tcpMember(): Promise<{ member: Member; address: string; router: string }> {
    const address = `tcp://127.0.0.1:${await freePort()}`;
    const member = await Member.start({ cluster: address });
    const stranger = new Stranger(address);
    await stranger.sayJoin(helloOf());
    const { reason, endpoint } = await stranger.hear();
    stranger.close();
    assert.equal(reason, 'moved');
    return { member, address, router: endpoint! };
  }

  it('of another protocol version are refused, with both versions named', async () => {
    const { address, router } = await tcpMember();
    for (const endpoint of [address, router]) {
      const stranger = new Stranger(endpoint);
      await stranger.sayJoin(helloOf({ protocol: { major: 99, minor: 3 }, version: '99.3.0' }));
      const answer = await stranger.hear();
      stranger.close();
      assert.deepEqual([answer.kind, answer.reason], ['refused', 'protocol']);
      assert.match(answer.message!, /protocol 1\.0/);
      assert.match(answer.message!, /protocol 99\.3 \(faultline 99\.3\.0\)/);
    }
  });

  it('of another architecture or byte order are refused by name', async () => {
    const { router } = await tcpMember();
    for (const [changed, named] of [[{ arch: 's390x', endianness: 'BE' }, /s390x \(BE\)/], [{ endianness: 'BE' }, /\(BE\)/]] as const) {
      const stranger = new Stranger(router);
      await stranger.sayJoin(helloOf(changed));
      const answer = await stranger.hear();
      stranger.close();
      assert.deepEqual([answer.kind, answer.reason], ['refused', 'architecture']);
      assert.match(answer.message!, named);
      assert.ok(answer.message!.includes(process.arch));
    }
  });

  it('that serve another version at the address make join() fail with a typed error', async () => {
    const address = `tcp://127.0.0.1:${await freePort()}`;
    const server = await StrangeServer.listen(address, { kind: 'refused', reason: 'protocol', message: 'the cluster speaks protocol 2.0 (faultline 9.0.0), this process protocol 1.0' });
    try {
      const a = await Member.start({ join: false });
      await assert.rejects(a.run(async ({ join }, given) => { await join({ cluster: given }); }, address), { name: 'JoinRefusedError', code: 'ERR_FAULTLINE_JOIN_REFUSED', reason: 'protocol', message: /2\.0.*1\.0/ });
      assert.deepEqual(server.heard[0].protocol, { major: 1, minor: 0 });
      assert.equal(server.heard[0].arch, process.arch);
    } finally {
      await server.close();
    }
  });

  it('that have the port and are no faultline make join() fail by its time limit or its signal, not hang', async () => {
    const server = net.createServer((socket) => socket.on('error', () => undefined)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const address = `tcp://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
    try {
      const a = await Member.start({ join: false });
      await assert.rejects(a.run(async ({ join }, given) => { await join({ cluster: given, signal: AbortSignal.timeout(300) }); }, address), { name: 'TimeoutError' });
      await assert.rejects(a.run(async ({ join }, given) => { await join({ cluster: given }); }, address, { within: 40_000 }), { name: 'JoinTimeoutError', code: 'ERR_FAULTLINE_JOIN_TIMEOUT', cluster: address });
    } finally {
      server.close();
    }
  });

  it('that send malformed or foreign messages have them dropped and counted, are told, and disturb nobody', async () => {
    const { member, address, router } = await tcpMember();
    const other = await Member.start({ cluster: address });
    await member.open('grid', { size: 1 << 16 });
    await other.open('grid');
    const malformed = (): Promise<number> => member.run(({ cluster }) => cluster.stats().messages.malformed);
    const before = await malformed();
    const foreign = Buffer.alloc(28 + 20);
    foreign.writeUInt32LE(0x31544c46, 0);
    foreign.writeUInt32LE(1 << 16, 4);
    foreign.write('{"type":"heartbeat"}', 28);
    const otherVersion = Buffer.from(foreign);
    otherVersion.writeUInt32LE(7 << 16, 4);
    const bad: (Uint8Array | string)[][] = [
      [''], ['x'], [Buffer.alloc(27)], [Buffer.alloc(4096, 0xff)], [otherVersion], [foreign], [foreign, 'a', 'b'],
      ['faultline:join\n'], ['faultline:join\n{'], ['faultline:join\n{"kind":"hello"}'], ['faultline:join\nnull'], ['GET / HTTP/1.1\r\n\r\n'],
    ];
    const stranger = new Stranger(router);
    for (const frames of bad) {
      await stranger.say(...frames);
      const answer = await stranger.hear();
      assert.deepEqual([answer.kind, answer.reason], ['refused', 'malformed'], frames.join('|').slice(0, 60));
      assert.ok(answer.message!.length > 0);
    }
    stranger.close();
    assert.equal(await malformed(), before + bad.length);
    const door = new Stranger(address);
    await door.say('nonsense');
    assert.equal((await door.hear()).reason, 'malformed');
    door.close();
    await other.run(({ region }) => { new Int32Array(region.buffer)[0] = 3; });
    assert.equal(await member.run(({ region }) => new Int32Array(region.buffer)[0]), 3);
  });

  it('that say hello and nothing more, or arrive without being asked, never become members', async () => {
    const { member, address, router } = await tcpMember();
    const stranger = new Stranger(router);
    await stranger.sayJoin(helloOf());
    const { kind, id } = await stranger.hear();
    assert.equal(kind, 'welcome');
    await stranger.sayJoin({ kind: 'joined', id: id! + 50, endpoint: 'tcp://127.0.0.1:9' });
    assert.deepEqual(await stranger.hear().then(({ kind: answer, reason }) => [answer, reason]), ['refused', 'retry']);
    await stranger.sayJoin({ kind: 'joined', id: id!, endpoint: 'what is this' });
    assert.deepEqual(await stranger.hear().then(({ kind: answer, reason }) => [answer, reason]), ['refused', 'retry']);
    stranger.close();
    const next = await Member.start({ cluster: address });
    assert.ok(await next.run(({ cluster }) => cluster.self.id) > id!);
    assert.equal(await member.run(({ cluster }) => cluster.view.members.length), 2);
  });

  it('that answer a hello and are dead when the registrar connects are given up, and the cluster goes on', async () => {
    const { member, router } = await tcpMember();
    await tellEvents(member, 'member-joined', 'member-died');
    const stranger = new Stranger(router);
    await stranger.sayJoin(helloOf());
    const { id } = await stranger.hear();
    await stranger.sayJoin({ kind: 'joined', id: id!, endpoint: `tcp://127.0.0.1:${await freePort()}` });
    assert.equal(await member.told('event member-joined'), id);
    assert.equal(await member.told('event member-died', { within: 6000 }), id);
    stranger.close();
    assert.equal(await codeOf(member.run(async ({ cluster }) => { await (await cluster.lock('x')).release(); })), 'ok');
  });
});
