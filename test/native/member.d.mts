// Types of member.mjs for the tests.
import type { Addon, LaneWords, Reduce } from '../../runtime/core/addon.ts'

export const LINE: number
export const SLOTS: number
export const BLOCK: number
export function layoutOf(size: number): { words: number; slots: number; blocks: number; byteLength: number }
export function openLane(
  addon: Addon,
  buffer: ArrayBufferLike,
  rank: number,
  size: number,
): { lane: LaneWords; epoch: Int32Array; reducers: [Reduce, Reduce]; block: number }
