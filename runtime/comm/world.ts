// World: the ranks of one program; who of them has failed or gone, and the groups that must hear of it.
import { describe, RankFailedError } from '../core/errors.ts'

/** Milliseconds until a collective that misses a rank fails, where the program says nothing. */
export const DEFAULT_TIMEOUT_MS: number = 10 * 60_000

/** What a world tells its groups. */
export interface WorldGroup {
  /** A rank has gone: what it has not joined fails, and where it failed, whatever is under way with it. */
  missing(rank: number, failed: boolean): void
  close(): void
}

export class World {
  readonly size: number
  readonly timeoutMs: number
  readonly #gone = new Map<number, { error?: unknown }>()
  readonly #groups = new Set<WorldGroup>()

  constructor(size: number, timeoutMs: number) {
    this.size = size
    this.timeoutMs = timeoutMs
  }

  add(group: WorldGroup): void {
    this.#groups.add(group)
  }

  remove(group: WorldGroup): void {
    this.#groups.delete(group)
  }

  /** The rank threw: its peers' pending and later collectives fail with ERR_RANK_FAILED, and so do its own. */
  fail(rank: number, error: unknown): void {
    this.#leave(rank, { error })
  }

  /** The rank ended: collectives that it has not joined fail. */
  leave(rank: number): void {
    this.#leave(rank, {})
  }

  /** The program is over: whoever still runs takes part in nothing more. */
  close(): void {
    for (let rank = 0; rank < this.size; rank++) this.leave(rank)
    for (const group of [...this.#groups]) group.close()
  }

  /** Ranks that have failed or left, the first first. */
  get gone(): Iterable<number> {
    return this.#gone.keys()
  }

  /** Why collectives with this rank cannot complete, or null. */
  absence(rank: number): RankFailedError | null {
    const gone = this.#gone.get(rank)
    if (!gone) return null
    if (!('error' in gone)) return new RankFailedError(`Rank ${rank} has returned and takes part in no more collectives`, { rank })
    const { error } = gone
    const what = error instanceof Error ? `${error.name}: ${error.message}` : describe(error)
    return new RankFailedError(`Rank ${rank} failed: ${what}`, { rank, cause: error })
  }

  #leave(rank: number, how: { error?: unknown }): void {
    if (this.#gone.has(rank)) return
    this.#gone.set(rank, how)
    for (const group of this.#groups) group.missing(rank, 'error' in how)
  }
}
