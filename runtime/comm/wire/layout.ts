// Layout of the memory that the ranks of one group share: a header, who is there, each rank's last calls, lanes and their slots.
import { roundUp } from '../../core/shape.ts'

/** 32-bit words that a processor moves together, twice over: what different ranks write lies this far apart. */
export const LINE: number = 32

/** Words of the header: ranks, how they wait, how often something happened that all must look at, what ended the group. */
export const HEADER: Record<'size' | 'native' | 'alarm' | 'failure', number> = {
  size: 0,
  native: 1,
  alarm: 2,
  failure: LINE,
}
/** Behind HEADER.failure: 0, 1 while it is written, 2; then code, rank, bytes of text, the text. */
export const FAILURE_WORDS: number = 8 * LINE
export const FAILURE_TEXT = 4

/** State of a rank, the first word of its line. */
export const ABSENT = 0
export const HERE = 1
export const LEFT = 2

/** Calls of each rank that are kept. Each is its number, how often it was made in a row, bytes of text, the text. */
export const HISTORY = 256
export const CALL_WORDS: number = LINE
export const CALL_TEXT = 3

/** Words of a member's line in a lane. The pairs are for even and odd epochs, as slots are. */
export const EPOCH = 0
export const SLEEPERS = 1
/** What kind of round it is: 0 an exchange, else the signature of a reduction. */
export const SIGNATURE = 2
export const LENGTH = 4

export interface LaneLayout {
  /** Words of the lane: one line for each member. */
  at: number
  members: number
  /** Bytes at which the members' slots begin; each has two of `slotBytes`, taken in turn. */
  slots: number
  slotBytes: number
}

export interface Layout {
  size: number
  byteLength: number
  control: LaneLayout
  data: LaneLayout
  /** Of the messages from rank src to rank dst: number src * size + dst. */
  pairs: readonly LaneLayout[]
}

/** Word of a rank's own line: its state. */
export function stateAt(rank: number): number {
  return LINE + FAILURE_WORDS + rank * LINE
}

/** Word of a rank's record: how many calls it has noted; the calls follow on the next line. */
export function recordAt(size: number, rank: number): number {
  return stateAt(size) + rank * (LINE + HISTORY * CALL_WORDS)
}

export function layoutOf(size: number): Layout {
  const lanes = recordAt(size, size)
  const words = (2 * size + 2 * size * size) * LINE
  let slots = roundUp((lanes + words) * 4, 4096)
  let at = lanes
  const lane = (members: number, slotBytes: number): LaneLayout => {
    const made = { at, members, slots, slotBytes }
    at += members * LINE
    slots += members * 2 * slotBytes
    return made
  }
  const slotBytes = Math.max(64 * 1024, Math.min(512 * 1024, 2 ** Math.floor(Math.log2((4 * 1024 * 1024) / size))))
  const control = lane(size, slotBytes)
  const data = lane(size, slotBytes)
  const pairSlot = size <= 8 ? 16 * 1024 : 1024
  const pairs = Array.from({ length: size * size }, () => lane(2, pairSlot))
  return { size, byteLength: slots, control, data, pairs }
}
