/** Counters as users see them: what the addon counts in the handlers, and what the coordinator counts on the wire. */
import type { CoordinatorStats, RegionTraffic } from './calls.js';
import { GuardKind, type NativeRegionStats } from './native.js';

/** Times by buckets, so that a percentile is the upper bound of its bucket. */
export interface Histogram {
  /** How many were counted. */
  readonly count: number;
  /** Upper bound of each bucket, µs; the last is Infinity. */
  readonly bounds: readonly number[];
  /** How many fell into each bucket. */
  readonly counts: readonly number[];
  /** µs: at least this part (0 to 100) took no longer. NaN if nothing was counted. */
  percentile(part: number): number;
}

/** Since this process opened the region; all of this process's threads together. */
export interface RegionStats {
  readonly faults: {
    readonly read: number; readonly write: number;
    /** Of those: served here without a message (the home's own extents, reopened pages). */ readonly local: number;
    /** Of those: found the page asked for already, and only waited. */ readonly joined: number;
    /** Of those: writes to a page that was readable here. */ readonly upgrade: number;
    /** Accesses that ended in a loss. */ readonly lost: number;
  };
  /** Time that threads waited in faults that needed another member. */
  readonly waits: Histogram;
  /** Pages that arrived and were sent away, with or without bytes. */
  readonly pages: { readonly in: number; readonly out: number; /** that may be accessed here now */ readonly resident: number };
  /** Page bytes on the wire. Zero pages and copies that were still valid travel without. */
  readonly bytes: { readonly in: number; readonly out: number };
  readonly invalidations: { readonly sent: number; readonly received: number };
  readonly recalls: { readonly sent: number; readonly received: number };
  /** Requests of other members that were served from here. */
  readonly requestsServed: number;
  /**
   * Faults that were served over a lane, without any coordinator; that the other member's page server referred to the
   * coordinators; that broke off and went there, too. `ahead`: pages that came with them before they were touched.
   */
  readonly lanes: { readonly faults: number; readonly referred: number; readonly broken: number; readonly ahead: number; readonly messages: number };
  /**
   * What stops accesses here; changes of what pages allow; how often the kernel's limit on mappings was met, and pages that
   * were closed because of it (mprotect only); new pages that got memory when they were touched (userfaultfd only).
   */
  readonly protection: { readonly guard: 'mprotect' | 'userfaultfd'; /** served when the kernel touches a page, too */ readonly systemCalls: boolean; readonly changes: number; readonly limitHits: number; readonly coalesced: number; readonly filled: number };
  /**
   * Bytes of memory (or swap) that the region takes in this process now. Pages that were given up to keep to `memoryLimit`:
   * clean copies dropped, and owned pages sent to their homes.
   */
  readonly memory: { readonly bytes: number; readonly dropped: number; readonly sentHome: number };
}

export interface ClusterStats {
  readonly messages: {
    readonly sent: number; readonly received: number;
    /** dropped: not decodable, or of another cluster */ readonly malformed: number;
    /** dropped: from a member outside the view */ readonly fenced: number;
  };
  /** On the wire, all messages. */
  readonly bytes: { readonly sent: number; readonly received: number };
}

const NO_TRAFFIC: RegionTraffic = {
  pagesIn: 0, pagesOut: 0, bytesIn: 0, bytesOut: 0,
  invalidationsSent: 0, invalidationsReceived: 0, recallsSent: 0, recallsReceived: 0, requestsServed: 0, sentHome: 0,
};

export function histogram(bounds: readonly number[], counts: readonly number[]): Histogram {
  const count = counts.reduce((sum, value) => sum + value, 0);
  return {
    count, bounds, counts,
    percentile(part: number): number {
      if (count === 0) return NaN;
      const wanted = Math.max(1, Math.ceil((Math.min(100, Math.max(0, part)) / 100) * count));
      let seen = 0;
      for (let bucket = 0; bucket < counts.length; bucket++) {
        seen += counts[bucket];
        if (seen >= wanted) return bounds[bucket];
      }
      return Infinity;
    },
  };
}

export function regionStats(local: NativeRegionStats, bounds: readonly number[], traffic: RegionTraffic = NO_TRAFFIC): RegionStats {
  return {
    faults: {
      read: local.readFaults, write: local.writeFaults, local: local.localFaults,
      joined: local.joinedFaults, upgrade: local.upgradeFaults, lost: local.lostFaults,
    },
    waits: histogram(bounds, local.waitHistogram),
    pages: { in: local.installedPages, out: traffic.pagesOut + local.lanePagesOut, resident: local.residentPages },
    bytes: { in: local.installedBytes, out: traffic.bytesOut + local.laneBytesOut },
    invalidations: { sent: traffic.invalidationsSent + local.laneInvalidationsSent, received: traffic.invalidationsReceived + local.laneInvalidationsReceived },
    recalls: { sent: traffic.recallsSent + local.laneRecallsSent, received: traffic.recallsReceived + local.laneRecallsReceived },
    requestsServed: traffic.requestsServed + local.laneServed,
    lanes: { faults: local.laneFaults, referred: local.laneReferred, broken: local.laneBroken, ahead: local.lanePagesAhead, messages: local.laneMessages },
    memory: { bytes: local.memory, dropped: local.droppedPages, sentHome: traffic.sentHome },
    protection: { guard: local.guard === GuardKind.Mprotect ? 'mprotect' : 'userfaultfd', systemCalls: local.guard === GuardKind.WithSystemCalls, changes: local.protectionChanges, limitHits: local.mappingLimitHits, coalesced: local.coalesced, filled: local.filledPages },
  };
}

export function clusterStats(counted: CoordinatorStats): ClusterStats {
  return {
    messages: { sent: counted.messagesSent, received: counted.messagesReceived, malformed: counted.malformed, fenced: counted.fenced },
    bytes: { sent: counted.bytesSent, received: counted.bytesReceived },
  };
}
