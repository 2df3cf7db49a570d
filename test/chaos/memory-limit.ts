/** Takes memory away from one process: by a control group where one can be made, else by its limit of address space. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export interface MemoryLimit {
  readonly by: 'control group' | 'limit of address space';
  /** From now on the process may have so many bytes more. */
  set(pid: number, bytes: number): void;
  remove(): void;
}

export function memoryLimit(): MemoryLimit {
  try {
    return controlGroup();
  } catch {
    return addressSpace();
  }
}

/** Where memory is controlled, and by which file; mounted for the time of the run if it is not. Throws where that can't be. */
function controlGroup(): MemoryLimit {
  const mounts = readFileSync('/proc/mounts', 'utf8').split('\n').map((line) => line.split(' '));
  const second = mounts.find(([, , type]) => type === 'cgroup2')?.[1];
  const first = mounts.find(([, , type, options]) => type === 'cgroup' && options.split(',').includes('memory'))?.[1];
  let mounted: string | undefined;
  let root = first;
  let file = 'memory.limit_in_bytes';
  if (root === undefined && second !== undefined && /\bmemory\b/.test(readFileSync(`${second}/cgroup.controllers`, 'utf8'))) {
    root = second;
    file = 'memory.max';
  }
  if (root === undefined) {
    root = mounted = mkdtempSync(path.join(os.tmpdir(), 'faultline-chaos-'));
    try {
      execFileSync('mount', ['-t', 'cgroup', '-o', 'memory', 'none', root], { stdio: 'ignore', timeout: 10_000 });
    } catch (error) {
      rmdirSync(root);
      throw error;
    }
  }
  const unmount = (): void => {
    if (mounted === undefined) return;
    execFileSync('umount', [mounted], { stdio: 'ignore', timeout: 10_000 });
    rmdirSync(mounted);
  };
  const group = path.join(root, `faultline-chaos-${randomBytes(4).toString('hex')}`);
  try {
    mkdirSync(group);
  } catch (error) {
    unmount();
    throw error;
  }
  return {
    by: 'control group',
    set(pid, bytes) {
      // What the process has already stays on its old group's account.
      writeFileSync(path.join(group, file), String(bytes));
      writeFileSync(path.join(group, 'cgroup.procs'), String(pid));
    },
    remove() {
      for (const pid of readFileSync(path.join(group, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean)) writeFileSync(path.join(path.dirname(group), 'cgroup.procs'), pid);
      rmdirSync(group);
      unmount();
    },
  };
}

function addressSpace(): MemoryLimit {
  return {
    by: 'limit of address space',
    set(pid, bytes) {
      const has = Number(/^VmSize:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024;
      execFileSync('prlimit', ['--pid', String(pid), `--as=${has + bytes}`], { stdio: 'pipe', timeout: 10_000 });
    },
    remove: () => undefined,
  };
}
