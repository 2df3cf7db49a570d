/** A run as text. */
import Table from 'cli-table3';
import type { Section } from '../bench.js';
import { BUSY } from '../machine.js';
import { placements } from '../placement.js';
import type { Row, Run } from '../results.js';
import { round } from '../samples.js';
import { STAGE_NAMES } from '../stamps.js';
import type { Change } from './compare.js';

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

/** More would be wider than a terminal. */
const PATHS_IN_TABLE = 6;

export function stagesText(run: Run): string {
  const parts: string[] = [];
  for (const placement of placements) {
    const all = run.stages.filter((one) => one.placement === placement.name);
    for (let first = 0; first < all.length; first += PATHS_IN_TABLE) {
      const found = all.slice(first, first + PATHS_IN_TABLE);
      const names = STAGE_NAMES.filter((name) => found.some((one) => one.stages.some((stage) => stage.name === name)));
      const table = new Table({ head: [`µs, ${placement.what}`, ...found.map((one) => one.path)], ...plain });
      for (const name of names) table.push([name, ...found.map((one) => one.stages.find((stage) => stage.name === name)?.us ?? '')]);
      table.push(['n', ...found.map((one) => one.n)]);
      parts.push(table.toString());
    }
  }
  return parts.length === 0 ? '' : `Where the time goes: medians of each step\n${parts.join('\n')}`;
}

export function targetsText(run: Run): string {
  if (run.targets.length === 0) return '';
  const table = new Table({ head: ['what', 'placement', 'asked', 'got', ''], ...plain });
  for (const { what, placement, asked, got, met, note } of run.targets) table.push([what, placement === 'all' ? '' : placement, asked, got, met === null ? note ?? '' : met ? 'met' : 'NOT met']);
  const judged = run.targets.filter(({ met }) => met !== null);
  return `Targets: ratios of medians in this run\n${table.toString()}\n${judged.filter(({ met }) => met).length} of ${judged.length} met`;
}

export function changesText(changes: readonly Change[]): string {
  if (changes.length === 0) return 'Nothing that both runs have measured.';
  const table = new Table({ head: ['placement', 'µs, medians', 'before', 'now', 'now ÷ before'], ...plain });
  for (const { row, before, ratio } of changes) table.push([row.where, `${row.section}: ${row.what}`, before.median, row.median, ratio]);
  return `Compared with the earlier run\n${table.toString()}`;
}
