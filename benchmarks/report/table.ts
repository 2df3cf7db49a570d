/** A run as text. */
import Table from 'cli-table3';
import type { Section } from '../bench.js';
import { BUSY } from '../machine.js';
import type { Row, Run } from '../results.js';
import { round } from '../samples.js';

/** No colours, and no lines between rows. */
const plain = { style: { head: [], border: [] }, chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' } };

function percent(part: number): string {
  return `${Math.round(part * 100)}%`;
}

/** MB/s at the median. */
export function rate(row: Row): number | undefined {
  return row.bytes === undefined ? undefined : round(row.bytes / row.median);
}

export function header(run: Run): string {
  return Object.entries(run.machine).map(([name, value]) => `${name}: ${value}`).join('\n');
}

export function sectionText(run: Run, section: Section): string {
  const rows = run.rows.filter((row) => row.section === section.name);
  const counts = run.counts.filter((count) => count.section === section.name);
  const parts: string[] = [`${section.title}`];
  if (rows.length > 0) {
    const rates = rows.some((row) => row.bytes !== undefined);
    const table = new Table({ head: ['placement', 'µs', 'n', 'median', 'p90', 'p99', 'max', ...(rates ? ['MB/s'] : [])], ...plain });
    for (const row of rows) {
      const name = `${row.reference ? '  ' : ''}${row.what}${row.note ? ` (${row.note})` : ''}`;
      table.push([row.where, name, row.n, row.median, row.p90, row.p99, row.max, ...(rates ? [rate(row) ?? ''] : [])]);
    }
    parts.push(table.toString());
  }
  if (counts.length > 0) {
    const table = new Table({ head: ['placement', 'what', 'value', ''], ...plain });
    for (const count of counts) table.push([count.placement, count.what, count.value, count.unit]);
    parts.push(table.toString());
  }
  for (const noise of run.noise.filter((one) => one.section === section.name && one.busy)) {
    parts.push(`The machine was busy (${noise.placement}): others used ${percent(noise.others)} of all processors, the hypervisor took ${percent(noise.steal)}; more than ${percent(BUSY.others)} and ${percent(BUSY.steal)} disturb the figures.`);
  }
  return parts.join('\n');
}
