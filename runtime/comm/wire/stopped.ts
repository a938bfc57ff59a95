// What the others hear of a rank whose signal told it to stop while it waited for them.
import { describe } from '../../core/errors.ts'
import type { Wait } from '../wire.ts'

/** `rank` is its name in the world. */
export function stopped(rank: number, { signal, call }: Wait): { code: 'ERR_RANK_FAILED'; message: string; rank: number } {
  const why: unknown = signal?.reason
  const text = why instanceof Error ? `${why.name}: ${why.message}` : describe(why)
  return { code: 'ERR_RANK_FAILED', message: `Rank ${rank} failed: it was told to stop in ${call}: ${text}`, rank }
}
