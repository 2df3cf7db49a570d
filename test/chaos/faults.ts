/** What a chaos run does to a member, and what that may lead to. */
import type { Member } from '../support/members.js';
import type { Bridge } from './bridge.js';
import type { Limits } from './limits.js';

export const FAULT_NAMES = [
  'calm', 'leave', 'pause', 'blip', 'kill', 'memory', 'stop', 'cut', 'mute', 'deaf',
  'registrar-kill', 'registrar-stop', 'registrar-cut', 'registrar-mute', 'registrar-deaf',
] as const;
export type FaultName = (typeof FAULT_NAMES)[number];

export interface Tools { bridge: Bridge; limits: Limits }

export interface Fault {
  name: FaultName;
  what: string;
  victim: 'nobody' | 'member' | 'registrar';
  /** What becomes of the victim: it stays; it leaves in order; it ends or is given up; or either, as it comes. */
  outcome: 'stays' | 'leaves' | 'ends' | 'either';
  /** The process is gone and can say nothing more, unlike one that was cut off. */
  kills: boolean;
  /** The process stands still meanwhile, so that it goes on without having noticed anything. */
  stops: boolean;
  /** ms until heal() if it is to stay. */
  span: number;
  strike(victim: Member, index: number, tools: Tools): Promise<void>;
  heal(victim: Member, index: number, tools: Tools): Promise<void>;
}

/** Well below the 2 s after which a silent member is given up, even if what was lost has to be sent again. */
const SHORT_MS = 400;
/** What a member may have on top of what it has, and then asks for, in bytes. */
const SPARE = 32 << 20;
const BALLAST = 512 << 20;
/** ms for the kernel to end a member that is out of memory. */
const STARVING_MS = 3000;

const nothing = async (): Promise<void> => undefined;

function kill(): Pick<Fault, 'outcome' | 'kills' | 'stops' | 'span' | 'strike' | 'heal'> {
  return { outcome: 'ends', kills: true, stops: false, span: 0, strike: (victim) => victim.kill('SIGKILL'), heal: nothing };
}

function stop(outcome: 'stays' | 'ends'): ReturnType<typeof kill> {
  return { outcome, kills: false, stops: true, span: SHORT_MS, strike: (victim) => victim.kill('SIGSTOP'), heal: (victim) => victim.kill('SIGCONT') };
}

function down(outcome: 'stays' | 'ends'): ReturnType<typeof kill> {
  return {
    outcome, kills: false, stops: false, span: SHORT_MS,
    strike: async (_, index, { bridge }) => bridge.setLink(index, 'down'),
    heal: async (_, index, { bridge }) => bridge.heal(index),
  };
}

function oneWay(direction: 'mute' | 'deaf'): ReturnType<typeof kill> {
  return { ...down('ends'), strike: async (_, index, { bridge }) => bridge.cut(index, direction) };
}

function starve(): ReturnType<typeof kill> {
  return {
    outcome: 'either', kills: true, stops: false, span: STARVING_MS,
    async strike(victim, _, { limits }) {
      limits.limit(victim.pid, SPARE);
      // It may be killed over this, or get an error; both are fine.
      victim.run((state, bytes) => {
        state.ballast = [];
        for (let had = 0; had < bytes; had += 1 << 22) (state.ballast as Buffer[]).push(Buffer.alloc(1 << 22, 1));
      }, BALLAST).catch(() => undefined);
    },
    async heal(victim, _, { limits }) {
      limits.lift(victim.pid);
      if (!victim.ended) await victim.run((state) => { delete state.ballast; }).catch(() => undefined);
    },
  };
}

const list: Fault[] = [
  { name: 'calm', what: 'nothing but the weather', victim: 'nobody', outcome: 'stays', kills: false, stops: false, span: 1000, strike: nothing, heal: nothing },
  {
    name: 'leave', what: 'close() in the middle of its work', victim: 'member', outcome: 'leaves', kills: false, stops: false, span: 0,
    strike: (victim) => victim.run(({ cluster }) => cluster.close(), undefined, { within: 60_000 }), heal: nothing,
  },
  { name: 'pause', what: `SIGSTOP, SIGCONT after ${SHORT_MS} ms`, victim: 'member', ...stop('stays') },
  { name: 'blip', what: `link down for ${SHORT_MS} ms`, victim: 'member', ...down('stays') },
  { name: 'kill', what: 'kill -9', victim: 'member', ...kill() },
  { name: 'memory', what: 'a limit of memory is reached', victim: 'member', ...starve() },
  { name: 'stop', what: 'SIGSTOP, SIGCONT when it has been given up', victim: 'member', ...stop('ends') },
  { name: 'cut', what: 'link down until it has been given up', victim: 'member', ...down('ends') },
  { name: 'mute', what: 'what it sends is lost', victim: 'member', ...oneWay('mute') },
  { name: 'deaf', what: 'what is sent to it is lost', victim: 'member', ...oneWay('deaf') },
  { name: 'registrar-kill', what: 'kill -9', victim: 'registrar', ...kill() },
  { name: 'registrar-stop', what: 'SIGSTOP, SIGCONT when it has been given up', victim: 'registrar', ...stop('ends') },
  { name: 'registrar-cut', what: 'link down', victim: 'registrar', ...down('ends') },
  { name: 'registrar-mute', what: 'what it sends is lost', victim: 'registrar', ...oneWay('mute') },
  { name: 'registrar-deaf', what: 'what is sent to it is lost', victim: 'registrar', ...oneWay('deaf') },
];

export function faultsFor(names: readonly FaultName[]): Fault[] {
  return list.filter(({ name }) => names.includes(name));
}

/** Needs a one-way cut, which not every kernel can make. */
export function isOneWay({ name }: Fault): boolean {
  return name.endsWith('mute') || name.endsWith('deaf');
}

/** Something is done to the link of the victim. */
export function needsLink(fault: Fault): boolean {
  return isOneWay(fault) || fault.name === 'blip' || fault.name.endsWith('cut');
}
