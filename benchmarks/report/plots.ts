/** A run as pictures: SVG files. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { EChartsOption } from 'echarts';
import { placements, type Placement } from '../placement.js';
import type { Row, Run, Stages } from '../results.js';
import { STAGE_NAMES, WHOLE } from '../stamps.js';

const WIDTH = 1200;
const HEIGHT = 560;
/** Of the column at the right that says what is what. */
const LEGEND = 390;
/** The rows of the read section whose distribution is drawn. */
const DRAWN = ['read', 'read-third', 'read-off', 'c-unix-blocking', 'c-unix-polling', 'net', 'redis-get', 'zeromq'];

export interface Plot { name: string; option: EChartsOption }

const frame = (title: string): EChartsOption => ({
  title: { text: title, left: 'center', textStyle: { fontSize: 15 } },
  legend: { orient: 'vertical', left: WIDTH - LEGEND + 10, top: 50, textStyle: { fontSize: 11 } },
  grid: { left: 70, right: LEGEND, top: 50, bottom: 55 },
  backgroundColor: '#fff',
  animation: false,
});

const axis = (name: string, type: 'log' | 'value' = 'value'): object => ({ type, name, nameLocation: 'middle', nameGap: 32 });

/** How large a part took no longer. */
function cumulated(row: Row): [number, number][] {
  let sum = 0;
  return row.distribution.map(([bound, part]) => [bound, Math.round((sum += part) * 10_000) / 100]);
}

function faultTimes(run: Run, placement: Placement): Plot | undefined {
  const rows = run.rows.filter((row) => row.section === 'read' && row.placement === placement.name && DRAWN.includes(row.key));
  if (rows.length === 0) return undefined;
  return {
    name: `fault-time-${placement.name}`,
    option: {
      ...frame(`Time of a cold remote read of 4 KiB, and of other ways to fetch as much (${placement.what})`),
      xAxis: { ...axis('µs', 'log'), min: 1 } as never,
      yAxis: { ...axis('% that took no longer'), max: 100 } as never,
      series: rows.map((row) => ({ type: 'line', step: 'end', showSymbol: false, name: row.what, data: cumulated(row), lineStyle: { type: row.reference ? 'dashed' : 'solid' } })),
    },
  };
}

/** Those of the handler green, of a lane blue, of the coordinators yellow, of ZeroMQ red. */
function colour(step: string): string {
  const shades: [start: string, colours: string[]][] = [
    ['lane', ['#5b8def', '#1f5fd1']],
    ['page server', ['#0b2f7a']],
    ['zeromq', ['#f4a6a0', '#ea6a60', '#d43d31', '#97190f']],
    ['coordinator', ['#ffe08a', '#ffc933', '#e6a700']],
    ['home', ['#c9b458', '#8f7a1e']],
    ['others', ['#6b5b12']],
  ];
  const [start, colours] = shades.find(([one]) => step.startsWith(one)) ?? ['', ['#7bc47f', '#4ea653', '#2f7d34', '#a8dcaa', '#1d5421', '#cfeccf']];
  const known = STAGE_NAMES.filter((name) => (start === '' ? !shades.some(([one]) => name.startsWith(one)) : name.startsWith(start)));
  return colours[known.indexOf(step) % colours.length];
}

/** The steps in the order of a fault: each path has them in this order, but not all. */
function stageNames(stages: readonly Stages[]): string[] {
  return STAGE_NAMES.filter((name) => name !== WHOLE && stages.some((one) => one.stages.some((stage) => stage.name === name)));
}

/** Of faults that the lanes served alone, or of the others, which take so much longer that the steps of these would not be seen. */
function stagePlot(run: Run, placement: Placement, by: 'lanes' | 'coordinators'): Plot | undefined {
  const alone = (one: Stages): boolean => !one.stages.some(({ name }) => name.startsWith('coordinator'));
  const stages = run.stages.filter((one) => one.placement === placement.name && alone(one) === (by === 'lanes'));
  if (stages.length === 0) return undefined;
  const names = stageNames(stages);
  return {
    name: `stages-${by}-${placement.name}`,
    option: {
      ...frame(`Where the time of a fault goes, ${by === 'lanes' ? 'over a lane' : 'through the coordinators'} (${placement.what}, medians)`),
      grid: { left: 170, right: LEGEND, top: 50, bottom: 55 },
      xAxis: axis('µs') as never,
      yAxis: { type: 'category', inverse: true, data: stages.map((one) => one.path) },
      color: names.map(colour),
      series: names.map((name) => ({ type: 'bar', stack: 'all', name, data: stages.map((one) => one.stages.find((stage) => stage.name === name)?.us ?? 0) })),
    },
  };
}

const curvePlots: Record<string, { title: string; x: string; y: string; log?: boolean }> = {
  runs: { title: 'Bandwidth of a cold read against the length of runs', x: 'pages in a run', y: 'MB/s', log: true },
  cached: { title: 'Cold remote read against the number of cached pages', x: 'cached pages', y: 'µs (median)', log: true },
  size: { title: 'Cold remote read against the size of the region', x: 'MiB', y: 'µs (median)', log: true },
  members: { title: 'Cold remote read against the number of members', x: 'members', y: 'µs (median)' },
};

function curves(run: Run, plot: string): Plot | undefined {
  const found = run.curves.filter((curve) => curve.plot === plot);
  if (found.length === 0) return undefined;
  const { title, x, y, log } = curvePlots[plot];
  const where = (name: string): string => placements.find((placement) => placement.name === name)!.what;
  return {
    name: plot === 'runs' ? 'scan-by-run-length' : `fault-by-${plot}`,
    option: {
      ...frame(title),
      xAxis: axis(x, log ? 'log' : 'value') as never,
      yAxis: { ...axis(y), min: 0 } as never,
      series: found.map((curve) => ({ type: 'line', name: `${curve.series}, ${where(curve.placement)}`, data: curve.points.map((point) => [point.x, point.y]) })),
    },
  };
}

export function plotsOf(run: Run): Plot[] {
  return [
    ...placements.flatMap((placement) => [faultTimes(run, placement), stagePlot(run, placement, 'lanes'), stagePlot(run, placement, 'coordinators')]),
    ...Object.keys(curvePlots).map((plot) => curves(run, plot)),
  ].filter((plot) => plot !== undefined);
}

/** @returns the files. @throws Error if the plotting library is not installed */
export async function drawPlots(run: Run, folder: string): Promise<string[]> {
  const echarts = await import('echarts').catch(() => {
    throw new Error("no plots: the package echarts is not installed (npm install echarts)");
  });
  mkdirSync(folder, { recursive: true });
  return plotsOf(run).map(({ name, option }) => {
    const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
    chart.setOption(option);
    const file = path.join(folder, `${name}.svg`);
    writeFileSync(file, chart.renderToSVGString());
    chart.dispose();
    return file;
  });
}
