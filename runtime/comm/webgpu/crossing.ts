// Crossings: how bytes of one device reach the others of a group: through this thread's memory, or by rounds of the wire that joins its ranks.
import { CollectiveMismatchError, RankFailedError } from '../../core/errors.ts'
import type { GroupHost } from '../host.ts'
import { type Lane, waitFor } from '../wire.ts'
import { isLocal, type LocalSource, readAll, type Site, type Source } from './clusters.ts'

export interface Crossing {
  /** What `read` gives holds only until the next `read`, and may lie over shared memory, which no device may be given. */
  readonly passing: boolean
  /** The bytes of all sources, in their order, wherever they are; every site reads the same ones. */
  read(sources: readonly Source[]): Promise<Uint8Array[]>
}

export const WITHIN_THREAD: Crossing = { passing: false, read: (sources) => readAll(sources as readonly LocalSource[]) }

/** What a rank has sent to the other sites of its group. */
export interface Traffic {
  /** Rounds that this rank took part in. */
  crossings: number
  bytes: number
}

/** How the sites of a group reach each other where each is a thread of its own: member i of the lane is site i. */
export interface Link {
  lane: Lane
  /** Milliseconds that a round may take where the call names none. */
  timeoutMs: number
  traffic: Traffic
}

/** One round of the lane for each `read`: every site brings the bytes of its own sources, end to end. */
export class WireCrossing implements Crossing {
  readonly passing = true
  readonly #link: Link
  readonly #sites: readonly Site[]
  readonly #call: string
  readonly #timeoutMs: number

  constructor(link: Link, sites: readonly Site[], call: string, timeoutMs: number = link.timeoutMs) {
    this.#link = link
    this.#sites = sites
    this.#call = call
    this.#timeoutMs = timeoutMs
  }

  async read(sources: readonly Source[]): Promise<Uint8Array[]> {
    const { lane, traffic } = this.#link
    const own = joined(await readAll(sources.filter(isLocal)))
    traffic.crossings++
    traffic.bytes += own.byteLength
    const received = await lane.exchange(own, waitFor(this.#timeoutMs, this.#call))
    const ends = received.map(() => 0)
    const parts = sources.map(({ site, range }) => {
      const index = this.#sites.indexOf(site)
      const start = ends[index] as number
      ends[index] = start + range.byteLength
      return (received[index] as Uint8Array).subarray(start, start + range.byteLength)
    })
    for (const [index, { byteLength }] of received.entries()) {
      if (byteLength !== ends[index]) {
        throw new RankFailedError(`In ${this.#call}, ${ends[index]} bytes were expected of site ${index} but it sent ${byteLength}`)
      }
    }
    return parts
  }
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0] as Uint8Array
  const all = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.byteLength
  }
  return all
}

/**
 * What a rank does once all have joined a call. Over a wire the others would wait for the bytes of a rank whose part fails, so that ends the
 * group, with ERR_RANK_FAILED for them; except for ERR_COLLECTIVE_MISMATCH, which every rank finds alike before anything is exchanged.
 */
export async function orEnd<R>(host: GroupHost, call: string, work: Promise<R>): Promise<R> {
  try {
    return await work
  } catch (error) {
    if (host.wire && !host.wire.failure && !(error instanceof CollectiveMismatchError)) {
      const rank = host.members[host.rank] as number
      const why = error instanceof Error ? error.message : String(error)
      host.end(new RankFailedError(`Rank ${rank} failed in ${call}: ${why}`, { rank, cause: error }))
    }
    throw error
  }
}
