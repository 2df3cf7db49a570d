/** What one of the measured processes keeps between calls. */
import type { Cluster, Region } from '../lib/index.js';

export type Actions = Record<string, (state: State, args: never) => unknown>;

export class State {
  index = 0;
  private joined: Cluster | undefined;
  readonly regions = new Map<string, { region: Region; view: Int32Array }>();
  /** What modules leave here for their next call. */
  readonly kept = new Map<string, unknown>();

  get cluster(): Cluster {
    if (!this.joined) throw new Error('this process has joined no cluster');
    return this.joined;
  }
  set cluster(cluster: Cluster) {
    this.joined = cluster;
  }

  at(name: string): { region: Region; view: Int32Array } {
    const open = this.regions.get(name);
    if (!open) throw new Error(`region ${name} is not open here`);
    return open;
  }

  keep<T>(name: string, make: () => T): T {
    if (!this.kept.has(name)) this.kept.set(name, make());
    return this.kept.get(name) as T;
  }
}
