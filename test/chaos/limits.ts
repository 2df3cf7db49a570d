/** Limits of memory for a process that runs already: by a control group of its own, or else of its address space. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

export interface Limits {
  readonly means: 'cgroup v1' | 'cgroup v2' | 'rlimit';
  /** Gives the process so many bytes on top of what it has now. */
  limit(pid: number, bytes: number): void;
  /** Takes the limit away, if the process still lives. */
  lift(pid: number): void;
  remove(): void;
}

const PREFIX = 'faultline-chaos';

/** Removes empty groups; what a run left that was killed is empty by the time anybody looks. */
function removeGroups(base: string, pids: string): void {
  for (const name of fs.readdirSync(base)) {
    const [, pid] = /^faultline-chaos-(\d+)-/.exec(name) ?? [];
    if (pid === undefined || (pid !== pids && fs.existsSync(`/proc/${pid}`))) continue;
    try {
      fs.rmdirSync(path.join(base, name));
    } catch {
      // A process of it has not quite ended; the group is removed by the next run.
    }
  }
}

/** Where this process's group is, and the limit's file there. */
function memoryGroup(): { base: string; version: 1 | 2 } | undefined {
  const own = fs.readFileSync('/proc/self/cgroup', 'utf8').split('\n').map((line) => line.split(':'));
  const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n').map((line) => {
    const [before, after = ''] = line.split(' - ');
    const [, , , root, point] = before.split(' ');
    const [type, , options = ''] = after.split(' ');
    return { root, point, type, options: options.split(',') };
  });
  const v1 = mounts.find(({ type, options }) => type === 'cgroup' && options.includes('memory'));
  if (v1) return { base: v1.point, version: 1 };
  const v2 = mounts.find(({ type }) => type === 'cgroup2');
  if (!v2) return undefined;
  const within = own.find(([hierarchy]) => hierarchy === '0')?.[2] ?? '/';
  // Processes may not stand beside groups that have controllers: the new groups are made beside this process's own.
  const beside = path.dirname(path.join(v2.point, within));
  for (const base of [beside, v2.point]) {
    if (fs.existsSync(base) && fs.readFileSync(path.join(base, 'cgroup.subtree_control'), 'utf8').split(/\s/).includes('memory')) return { base, version: 2 };
  }
  return undefined;
}

/** @param means leave out for the best that this machine has */
export function makeLimits(means?: 'rlimit'): Limits {
  return (means === undefined ? byGroup() : undefined) ?? byAddressSpace();
}

function byGroup(): Limits | undefined {
  try {
    const found = memoryGroup();
    if (!found) return undefined;
    const { base, version } = found;
    const self = String(process.pid);
    removeGroups(base, self);
    const directory = (pid: number): string => path.join(base, `${PREFIX}-${self}-${pid}`);
    const name = version === 1 ? 'memory.limit_in_bytes' : 'memory.max';
    const trial = directory(0);
    fs.mkdirSync(trial);
    try {
      fs.writeFileSync(path.join(trial, name), String(1 << 30));
    } finally {
      fs.rmdirSync(trial);
    }
    const optional = (file: string, text: string): void => {
      if (fs.existsSync(file)) fs.writeFileSync(file, text);
    };
    return {
      means: `cgroup v${version}`,
      limit(pid, bytes) {
        const group = directory(pid);
        fs.mkdirSync(group, { recursive: true });
        // What the process has already stays on its old group's account.
        fs.writeFileSync(path.join(group, 'cgroup.procs'), String(pid));
        const used = Number(fs.readFileSync(path.join(group, version === 1 ? 'memory.usage_in_bytes' : 'memory.current'), 'utf8'));
        fs.writeFileSync(path.join(group, name), String(used + bytes));
        optional(path.join(group, 'memory.memsw.limit_in_bytes'), String(used + bytes));
        optional(path.join(group, 'memory.swap.max'), '0');
      },
      lift(pid) {
        const group = directory(pid);
        if (!fs.existsSync(group)) return;
        const none = version === 1 ? '-1' : 'max';
        optional(path.join(group, 'memory.memsw.limit_in_bytes'), none);
        fs.writeFileSync(path.join(group, name), none);
      },
      remove: () => removeGroups(base, self),
    };
  } catch {
    // Not mounted, not writable, or not delegated to this process.
    return undefined;
  }
}

function byAddressSpace(): Limits {
  const set = (pid: number, limit: string): void => void execFileSync('prlimit', ['--pid', String(pid), `--as=${limit}`], { stdio: 'pipe', timeout: 10_000 });
  return {
    means: 'rlimit',
    limit(pid, bytes) {
      const [, size] = /^VmSize:\s+(\d+) kB/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))!;
      // The hard limit stays, so that whoever set this one can take it back.
      set(pid, `${Number(size) * 1024 + bytes}:`);
    },
    lift(pid) {
      if (fs.existsSync(`/proc/${pid}`)) set(pid, 'unlimited:');
    },
    remove: () => undefined,
  };
}
