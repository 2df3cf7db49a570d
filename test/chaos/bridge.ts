/** Network namespaces, each with a veth to a bridge in a namespace of its own: the machine's own network is not touched. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';

export interface Bridge {
  names: string[];
  addresses: string[];
  /** IPv6 */
  addresses6: string[];
  /** Delay and loss for what this member sends. @returns why it can't be done, as text, if it can't */
  disturb(member: number, netem: string[]): string | undefined;
  setLink(member: number, state: 'up' | 'down'): void;
  /** What goes from one member to another is lost, and nothing else; and back. */
  setPath(from: number, to: number, state: 'open' | 'lost'): void;
  remove(): void;
}

const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe', timeout: 10_000 });
const reasonOf = (error: unknown): string => ((error as { stderr?: Buffer }).stderr ?? (error as Error).message).toString().trim();

/** @returns why it can't be done here, as text, if it can't */
export function makeBridge(members: number): Bridge | string {
  if (process.getuid!() !== 0) return 'network namespaces need root';
  const id = randomBytes(3).toString('hex');
  const hub = `flt-${id}-hub`;
  const names = Array.from({ length: members }, (_, index) => `flt-${id}-${index}`);
  const addresses = names.map((_, index) => `10.213.78.${index + 1}`);
  const addresses6 = names.map((_, index) => `fd13:2b1e::${index + 1}`);
  const remove = (): void => {
    for (const name of [...names, hub]) {
      try {
        ip('netns', 'del', name);
      } catch {
        // It was never made. Links and the bridge go with their namespaces.
      }
    }
  };
  try {
    ip('netns', 'add', hub);
    ip('-n', hub, 'link', 'add', 'bridge0', 'type', 'bridge');
    ip('-n', hub, 'link', 'set', 'bridge0', 'up');
    names.forEach((name, index) => {
      ip('netns', 'add', name);
      ip('-n', name, 'link', 'add', 'link0', 'type', 'veth', 'peer', 'name', `port${index}`, 'netns', hub);
      ip('-n', hub, 'link', 'set', `port${index}`, 'master', 'bridge0', 'up');
      ip('-n', name, 'addr', 'add', `${addresses[index]}/24`, 'dev', 'link0');
      ip('-n', name, 'addr', 'add', `${addresses6[index]}/64`, 'dev', 'link0', 'nodad');
      ip('-n', name, 'link', 'set', 'link0', 'up');
      ip('-n', name, 'link', 'set', 'lo', 'up');
    });
  } catch (error) {
    remove();
    return `network namespaces with a bridge can't be made here: ${reasonOf(error)}`;
  }
  return {
    names, addresses, addresses6, remove,
    disturb(member, netem) {
      try {
        execFileSync('tc', ['-n', names[member], 'qdisc', 'replace', 'dev', 'link0', 'root', 'netem', ...netem], { stdio: 'pipe', timeout: 10_000 });
        return undefined;
      } catch (error) {
        return reasonOf(error);
      }
    },
    // A neighbour with an address that nobody has: frames go out, and arrive nowhere. It needs no filter in the kernel.
    setPath(from, to, state) {
      const neighbour = (address: string): void => {
        if (state === 'lost') ip('-n', names[from], 'neigh', 'replace', address, 'lladdr', '02:00:00:00:00:01', 'dev', 'link0', 'nud', 'permanent');
        else ip('-n', names[from], 'neigh', 'del', address, 'dev', 'link0');
      };
      neighbour(addresses[to]);
      neighbour(addresses6[to]);
    },
    setLink: (member, state) => ip('-n', hub, 'link', 'set', `port${member}`, state),
  };
}
