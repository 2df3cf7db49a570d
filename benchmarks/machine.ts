/** What machine this is, and whether others used it meanwhile. */
import { readdirSync, readFileSync } from 'node:fs';
import os from 'node:os';

export type Facts = Record<string, string>;

function text(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch {
    return undefined;
  }
}

export function machineFacts(): Facts {
  const zeromq = JSON.parse(readFileSync(require.resolve('zeromq/package.json'), 'utf8')) as { version: string };
  return {
    date: new Date().toISOString(),
    cpu: `${os.cpus()[0]?.model.trim() ?? 'unknown'} x ${os.availableParallelism()}`,
    memory: `${Math.round(os.totalmem() / 2 ** 30)} GiB`,
    kernel: `${os.type()} ${os.release()}`,
    governor: text('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor') ?? 'unknown (no cpufreq)',
    hypervisor: /\bhypervisor\b/.test(text('/proc/cpuinfo') ?? '') ? 'yes' : 'no',
    'huge pages': text('/sys/kernel/mm/transparent_hugepage/enabled') ?? 'none',
    node: process.version,
    zeromq: zeromq.version,
    nice: String(os.getPriority()),
  };
}

/** Bytes that are touched. */
const TOUCHED = 1 << 30;
const PAGE = 4096;

/**
 * A virtual machine gets much of its memory from its host when it touches it, which costs several times what a new page costs
 * otherwise, and every cold page that is received is a new one.
 * @returns µs for a new page
 */
export function newPageCost(): number {
  const memory = Buffer.allocUnsafeSlow(Math.min(TOUCHED, Math.floor(os.freemem() / 2)));
  const start = process.hrtime.bigint();
  for (let at = 0; at < memory.length; at += PAGE) memory[at] = 1;
  return (Number(process.hrtime.bigint() - start) / 1000) * (PAGE / memory.length);
}

/** Parts of all processors' time, 0 to 1. */
export interface Noise { others: number; steal: number }

/** Above one of these, figures of that time are marked. */
export const BUSY: Noise = { others: 0.05, steal: 0.02 };

export function isBusy(noise: Noise): boolean {
  return noise.others > BUSY.others || noise.steal > BUSY.steal;
}

interface Ticks { total: number; busy: number; steal: number; ours: number }

/** The line of all processors in /proc/stat. */
export function parseStat(line: string): { total: number; busy: number; steal: number } {
  const [user, nice, system, idle, waiting, interrupts, soft, steal] = line.trim().split(/\s+/).slice(1).map(Number);
  const busy = user + nice + system + interrupts + soft;
  return { total: busy + idle + waiting + steal, busy, steal };
}

/** A process's own time and that of its children that have ended, from /proc/PID/stat; and its parent. */
export function parseProcess(line: string): { parent: number; ticks: number } {
  // The name, in parentheses, may contain anything.
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ');
  return { parent: Number(fields[1]), ticks: fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0) };
}

/** This process and all below it. */
function ourTicks(): number {
  const processes = new Map<number, { parent: number; ticks: number }>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const line = text(`/proc/${name}/stat`);
    if (line) processes.set(Number(name), parseProcess(line));
  }
  let sum = 0;
  for (const [id, { ticks }] of processes) {
    let at: number | undefined = id;
    while (at !== undefined && at !== process.pid) at = processes.get(at)?.parent;
    if (at === process.pid) sum += ticks;
  }
  return sum;
}

function ticks(): Ticks {
  return { ...parseStat((text('/proc/stat') as string).split('\n')[0]), ours: ourTicks() };
}

/** Looks at the machine from now on; what it returns says how much others used it. */
export function watch(): () => Noise {
  const before = ticks();
  return () => {
    const after = ticks();
    const total = Math.max(1, after.total - before.total);
    const part = (value: number): number => Math.round(Math.min(1, Math.max(0, value / total)) * 1000) / 1000;
    return { others: part(after.busy - before.busy - (after.ours - before.ours)), steal: part(after.steal - before.steal) };
  };
}
