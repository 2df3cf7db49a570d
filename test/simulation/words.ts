/** The words and bytes of one region at one member, without a simulated world around them. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { RegionInfo, Slice } from '../../lib/coordinator/protocol/messages.js';
import type { RegionMemory } from '../../lib/coordinator/protocol/ports.js';
import { loadSimulation } from './addon.js';
import { CALLS } from './member.js';

const PAGES = 64;
let made = 0;

const script = path.resolve(__dirname, '../../../scripts/simulation.sh');

/** For a before() hook. Where a mutant lives there is its own addon, and no script. */
export function buildWords(this: Mocha.Context): void {
  this.timeout(180_000);
  if (existsSync(script)) execFileSync(script, { stdio: ['ignore', 'ignore', 'inherit'] });
}

/** A region of one slice. */
export function regionInfo(slice: Partial<Slice> & Pick<Slice, 'home'>, pageSize = 4096): RegionInfo {
  return {
    id: 1, name: 'r', size: PAGES * pageSize, pageSize, extentPages: PAGES, consistency: 'sequential', placement: 'creator', address: '4096', creator: slice.home,
    slices: [{ first: 0, count: PAGES, generation: 1, from: 0, lostHome: 0, ...slice }],
  };
}

export class Words {
  readonly memory: RegionMemory;
  private readonly native = loadSimulation();
  private readonly member: number;
  private readonly region: number;
  private clock = 1_000_000;

  constructor(pageSize: number) {
    const { native } = this;
    native.onGuard(() => undefined);
    native.onShortage(() => false);
    native.onBusy(() => undefined);
    native.onWake(() => undefined);
    native.setClock(this.clock);
    this.member = native.memberCreate(`words ${++made}`);
    this.region = native.regionCreate(this.member, 1, PAGES * pageSize, pageSize, PAGES);
    const calls = native as unknown as Record<string, (region: number, ...rest: unknown[]) => unknown>;
    this.memory = Object.assign(
      {
        pageSize,
        allocate: (bytes: number) => new Uint8Array(bytes),
        closeGate: (drained: () => void) => {
          native.gateClose(this.member);
          drained();
        },
        openGate: () => native.gateOpen(this.member),
      },
      Object.fromEntries(CALLS.map((call) => [call, (...rest: unknown[]) => calls[call](this.region, ...rest)])),
    ) as unknown as RegionMemory;
  }

  /** No page is in use any more. */
  later(): void {
    this.native.setClock((this.clock += 1_000_000));
  }

  release(): void {
    this.native.regionRelease(this.region);
    this.native.memberStopped(this.member);
  }
}
