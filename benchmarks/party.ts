/** The processes that are measured, as the benchmark's own process sees them. Each runs member.ts. */
import { spawn, type ChildProcess } from 'node:child_process';
import path from 'node:path';
import type { Placement } from './placement.js';
import { placed, within } from './programs.js';

/** ms for one call of a member, a whole scan included. */
const CALL_MS = 300_000;
const START_MS = 60_000;
/** ms that a process has to end by itself. */
const END_MS = 20_000;

export interface PartyOptions {
  members: number;
  /** undefined: the processes join no cluster. */
  cluster?: string;
  lane?: 'auto' | 'off';
  guard?: 'mprotect' | 'userfaultfd' | 'auto';
  systemCalls?: boolean;
  /** memoryLimit of each. */
  memoryLimits?: (number | undefined)[];
  /** None of the kernel's large pages. */
  smallPages?: boolean;
  /** So many stamps are kept by each process. */
  stamps?: number;
  /** For single members: in place of its own number, that of the process whose core it shares. */
  seat?: (index: number) => number;
}

export type ToMember = { id: number; call: string; args: unknown };
export type FromMember = { id: number; value: unknown } | { id: number; error: string };

interface Pending { resolve(value: unknown): void; reject(error: Error): void }

class Process {
  private readonly pending = new Map<number, Pending>();
  private nextId = 1;
  private over: Error | undefined;
  readonly ended: Promise<void>;

  constructor(private readonly child: ChildProcess, private readonly what: string) {
    child.on('message', (message: FromMember) => {
      const waiting = this.pending.get(message.id);
      this.pending.delete(message.id);
      if ('error' in message) waiting?.reject(new Error(`${what}: ${message.error}`));
      else waiting?.resolve(message.value);
    });
    this.ended = new Promise((resolve) => {
      const end = (why: string): void => {
        this.over = new Error(`${what} ${why}`);
        for (const { reject } of this.pending.values()) reject(this.over);
        this.pending.clear();
        resolve();
      };
      child.once('exit', (code, signal) => end(`ended with ${signal ?? code}`));
      child.once('error', (error) => end(`could not be started: ${error.message}`));
    });
  }

  call(call: string, args: unknown, ms: number): Promise<unknown> {
    if (this.over) return Promise.reject(this.over);
    const id = this.nextId++;
    const answer = new Promise((resolve, reject) => this.pending.set(id, { resolve, reject }));
    this.child.send({ id, call, args } satisfies ToMember, (error) => {
      if (error) this.pending.get(id)?.reject(error);
    });
    return within(answer, ms, `${this.what}, ${call}`);
  }

  async end(): Promise<void> {
    if (this.child.connected) this.child.disconnect();
    const late = setTimeout(() => this.child.kill('SIGKILL'), END_MS);
    await this.ended;
    clearTimeout(late);
  }
}

export class Party {
  private constructor(private readonly processes: Process[]) {}

  static async start(placement: Placement, options: PartyOptions): Promise<Party> {
    const party = new Party([]);
    try {
      for (let index = 0; index < options.members; index++) {
        const node = [process.execPath, path.join(__dirname, 'member.js')];
        const [command, ...rest] = placed(placement, options.seat?.(index) ?? index, node, options);
        const child = spawn(command, rest, {
          stdio: ['ignore', 'inherit', 'inherit', 'ipc'], serialization: 'advanced',
          // All end together, so there is nobody to hand anything over to.
          env: { ...process.env, FAULTLINE_EXIT_TIMEOUT: '0', ...(options.stamps === undefined ? {} : { FAULTLINE_STAMPS: String(options.stamps) }) },
        });
        party.processes.push(new Process(child, `process ${index}`));
        // One after the other: the first serves the membership.
        await party.processes[index].call('actions#start', { index, cluster: options.cluster, lane: options.lane, guard: options.guard, systemCalls: options.systemCalls, memoryLimit: options.memoryLimits?.[index] }, START_MS);
      }
    } catch (error) {
      await party.close();
      throw error;
    }
    return party;
  }

  get size(): number {
    return this.processes.length;
  }

  /** @param call `module#function`: an action that the module, relative to this folder, offers to members */
  call<T = unknown>(index: number, call: string, args: unknown = {}): Promise<T> {
    return this.processes[index].call(call, args, CALL_MS) as Promise<T>;
  }

  /** That one leaves its cluster in order, and its process ends. */
  async leave(index: number): Promise<void> {
    await this.processes[index].call('actions#leave', {}, CALL_MS);
    await this.processes[index].end();
  }

  async close(): Promise<void> {
    await Promise.all(this.processes.map((process) => process.end()));
  }
}
