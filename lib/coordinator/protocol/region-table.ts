/** The cluster's regions: names, options, addresses, and who is the home of which pages. */
import { makeError } from '../../errors.js';
import type { MemberId, RegionInfo, Slice } from './messages.js';

export interface OpenArgs {
  name: string; mode: 'open-or-create' | 'create' | 'open' | 'wait';
  size?: number; pageSize?: number; consistency?: 'sequential'; placement?: 'creator' | 'spread';
}

/** Bytes. Above what Linux and V8 use by themselves, below where the kernel puts shared libraries and stacks. */
const LOWEST = 0x4000_0000_0000;
const HIGHEST = 0x5400_0000_0000;
/** Bytes. Huge pages may then be used, whatever the region's own pages are. */
const ALIGNMENT = 2 << 20;
/** Bytes that stay free between two regions, so that running over the end of one is no write into the next. */
const GUARD = ALIGNMENT;
/** Bytes of an extent, until a page alone is larger. */
const EXTENT = 256 << 10;
const DEFAULT_PAGE_SIZE = 4096;
const LARGEST_PAGE = 2 << 20;

interface Entry { info: RegionInfo; /** Who has been told the address. */ openers: MemberId[] }

export interface RegionTableSnapshot { nextId: number; next: number; used: number; entries: Entry[] }

export class RegionTable {
  private nextId = 1;
  private next: number;
  /** Bytes of the range that were given out; none is ever given twice. */
  private used = 0;
  private readonly entries = new Map<number, Entry>();

  /** Two clusters of one machine begin at different places, so that a process that leaves one and joins the other finds its addresses free. */
  constructor(clusterId: string, snapshot?: RegionTableSnapshot) {
    let hash = 0x811c9dc5;
    for (let i = 0; i < clusterId.length; i++) hash = Math.imul(hash ^ clusterId.charCodeAt(i), 0x01000193) >>> 0;
    this.next = LOWEST + (hash % ((HIGHEST - LOWEST) / ALIGNMENT)) * ALIGNMENT;
    if (snapshot === undefined) return;
    this.nextId = snapshot.nextId;
    this.next = snapshot.next;
    this.used = snapshot.used;
    for (const entry of snapshot.entries) this.entries.set(entry.info.id, entry);
  }

  snapshot(): RegionTableSnapshot {
    return { nextId: this.nextId, next: this.next, used: this.used, entries: [...this.entries.values()] };
  }

  infos(): RegionInfo[] {
    return [...this.entries.values()].map(({ info }) => info);
  }

  /** `members`: of the view, that stay, in ascending order. Returns null for mode 'wait' when there is no such region yet. */
  open(args: OpenArgs, opener: MemberId, members: MemberId[]): { info: RegionInfo; created: boolean } | null {
    const existing = [...this.entries.values()].find(({ info }) => info.name === args.name);
    if (existing !== undefined) {
      this.compare(args, existing.info);
      if (!existing.openers.includes(opener)) existing.openers.push(opener);
      return { info: existing.info, created: false };
    }
    if (args.mode === 'wait') return null;
    if (args.mode === 'open') throw makeError('ERR_FAULTLINE_REGION_NOT_FOUND', `there is no region '${args.name}'`, { region: args.name });
    const info = this.create(args, opener, members);
    this.entries.set(info.id, { info, openers: [opener] });
    return { info, created: true };
  }

  /** Another address, for a creator in whose process something lies at `address`. */
  readdress(id: number, address: string, member: MemberId): RegionInfo {
    const entry = this.get(id);
    if (entry.info.address !== address) return entry.info;
    if (entry.info.creator !== member || entry.openers.some((opener) => opener !== member)) {
      throw makeError('ERR_FAULTLINE_ADDRESS_TAKEN', `region '${entry.info.name}' lies at ${hex(address)} in every member, and others have it there already`, { region: entry.info.name, address: BigInt(address) });
    }
    entry.info = { ...entry.info, address: this.place(entry.info.size, entry.info.name) };
    return entry.info;
  }

  destroy(id: number): void {
    this.get(id);
    this.entries.delete(id);
  }

  /** A member is on its way out: its slices get new homes, to which it hands over. */
  leaving(member: MemberId, heirs: MemberId[]): void {
    this.rehome(member, heirs, { from: member, lostHome: 0 });
  }

  /** It has handed everything over. */
  left(member: MemberId): void {
    this.change((slice) => (slice.from === member ? { ...slice, from: 0 } : slice));
  }

  /** It is gone with what it had; whatever it had not handed over yet is rebuilt from the others' copies. */
  died(member: MemberId, heirs: MemberId[]): void {
    this.change((slice) => (slice.from === member && slice.home !== member ? { ...slice, from: 0, lostHome: member } : slice));
    this.rehome(member, heirs, { from: 0, lostHome: member });
  }

  private rehome(member: MemberId, heirs: MemberId[], origin: { from: MemberId; lostHome: MemberId }): void {
    let turn = 0;
    // Nobody stays: the cluster ends with this member, and nothing is left to be homed.
    if (heirs.length === 0) return;
    this.change((slice) => (slice.home === member ? { ...slice, home: heirs[turn++ % heirs.length], generation: slice.generation + 1, ...origin } : slice));
  }

  private change(of: (slice: Slice) => Slice): void {
    for (const entry of this.entries.values()) {
      const slices = entry.info.slices.map(of);
      if (slices.some((slice, i) => slice !== entry.info.slices[i])) entry.info = { ...entry.info, slices };
    }
  }

  private get(id: number): Entry {
    const entry = this.entries.get(id);
    if (entry === undefined) throw makeError('ERR_FAULTLINE_REGION_DESTROYED', `region ${id} was destroyed`, { region: String(id) });
    return entry;
  }

  private compare(args: OpenArgs, info: RegionInfo): void {
    if (args.mode === 'create') throw makeError('ERR_FAULTLINE_REGION_EXISTS', `region '${info.name}' exists already`, { region: info.name });
    for (const option of ['size', 'pageSize', 'consistency', 'placement'] as const) {
      if (args[option] === undefined || args[option] === info[option]) continue;
      throw makeError('ERR_FAULTLINE_REGION_EXISTS', `region '${info.name}' exists with ${option} ${info[option]}, not ${args[option]}`, { region: info.name, option, wanted: args[option], existing: info[option] });
    }
  }

  private create(args: OpenArgs, creator: MemberId, members: MemberId[]): RegionInfo {
    const { name, size, pageSize = DEFAULT_PAGE_SIZE, consistency = 'sequential', placement = 'creator' } = args;
    const invalid = (argument: string, message: string): Error => makeError('ERR_FAULTLINE_INVALID_ARGUMENT', `region '${name}': ${message}`, { argument });
    if (size === undefined) throw invalid('size', 'it does not exist yet, so a size is needed to create it');
    if (!Number.isInteger(Math.log2(pageSize)) || pageSize < DEFAULT_PAGE_SIZE || pageSize > LARGEST_PAGE) throw invalid('pageSize', `pageSize must be a power of two from ${DEFAULT_PAGE_SIZE} to ${LARGEST_PAGE}, not ${pageSize}`);
    if (!Number.isSafeInteger(size) || size <= 0 || size % pageSize !== 0) throw invalid('size', `size must be a multiple of pageSize (${pageSize}), not ${size}`);
    if (consistency !== 'sequential') throw invalid('consistency', `consistency must be 'sequential', not '${String(consistency)}'`);
    if (placement !== 'creator' && placement !== 'spread') throw invalid('placement', `placement must be 'creator' or 'spread', not '${String(placement)}'`);
    const address = this.place(size, name);
    const extentPages = Math.max(1, EXTENT / pageSize);
    const homes = placement === 'creator' || members.length === 0 ? [creator] : members;
    return { id: this.nextId++, name, size, pageSize, extentPages, consistency, placement, address, creator, slices: slices(size / pageSize, extentPages, homes) };
  }

  private place(size: number, name: string): string {
    const bytes = Math.ceil(size / ALIGNMENT) * ALIGNMENT + GUARD;
    // The end of the range that is too short for this region is given up: it would come again only after one turn.
    const skipped = this.next + bytes > HIGHEST ? HIGHEST - this.next : 0;
    if (this.used + skipped + bytes > HIGHEST - LOWEST) {
      throw makeError('ERR_FAULTLINE_OUT_OF_MEMORY', `region '${name}' of ${size} bytes does not fit into the cluster's address range any more`, { region: name, size });
    }
    const address = skipped > 0 ? LOWEST : this.next;
    this.used += skipped + bytes;
    this.next = address + bytes;
    return String(address);
  }
}

/** One contiguous run of whole extents for each home, as equal as extents allow. */
function slices(pages: number, extentPages: number, homes: MemberId[]): Slice[] {
  const extents = Math.ceil(pages / extentPages);
  const result: Slice[] = [];
  for (let i = 0; i < homes.length; i++) {
    const first = Math.floor((extents * i) / homes.length) * extentPages;
    const end = Math.min(pages, Math.floor((extents * (i + 1)) / homes.length) * extentPages);
    if (end > first) result.push({ first, count: end - first, home: homes[i], generation: 1, from: 0, lostHome: 0 });
  }
  return result;
}

function hex(address: string): string {
  return `0x${BigInt(address).toString(16)}`;
}
