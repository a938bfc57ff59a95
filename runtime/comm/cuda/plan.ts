// How a call over peers' memory is carried out: its way, its pieces and its blocks; pure functions of what is equal on all ranks.
import type { AlgorithmName } from '../algorithms.ts'
import type { Home } from './reach.ts'

/** What the kernels' workspaces of a group have room for; the same on all its ranks. In bytes, multiples of 128. */
export interface PeerRoom {
  /** One rank's operand. */
  dataBytes: number
  /** One rank's operand in packets that say of themselves that they have arrived. */
  packetBytes: number
}

export interface PeerPlan extends PeerRoom {
  ranks: number
  home: Home
  /** Whether the workspaces are memory that NVLink takes to other machines. */
  fabric: boolean
  /** Whether a multicast is tried, of workspaces on devices. */
  multicast: boolean
  bounds: WayBounds
  /** Most blocks of a kernel, so that those of all ranks on a device can run at once. */
  blocks: number
}

/** Most bytes of an operand that take a way: packets, or, behind those, one-shot rather than two-shot. */
export interface WayBounds {
  packets: number
  oneShot: number
}

/** Numbered as the kernels do: `Algorithm` in native/cuda/peer_arguments.h. */
export const WAY = { oneShot: 0, twoShot: 1, packets: 2 } as const
export type Way = (typeof WAY)[keyof typeof WAY]

export const MOST_RANKS = 16
/** See kMaxBlocks. */
const FLAG_BLOCKS = 256
/** Most blocks of a kernel. Few keep the bus to pinned memory busy, and each looks for flags there. */
export const MOST_BLOCKS: Readonly<Record<Home, number>> = { device: FLAG_BLOCKS, pinned: 32 }
const PACKET = 16
/** Packets that a block of a sum has at least, where there are so many. */
const BLOCK_PACKETS = 256

/** Where the parts of a workspace lie: native/cuda/peer_arguments.h. */
const ALARM_AT: number = 8 * FLAG_BLOCKS * MOST_RANKS
const DATA_AT: number = ALARM_AT + 128
/** What a rank's kernels keep for themselves: `State`. */
export const STATE_BYTES = 128

/** A word for each rank, behind the alarm: not 0 once it has left. */
const LEFT_AT: number = ALARM_AT + 4

export { ALARM_AT, LEFT_AT }

export function packetsAt({ dataBytes }: PeerRoom): number {
  return DATA_AT + 2 * dataBytes
}

export function workspaceBytes(room: PeerRoom, ranks: number): number {
  return packetsAt(room) + 3 * ranks * room.packetBytes
}

/** Unless a group is made with other ones. Pinned memory is dear, and a bus is busy with pieces of this size. */
export function roomFor(home: Home, ranks: number): PeerRoom {
  if (home === 'device') return { dataBytes: 8 << 20, packetBytes: ranks <= 4 ? 1 << 20 : 1 << 19 }
  return { dataBytes: 4 << 20, packetBytes: Math.ceil(boundsOf(home, ranks).packets / 128) * 128 }
}

/** Bytes of rows of n elements in a workspace, where each begins at a whole packet. */
export function rowBytes(n: number, size: number): number {
  return Math.ceil((n * size) / PACKET) * PACKET
}

/** Bytes over a bus that take as long as ranks do to meet in pinned memory: not measured, some 3 us at 12 GB/s. */
const MEETING_BYTES = 32 << 10

/**
 * The bounds of a group that is not tuned.
 *
 * On devices, not measured: near what other libraries take. In pinned memory every byte crosses the bus of a device. Of n ranks with B bytes each,
 * one crosses with n B one-shot: its own, and n - 1 others'. With (4 - 1/n) B two-shot: its own, its part of n - 1 others', that part's sum to all,
 * and all sums; they meet once more for it, so it pays off where (n - 4 + 1/n) B is more than a meeting, and never for 3 ranks or fewer. With
 * (3n - 2) B by packets: to and from n - 1 others, and n B that are emptied for the next call, for which it saves the meeting.
 */
export function boundsOf(home: Home, ranks: number): WayBounds {
  if (home === 'device') return { packets: Number.POSITIVE_INFINITY, oneShot: ranks <= 2 ? 16 << 20 : ranks <= 4 ? 2 << 20 : 1 << 20 }
  const saved = ranks - 4 + 1 / ranks
  return { packets: MEETING_BYTES / Math.max(1, 2 * (ranks - 1)), oneShot: saved > 0 ? MEETING_BYTES / saved : Number.POSITIVE_INFINITY }
}

/**
 * For `bytes` in a workspace. `whole`: where the sum is made, all of it must be. Of rows with a norm two-shot adds residual and bias to a part and hands
 * h on, and each rank norms all rows from its own memory: what crosses is what a sum alone would, so both have one bound, and larger ones need no other
 * kernels.
 */
export function wayOf(plan: PeerPlan, bytes: number, algorithm: AlgorithmName | undefined, whole = false): Way {
  if (algorithm === 'two-shot' && !whole) return WAY.twoShot
  const { packets, oneShot } = plan.bounds
  if (bytes <= Math.min(packets, plan.packetBytes)) return WAY.packets
  return whole || algorithm === 'one-shot' || bytes <= oneShot ? WAY.oneShot : WAY.twoShot
}

export interface Piece {
  first: number
  count: number
}

/** `total` things of `each` bytes, cut so that a piece fits in `room`; none of nothing. */
export function piecesOf(total: number, each: number, room: number): Piece[] {
  const most = Math.floor(room / each)
  return Array.from({ length: Math.ceil(total / most) }, (_, i) => ({ first: i * most, count: Math.min(most, total - i * most) }))
}

/** Blocks for a sum of so many bytes. */
export function blocksFor({ blocks }: PeerPlan, bytes: number): number {
  return Math.max(1, Math.min(blocks, Math.ceil(bytes / PACKET / BLOCK_PACKETS)))
}
