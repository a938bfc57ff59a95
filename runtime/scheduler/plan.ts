// Shard plans: which heads, MLP columns and vocabulary rows of a model each rank of a tensor-parallel group holds.
import { ArgumentError, checkInteger, OutOfMemoryError } from '../core/errors.ts'
import type { Span } from '../core/tree.ts'
import { planTable } from './plan-table.ts'
import { capped, checkPerRank, cut, equalHolders, fitted, sharesOf } from './shares.ts'

export type { Span }

/** What a plan needs to know of a model. */
export interface ModelShape {
  layers: number
  hiddenSize: number
  heads: number
  /** Divides `heads`. */
  kvHeads: number
  headDim: number
  intermediateSize: number
  vocabSize: number
  /** The head is the embedding's table: it is stored once. */
  tieEmbeddings: boolean
}

export interface PlanOptions {
  /** 1 to 64; need not divide anything. */
  ranks: number
  /** How the work is shared out, in any unit: relative speeds, say. 0: the rank holds nothing. Absent: alike, or by `memory`. */
  shares?: readonly number[] | undefined
  /** Bytes free for each rank's weights and key-value cache: a rank that has too few for its share passes the rest on. */
  memory?: readonly number[] | undefined
  /** Inputs of row-parallel layers are cut at multiples of this: blocks of a quantised type, or of the tree of sums. Defaults to 1. */
  block?: number | undefined
  /** Ranks that a component is split over at most: those with the largest shares, of equals the lowest. More ranks can be slower. */
  most?: { attention?: number; mlp?: number; vocab?: number } | undefined
  /** Bytes of a weight, for `memory` and `explain`. Defaults to 2. */
  elementBytes?: number | undefined
  /** Positions of the key-value cache, for the same. Defaults to 0. */
  capacity?: number | undefined
  /** Names of the ranks' devices, for `explain`. */
  devices?: readonly string[] | undefined
}

/** What one rank holds of one layer; any of it may be nothing. */
export interface LayerShard {
  readonly heads: Span
  /** Those of `heads`. In an even split over more ranks than there are kv heads, several ranks hold the same one. */
  readonly kvHeads: Span
  /** Columns of gate and up, rows of down. */
  readonly mlp: Span
}

/** What one rank holds. */
export interface RankShard {
  readonly layers: readonly LayerShard[]
  /** Rows of the embedding and of the head. */
  readonly vocab: Span
}

const MAX_RANKS = 64
const SIZES = ['layers', 'hiddenSize', 'heads', 'kvHeads', 'headDim', 'intermediateSize', 'vocabSize'] as const
/** MLP columns are cut at multiples of this, so that kernels read them in fours. */
const QUAD = 4

export class ShardPlan {
  readonly shape: ModelShape
  readonly ranks: readonly RankShard[]
  /** As asked for, as parts of 1. */
  readonly shares: readonly number[]
  readonly #options: PlanOptions

  constructor(shape: ModelShape, ranks: readonly RankShard[], shares: readonly number[], options: PlanOptions) {
    this.shape = shape
    this.ranks = ranks
    this.shares = shares
    this.#options = options
  }

  /** Weights of the matrices that a rank holds. */
  elements(rank: number): number {
    const { hiddenSize, headDim, tieEmbeddings } = this.shape
    const { layers, vocab } = this.ranks[rank] as RankShard
    const rows = layers.reduce((n, { heads, kvHeads, mlp }) => n + 2 * (heads.count + kvHeads.count) * headDim + 3 * mlp.count, 0)
    return hiddenSize * (rows + (tieEmbeddings ? 1 : 2) * vocab.count)
  }

  /** Bytes of a rank's weights and key-value cache. */
  bytes(rank: number): number {
    const { elementBytes = 2, capacity = 0 } = this.#options
    const { layers } = this.ranks[rank] as RankShard
    const cached = layers.reduce((n, { kvHeads }) => n + 2 * kvHeads.count * this.shape.headDim, 0)
    return this.elements(rank) * elementBytes + cached * capacity * 4 + normBytes(this.shape)
  }

  /** A table for people: what each rank holds, and what share of the weights that is beside the share that was asked for. */
  explain(): string {
    const total = this.ranks.reduce((n, _, rank) => n + this.elements(rank), 0)
    return planTable(
      this.ranks.map((shard, rank) => ({
        device: this.#options.devices?.[rank] ?? '',
        shard,
        bytes: this.bytes(rank),
        asked: this.shares[rank] as number,
        achieved: this.elements(rank) / total,
      })),
    )
  }
}

/**
 * Splits a model over ranks by shares: attention in whole groups of heads with one kv head, MLPs in blocks, the vocabulary at any row. What
 * does not divide goes to other ranks in each layer, so that over all layers ranks come close to their shares. Equal shares that divide are
 * an even split, where kv heads are stored several times if there are more ranks than kv heads.
 * @throws ERR_ARGUMENT for options that make no sense, ERR_OUT_OF_MEMORY where `memory` does not suffice.
 */
export function plan(shape: ModelShape, options: PlanOptions): ShardPlan {
  const { ranks, shares, memory, block = 1, most = {}, devices, elementBytes = 2, capacity = 0 } = options
  checkInteger('ranks', ranks, 1, MAX_RANKS)
  for (const name of SIZES) checkInteger(name, shape[name], 1)
  if (shape.heads % shape.kvHeads !== 0) {
    throw new ArgumentError(`Expected query heads (${shape.heads}) to be a multiple of kv heads (${shape.kvHeads})`)
  }
  checkInteger('block', block, 1)
  checkInteger('elementBytes', elementBytes, 1)
  checkInteger('capacity', capacity, 0)
  for (const [name, value] of Object.entries(most)) if (value !== undefined) checkInteger(`most.${name}`, value, 1)
  if (devices && devices.length !== ranks)
    throw new ArgumentError(`Expected a device for each of the ${ranks} ranks but received ${devices.length}`)
  if (memory) checkPerRank('memory', memory, ranks)
  const room = memory?.map((bytes) => Math.max(0, bytes - normBytes(shape)))
  if (room?.every((bytes) => bytes === 0))
    throw new OutOfMemoryError(`Every rank needs ${normBytes(shape)} bytes for norms alone; no rank has more`)
  const asked = sharesOf(shares ?? room, ranks)
  const split = (parts: readonly number[]): ShardPlan => new ShardPlan(shape, shardsOf(shape, parts, block, most), asked, options)
  return memory ? planWithin(memory, asked, split) : split(asked)
}

/** Lowers the shares of ranks that hold more than their memory until all fit: units are cut whole, so this takes a few rounds. */
function planWithin(memory: readonly number[], asked: readonly number[], split: (shares: readonly number[]) => ShardPlan): ShardPlan {
  const whole = split(asked.map((_, rank) => (rank === 0 ? 1 : 0)))
  const fixed = normBytes(whole.shape)
  const splittable = whole.bytes(0) - fixed
  const limits = memory.map((bytes) => (bytes - fixed) / splittable)
  for (let round = 0; ; round++) {
    const made = split(fitted(asked, limits))
    const over = memory.map((bytes, rank) => made.bytes(rank) - bytes)
    const worst = over.indexOf(Math.max(...over))
    if ((over[worst] as number) <= 0) return made
    if (round === MEMORY_ROUNDS) {
      throw new OutOfMemoryError(
        `Rank ${worst} needs ${made.bytes(worst)} bytes for its part of the model but has ${memory[worst]}; use more ranks, or a shorter cache`,
      )
    }
    for (const [rank, bytes] of over.entries()) if (bytes > 0) limits[rank] = (limits[rank] as number) - bytes / splittable
  }
}

const MEMORY_ROUNDS = 32

function shardsOf(shape: ModelShape, shares: readonly number[], block: number, most: NonNullable<PlanOptions['most']>): RankShard[] {
  const { layers, heads, kvHeads, headDim, intermediateSize, vocabSize } = shape
  const part = (limit: number | undefined): number[] => (limit === undefined ? [...shares] : capped(shares, limit))
  const [attention, mlp] = [part(most.attention), part(most.mlp)]
  const group = heads / kvHeads
  const groups = leastMultiple(group * headDim, block) / (group * headDim)
  const even = evenHeads(shape, attention, block)
  const columns = equalHolders(mlp)
  const evenColumns = columns > 0 && intermediateSize % columns === 0 && (columns === 1 || (intermediateSize / columns) % block === 0)
  const unit = evenColumns ? intermediateSize / columns : leastMultiple(QUAD, block)
  const perLayer = Array.from({ length: layers }, (_, layer): LayerShard[] => {
    const phase = (layer + 0.5) / layers
    const own = cut(kvHeads, groups, attention, phase)
    const mlps = cut(intermediateSize, unit, mlp, phase)
    return shares.map((_, rank) => {
      const kv = own[rank] as Span
      const spans = even?.[rank] ?? { heads: { start: kv.start * group, count: kv.count * group }, kvHeads: kv }
      return { ...spans, mlp: mlps[rank] as Span }
    })
  })
  const vocab = cut(vocabSize, 1, part(most.vocab), 0.5)
  return shares.map((_, rank) => ({ layers: perLayer.map((layer) => layer[rank] as LayerShard), vocab: vocab[rank] as Span }))
}

/** Equal numbers of heads for all ranks with a share, kv heads on several of them where there are more ranks; null where they do not divide. */
function evenHeads(
  { heads, kvHeads, headDim }: ModelShape,
  shares: readonly number[],
  block: number,
): Pick<LayerShard, 'heads' | 'kvHeads'>[] | null {
  const holders = equalHolders(shares)
  if (holders === 0 || heads % holders !== 0 || (kvHeads % holders !== 0 && holders % kvHeads !== 0)) return null
  const count = heads / holders
  if (holders > 1 && (count * headDim) % block !== 0) return null
  let start = 0
  return shares.map((share) => {
    const own = share > 0 ? count : 0
    const first = Math.floor((start * kvHeads) / heads)
    const spans = { heads: { start, count: own }, kvHeads: { start: first, count: own > 0 ? Math.max(1, kvHeads / holders) : 0 } }
    start += own
    return spans
  })
}

/** The norms of all layers, float32, which every rank needs. */
function normBytes({ layers, hiddenSize }: ModelShape): number {
  return (2 * layers + 1) * hiddenSize * 4
}

function leastMultiple(a: number, b: number): number {
  let [x, y] = [a, b]
  while (y > 0) [x, y] = [y, x % y]
  return (a / x) * b
}
