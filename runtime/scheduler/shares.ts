// Shares of a group's ranks: how they are checked, how a row of units is cut by them, and how they give way to what fits in memory.
import { ArgumentError, describe, invalidArgument, OutOfMemoryError } from '../core/errors.ts'
import type { Span } from '../core/tree.ts'

/**
 * Relative shares, one a rank, as parts of 1. Absent: all alike.
 * @throws ERR_ARGUMENT unless there is one finite share of at least 0 for each rank, and one above 0.
 */
export function sharesOf(given: readonly number[] | undefined, ranks: number): number[] {
  if (given === undefined) return Array.from({ length: ranks }, () => 1 / ranks)
  checkPerRank('shares', given, ranks)
  const top = Math.max(...given)
  if (top === 0) throw new ArgumentError('Expected a share above 0 for at least one rank but all are 0')
  const parts = given.map((share) => share / top) // the sum of large shares would not be finite
  const sum = parts.reduce((a, b) => a + b, 0)
  return parts.map((part) => part / sum)
}

/** @throws ERR_ARGUMENT unless `given` holds one finite number of at least 0 for each rank. */
export function checkPerRank(name: string, given: readonly number[], ranks: number): void {
  if (!Array.isArray(given) || given.length !== ranks) {
    throw new ArgumentError(
      `Expected one number for each of the ${ranks} ranks for ${name} but received ${Array.isArray(given) ? `${given.length} of them` : describe(given)}`,
    )
  }
  for (const [rank, value] of given.entries()) {
    if (typeof value !== 'number' || !Number.isFinite(value) || value < 0)
      throw invalidArgument(`${name}[${rank}]`, 'a finite number of at least 0', value)
  }
}

/** The shares of at most `most` ranks, those with the largest (of equals the lowest ranks); the others have none. */
export function capped(shares: readonly number[], most: number): number[] {
  const first = shares.map((_, rank) => rank).sort((a, b) => (shares[b] as number) - (shares[a] as number) || a - b)
  const kept = new Set(first.slice(0, most))
  return shares.map((share, rank) => (kept.has(rank) ? share : 0))
}

/** How many ranks have a share, where all that have one have the same; else 0. */
export function equalHolders(shares: readonly number[]): number {
  const held = shares.filter((share) => share > 0)
  return held.every((share) => share === held[0]) ? held.length : 0
}

/**
 * Cuts `total` items, in whole units of `unit` (the last one may be shorter), by shares: each rank gets fewer than one unit more or less than
 * its share. Which ranks get what does not divide depends on `phase` in (0, 1): over phases that lie evenly, all ranks alike.
 */
export function cut(total: number, unit: number, shares: readonly number[], phase: number): Span[] {
  const units = Math.ceil(total / unit)
  const sum = shares.reduce((a, b) => a + b, 0)
  let before = 0
  let start = 0
  return shares.map((share): Span => {
    before += share
    const end = Math.min(Math.floor((before / sum) * units + phase) * unit, total)
    const span = { start, count: end - start }
    start = end
    return span
  })
}

/**
 * Shares as near to `shares` as what each rank can hold at most allows: who is full gives the rest to the others, by their shares.
 * @throws ERR_OUT_OF_MEMORY where all together cannot hold 1.
 */
export function fitted(shares: readonly number[], limits: readonly number[]): number[] {
  const fit = [...shares]
  const full = new Set<number>()
  for (;;) {
    const over = fit.map((_, rank) => rank).filter((rank) => !full.has(rank) && (fit[rank] as number) > Math.max(0, limits[rank] as number))
    if (over.length === 0) return fit
    for (const rank of over) {
      full.add(rank)
      fit[rank] = Math.max(0, limits[rank] as number)
    }
    const left = 1 - [...full].reduce((n, rank) => n + (fit[rank] as number), 0)
    const open = shares.map((_, rank) => rank).filter((rank) => !full.has(rank))
    const sum = open.reduce((n, rank) => n + (shares[rank] as number), 0)
    if (left > 1e-9 && sum === 0)
      throw new OutOfMemoryError(
        `${(100 * left).toFixed(1)} % of the model do not fit in the memory of the ranks that have a share; use more ranks`,
      )
    for (const rank of open) fit[rank] = sum === 0 ? 0 : (left * (shares[rank] as number)) / sum
  }
}
