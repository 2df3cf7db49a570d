/**
 * Network namespaces, each with a veth to a bridge in a namespace of its own: the machine's own network is not touched.
 *
 * What the kernel has decides how packets are disturbed. With netem: delay, loss and reordering by netem. Without it, but
 * with classic BPF as a classifier: loss by a filter that drops at random, delay and reordering by an HTB class so slow
 * that a random part of the packets is overtaken by the rest. One direction of a link is cut by a filter that drops all.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';

/** For what a member sends. Zeros: nothing is done to it. */
export interface Weather { /** ms. */ delay: number; /** Percent of packets. */ loss: number; /** Percent of packets that are overtaken. */ reorder: number }

export const CLEAR: Weather = { delay: 0, loss: 0, reorder: 0 };

export interface Bridge {
  readonly names: string[];
  readonly addresses: string[];
  /** IPv6 */
  readonly addresses6: string[];
  /** How packets are delayed, lost and reordered here, or why they can't be. */
  readonly means: { weather: 'netem' | 'htb and bpf' | null; oneWay: 'bpf' | 'netem' | null; missing: string[] };
  setWeather(member: number, weather: Weather): void;
  setLink(member: number, state: 'up' | 'down'): void;
  /** Loses all that the member sends (mute) or all that is sent to it (deaf), without a word to either side. */
  cut(member: number, direction: 'mute' | 'deaf'): void;
  /** Undoes cut() and setLink(). */
  heal(member: number): void;
  remove(): void;
}

const PREFIX = 'fltc';
/** The largest frame: an IP packet of 1500 bytes and its Ethernet header. */
const FRAME_BITS = 1514 * 8;
/** Packets that may wait in the slow class: what comes then is lost, so that nobody waits for seconds. */
const SLOW_QUEUE = 20;
/** Filters with a lower number come first. */
const CUT_PRIORITY = 1;
const LOSS_PRIORITY = 2;

const run = (command: string, ...args: string[]): void => void execFileSync(command, args, { stdio: 'pipe', timeout: 10_000 });
const ip = (...args: string[]): void => run('ip', ...args);
const tc = (...args: string[]): void => run('tc', ...args);

function reasonOf(error: unknown): string {
  const { code, stderr, message } = error as NodeJS.ErrnoException & { stderr?: Buffer; path?: string };
  if (code === 'ENOENT') return `'${(error as { path?: string }).path}' is not installed (package iproute2)`;
  return (stderr?.toString().trim() || message).replaceAll('\n', ' ');
}

function refused(...args: string[]): string | undefined {
  try {
    tc(...args);
    return undefined;
  } catch (error) {
    return reasonOf(error);
  }
}

/** Classic BPF: this return value always. In `da` mode 2 drops the packet (TC_ACT_SHOT), -1 asks the next filter. */
const always = (value: number): string => `1,6 0 0 ${value}`;
/** Classic BPF: one value for so many percent of all packets, another for the rest. SKF_AD_OFF + SKF_AD_RANDOM is 4294963256. */
const sometimes = (percent: number, value: number, otherwise: number): string =>
  `4,32 0 0 4294963256,53 1 0 ${Math.floor((percent / 100) * 2 ** 32)},6 0 0 ${value},6 0 0 ${otherwise}`;
const SHOT = 2;
const NEXT = 0xffff_ffff;
const FAST_CLASS = 0x1_0001;
const SLOW_CLASS = 0x1_0002;

/** Removes what a run left that was killed before it could clean up. */
function removeOrphans(): void {
  if (!existsSync('/run/netns')) return;
  for (const name of readdirSync('/run/netns')) {
    const [, pid] = new RegExp(`^${PREFIX}-(\\d+)-`).exec(name) ?? [];
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
    try {
      ip('netns', 'del', name);
    } catch {
      // Somebody else is just doing the same.
    }
  }
}

let bridges = 0;

/** @returns why it can't be done here, as text, if it can't */
export function makeBridge(members: number): Bridge | string {
  if (process.getuid!() !== 0) return 'network namespaces need root';
  const id = `${PREFIX}-${process.pid}-${++bridges}`;
  const hub = `${id}-hub`;
  const names = Array.from({ length: members }, (_, index) => `${id}-${index}`);
  const addresses = names.map((_, index) => `10.213.78.${index + 1}`);
  const addresses6 = names.map((_, index) => `fd13:2b1e::${index + 1}`);
  const remove = (): void => {
    for (const name of [...names, hub]) {
      if (!existsSync(`/run/netns/${name}`)) continue;
      try {
        ip('netns', 'del', name);
      } catch {
        // Links and the bridge go with their namespaces; one that is gone already needs nothing more.
      }
    }
  };
  try {
    removeOrphans();
    ip('netns', 'add', hub);
    ip('-n', hub, 'link', 'add', 'bridge0', 'type', 'bridge');
    ip('-n', hub, 'link', 'set', 'bridge0', 'up');
    names.forEach((name, index) => {
      ip('netns', 'add', name);
      ip('-n', name, 'link', 'add', 'link0', 'type', 'veth', 'peer', 'name', `port${index}`, 'netns', hub);
      ip('-n', hub, 'link', 'set', `port${index}`, 'master', 'bridge0', 'up');
      ip('-n', name, 'addr', 'add', `${addresses[index]}/24`, 'dev', 'link0');
      ip('-n', name, 'addr', 'add', `${addresses6[index]}/64`, 'dev', 'link0', 'nodad');
      // What is lost, late or overtaken should be a packet as on a wire, not 64 KiB of them in one piece.
      ip('-n', name, 'link', 'set', 'link0', 'gso_max_segs', '1', 'gso_max_size', '1514');
      ip('-n', name, 'link', 'set', 'link0', 'up');
      ip('-n', name, 'link', 'set', 'lo', 'up');
    });
  } catch (error) {
    remove();
    return `network namespaces with a bridge can't be made here: ${reasonOf(error)}`;
  }
  const means = probe(hub);
  const cuts = new Map<number, 'mute' | 'deaf'>();
  const weathers = new Map<number, Weather>();
  const device = (member: number, direction: 'mute' | 'deaf'): string[] => (direction === 'mute' ? ['-n', names[member], 'link0'] : ['-n', hub, `port${member}`]);

  /** By netem there is one queue for each device, so weather and a cut exclude one another. */
  function netem([flag, namespace, name]: string[], options: string[] | null): void {
    if (options === null) refused(flag, namespace, 'qdisc', 'del', 'dev', name, 'root');
    else tc(flag, namespace, 'qdisc', 'replace', 'dev', name, 'root', 'netem', ...options);
  }

  function setWeather(member: number, weather: Weather): void {
    weathers.set(member, weather);
    const { delay, loss, reorder } = weather;
    const [flag, namespace, name] = device(member, 'mute');
    if (means.weather === 'netem') {
      // netem lets the packets that it reorders go at once, before those that it delays.
      netem([flag, namespace, name], delay + loss + reorder === 0 ? null : [
        'delay', `${Math.max(delay, reorder > 0 ? 1 : 0)}ms`, ...(reorder > 0 ? ['reorder', `${100 - reorder}%`] : [`${delay / 2}ms`]), 'loss', `${loss}%`,
      ]);
    } else if (means.weather === 'htb and bpf') {
      refused(flag, namespace, 'filter', 'del', 'dev', name, 'egress', 'pref', String(LOSS_PRIORITY));
      if (loss > 0) tc(flag, namespace, 'filter', 'add', 'dev', name, 'egress', 'pref', String(LOSS_PRIORITY), 'bpf', 'bytecode', sometimes(loss, SHOT, NEXT), 'da');
      refused(flag, namespace, 'qdisc', 'del', 'dev', name, 'root');
      const slow = Math.max(reorder, delay > 0 ? 50 : 0);
      if (slow === 0) return;
      const rate = Math.floor(FRAME_BITS / (Math.max(delay, 1) / 1000));
      tc(flag, namespace, 'qdisc', 'add', 'dev', name, 'root', 'handle', '1:', 'htb', 'default', '1');
      tc(flag, namespace, 'class', 'add', 'dev', name, 'parent', '1:', 'classid', '1:1', 'htb', 'rate', '1gbit', 'quantum', '1514');
      tc(flag, namespace, 'class', 'add', 'dev', name, 'parent', '1:', 'classid', '1:2', 'htb', 'rate', `${rate}bit`, 'burst', '1514', 'cburst', '1514', 'quantum', '1514');
      tc(flag, namespace, 'qdisc', 'add', 'dev', name, 'parent', '1:2', 'pfifo', 'limit', String(SLOW_QUEUE));
      tc(flag, namespace, 'filter', 'add', 'dev', name, 'parent', '1:', 'protocol', 'all', 'pref', '1', 'bpf', 'bytecode', sometimes(slow, SLOW_CLASS, FAST_CLASS));
    }
  }

  names.forEach((_, member) => {
    if (means.oneWay !== 'bpf') return;
    for (const direction of ['mute', 'deaf'] as const) {
      const [flag, namespace, name] = device(member, direction);
      tc(flag, namespace, 'qdisc', 'add', 'dev', name, 'clsact');
    }
  });

  return {
    names, addresses, addresses6, means, remove, setWeather,
    setLink: (member, state) => ip('-n', hub, 'link', 'set', `port${member}`, state),
    cut(member, direction) {
      const [flag, namespace, name] = device(member, direction);
      if (means.oneWay === 'netem') netem([flag, namespace, name], ['loss', '100%']);
      else tc(flag, namespace, 'filter', 'add', 'dev', name, 'egress', 'pref', String(CUT_PRIORITY), 'bpf', 'bytecode', always(SHOT), 'da');
      cuts.set(member, direction);
    },
    heal(member) {
      ip('-n', hub, 'link', 'set', `port${member}`, 'up');
      const direction = cuts.get(member);
      if (direction === undefined) return;
      cuts.delete(member);
      const [flag, namespace, name] = device(member, direction);
      if (means.oneWay !== 'netem') return tc(flag, namespace, 'filter', 'del', 'dev', name, 'egress', 'pref', String(CUT_PRIORITY));
      netem([flag, namespace, name], null);
      if (direction === 'mute') setWeather(member, weathers.get(member) ?? CLEAR);
    },
  };
}

/** What this kernel's traffic control can do: tried on the hub's loopback device, which carries nothing. */
function probe(hub: string): Bridge['means'] {
  const missing: string[] = [];
  const at = ['-n', hub];
  const noNetem = refused(...at, 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '1ms', '1ms', 'loss', '1%');
  if (noNetem === undefined) tc(...at, 'qdisc', 'del', 'dev', 'lo', 'root');
  else missing.push(`netem: ${noNetem}`);
  const noFilter = refused(...at, 'qdisc', 'add', 'dev', 'lo', 'clsact')
    ?? refused(...at, 'filter', 'add', 'dev', 'lo', 'egress', 'pref', '1', 'bpf', 'bytecode', sometimes(50, SHOT, NEXT), 'da');
  if (noFilter !== undefined) missing.push(`bpf filters: ${noFilter}`);
  const noClasses = noFilter ?? refused(...at, 'qdisc', 'add', 'dev', 'lo', 'root', 'handle', '1:', 'htb')
    ?? refused(...at, 'filter', 'add', 'dev', 'lo', 'parent', '1:', 'protocol', 'all', 'bpf', 'bytecode', sometimes(50, SLOW_CLASS, FAST_CLASS));
  if (noClasses !== undefined && noFilter === undefined) missing.push(`htb: ${noClasses}`);
  return {
    weather: noNetem === undefined ? 'netem' : noClasses === undefined ? 'htb and bpf' : null,
    oneWay: noFilter === undefined ? 'bpf' : noNetem === undefined ? 'netem' : null,
    missing,
  };
}
