/** The protocol's RegionMemory on the addon: one region's native handle, bound. */
import { native } from '../native.js';
import type { RegionMemory } from './protocol/ports.js';

export class NativeRegionMemory implements RegionMemory {
  constructor(private readonly member: number, readonly handle: number, readonly pageSize: number, private readonly epoch: () => number) {}

  /** Not cleared: whoever allocates writes what it sends. Its own memory, because ZeroMQ sends it without copying. */
  allocate(bytes: number): Uint8Array {
    return Buffer.allocUnsafeSlow(bytes);
  }

  claim(first: number, count: number, access: number, out: Uint8Array): number { return native.claim(this.handle, first, count, access, out); }
  heldVersion(page: number): number { return native.heldVersion(this.handle, page); }
  keptVersion(page: number): number { return native.keptVersion(this.handle, page); }
  held(page: number): number { return native.held(this.handle, page); }
  install(first: number, count: number, version: number, grant: number, content: number, bytes: Uint8Array | null, byteOffset: number, out: Uint8Array): number {
    return native.install(this.handle, first, count, version, grant, content, bytes, byteOffset, out);
  }
  abandon(first: number, count: number): void { native.abandon(this.handle, first, count); }
  lose(first: number, count: number, member: number, epoch: number): void { native.lose(this.handle, first, count, member, epoch); }
  find(first: number, count: number): void { native.find(this.handle, first, count); }
  invalidate(first: number, count: number, version: number, out: Uint8Array): number { return native.invalidate(this.handle, first, count, version, out); }
  recall(first: number, count: number, version: number, keep: boolean, wantBytes: boolean, out: Uint8Array, buffer: Uint8Array, byteOffset: number): number {
    return native.recall(this.handle, first, count, version, keep, wantBytes, out, buffer, byteOffset);
  }
  downgrade(first: number, count: number, toShared: boolean, out: Uint8Array): number { return native.downgrade(this.handle, first, count, toShared, out); }
  deferral(page: number): number { return native.deferral(this.handle, page); }
  returned(first: number, count: number, version: number): void { native.returned(this.handle, first, count, version); }
  drop(first: number, count: number): number { return native.drop(this.handle, first, count); }
  reclaim(first: number, count: number, most: number, out: Float64Array): [number, number] { return native.reclaim(this.handle, first, count, most, out); }
  pin(first: number, count: number, access: number): boolean { return native.pin(this.handle, first, count, access); }
  unpin(first: number, count: number, access: number): void { native.unpin(this.handle, first, count, access); }
  coalesce(page: number): void { native.coalesce(this.handle, page); }
  holdings(first: number, count: number, out: Float64Array): [number, number] { return native.holdings(this.handle, first, count, out); }

  setHomed(firstExtent: number, count: number, homed: boolean, lost: boolean): void { native.setHomed(this.handle, firstExtent, count, homed, lost); }
  setSlices(slices: Float64Array): void { native.setSlices(this.handle, slices); }
  begin(page: number): number { return native.begin(this.handle, page); }
  directory(page: number, out: Float64Array): void { native.directory(this.handle, page, out); }
  end(page: number, state: number, owner: number, version: number, copysetLow: number, copysetHigh: number, keepTxn: boolean): void {
    native.end(this.handle, page, state, owner, version, copysetLow, copysetHigh, keepTxn);
  }
  hint(page: number, writer: number, migratory: boolean): void { native.hint(this.handle, page, writer, migratory); }
  readPages(first: number, count: number, buffer: Uint8Array, byteOffset: number, out: Uint8Array): number { return native.readPages(this.handle, first, count, buffer, byteOffset, out); }
  writePages(first: number, count: number, bytes: Uint8Array, byteOffset: number): void { native.writePages(this.handle, first, count, bytes, byteOffset); }
  zero(offset: number, length: number): void { native.zero(this.handle, offset, length); }
  load32(byteOffset: number): number { return native.load32(this.handle, byteOffset); }
  sweep(first: number, count: number, slot: number, out: Float64Array): [number, number] { return native.sweep(this.handle, first, count, slot, out); }
  directoryRecords(first: number, count: number, out: Float64Array): [number, number] { return native.directoryRecords(this.handle, first, count, out); }

  closeGate(drained: () => void): void {
    const wait = (): void => {
      if (native.gateDrained(this.member)) drained();
      else setImmediate(wait);
    };
    if (native.gateClose(this.member)) drained();
    else setImmediate(wait);
  }

  openGate(): void {
    native.gateOpen(this.member, this.epoch());
  }
}
