/** A run as pictures: SVG files. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { EChartsOption } from 'echarts';
import { placements, type Placement } from '../placement.js';
import type { Row, Run, Stages } from '../results.js';
import { STAGE_NAMES, WHOLE } from '../stamps.js';

const WIDTH = 960;
const HEIGHT = 540;
/** The rows of the read section whose distribution is drawn. */
const DRAWN = ['read', 'read-third', 'read-off', 'c-unix-blocking', 'c-unix-polling', 'net', 'redis-get', 'zeromq'];

export interface Plot { name: string; option: EChartsOption }

const frame = (title: string): EChartsOption => ({
  title: { text: title, left: 'center', textStyle: { fontSize: 15 } },
  legend: { top: 28, type: 'plain', textStyle: { fontSize: 11 } },
  grid: { left: 70, right: 30, top: 110, bottom: 55 },
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
      xAxis: axis('µs', 'log') as never,
      yAxis: { ...axis('% that took no longer'), max: 100 } as never,
      series: rows.map((row) => ({ type: 'line', step: 'end', showSymbol: false, name: row.what, data: cumulated(row), lineStyle: { type: row.reference ? 'dashed' : 'solid' } })),
    },
  };
}

/** The steps in the order of a fault: each path has them in this order, but not all. */
function stageNames(stages: readonly Stages[]): string[] {
  return STAGE_NAMES.filter((name) => name !== WHOLE && stages.some((one) => one.stages.some((stage) => stage.name === name)));
}

function stagePlot(run: Run, placement: Placement): Plot | undefined {
  const stages = run.stages.filter((one) => one.placement === placement.name);
  if (stages.length === 0) return undefined;
  const names = stageNames(stages);
  return {
    name: `stages-${placement.name}`,
    option: {
      ...frame(`Where the time of a fault goes (${placement.what}, medians)`),
      grid: { left: 230, right: 30, top: 110, bottom: 55 },
      xAxis: axis('µs') as never,
      yAxis: { type: 'category', inverse: true, data: stages.map((one) => one.path) },
      series: names.map((name) => ({ type: 'bar', stack: 'all', name, data: stages.map((one) => one.stages.find((stage) => stage.name === name)?.us ?? 0) })),
    },
  };
}

const curvePlots: Record<string, { title: string; x: string; y: string; log?: boolean }> = {
  runs: { title: 'Bandwidth of a cold read against the length of runs', x: 'pages in a run', y: 'MB/s', log: true },
  cached: { title: 'Cold remote read against the number of cached pages', x: 'cached pages', y: 'µs (median)', log: true },
  size: { title: 'Cold remote read against the size of the region', x: 'bytes', y: 'µs (median)', log: true },
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
    ...placements.flatMap((placement) => [faultTimes(run, placement), stagePlot(run, placement)]),
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
