// Shard plans: which heads, MLP columns and vocabulary rows of a model each rank of a tensor-parallel group holds.
import { ArgumentError, checkInteger } from '../core/errors.ts'
import type { Span } from '../core/tree.ts'

export type { Span }

/** What a plan needs to know of a model. */
export interface ModelShape {
  heads: number
  /** Divides `heads`. */
  kvHeads: number
  intermediateSize: number
  vocabSize: number
}

/** What one rank holds. */
export interface RankShard {
  readonly heads: Span
  /** Several ranks hold the same kv head where there are more ranks than kv heads. */
  readonly kvHeads: Span
  /** Columns of gate and up, rows of down. */
  readonly mlp: Span
  /** Vocabulary rows that exist; the shard is padded to `plan.vocabRows` with rows of zeros. */
  readonly vocab: Span
}

export interface ShardPlan {
  readonly tp: number
  /** Vocabulary rows of every rank's shard, padding included. */
  readonly vocabRows: number
  readonly ranks: readonly RankShard[]
}

/**
 * An even split over `tp` ranks. Query heads and MLP columns must divide; kv heads must divide, or be divided by, the number of ranks: in
 * the latter case each is replicated on tp / kvHeads ranks. The vocabulary is padded. @throws ERR_ARGUMENT naming what does not divide.
 */
export function plan(shape: ModelShape, { tp }: { tp: number }): ShardPlan {
  checkInteger('tp', tp, 1)
  const { heads, kvHeads, intermediateSize, vocabSize } = shape
  for (const [name, value] of Object.entries({ heads, kvHeads, intermediateSize, vocabSize })) checkInteger(name, value, 1)
  checkDivides(heads, kvHeads, 'query heads', 'kv heads')
  checkDivides(heads, tp, 'query heads', 'ranks')
  checkDivides(intermediateSize, tp, 'MLP columns', 'ranks')
  if (tp < kvHeads) checkDivides(kvHeads, tp, 'kv heads', 'ranks')
  else checkDivides(tp, kvHeads, 'ranks', 'kv heads')
  const replicas = Math.max(1, tp / kvHeads)
  const vocabRows = Math.ceil(vocabSize / tp)
  const ranks = Array.from({ length: tp }, (_, rank): RankShard => {
    const kvCount = Math.max(1, kvHeads / tp)
    const vocabStart = Math.min(rank * vocabRows, vocabSize)
    return {
      heads: { start: (rank * heads) / tp, count: heads / tp },
      kvHeads: { start: Math.floor(rank / replicas) * kvCount, count: kvCount },
      mlp: { start: (rank * intermediateSize) / tp, count: intermediateSize / tp },
      vocab: { start: vocabStart, count: Math.min(vocabRows, vocabSize - vocabStart) },
    }
  })
  return { tp, vocabRows, ranks }
}

function checkDivides(n: number, by: number, what: string, parts: string): void {
  if (n % by !== 0) {
    throw new ArgumentError(
      `An even split needs the number of ${what} (${n}) to be a multiple of the number of ${parts} (${by}); choose other ranks`,
    )
  }
}
