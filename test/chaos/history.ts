/** What members wrote down of what they did, read again: see workload.ts for how it is written. */
import { readFileSync } from 'node:fs';
import type { Access, Add, Section } from './checker.js';

/** load, store, add, count: by Atomics; read, write: plain instructions; restore and reset (a counter): Region.restore(). Then location and value. */
export type Operation = ['load' | 'store' | 'read' | 'write' | 'add' | 'count' | 'restore' | 'reset', location: number, value: number];
/** ns of CLOCK_MONOTONIC; an error's code, or ''. */
export type Outcome = [start: number, end: number, value: number, code: string];
export type Line =
  | ['plan', plan: number, at: number, Operation[]]
  | ['done', plan: number, Outcome[]]
  | ['ask', plan: number, lock: string, at: number]
  | ['unheld', plan: number, at: number, code: string]
  | ['held', plan: number, at: number, token: number, ownerDied: boolean]
  | ['releasing', plan: number, at: number]
  | ['released', plan: number, code: string];

export interface History {
  accesses: Access[];
  /** Of counters. */
  adds: Add[];
  sections: Section[];
  /** How often something failed, by code. */
  codes: Record<string, number>;
  operations: number;
}

/** How far a member's word counts. Times as in {@link Outcome}. */
export interface Trust {
  /** From when on it may have been without a lock that it believed to hold. */
  struck: number;
  /**
   * It was stopped, given up meanwhile, and went on at this time. Until its watchdog has closed its views, it may read
   * what is no longer true, and write what nobody may see.
   */
  zombieSince: number;
}

export const FULL_TRUST: Trust = { struck: Infinity, zombieSince: Infinity };

export function emptyHistory(): History {
  return { accesses: [], adds: [], sections: [], codes: {}, operations: 0 };
}

/** Lines from this byte on. A process that was killed may have left half a line at the end. */
export function readLines(file: string, from: number): { lines: Line[]; next: number } {
  const bytes = readFileSync(file).subarray(from);
  const end = bytes.lastIndexOf(10) + 1;
  return { lines: bytes.subarray(0, end).toString().split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Line), next: from + end };
}

export function addLines(history: History, member: string, lines: Line[], { struck, zombieSince }: Trust): void {
  const plans = new Map<number, { at: number; operations: Operation[] }>();
  const sections = new Map<number, Section>();
  const operation = ([kind, location, value]: Operation, at: number, outcome: Outcome | undefined): void => {
    const [start, end, seen, code] = outcome ?? [at, Infinity, 0, ''];
    const zombie = end > zombieSince;
    const ghost = zombie && start > zombieSince;
    const done = outcome !== undefined && code === '' && !zombie;
    history.operations++;
    if (code !== '') history.codes[code] = (history.codes[code] ?? 0) + 1;
    switch (kind) {
      case 'load': case 'read':
        if (done) history.accesses.push({ member, location, kind: 'read', value: seen, start, end });
        return;
      case 'store': case 'write': case 'restore':
        // One that nobody can vouch for may have happened at any time after its start, or never.
        history.accesses.push({ member, location, kind: 'write', value, start, end: done ? end : Infinity, ghost });
        return;
      case 'add':
        if (ghost) return;
        history.adds.push({ member, location, kind: 'add', value: done ? seen : null, start, end: done ? end : Infinity });
        return;
      case 'count':
        if (done) history.adds.push({ member, location, kind: 'count', value: seen, start, end });
        return;
      case 'reset':
        history.adds.push({ member, location, kind: 'reset', value, start, end: done ? end : Infinity });
        return;
    }
  };
  for (const line of lines) {
    switch (line[0]) {
      case 'plan':
        plans.set(line[1], { at: line[2], operations: line[3] });
        break;
      case 'done': {
        const plan = plans.get(line[1]);
        plans.delete(line[1]);
        // What comes after an error that ends everything was not even tried.
        plan?.operations.slice(0, line[2].length).forEach((one, index) => operation(one, plan.at, line[2][index]));
        break;
      }
      case 'ask':
        sections.set(line[1], { member, lock: line[2], asked: line[3], held: null, token: 0, ownerDied: false, until: Infinity, released: 'no', withdrawn: false });
        break;
      case 'unheld':
        sections.get(line[1])!.withdrawn = true;
        break;
      case 'held':
        Object.assign(sections.get(line[1])!, { held: line[2], token: line[3], ownerDied: line[4] });
        break;
      case 'releasing':
        Object.assign(sections.get(line[1])!, { until: line[2], released: 'perhaps' });
        break;
      case 'released': {
        const section = sections.get(line[1])!;
        if (line[2] === '' && section.until < struck) section.released = 'yes';
        break;
      }
    }
  }
  for (const { at, operations } of plans.values()) for (const one of operations) operation(one, at, undefined);
  for (const section of sections.values()) {
    section.until = Math.min(section.until, struck);
    // It heard too late of what it had been granted.
    if (section.held !== null && section.held >= struck) section.held = null;
    history.sections.push(section);
  }
}
