// Shard plans: which heads, MLP columns and vocabulary rows of a model each rank of a tensor-parallel group holds.
import { blockLength, type DType } from '../core/dtype.ts'
import { ArgumentError, checkInteger, invalidArgument, OutOfMemoryError } from '../core/errors.ts'
import type { Span } from '../core/tree.ts'
import { type Component, Costs, checkSpeeds, type MatrixTypes, type RankSpeed, slowest } from './costs.ts'
import { planTable } from './plan-table.ts'
import { capped, checkPerRank, cut, equalHolders, fitted, sharesOf } from './shares.ts'

export type { MatrixTypes, RankSpeed, Span }

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
  /** How the work is shared out, in any unit. 0: the rank holds nothing. Absent: by `speeds`, or by `memory`, or alike. */
  shares?: readonly number[] | undefined
  /** Bytes free for each rank's weights and key-value cache: a rank that has too few for its share passes the rest on. */
  memory?: readonly number[] | undefined
  /**
   * How fast each rank is, measured. `explain` then tells the time of a token, and a component that more ranks would only slow down is split
   * over fewer, where `most` does not say and `memory` allows it.
   */
  speeds?: readonly RankSpeed[] | undefined
  /** Seconds of a token that any plan costs, for `explain`: its collectives. Defaults to 0. */
  collectiveSeconds?: number | undefined
  /** What the matrices are stored as: the inputs of row-parallel layers are cut between blocks. */
  types?: MatrixTypes | undefined
  /** Inputs of row-parallel layers are cut at multiples of this besides: blocks of the tree of sums. Defaults to 1. */
  block?: number | undefined
  /** Ranks that a component is split over at most: those with the largest shares, of equals the lowest. More ranks can be slower. */
  most?: { [component in Component]?: number } | undefined
  /** Bytes of a weight, for `memory` and `explain`, where `types` are not given. Defaults to 2. */
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
  readonly #costs: Costs

  constructor(shape: ModelShape, ranks: readonly RankShard[], shares: readonly number[], options: PlanOptions, costs: Costs) {
    this.shape = shape
    this.ranks = ranks
    this.shares = shares
    this.#options = options
    this.#costs = costs
  }

  /** Bytes of the matrices that a rank holds. */
  weightBytes(rank: number): number {
    return this.#costs.weights(this.ranks[rank] as RankShard)
  }

  /** Bytes of a rank's weights and key-value cache. Biases are not counted. */
  bytes(rank: number): number {
    return this.#costs.bytes(this.ranks[rank] as RankShard)
  }

  /** Expected seconds of one token, in each component as long as the slowest rank takes; null where `speeds` were not given. */
  get tokenSeconds(): number | null {
    const { speeds, collectiveSeconds = 0 } = this.#options
    if (!speeds) return null
    return COMPONENTS.reduce((n, component) => n + slowest(this.#costs, component, this.ranks, speeds), collectiveSeconds)
  }

  /**
   * A table for people: what each rank holds, what share of the weights that is beside the share that was asked for, and, where speeds are
   * known, how long a token keeps each rank busy and how long it takes in all.
   */
  explain(): string {
    const { devices, speeds, collectiveSeconds = 0 } = this.#options
    const total = this.ranks.reduce((n, _, rank) => n + this.weightBytes(rank), 0)
    const busy = (shard: RankShard, speed: RankSpeed): number =>
      COMPONENTS.flatMap((component) => this.#costs.seconds(component, shard, speed)).reduce((a, b) => a + b, 0)
    const rows = this.ranks.map((shard, rank) => ({
      device: devices?.[rank] ?? '',
      shard,
      bytes: this.bytes(rank),
      seconds: speeds && busy(shard, speeds[rank] as RankSpeed),
      asked: this.shares[rank] as number,
      achieved: this.weightBytes(rank) / total,
    }))
    return planTable(rows, this.tokenSeconds, collectiveSeconds)
  }
}

/**
 * Splits a model over ranks by shares: attention in whole groups of heads with one kv head, MLPs in blocks, the vocabulary at any row. What
 * does not divide goes to other ranks in each layer, so that over all layers ranks come close to their shares. Equal shares that divide are
 * an even split, where kv heads are stored several times if there are more ranks than kv heads.
 *
 * Cuts lie between blocks of quantised weights. Where several groups of heads share a block they stay on one rank: to cut it, the output
 * projection would have to be float32, which is 4 to 7 times as much to read, and so slower than fewer ranks with blocks.
 * @throws ERR_ARGUMENT for options that make no sense, ERR_OUT_OF_MEMORY where `memory` does not suffice.
 */
export function plan(shape: ModelShape, options: PlanOptions): ShardPlan {
  const { ranks, shares, memory, speeds, types, most = {}, elementBytes = 2, capacity = 0 } = options
  checkOptions(shape, options)
  const costs = new Costs(shape, types ?? elementBytes, capacity)
  const room = memory?.map((bytes) => Math.max(0, bytes - costs.fixed))
  if (room?.every((bytes) => bytes === 0))
    throw new OutOfMemoryError(`Every rank needs ${costs.fixed} bytes for norms and rotations alone; no rank has more`)
  const asked = sharesOf(shares ?? speeds?.map(({ bytesPerSecond }) => bytesPerSecond) ?? room, ranks)
  const blocks = blocksOf(options)
  const split = (parts: readonly number[], limits = most): ShardPlan =>
    new ShardPlan(shape, shardsOf(shape, parts, blocks, limits), asked, options, costs)
  const { parts, made } = memory ? within(memory, asked, costs.fixed, split) : { parts: asked, made: split(asked) }
  if (!speeds) return made
  const fewer = { ...most }
  for (const component of COMPONENTS) {
    const time = (count: number): number => slowest(costs, component, split(parts, { ...most, [component]: count }).ranks, speeds)
    fewer[component] ??= bestCount(parts.filter((part) => part > 0).length, time)
  }
  const quick = split(parts, fewer)
  return memory?.some((bytes, rank) => quick.bytes(rank) > bytes) ? made : quick
}

/** The number of ranks that takes least time; of equals the largest, which leaves most memory. */
function bestCount(ranks: number, time: (count: number) => number): number {
  let best = ranks
  let least = time(ranks)
  for (let count = ranks - 1; count > 0; count--) {
    const seconds = time(count)
    if (seconds < least) [best, least] = [count, seconds]
  }
  return best
}

function checkOptions(shape: ModelShape, options: PlanOptions): void {
  const { ranks, memory, speeds, types, block = 1, most = {}, devices, elementBytes = 2, capacity = 0, collectiveSeconds = 0 } = options
  checkInteger('ranks', ranks, 1, MAX_RANKS)
  for (const name of SIZES) checkInteger(name, shape[name], 1)
  if (shape.heads % shape.kvHeads !== 0) {
    throw new ArgumentError(`Expected query heads (${shape.heads}) to be a multiple of kv heads (${shape.kvHeads})`)
  }
  checkInteger('block', block, 1)
  if (!(elementBytes > 0 && Number.isFinite(elementBytes))) throw invalidArgument('elementBytes', 'a number above 0', elementBytes)
  checkInteger('capacity', capacity, 0)
  for (const [name, value] of Object.entries(most)) if (value !== undefined) checkInteger(`most.${name}`, value, 1)
  if (devices && devices.length !== ranks)
    throw new ArgumentError(`Expected a device for each of the ${ranks} ranks but received ${devices.length}`)
  if (memory) checkPerRank('memory', memory, ranks)
  if (speeds) checkSpeeds(speeds, ranks)
  if (!(Number.isFinite(collectiveSeconds) && collectiveSeconds >= 0))
    throw invalidArgument('collectiveSeconds', 'a finite number of at least 0', collectiveSeconds)
  if (types) checkInteger('the number of layers in types', types.layers.length, shape.layers, shape.layers)
}

/** Where the inputs of each layer's two row-parallel products may be cut: at multiples of the blocks of all layers, and of `block`. */
function blocksOf({ types, block = 1 }: PlanOptions): Blocks {
  const all = (dtypes: readonly DType[] = []): number => dtypes.map(blockLength).reduce(leastMultiple, block)
  return { attention: all(types?.layers.map(({ o }) => o)), mlp: all(types?.layers.map(({ down }) => down)) }
}

interface Blocks {
  attention: number
  mlp: number
}

const COMPONENTS = ['attention', 'mlp', 'vocab'] as const

/** Lowers the shares of ranks that hold more than their memory until all fit: units are cut whole, so this takes a few rounds. */
function within(
  memory: readonly number[],
  asked: readonly number[],
  fixed: number,
  split: (shares: readonly number[]) => ShardPlan,
): { parts: readonly number[]; made: ShardPlan } {
  const whole = split(asked.map((_, rank) => (rank === 0 ? 1 : 0)))
  const splittable = whole.bytes(0) - fixed
  const limits = memory.map((bytes) => (bytes - fixed) / splittable)
  for (let round = 0; ; round++) {
    const parts = fitted(asked, limits)
    const made = split(parts)
    const over = memory.map((bytes, rank) => made.bytes(rank) - bytes)
    const worst = over.indexOf(Math.max(...over))
    if ((over[worst] as number) <= 0) return { parts, made }
    if (round === MEMORY_ROUNDS) {
      throw new OutOfMemoryError(
        `Rank ${worst} needs ${made.bytes(worst)} bytes for its part of the model but has ${memory[worst]}; use more ranks, or a shorter cache`,
      )
    }
    for (const [rank, bytes] of over.entries()) if (bytes > 0) limits[rank] = (limits[rank] as number) - bytes / splittable
  }
}

const MEMORY_ROUNDS = 32

function shardsOf(shape: ModelShape, shares: readonly number[], block: Blocks, most: NonNullable<PlanOptions['most']>): RankShard[] {
  const { layers, heads, kvHeads, headDim, intermediateSize, vocabSize } = shape
  const part = (limit: number | undefined): number[] => (limit === undefined ? [...shares] : capped(shares, limit))
  const [attention, mlp] = [part(most.attention), part(most.mlp)]
  const group = heads / kvHeads
  const groups = leastMultiple(group * headDim, block.attention) / (group * headDim)
  const even = evenHeads(shape, attention, block.attention)
  const columns = equalHolders(mlp)
  const evenColumns = columns > 0 && intermediateSize % columns === 0 && (columns === 1 || (intermediateSize / columns) % block.mlp === 0)
  const unit = evenColumns ? intermediateSize / columns : leastMultiple(QUAD, block.mlp)
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

function leastMultiple(a: number, b: number): number {
  let [x, y] = [a, b]
  while (y > 0) [x, y] = [y, x % y]
  return (a / x) * b
}
