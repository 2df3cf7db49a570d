/**
 * The cluster's directory on this machine: who serves, who lives, and the local sockets. A lock on a file says that its
 * holder lives, because the kernel frees it at any kind of death; what is written in a file is only a hint.
 *
 * | file | is |
 * | --- | --- |
 * | registrar.lock | held by the member that serves |
 * | registrar.json | where that member can be reached: a {@link RegistrarHint} |
 * | m<ID>.lock | held by member ID as long as it has anything to do with the cluster |
 * | m<ID>.sock | where member ID listens (local clusters) |
 */
import fs from 'node:fs';
import path from 'node:path';
import { makeError } from '../../errors.js';
import type { MemberId } from '../protocol/messages.js';
import { PROTOCOL } from '../transport/wire.js';

/** What the membership needs of the addon (see native.ts). */
export interface Host {
  now(): number;
  lockFile(path: string): number;
  isLocked(path: string): boolean;
  closeFile(fd: number): void;
}

export interface RegistrarHint { endpoint: string; clusterId: string; member: MemberId }

/** Bytes of sun_path, with the zero at its end. */
const SOCKET_PATH = 108;
/** The longest that a member's id gets: they travel as 32-bit words. */
const LARGEST_ID = 0xffff_ffff;

export class Directory {
  private registrarFile = -1;
  private member: { id: MemberId; file: number } | null = null;

  private constructor(readonly path: string, private readonly host: Host) {}

  /** Makes it where it is missing. Throws ERR_FAULTLINE_INVALID_ARGUMENT (too long a path) or ERR_FAULTLINE_SYSTEM. */
  static open(cluster: string, host: Host): Directory {
    const local = cluster.startsWith('local:');
    // A local cluster's name has no colon, so the two kinds of names can't be mistaken for one another.
    const name = `${local ? cluster.slice('local:'.length) : `tcp:${cluster.slice('tcp://'.length)}`}.v${PROTOCOL.major}`;
    const { XDG_RUNTIME_DIR: runtime } = process.env;
    const base = runtime ? path.join(runtime, 'faultline') : `/tmp/faultline-${process.getuid!()}`;
    const directory = new Directory(path.join(base, name), host);
    const bytes = Buffer.byteLength(directory.socket(LARGEST_ID));
    if (local && bytes >= SOCKET_PATH) {
      throw makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `cluster '${cluster}': its sockets would have paths of ${bytes} bytes ('${directory.path}/…'), and ${SOCKET_PATH - 1} is the most; use a shorter name or set XDG_RUNTIME_DIR to a shorter path`, { argument: 'cluster' });
    }
    makePrivate(base);
    makePrivate(directory.path);
    return directory;
  }

  socket(member: MemberId): string {
    return path.join(this.path, `m${member}.sock`);
  }

  // ---- who serves ---------------------------------------------------------------------------------------------------

  takeRegistrar(): boolean {
    if (this.registrarFile < 0) this.registrarFile = this.host.lockFile(this.registrarLock);
    return this.registrarFile >= 0;
  }

  releaseRegistrar(): void {
    if (this.registrarFile >= 0) this.host.closeFile(this.registrarFile);
    this.registrarFile = -1;
  }

  isServed(): boolean {
    return this.host.isLocked(this.registrarLock);
  }

  readHint(): RegistrarHint | null {
    try {
      return JSON.parse(fs.readFileSync(this.hintFile, 'utf8')) as RegistrarHint;
    } catch {
      return null;
    }
  }

  /** By the holder of registrar.lock only. */
  writeHint(hint: RegistrarHint): void {
    const fresh = `${this.hintFile}.new`;
    fs.writeFileSync(fresh, JSON.stringify(hint), { mode: 0o600 });
    fs.renameSync(fresh, this.hintFile);
  }

  // ---- who lives ----------------------------------------------------------------------------------------------------

  /** False if somebody has that file: an old cluster's member that is not gone yet, or someone who just looks. */
  takeMember(id: MemberId, name: string): boolean {
    const file = this.host.lockFile(this.memberLock(id));
    if (file < 0) return false;
    fs.ftruncateSync(file);
    fs.writeSync(file, JSON.stringify({ name, pid: process.pid }));
    this.member = { id, file };
    return true;
  }

  isAlive(member: MemberId): boolean {
    return this.host.isLocked(this.memberLock(member));
  }

  liveMembers(): MemberId[] {
    return this.memberFiles('lock').filter((id) => this.isAlive(id)).sort((one, other) => one - other);
  }

  /** For people: name and process of a member that lives. */
  describe(member: MemberId): string {
    try {
      const { name, pid } = JSON.parse(fs.readFileSync(this.memberLock(member), 'utf8')) as { name: string; pid: number };
      return `member ${member} (${name}, pid ${pid})`;
    } catch {
      return `member ${member}`;
    }
  }

  /** Removes what dead members left. By the holder of registrar.lock only, and only while no member lives. */
  clean(): void {
    for (const kind of ['lock', 'sock'] as const) for (const id of this.memberFiles(kind)) fs.rmSync(path.join(this.path, `m${id}.${kind}`), { force: true });
    fs.rmSync(this.hintFile, { force: true });
  }

  /** Lets go of all locks; a member's own files go with it, because its id never comes again. */
  close(): void {
    if (this.member !== null) {
      // Removed while it is still locked: nobody else can have taken it for its own by then.
      fs.rmSync(this.socket(this.member.id), { force: true });
      fs.rmSync(this.memberLock(this.member.id), { force: true });
      this.host.closeFile(this.member.file);
      this.member = null;
    }
    this.releaseRegistrar();
  }

  private memberFiles(kind: 'lock' | 'sock'): MemberId[] {
    const pattern = new RegExp(`^m(\\d+)\\.${kind}$`);
    return fs.readdirSync(this.path).flatMap((file) => (pattern.exec(file) ?? []).slice(1).map(Number));
  }

  private get registrarLock(): string {
    return path.join(this.path, 'registrar.lock');
  }

  private get hintFile(): string {
    return path.join(this.path, 'registrar.json');
  }

  private memberLock(member: MemberId): string {
    return path.join(this.path, `m${member}.lock`);
  }
}

/** A directory that only this user may enter; one that somebody else made, or that others may enter, is refused. */
function makePrivate(directory: string): void {
  const refuse = (why: string, cause?: NodeJS.ErrnoException): Error =>
    makeError('ERR_FAULTLINE_SYSTEM', `the cluster's directory '${directory}' ${why}`, { errno: cause?.errno, syscall: cause?.syscall, path: directory });
  try {
    fs.mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw refuse(`can't be made: ${(error as Error).message}`, error as NodeJS.ErrnoException);
  }
  const found = fs.lstatSync(directory);
  if (!found.isDirectory()) throw refuse('is not a directory');
  if (found.uid !== process.getuid!()) throw refuse(`belongs to user ${found.uid}, not to user ${process.getuid!()}`);
  if ((found.mode & 0o077) !== 0) throw refuse(`may be entered by others (mode ${(found.mode & 0o777).toString(8)}); it must be 700`);
}
