/**
 * Everything that members say to one another. Plain data; the wire format is transport/'s business.
 *
 * Every message travels in an {@link Envelope}. Between two members the order of arrival is the order of sending. A
 * message counts if its sender is in my view and, where it names a region's generation, that is mine (see view.ts).
 */

/** A member's id: a positive integer, given once by the cluster and never used again. */
export type MemberId = number;

export interface Envelope {
  from: MemberId;
  /** The sender's state version (ClusterState.version): a receiver that is behind keeps the message until it has caught up. */
  state: number;
  message: Message;
  /** Page bytes, concatenated, for the message types that have them. */
  payload?: Uint8Array;
}

/** A run of pages of one region that share a version. */
export interface VersionedRun { first: number; count: number; version: number }

/** A run of pages in an answer. content: see native Content; grant: native Held (Shared, Exclusive, or Lost). */
export interface Segment { first: number; count: number; version: number; grant: number; content: number }

/** Coherence messages name a region (its id in the table) and the generation of the home of the slice they are about. */
interface About { region: number; generation: number }

// ---- coherence (hot: binary on the wire) ----------------------------------------------------------------------------
/** member -> home: I want these pages with this access. held[i] is the version of the copy that I hold, 0 for none. claim comes back with the answer. */
export interface RequestMessage extends About { type: 'request'; claim: number; access: number; first: number; count: number; held: number[] }
/** home -> member: here they are. Payload: pageSize bytes for each page of each segment with Content.Bytes, in order. For grant Lost, version is the epoch and content the id of the member that died. */
export interface DataMessage extends About { type: 'data'; claim: number; segments: Segment[] }
/** home -> owner: give it back; keep: stay with a shared copy. requester: for whom. */
export interface RecallMessage extends About { type: 'recall'; runs: VersionedRun[]; keep: boolean; wantBytes: boolean; requester: MemberId }
/** owner -> home: answers a recall. content: Bytes, Zero, or Same for 'unchanged'. grant: what the owner keeps (Held.Shared or Held.Invalid). */
export interface RecalledMessage extends About { type: 'recalled'; segments: Segment[] }
/** owner -> home, unasked: pages that I own, back (leaving, memory budget). Version 0 without bytes: whatever you have granted me of these, I have not got it. */
export interface GiveBackMessage extends About { type: 'give-back'; segments: Segment[] }
/** home -> owner: I have your bytes of these versions. */
export interface ReturnedMessage extends About { type: 'returned'; runs: VersionedRun[] }
/** home -> copyset: drop copies up to this version. */
export interface InvalidateMessage extends About { type: 'invalidate'; runs: VersionedRun[]; requester: MemberId }
/** copyset -> home: dropped. */
export interface InvalidatedMessage extends About { type: 'invalidated'; runs: VersionedRun[] }

// ---- moving homes (cold) --------------------------------------------------------------------------------------------
/** new home -> every member: what do you hold of these pages? round: it may have to ask again. */
export interface RebuildMessage extends About { type: 'rebuild'; first: number; count: number; round: number }
/** member -> new home. records: [first, count, held, version, unacked] flattened. */
export interface HoldingsMessage extends About { type: 'holdings'; first: number; count: number; round: number; records: number[]; done: boolean }
/** leaving home -> new home, about the slice that begins at page `first`. records: [first, count, state, owner member id, version, content, copies index] flattened; copies: lists of member ids. */
export interface HandoverMessage extends About { type: 'handover'; first: number; records: number[]; copies: MemberId[][]; done: boolean }
export interface HandoverAckMessage extends About { type: 'handover-ack'; first: number; done: boolean }
/** The last home is home no more: from here on only the new one can say what is where. */
export interface HandedMessage extends About { type: 'handed'; first: number }
/** home -> everybody: these pages [first, count, ...] are lost since `member` died in `epoch`; or are usable again. */
export interface LostMessage extends About { type: 'lost'; runs: number[]; member: MemberId; epoch: number }
export interface FoundMessage extends About { type: 'found'; runs: number[] }
/** home -> everybody: these pages [first, count, ...] were zeroed: the memory of copies that are not valid any more, or clean, can be given back. */
export interface DiscardedMessage extends About { type: 'discarded'; runs: number[] }

// ---- questions to a home, with one answer each (cold) ---------------------------------------------------------------
/**
 * op and args: 'wait' [offset, expected], 'wait-cancel' [id, page], 'notify' [offset, count], 'restore' [first, count]
 * (payload: the pages), 'discard' [offset, length], 'inspect' [page], 'settled' [page] (answered when the home serves
 * and has fetched what it rebuilt), 'losses' [], 'probe' [page] (are you there, and is my request for it queued?).
 */
export interface AskMessage extends About { type: 'ask'; id: number; op: string; args: number[] }
/** Answer to ask, or to a call of the registry. */
export interface ReplyMessage { type: 'reply'; id: number; value?: unknown; error?: WireError }

// ---- lanes (cold) ---------------------------------------------------------------------------------------------------
/** member -> member: where my page server listens, for those on the same machine and for others; the token (hexadecimal) that lets you in. */
export interface LaneMessage { type: 'lane'; machine: string; near: string; far: string; token: string }

// ---- the registry: membership, regions, locks, barriers (cold) -------------------------------------------------------
/** Served by one member (the registrar). op and args: see registry.ts. */
export interface CallMessage { type: 'call'; id: number; op: string; args: unknown }
/** registrar -> members: the whole agreed state; `version` only grows. */
export interface StateMessage { type: 'state'; state: ClusterState }
/** member -> registrar, every HEARTBEAT_MS. sentAt: the sender's clock, echoed in the lease. */
export interface HeartbeatMessage { type: 'heartbeat'; sentAt: number }
/** registrar -> member: you are in the view; counted from sentAt you may serve for `forMs`. */
export interface LeaseMessage { type: 'lease'; sentAt: number; forMs: number }
/** registrar -> zombie: you are not in the view any more. */
export interface EvictedMessage { type: 'evicted'; epoch: number }
/** registrar -> member: an event of a lock, barrier etc. that is not the answer to a call. */
export interface TellMessage { type: 'tell'; topic: string; value: unknown }

export type CoherenceMessage =
  | RequestMessage | DataMessage | RecallMessage | RecalledMessage | GiveBackMessage | ReturnedMessage
  | InvalidateMessage | InvalidatedMessage
  | RebuildMessage | HoldingsMessage | HandoverMessage | HandoverAckMessage | HandedMessage | LostMessage | FoundMessage | DiscardedMessage
  | AskMessage;
export type RegistryMessage = CallMessage | StateMessage | HeartbeatMessage | LeaseMessage | EvictedMessage | TellMessage;
export type Message = CoherenceMessage | RegistryMessage | ReplyMessage | LaneMessage;

/** An error as it travels between members and threads: code is stable, fields are JSON. */
export interface WireError { code: string; message: string; fields?: Record<string, unknown> }

// ---- the agreed state ------------------------------------------------------------------------------------------------
export interface MemberInfo {
  id: MemberId;
  /** Small integer for copysets, unique among the members of the view. */
  slot: number;
  name: string;
  pid: number;
  /** Host address or 'local', for people. */
  address: string;
  /** Where its Router listens (zmq endpoint). */
  endpoint: string;
  /** It hands over what it has, and goes: homes nothing new. */
  leaving: boolean;
}

/** Whose home these pages are. Generation grows with every change of home. from: the leaving member that will hand over, or 0. */
export interface Slice { first: number; count: number; home: MemberId; generation: number; from: MemberId; lostHome: MemberId }

export interface RegionInfo {
  id: number; name: string; size: number; pageSize: number; extentPages: number;
  consistency: 'sequential'; placement: 'creator' | 'spread';
  /** Virtual address as a decimal string (it does not fit in a double's integers for sure). */
  address: string;
  creator: MemberId;
  slices: Slice[];
}

export interface ClusterState {
  clusterId: string;
  /** Grows with every change of anything here. */
  version: number;
  /** Grows with every change of the members. */
  epoch: number;
  registrar: MemberId;
  members: MemberInfo[];
  regions: RegionInfo[];
  /** Members that died in the change to this epoch (not those that left). */
  died: MemberId[];
}
