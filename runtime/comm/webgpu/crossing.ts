// Crossings: how bytes of one device reach the others of a group: through this thread's memory, or by rounds of the wire that joins its ranks.
import { exchangeParts, type Link } from '../link.ts'
import { isLocal, type LocalSource, readAll, type Site, type Source } from './clusters.ts'

export interface Crossing {
  /** What `read` gives holds only until the next `read`, and may lie over shared memory, which no device may be given. */
  readonly passing: boolean
  /** The bytes of all sources, in their order, wherever they are; every site reads the same ones. */
  read(sources: readonly Source[]): Promise<Uint8Array[]>
}

export const WITHIN_THREAD: Crossing = { passing: false, read: (sources) => readAll(sources as readonly LocalSource[]) }

/** One round of the lane for each `read`: every site brings the bytes of its own sources, end to end. */
export class WireCrossing implements Crossing {
  readonly passing = true
  readonly #link: Link
  readonly #sites: readonly Site[]
  readonly #call: string
  readonly #timeoutMs: number | undefined

  constructor(link: Link, sites: readonly Site[], call: string, timeoutMs?: number) {
    this.#link = link
    this.#sites = sites
    this.#call = call
    this.#timeoutMs = timeoutMs
  }

  async read(sources: readonly Source[]): Promise<Uint8Array[]> {
    const own = await readAll(sources.filter(isLocal))
    const parts = sources.map(({ site, range }) => ({ member: this.#sites.indexOf(site), byteLength: range.byteLength }))
    return exchangeParts(this.#link, this.#call, this.#timeoutMs, parts, own)
  }
}
