// Link: the wire among the devices of a group, one round at a time.
import { RankFailedError } from '../core/errors.ts'
import type { Traffic } from './turns.ts'
import { type Lane, waitFor } from './wire.ts'

/** How the devices of a group reach each other where each is in a thread of its own: member i of the lane is device i. */
export interface Link {
  lane: Lane
  /** Milliseconds that a round may take where the call names none. */
  timeoutMs: number
  traffic: Traffic
}

/** Bytes that a member of a lane brings. */
export interface Part {
  member: number
  byteLength: number
}

/**
 * One round: every member brings the bytes of its own parts (`own`, in the order of `parts`), end to end. Gives all parts in their order;
 * they hold until the next round and may lie over shared memory.
 */
export async function exchangeParts(
  { lane, timeoutMs: usual, traffic }: Link,
  call: string,
  timeoutMs: number | undefined,
  parts: readonly Part[],
  own: readonly Uint8Array[],
): Promise<Uint8Array[]> {
  const bytes = endToEnd(own)
  traffic.crossings++
  traffic.bytes += bytes.byteLength
  const received = await lane.exchange(bytes, waitFor(timeoutMs ?? usual, call))
  const ends = received.map(() => 0)
  const all = parts.map(({ member, byteLength }) => {
    const start = ends[member] as number
    ends[member] = start + byteLength
    return (received[member] as Uint8Array).subarray(start, start + byteLength)
  })
  for (const [index, { byteLength }] of received.entries()) {
    if (byteLength !== ends[index]) {
      throw new RankFailedError(`In ${call}, ${ends[index]} bytes were expected of site ${index} but it sent ${byteLength}`)
    }
  }
  return all
}

/** The parts end to end; one alone is itself, not a copy. */
export function endToEnd(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0] as Uint8Array
  const all = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.byteLength
  }
  return all
}
