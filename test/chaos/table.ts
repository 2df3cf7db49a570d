/** Detection and recovery times for people. */
import Table from 'cli-table3';
import type { Report } from './run.js';

export function timesTable({ times }: Pick<Report, 'times'>): string {
  const table = new Table({
    head: ['fault', 'ms until', 'n', 'p50', 'p99', 'max'], style: { head: [], border: [], compact: true },
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right'],
  });
  let last = '';
  for (const { fault, measure, n, p50, p99, max } of times) {
    table.push([fault === last ? '' : fault, measure, n, ...[p50, p99, max].map((ms) => ms.toFixed(ms < 100 ? 1 : 0))]);
    last = fault;
  }
  return table.toString();
}
