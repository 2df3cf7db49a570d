/** Two runs beside one another. */
import { readFileSync } from 'node:fs';
import type { Row, Run } from '../results.js';
import { round } from '../samples.js';

export interface Change { row: Row; before: Row; ratio: number }

/** @throws Error if it is no file of a run */
export function readRun(file: string): Run {
  let run: Partial<Run>;
  try {
    run = JSON.parse(readFileSync(file, 'utf8')) as Partial<Run>;
  } catch (error) {
    throw new Error(`${file} can't be compared with: ${(error as Error).message}`);
  }
  if (run?.version !== 1 || !Array.isArray(run.rows)) throw new Error(`${file} can't be compared with: it is no JSON file of this benchmark`);
  return run as Run;
}

/** Rows that both have, in the order of `run`; a ratio below 1: faster now. */
export function compare(run: Run, before: Run): Change[] {
  return run.rows.flatMap((row) => {
    const old = before.rows.find((other) => other.section === row.section && other.key === row.key && other.placement === row.placement);
    return old ? [{ row, before: old, ratio: round(row.median / old.median) }] : [];
  });
}
