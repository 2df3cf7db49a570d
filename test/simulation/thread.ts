/** A thread of a member: a program of loads, stores and calls, whose faults go through the production handler's steps. */
import type { WireError } from '../../lib/coordinator/protocol/messages.js';
import { Next } from './addon.js';
import { type Cell } from './checker.js';
import type { SimulatedMember } from './member.js';
import { KINDS, type Kind } from './plan.js';
import type { World } from './world.js';

const READ = 1;
const WRITE = 2;
const PAGE_SIZE = 4096;

/** next: goes on soon; sleep: until its futex is woken; wait: until resume(). */
type Pause = 'next' | 'sleep' | 'wait';
type Access = 'done' | 'lost' | 'ended';
type Program<R = void> = Generator<Pause, R>;

/** What a thread is told that asks a coordinator which is no longer there. */
const GONE: WireError = { code: 'ERR_FAULTLINE_CLOSED', message: 'closed' };

interface Need { page: number; access: number }
interface Answer { value: unknown; error?: WireError }

export class Thread {
  readonly pins: { first: number; count: number; access: number }[] = [];
  ended = false;
  /** The handler holds BUSY and is about to change a mapping. */
  changing = false;
  /** In the middle of that its processor has gone to somebody else. */
  private preempted = false;
  /** µs for which it has something of its own to do; it may come back before, in the middle of a step of its coordinator. */
  private absence = 0;
  private running = false;
  private state: 'ready' | 'asleep' | 'waiting' = 'ready';
  private token = 0;
  private resumed = false;
  private operation = 'begins';
  private done = 0;
  private readonly program: Program;

  constructor(private readonly world: World, readonly member: SimulatedMember, /** In the addon. */ readonly index: number, readonly id: number) {
    this.program = this.main();
  }

  /** It could run now. */
  get able(): boolean {
    return !this.ended && !this.running && !this.preempted && this.state === 'ready';
  }

  get thinking(): boolean {
    return this.absence > 0;
  }

  begin(): void {
    this.schedule();
  }

  describe(): string {
    const at = `thread ${this.id} of member ${this.member.id}${this.member.dead ? ' (dead)' : ''}: ${this.operation}, ${this.state}`;
    const page = /page (\d+)/.exec(this.operation)?.[1];
    return page === undefined ? at : `${at}\n${this.world.checker.words(Number(page))}`;
  }

  /** Its member is out of the cluster, or dead: the program ends wherever it is. */
  end(): void {
    if (this.ended) return;
    this.ended = true;
    this.pins.length = 0;
    this.world.unfinished--;
  }

  woken(): void {
    if (this.state !== 'asleep') return;
    this.state = 'ready';
    if (!this.running) this.schedule();
  }

  private resume(): void {
    this.resumed = true;
    if (this.state !== 'waiting') return;
    this.state = 'ready';
    this.schedule();
  }

  private schedule(): void {
    const { world } = this;
    const token = ++this.token;
    this.preempted = this.changing && world.choices.chance(world.plan.slowChanges);
    world.events.after(this.preempted ? world.choices.below(world.plan.slowness) : this.absence > 0 ? this.absence : world.choices.skewed(8), this.member.id, () => {
      if (token !== this.token) return;
      this.preempted = false;
      if (this.able) world.stepThread(this);
    });
  }

  step(): void {
    this.token++;
    this.preempted = false;
    this.absence = 0;
    this.running = true;
    let result: IteratorResult<Pause, void>;
    try {
      result = this.program.next();
    } finally {
      this.running = false;
    }
    if (this.ended) return;
    if (result.done) this.end();
    else if (result.value === 'next') this.schedule();
    else if (result.value === 'sleep') {
      // It may have been woken before it got here, as with a real futex.
      if (this.world.native.threadAsleep(this.index)) this.state = 'asleep';
      else this.schedule();
    } else if (this.resumed) this.schedule();
    else this.state = 'waiting';
    this.member.look();
  }

  /** At the end of the run: lets go of BUSY. */
  finishChange(): void {
    if (this.changing) this.world.native.threadStep(this.index);
    this.changing = false;
  }

  // ---- one instruction ----------------------------------------------------------------------------------------------

  /** All that it needs must be open in the instant in which it runs. */
  private *instruction(needs: Need[], effect: () => void): Program<Access> {
    const { world: { native, events }, member } = this;
    let ran = true;
    for (;;) {
      const missing = needs.find(({ page, access }) => member.mapping[page] < access);
      if (missing === undefined) {
        effect();
        return 'done';
      }
      if (ran && this.world.choices.chance(0.4)) native.threadStream(this.index, missing.page, this.world.choices.chance(0.3));
      native.threadTrap(this.index, missing.page, missing.access, ran, this.id);
      ran = false;
      for (let next: number = Next.Look; next !== Next.Run; ) {
        yield 'next';
        next = native.threadStep(this.index);
        this.changing = next === Next.Change;
        if (next === Next.Refused) return 'ended';
        if (next === Next.Lost) return 'lost';
        if (next === Next.Lane) yield* this.lane();
        if (next === Next.Mappings) {
          events.after(20_000, member.id, () => {
            native.threadWake(this.index);
            this.woken();
          });
        }
        if (next === Next.Wait || next === Next.Mappings || next === Next.Frozen) yield 'sleep';
      }
      yield 'next';
    }
  }

  private *lane(): Program {
    let over = false;
    this.resumed = false;
    this.member.lanes.ask(this, () => {
      over = true;
      this.resume();
    });
    while (!over) yield* this.pause();
  }

  // ---- programs -----------------------------------------------------------------------------------------------------

  private *main(): Program {
    const { plan } = this.world;
    const kinds = KINDS.filter((kind) => kind !== 'barrier').flatMap((kind) => new Array<Kind>(plan.weights[kind]).fill(kind));
    for (; this.done < plan.operations; this.done++) {
      const kind = this.world.choices.pick(kinds);
      if ((yield* this.perform(kind)) === 'ended') return;
      // Also what needs nobody else takes time.
      yield 'next';
    }
    if (plan.weights.barrier > 0 && plan.joins === 0 && !plan.serverGone) yield* this.barrier(plan.members * plan.threads);
  }

  private *perform(kind: Kind): Program<Access> {
    const { choices, plan } = this.world;
    const page = choices.chance(plan.locality) ? plan.pages[this.id % plan.pages.length] : choices.pick(plan.pages);
    this.operation = `${kind} page ${page}`;
    switch (kind) {
      case 'read': return yield* this.touch([{ page, access: READ }]);
      case 'write': return yield* this.touch([{ page, access: WRITE }]);
      case 'add': {
        // A load and a store that are one instruction, again and again.
        for (let times = choices.between(1, 3); times > 0; times--) if ((yield* this.touch([{ page, access: WRITE }])) === 'ended') return 'ended';
        return 'done';
      }
      case 'bump': {
        const result = yield* this.touch([{ page, access: READ }]);
        if (result !== 'done') return result;
        yield 'next';
        return yield* this.touch([{ page, access: WRITE }]);
      }
      case 'straddle': {
        const other = choices.pick(plan.pages);
        return yield* this.touch(other === page ? [{ page, access: WRITE }] : [{ page, access: choices.chance(0.5) ? WRITE : READ }, { page: other, access: choices.chance(0.5) ? WRITE : READ }]);
      }
      case 'scan': {
        const length = choices.between(2, 8);
        for (let next = page; next < Math.min(page + length, plan.extents * 64); next++) if ((yield* this.touch([{ page: next, access: READ }])) === 'ended') return 'ended';
        return 'done';
      }
      case 'think': {
        this.absence = choices.skewed(3_000);
        yield 'next';
        return 'done';
      }
      case 'lock': return yield* this.lock(page);
      case 'wait': return choices.chance(0.5) ? yield* this.wait(page) : yield* this.notify(page);
      case 'prefetch': return yield* this.prefetch(page);
      case 'pin': return yield* this.pin(page);
      case 'discard': return yield* this.discard(page);
      case 'drop': {
        // A memory budget at work; what it drops may be wanted again at once. A home's pages are its own to keep.
        const hands = choices.chance(0.5) ? 2 : 0;
        this.resumed = false;
        this.member.post(() => {
          const protocol = this.member.protocol!;
          if (!this.member.serves(page) && protocol.homeOf(page) !== this.member.id) this.member.drop(page);
          // The hand comes round twice: what it closes first is given up then.
          for (let rounds = hands; rounds > 0; ) if (protocol.reclaim(choices.between(1, 100))) rounds--;
          this.resume();
        }, () => this.resume());
        yield* this.pause();
        return choices.chance(0.5) ? yield* this.touch([{ page, access: READ }]) : 'done';
      }
      case 'squeeze': {
        // The mapping limit has come near: what is held stays so, and is closed.
        this.member.post(() => this.member.squeeze(page));
        return 'done';
      }
      case 'barrier': return 'done';
    }
  }

  /** Looks at all these pages, and writes those that it may write. */
  private *touch(needs: Need[]): Program<Access> {
    const { checker } = this.world;
    const result = yield* this.instruction(needs, () => {
      const cells = needs.map(({ page }) => checker.load(this.member, page));
      needs.forEach(({ page, access }, i) => {
        this.world.note(() => `thread ${this.id} of member ${this.member.id} ${access === WRITE ? `writes page ${page} over` : `reads page ${page}:`} ${cells[i].data}`);
        if (access === WRITE) checker.store(this.member, page, { ...cells[i], data: checker.newValue() });
      });
    });
    if (result === 'lost') return yield* this.restore(needs.map(({ page }) => page));
    return result;
  }

  /** Somebody has to: who meets a loss writes the page afresh, or leaves it to another. */
  private *restore(pages: number[]): Program<Access> {
    const { world: { checker, choices }, member } = this;
    for (const page of pages) {
      if (member.holds(page) !== 3 || choices.chance(0.3)) continue;
      this.operation = `restores page ${page}`;
      const cell: Cell = { data: checker.newValue(), signal: 0 };
      const bytes = new Uint8Array(PAGE_SIZE);
      const words = new Int32Array(bytes.buffer);
      words[0] = words[1022] = cell.data;
      const id = checker.beginChange(this.member, page, cell);
      const { error } = yield* this.ask('restore', page, [page, 1], bytes, (failed) => checker.endChange(page, id, failed === undefined));
      if (error !== undefined && this.isEnd(error)) return 'ended';
    }
    return 'done';
  }

  private *discard(page: number): Program<Access> {
    const { checker } = this.world;
    const id = checker.beginChange(this.member, page, { data: 0, signal: 0 });
    const { error } = yield* this.ask('discard', page, [page * PAGE_SIZE, PAGE_SIZE], undefined, (failed) => checker.endChange(page, id, failed === undefined));
    return error !== undefined && this.isEnd(error) ? 'ended' : 'done';
  }

  private *lock(page: number): Program<Access> {
    const { world: { checker, choices }, member } = this;
    const name = choices.chance(0.7) ? 'one' : 'two';
    const shared = choices.chance(0.3);
    this.operation = `waits for lock ${name}`;
    const { value, error } = yield* this.callServer('lock', { name, shared, client: this.id });
    if (error !== undefined) return this.isEnd(error) ? 'ended' : 'done';
    const { token } = value as { token: string };
    checker.granted(name, member.id, this.id, shared, BigInt(token));
    this.operation = `has lock ${name}, at page ${page}`;
    const result = yield* this.touch([{ page, access: shared ? READ : WRITE }]);
    checker.released(name, this.id);
    if (result === 'ended') return 'ended';
    this.operation = `releases lock ${name}`;
    const answer = yield* this.callServer('unlock', { name, token });
    return answer.error !== undefined && this.isEnd(answer.error) ? 'ended' : 'done';
  }

  private *barrier(parties: number): Program {
    const { checker } = this.world;
    this.operation = `waits for barrier end of ${parties}`;
    checker.arrives('end');
    const { error } = yield* this.callServer('barrier', { name: 'end', parties, client: this.id });
    if (error === undefined) checker.opens('end', parties);
  }

  private *wait(page: number): Program<Access> {
    const { world: { checker, choices, events }, member } = this;
    let signal = 0;
    const result = yield* this.instruction([{ page, access: READ }], () => { signal = checker.load(member, page).signal; });
    if (result === 'lost') return yield* this.restore([page]);
    if (result === 'ended') return 'ended';
    const region = member.protocol!;
    this.operation = `waits at page ${page}`;
    let answer: Answer | undefined;
    this.resumed = false;
    let id = 0;
    let key = 0;
    member.post(() => {
      id = region.questions.ask('wait', page, [page * PAGE_SIZE + 16, signal], undefined, (value, error) => {
        answer = { value, error };
        this.resume();
      });
      key = member.id * 100_000 + id;
      checker.waits.set(key, { page, asker: member.id, cancelled: false, owed: false });
    }, () => {
      answer = { value: null, error: GONE };
      this.resume();
    });
    const cancel = (): void => {
      const wait = checker.waits.get(key);
      if (answer !== undefined) return;
      // The coordinator has not even heard of it.
      if (wait === undefined) return events.after(100, member.id, cancel);
      wait.cancelled = true;
      member.turn(() => region.questions.cancelWait(id));
    };
    events.after(choices.chance(0.5) ? choices.below(2_000) : choices.below(200_000), member.id, cancel);
    while (answer === undefined) yield* this.pause();
    checker.waitEnds(key, answer.value);
    return answer.error !== undefined && this.isEnd(answer.error) ? 'ended' : 'done';
  }

  private *notify(page: number): Program<Access> {
    const { world: { checker }, member } = this;
    this.operation = `notifies at page ${page}`;
    const result = yield* this.instruction([{ page, access: WRITE }], () => {
      const cell = checker.load(member, page);
      checker.store(member, page, { ...cell, signal: cell.signal + 1 });
    });
    if (result === 'lost') return yield* this.restore([page]);
    if (result === 'ended') return 'ended';
    const queued = checker.queuedWaits(page);
    const { value, error } = yield* this.ask('notify', page, [page * PAGE_SIZE + 16, 1_000]);
    if (error !== undefined) return this.isEnd(error) ? 'ended' : 'done';
    if (typeof value === 'number') for (const key of queued) {
      const wait = checker.waits.get(key);
      if (wait !== undefined && !wait.cancelled && this.world.inView(wait.asker)) wait.owed = true;
    }
    return 'done';
  }

  private *prefetch(page: number): Program<Access> {
    const { choices, plan } = this.world;
    const run = { first: page, count: Math.min(choices.between(1, 6), plan.extents * 64 - page) };
    const access = choices.chance(0.5) ? WRITE : READ;
    // As fetch.ts does: first what lanes can bring, then the rest by messages.
    if (plan.lanes && choices.chance(0.5) && this.world.native.laneAskAhead(this.index, run.first, run.first + run.count, access)) yield* this.lane();
    return yield* this.want((result) => this.member.protocol!.wants.prefetch([run], access, result));
  }

  private *pin(page: number): Program<Access> {
    const { world: { choices, plan }, member } = this;
    const pin = { first: page, count: Math.min(choices.between(1, 3), plan.extents * 64 - page), access: choices.chance(0.5) ? WRITE : READ };
    let pinned = false;
    const result = yield* this.want(({ done, failed }) => member.protocol!.wants.pin([pin], pin.access, {
      done: () => {
        pinned = true;
        if (this.member.leaving) this.member.unpin(pin);
        else this.pins.push(pin);
        done();
      },
      failed,
    }));
    if (!pinned) return result;
    this.operation = `has pinned page ${page}`;
    for (let times = choices.below(3); times > 0; times--) {
      const touched = yield* this.touch([{ page: pin.first + choices.below(pin.count), access: pin.access }]);
      if (touched === 'ended') return 'ended';
    }
    if (plan.pinned > 0) {
      this.world.events.after(choices.skewed(plan.pinned), member.id, () => this.resume());
      yield* this.pause();
    }
    // Members that leave release all pins.
    const at = this.pins.indexOf(pin);
    if (at < 0) return 'done';
    this.pins.splice(at, 1);
    member.post(() => member.unpin(pin));
    return 'done';
  }

  // ---- calls --------------------------------------------------------------------------------------------------------

  private *pause(): Program {
    if (!this.resumed) yield 'wait';
    this.resumed = false;
  }

  private *want(start: (result: { done(): void; failed(): void }) => unknown): Program<Access> {
    const { member } = this;
    if (member.protocol === undefined) return 'ended';
    let settled = false;
    this.resumed = false;
    const settle = (): void => {
      settled = true;
      this.resume();
    };
    member.post(() => {
      // As the coordinator answers calls: none while it leaves.
      if (member.leaving) settle();
      else start({ done: settle, failed: settle });
    }, settle);
    while (!settled) yield* this.pause();
    return 'done';
  }

  private *ask(op: string, page: number, args: number[], bytes?: Uint8Array, answered?: (error?: WireError) => void): Program<Answer> {
    const { member } = this;
    let answer: Answer | undefined;
    this.resumed = false;
    const done = (value: unknown, error?: WireError): void => {
      answer = { value, error };
      answered?.(error);
      this.resume();
    };
    member.post(() => void member.protocol!.questions.ask(op, page, args, bytes, done), () => done(null, GONE));
    while (answer === undefined) yield* this.pause();
    return answer;
  }

  private *callServer(op: string, args: unknown): Program<Answer> {
    let answer: Answer | undefined;
    this.resumed = false;
    const done = (value: unknown, error?: WireError): void => {
      answer = { value, error };
      this.resume();
    };
    this.member.post(() => void this.member.call(op, args, (reply) => done(reply.value, reply.error)), () => done(null, GONE));
    while (answer === undefined) yield* this.pause();
    return answer;
  }

  private isEnd(error: WireError): boolean {
    return /CLOSED|EVICTED|CLUSTER_LOST|COORDINATOR|DESTROYED/.test(error.code);
  }
}
