import assert from 'node:assert/strict';
import { Member, startMembers, type State } from '../support/members.js';
import { nativeAddon } from '../support/native-addon.js';

const PAGE = 4096;

/** What is used here of the global that Node has and its types leave to those of browsers. */
declare const WebAssembly: {
  Module: new (code: Uint8Array) => object;
  Instance: new (module: object) => { exports: unknown };
  RuntimeError: new () => Error;
};

/** Loads beyond the end of a WebAssembly memory: by the optimising engines that is a trap by SIGSEGV. Its error's name. */
function trap(): string {
  // (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
  const code = Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 6, 1, 0x60, 1, 0x7f, 1, 0x7f, 3, 2, 1, 0, 5, 3, 1, 0, 1,
    7, 8, 1, 4, 0x6c, 0x6f, 0x61, 0x64, 0, 0, 0x0a, 9, 1, 7, 0, 0x20, 0, 0x28, 2, 0, 0x0b,
  ]);
  const { load } = new WebAssembly.Instance(new WebAssembly.Module(code)).exports as { load(at: number): number };
  if (load(65532) !== 0) return 'wrong value';
  try {
    load(65536 + 64);
  } catch (error) {
    return error instanceof WebAssembly.RuntimeError ? 'RuntimeError' : String(error);
  }
  return 'no trap';
}

describe('the memory: faults that are not ours', () => {
  let addon: string;
  before('build the native test addon', async function () {
    this.timeout(120_000);
    addon = await nativeAddon();
  });

  it('WebAssembly traps stay RuntimeErrors, in main and in workers, before, between and after our own faults', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(3); });
    const thread = await b.thread(({ region }) => ({ buffer: region.buffer }));
    for (let page = 0; page < 3; page++) {
      assert.equal(await b.run(trap), 'RuntimeError');
      assert.equal(await thread.run(trap), 'RuntimeError');
      assert.equal(await b.run(({ region }, at) => new Int32Array(region.buffer)[at * 1024], page), 3);
      assert.equal(await thread.run(({ buffer }, at) => new Int32Array(buffer)[at * 1024], page + 10), 3);
    }
  });

  it('WebAssembly traps stay RuntimeErrors after a worker that had joined and faulted is gone', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(3); });
    const address = await b.run(({ cluster }) => cluster.address);
    const thread = await b.thread(undefined, { load: true });
    assert.equal(await thread.run(async ({ join }, cluster) => {
      const region = await (await join({ cluster })).region('memory');
      return new Int32Array(region.buffer)[0];
    }, address), 3);
    await thread.terminate();
    assert.equal(await b.run(trap), 'RuntimeError');
    assert.equal(await b.run(({ region }) => new Int32Array(region.buffer)[20 * 1024]), 3);
    assert.equal(await b.run(trap), 'RuntimeError');
  });

  it('WebAssembly traps stay RuntimeErrors after the only worker that had loaded the package is gone', async () => {
    const a = await Member.start({ join: false, load: 'none' });
    const thread = await a.thread(undefined, { load: true });
    assert.equal(await thread.run(({ join }) => join().then(() => 'joined', (error: { code: string }) => error.code)), 'ERR_FAULTLINE_NOT_ON_MAIN');
    assert.equal(await thread.run(trap), 'RuntimeError');
    await thread.terminate();
    assert.equal(await a.run(trap), 'RuntimeError');
  });

  it('WebAssembly traps stay RuntimeErrors after the cluster was closed', async () => {
    const [a] = await startMembers(1, { size: 64 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer).fill(3); });
    await a.leave();
    assert.equal(await a.run(trap), 'RuntimeError');
  });

  it('WebAssembly bounds are kept where Node does not use signals for them', async () => {
    const [a] = await startMembers(1, { size: 64 * PAGE }, { execArgv: ['--disable-wasm-trap-handler'] });
    assert.equal(await a.run(({ region }) => ++new Int32Array(region.buffer)[0]), 1);
    assert.equal(await a.run(trap), 'RuntimeError');
  });

  for (const [what, execArgv] of [['', []], [', also with no handler before ours', ['--disable-wasm-trap-handler']]] as const) {
    it(`a null dereference kills the process by SIGSEGV${what}`, async () => {
      const [a, b] = await startMembers(2, { size: 64 * PAGE }, { execArgv: [...execArgv] });
      await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 3; });
      await b.run(({ region }) => new Int32Array(region.buffer)[0]);
      const { signal } = await b.last(({ require }: State, path) => require(path).nullDereference(), addon);
      assert.equal(signal, 'SIGSEGV');
      assert.equal(await a.run(({ region }) => ++new Int32Array(region.buffer)[0]), 4);
    });
  }

  it('a SIGBUS that is not ours kills the process, as it would without us', async () => {
    const [a, b] = await startMembers(2, { size: 64 * PAGE });
    await a.run(({ region }) => { new Int32Array(region.buffer)[0] = 3; });
    await b.run(({ region }) => new Int32Array(region.buffer)[0]);
    const { signal } = await b.last(() => { process.kill(process.pid, 'SIGBUS'); return new Promise(() => undefined); });
    assert.equal(signal, 'SIGBUS');
    assert.equal(await a.run(({ region }) => ++new Int32Array(region.buffer)[0]), 4);
  });

  it('an access before the first byte of a region, or behind its last, kills the process by SIGSEGV', async () => {
    for (const end of [false, true]) {
      const [a] = await startMembers(1, { size: 64 * PAGE });
      const { signal } = await a.last(({ region, require }, { path, behind }) => {
        require(path).load32(region.address + (behind ? BigInt(region.size) : -4n));
      }, { path: addon, behind: end });
      assert.equal(signal, 'SIGSEGV');
    }
  });
});
