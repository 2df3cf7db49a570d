/**
 * The V8 bridge: the second addon, the only code that uses V8's own API. It stops the JavaScript of attempt(), and makes
 * SharedArrayBuffers on Node 20, where Node-API can't. It is built for one major version of Node; on Node 22 and later
 * everything but attempt() works without it.
 *
 * Importing this module installs it in the calling thread's environment, and with it the main addon's regionBuffer() in
 * the whole process.
 */
import path from 'node:path';
import bindings from 'bindings';
import { native } from './native.js';

/** Why an access inside attempt() could not be served; the first one, if there were several. */
export interface Loss {
  /** 'page': the only copy of this page is gone. 'region': the whole region can't be accessed any more, see `down`. */
  kind: 'page' | 'region';
  region: string;
  /** Counted from 0 within the region. */
  page: number;
  /** Bytes. */
  pageSize: number;
  /** The byte of the region that was touched. */
  offset: number;
  /** The member that had the only copy, and the epoch in which it died; 0 for a region. */
  member: number;
  epoch: number;
  /** A Down code of native.ts; 0 for a page. */
  down: number;
}

export interface Bridge {
  /** Connects the two addons in this environment. Throws ERR_NATIVE_BRIDGE if they are from different builds. */
  install(port: bigint): void;
  /**
   * Calls fn. An access to a lost page, or to a region that is down, stops it: catch and finally blocks inside fn do not
   * run, stores that it made after the loss are undefined, and the loss is returned. An exception of fn's own is thrown
   * as it is, unless a loss came before it. May be nested: the innermost call gets the loss. fn must not be async.
   * Errors: ERR_SYSTEM (no memory or no thread for the preparations).
   */
  attempt<T>(fn: () => T): { value: T } | { loss: Loss };
}

function load(): Bridge | undefined {
  let loaded: Bridge;
  try {
    loaded = bindings({
      bindings: 'v8_bridge',
      module_root: path.resolve(__dirname, '..', '..'),
      try: [
        ['module_root', 'build', 'Release', 'bindings'],
        ['module_root', 'build', 'Debug', 'bindings'],
        // V8's ABI is of one major version, so a prebuilt bridge is in a folder of that version's.
        ['module_root', 'prebuilds', `linux-${process.arch}`, `abi-${process.versions.modules}`, 'bindings'],
      ],
    } as unknown as string) as Bridge;
  } catch (error) {
    bridgeError = error as Error;
    return undefined;
  }
  loaded.install(native.bridgePort());
  return loaded;
}

/** Why `bridge` is undefined: it was not built, or was built for another version of Node. */
export let bridgeError: Error | undefined;

/** undefined if it can't be loaded here; see bridgeError. */
export const bridge: Bridge | undefined = load();
