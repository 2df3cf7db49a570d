/** A hash map and an object store that others wrote, kept in the region and changed by several members. */
import assert from 'node:assert/strict';
import { startMembers } from '../support/members.js';

describe('programs: stores', () => {
  it('sharedmap: members that take turns by a cluster lock leave what a Map of the same steps has', async () => {
    const members = await startMembers(3, { size: 1 << 20 });
    const given = { entries: 512, each: 120 };
    for (const member of members) {
      await member.run((state, { entries }) => {
        const loaded = state.require('sharedmap');
        const SharedMap = loaded.default ?? loaded;
        // Each member makes the same empty map before anybody uses it. The library allocates by the global constructor,
        // and a constructor may return any object.
        const original = globalThis.SharedArrayBuffer;
        globalThis.SharedArrayBuffer = function (bytes: number): SharedArrayBuffer {
          return state.region.window(0, bytes);
        } as unknown as SharedArrayBufferConstructor;
        try {
          state.map = new SharedMap(entries, 24, 24);
        } finally {
          globalThis.SharedArrayBuffer = original;
        }
      }, given);
    }
    await Promise.all(members.map((member, who) => member.run(async (state, { who, each }) => {
      for (let step = 0; step < each; step++) {
        // Its own locks sleep in Atomics.wait, which only this process could wake: so no two members meet inside.
        const lock = await state.cluster.lock('map');
        try {
          state.map.set(`own ${who} ${step}`, `value ${step * who}`);
          state.map.set('count', String(Number(state.map.get('count') ?? '0') + 1));
          if (step % 3 === 2) state.map.delete(`own ${who} ${step - 1}`);
        } finally {
          await lock.release();
        }
      }
    }, { ...given, who })));
    const expected = new Map<string, string>([['count', String(members.length * given.each)]]);
    for (let who = 0; who < members.length; who++) {
      for (let step = 0; step < given.each; step++) {
        expected.set(`own ${who} ${step}`, `value ${step * who}`);
        if (step % 3 === 2) expected.delete(`own ${who} ${step - 1}`);
      }
    }
    for (const member of members) {
      const seen = await member.run((state) => {
        const keys = [...state.map.keys()] as string[];
        const { pages, faults } = state.region.stats();
        return {
          entries: keys.map((key): [string, string] => [key, state.map.get(key)]), length: state.map.length as number,
          pages: pages.in, faults: faults.read + faults.write, messages: state.cluster.stats().messages.sent,
        };
      });
      if (process.env.FAULTLINE_SHOW) console.log('sharedmap', { ...seen, entries: seen.entries.length });
      assert.equal(seen.length, expected.size);
      assert.deepEqual(new Map(seen.entries), expected);
    }
  });

  it('@bnaya/objectbuffer: objects that one member made are read and changed by another', async () => {
    const [a, b] = await startMembers(2, { size: 1 << 16 });
    const size = 1 << 15;
    const load = (state: { [kept: string]: any }, size: number) => {
      const store = state.require('@bnaya/objectbuffer');
      // The caller supplies the decoder, and that of Node may refuse shared memory: so it gets a private copy.
      const decoder = new TextDecoder();
      const external = { textEncoder: new TextEncoder(), textDecoder: { decode: (bytes: Uint8Array) => decoder.decode(bytes.slice()) } };
      return { store, external, buffer: state.region.window(0, size) as SharedArrayBuffer };
    };
    await a.run((state, { size, load }) => {
      const { store, external, buffer } = (0, eval)(`(${load})`)(state, size);
      const made = store.createObjectBuffer(external, size, { title: 'first', nested: { list: [1, 2, 3] } }, { useSharedArrayBuffer: true });
      new Uint8Array(buffer).set(new Uint8Array(store.getUnderlyingArrayBuffer(made)));
      state.objects = store.loadObjectBuffer(external, buffer);
    }, { size, load: load.toString() });
    const seen = await b.run((state, { size, load }) => {
      const { store, external, buffer } = (0, eval)(`(${load})`)(state, size);
      state.objects = store.loadObjectBuffer(external, buffer);
      const before = JSON.stringify(state.objects);
      state.objects.title = 'second';
      state.objects.nested.list.push(4);
      state.objects.added = { by: 'b' };
      return { before, inPlace: store.getUnderlyingArrayBuffer(state.objects) === buffer, pages: state.region.stats().pages.in, messages: state.cluster.stats().messages.sent };
    }, { size, load: load.toString() });
    if (process.env.FAULTLINE_SHOW) console.log('objectbuffer', seen);
    assert.deepEqual(JSON.parse(seen.before), { title: 'first', nested: { list: [1, 2, 3] } });
    assert.equal(seen.inPlace, true);
    assert.deepEqual(JSON.parse(await a.run((state) => JSON.stringify(state.objects))), { title: 'second', nested: { list: [1, 2, 3, 4] }, added: { by: 'b' } });
  });
});
