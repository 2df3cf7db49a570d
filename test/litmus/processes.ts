/** The member processes of the litmus runner, seen from the runner. */
import { fork, type ChildProcess } from 'node:child_process';
import path from 'node:path';
import type { Answer, Job, Question, Values } from './messages.js';

/** ms for one question: many times what the slowest batch takes on a busy machine. */
export const ANSWER_MS = 60_000;
/** ms for a member to leave before it is killed. */
const LEAVE_MS = 5000;

/**
 * Without inlining every access stays a call: see thread.ts. And what runs often is compiled early, since in interpreted
 * code a store has left its buffer before the next access comes.
 */
const FLAGS = ['--no-turbo-inlining', '--no-maglev-inlining', '--interrupt-budget=10000'];

type Asked = Question extends infer Q ? Q extends { id: number } ? Omit<Q, 'id'> : never : never;

export class MemberProcess {
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  readonly #open = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();
  #ids = 0;
  #errors = '';
  #gone: Error | undefined;

  constructor(readonly name: string) {
    this.#child = fork(path.join(__dirname, 'member.js'), [], { execArgv: FLAGS, serialization: 'advanced', stdio: ['ignore', 'inherit', 'pipe', 'ipc'] });
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.#errors += text; });
    this.#child.on('message', (message: Answer) => {
      const open = this.#open.get(message.id);
      this.#open.delete(message.id);
      if ('error' in message) open?.reject(new Error(`in member ${name}: ${message.error}`));
      else open?.resolve(message.value);
    });
    this.#exited = new Promise((resolve) => {
      const end = (how: string): void => {
        this.#gone = new Error(`member ${name} ended: ${how}\n${this.#errors}`);
        for (const { reject } of this.#open.values()) reject(this.#gone);
        this.#open.clear();
        resolve();
      };
      this.#child.once('close', (code, signal) => end(`code ${code}, signal ${signal}`));
      this.#child.once('error', (error) => end(error.message));
    });
  }

  async ask<T>(question: Asked): Promise<T> {
    if (this.#gone) throw this.#gone;
    const id = ++this.#ids;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<T>((resolve, reject) => {
        this.#open.set(id, { resolve: resolve as (value: unknown) => void, reject });
        timer = setTimeout(() => reject(new Error(`member ${this.name}: no answer within ${ANSWER_MS} ms\n${this.#errors}`)), ANSWER_MS);
        this.#child.send({ id, ...question }, (error) => { if (error) reject(error); });
      });
    } finally {
      clearTimeout(timer);
      this.#open.delete(id);
    }
  }

  job(thread: number, job: Job): Promise<Values> {
    return this.ask({ thread, job });
  }

  /** Lets it leave the cluster, and ends it; by force if it takes too long. */
  async end(): Promise<void> {
    if (!this.#gone) {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<void>((resolve) => { timer = setTimeout(resolve, LEAVE_MS); });
      await Promise.race([this.ask({ close: true }).catch(() => undefined), late]);
      clearTimeout(timer);
      this.#child.kill('SIGKILL');
    }
    await this.#exited;
  }
}
