// How a call over peers' memory is carried out: its way, its pieces and its blocks; pure functions of what is equal on all ranks.
import type { AlgorithmName } from '../algorithms.ts'

/** What the kernels' workspaces of a group have room for; the same on all its ranks. In bytes, multiples of 128. */
export interface PeerRoom {
  /** One rank's operand. */
  dataBytes: number
  /** One rank's operand in packets that say of themselves that they have arrived. */
  packetBytes: number
}

export interface PeerPlan extends PeerRoom {
  ranks: number
  /** Most blocks of a kernel, so that those of all ranks on a device can run at once. */
  blocks: number
}

/** Numbered as the kernels do: `Algorithm` in native/cuda/peer_arguments.h. */
export const WAY = { oneShot: 0, twoShot: 1, packets: 2 } as const
export type Way = (typeof WAY)[keyof typeof WAY]

export const MOST_RANKS = 16
/** See kMaxBlocks. */
export const MOST_BLOCKS = 256
const PACKET = 16
/** Packets that a block of a sum has at least, where there are so many. */
const BLOCK_PACKETS = 256

/** Where the parts of a workspace lie: native/cuda/peer_arguments.h. */
const ALARM_AT: number = 8 * MOST_BLOCKS * 16
const DATA_AT: number = ALARM_AT + 256

/** A word for each rank, behind the alarm: not 0 once it has left. */
const LEFT_AT: number = ALARM_AT + 4

export { ALARM_AT, LEFT_AT }

export function packetsAt({ dataBytes }: PeerRoom): number {
  return DATA_AT + 2 * dataBytes
}

export function workspaceBytes(room: PeerRoom, ranks: number): number {
  return packetsAt(room) + 3 * ranks * room.packetBytes
}

/** Unless a group is made with other ones. */
export function roomFor(ranks: number): PeerRoom {
  return { dataBytes: 8 << 20, packetBytes: ranks <= 4 ? 1 << 20 : 1 << 19 }
}

/** Bytes of rows of n elements in a workspace, where each begins at a whole packet. */
export function rowBytes(n: number, size: number): number {
  return Math.ceil((n * size) / PACKET) * PACKET
}

/** Most bytes that each rank reads of all others, rather than a part that it adds and hands on: not measured, near what other libraries take. */
function oneShotBytes(ranks: number): number {
  return ranks <= 2 ? 16 << 20 : ranks <= 4 ? 2 << 20 : 1 << 20
}

/** For `bytes` in a workspace. `whole`: where the sum is made, all of it must be. */
export function wayOf(plan: PeerPlan, bytes: number, algorithm: AlgorithmName | undefined, whole = false): Way {
  if (algorithm === 'two-shot' && !whole) return WAY.twoShot
  if (bytes <= plan.packetBytes) return WAY.packets
  return whole || algorithm === 'one-shot' || bytes <= oneShotBytes(plan.ranks) ? WAY.oneShot : WAY.twoShot
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
