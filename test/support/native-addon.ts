/** Builds test/native-addon when it is first needed: what tests do that only native code can do. */
import { execFile } from 'node:child_process';
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

/** What the addon offers, in a member: `state.require(addonPath)`. Addresses and numbers are bigints. */
export interface Accesses {
  nullDereference(): never;
  load32(address: bigint): bigint;
  sumFromThreads(address: bigint, threads: bigint): bigint;
  addFromThreads(address: bigint, threads: bigint, times: bigint): void;
  move(to: bigint, from: bigint, length: bigint): void;
  store64(address: bigint, first: bigint, times: bigint): void;
}

const root = path.resolve(__dirname, '..', '..', '..');
const folder = path.join(root, 'test', 'native-addon');
const built = path.join(folder, 'build', 'Release', 'accesses.node');

let building: Promise<string> | undefined;

/** The path of the built addon. */
export function nativeAddon(): Promise<string> {
  return (building ??= build());
}

async function build(): Promise<string> {
  const sources = ['binding.gyp', 'accesses.cc'].map((file) => statSync(path.join(folder, file)).mtimeMs);
  const made = statSync(built, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (made > Math.max(...sources)) return built;
  const nodeGyp = path.join(root, 'node_modules', 'node-gyp', 'bin', 'node-gyp.js');
  // Headers that came with this Node.js save a download.
  const prefix = path.resolve(process.execPath, '..', '..');
  const headers = existsSync(path.join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
  try {
    await promisify(execFile)(process.execPath, [nodeGyp, 'rebuild', '-C', folder, ...headers]);
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string };
    throw new Error(`could not build ${folder}:\n${stdout ?? ''}${stderr ?? error}`);
  }
  return built;
}
