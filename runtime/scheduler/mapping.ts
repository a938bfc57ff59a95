// Mapping: which ranks of a world form its tensor, context, pipeline and mixture-of-experts groups.
//
// The rank arithmetic is that of `Mapping` in TensorRT-LLM, as found in flashinfer.comm, with these deliberate differences: a rank outside
// the world is refused; with cpSize > 1 the MoE groups are built inside every tp group, so that they cover every rank; autoParallel
// refuses cpSize != 1, and every rank of it is a group alone; what is wrong is always an ArgumentError.
import { ArgumentError, checkInteger, describe, invalidArgument } from '../core/errors.ts'
import {
  checkFlag,
  checkNames,
  type MappingDict,
  type MappingDictInput,
  type MappingOptions,
  OPTION_OF_KEY,
  sizeOrDefault,
} from './mapping-options.ts'

export type { MappingDict, MappingDictInput, MappingOptions }

export type RankGroup = readonly number[]

/** A kind of group: `size` ranks, `stride` apart. Each run of size * stride ranks holds `stride` interleaved groups. */
interface Axis {
  readonly size: number
  readonly stride: number
}

type AxisName = 'tp' | 'pp' | 'cp' | 'moeTp' | 'moeCluster' | 'moeEp'

/**
 * The place of one rank in a world cut by tensor, pipeline, context and expert parallelism.
 *
 * A rank is a number of mixed radix, most significant first: pipeline stage, cp rank, tp rank; and within the tp rank: moe tp rank, moe
 * cluster rank, moe ep rank. Every kind of group is therefore a set of ranks at one stride; the groups of a kind are listed by first rank.
 */
export class Mapping {
  readonly worldSize: number
  readonly gpusPerNode: number
  readonly cpSize: number
  readonly cpConfig: Readonly<Record<string, unknown>>
  readonly tpSize: number
  readonly ppSize: number
  readonly moeClusterSize: number
  readonly moeTpSize: number
  readonly moeEpSize: number
  readonly attnTpSize: number
  readonly attnCpSize: number
  readonly autoParallel: boolean
  readonly enableAttentionDp: boolean

  #rank = 0
  readonly #axes: Readonly<Record<AxisName, Axis>>
  readonly #groups = new Map<AxisName, readonly RankGroup[]>()

  /** Throws ERR_ARGUMENT on an unknown option, a size that is no positive integer, sizes that disagree, and a rank outside the world. */
  constructor(options: MappingOptions = {}) {
    checkNames(options)
    const { worldSize = 1, rank = 0, gpusPerNode = 8, cpSize = 1, tpSize = 1, ppSize = 1 } = options
    for (const [name, size] of Object.entries({ worldSize, gpusPerNode, cpSize, tpSize, ppSize })) checkInteger(name, size, 1)
    this.worldSize = worldSize
    this.gpusPerNode = gpusPerNode
    this.cpSize = cpSize
    this.cpConfig = options.cpConfig ?? {}
    this.tpSize = tpSize
    this.ppSize = ppSize
    this.autoParallel = checkFlag('autoParallel', options.autoParallel)
    this.enableAttentionDp = checkFlag('enableAttentionDp', options.enableAttentionDp)

    const cluster = sizeOrDefault('moeClusterSize', options.moeClusterSize, 1)
    const moeTp = sizeOrDefault('moeTpSize', options.moeTpSize)
    const moeEp = sizeOrDefault('moeEpSize', options.moeEpSize, moeTp === undefined ? 1 : undefined)
    this.moeClusterSize = cluster
    this.moeEpSize = moeEp ?? Math.floor(tpSize / ((moeTp ?? 1) * cluster))
    this.moeTpSize = moeTp ?? Math.floor(tpSize / (this.moeEpSize * cluster))

    const attnTp = sizeOrDefault('attnTpSize', options.attnTpSize)
    const attnCp = sizeOrDefault('attnCpSize', options.attnCpSize, attnTp === undefined ? 1 : undefined)
    this.attnCpSize = attnCp ?? Math.floor((cpSize * tpSize) / (attnTp ?? 1))
    this.attnTpSize = attnTp ?? Math.floor((cpSize * tpSize) / this.attnCpSize)

    this.#checkSizes()
    this.rank = rank

    const withinMoeTp = this.moeClusterSize * this.moeEpSize
    this.#axes = {
      tp: { size: tpSize, stride: 1 },
      pp: { size: ppSize, stride: tpSize * cpSize },
      cp: { size: cpSize, stride: tpSize },
      moeTp: { size: this.moeTpSize, stride: withinMoeTp },
      moeCluster: { size: withinMoeTp, stride: 1 },
      moeEp: { size: this.moeEpSize, stride: 1 },
    }
  }

  #checkSizes(): void {
    const { worldSize, tpSize, ppSize, cpSize, moeTpSize, moeEpSize, moeClusterSize, attnTpSize, attnCpSize } = this
    if (attnCpSize !== 1) {
      throw new ArgumentError(`Expected attnCpSize 1 but received ${attnCpSize} (attnTpSize ${attnTpSize}); leave both unset to use 1`)
    }
    if (this.autoParallel && (tpSize !== 1 || ppSize !== 1 || cpSize !== 1)) {
      throw new ArgumentError(
        `Expected tpSize, ppSize and cpSize of 1 with autoParallel but received ${tpSize}, ${ppSize} and ${cpSize}; drop the sizes or autoParallel`,
      )
    }
    if (!this.autoParallel && tpSize * ppSize * cpSize !== worldSize) {
      throw new ArgumentError(
        `Expected tpSize * ppSize * cpSize to equal worldSize but received ${tpSize} * ${ppSize} * ${cpSize} for a world of ${worldSize}; ` +
          `change a size or set worldSize to ${tpSize * ppSize * cpSize}`,
      )
    }
    if (moeTpSize * moeEpSize * moeClusterSize !== tpSize) {
      throw new ArgumentError(
        `Expected moeTpSize * moeEpSize * moeClusterSize to equal tpSize but received ${moeTpSize} * ${moeEpSize} * ${moeClusterSize} ` +
          `for tpSize ${tpSize}; choose factors of tpSize, or leave one of them unset`,
      )
    }
    if (attnTpSize * attnCpSize !== tpSize * cpSize) {
      throw new ArgumentError(
        `Expected attnTpSize * attnCpSize to equal tpSize * cpSize but received ${attnTpSize} * ${attnCpSize} for ${tpSize} * ${cpSize}; ` +
          'leave the attn sizes unset',
      )
    }
    if (moeEpSize !== 1 && cpSize > 1) {
      throw new ArgumentError(`Expected moeEpSize 1 with cpSize ${cpSize} but received ${moeEpSize}; use one of the two`)
    }
    if (moeEpSize !== 1 && moeClusterSize > 1) {
      throw new ArgumentError(`Expected moeEpSize 1 with moeClusterSize ${moeClusterSize} but received ${moeEpSize}; use one of the two`)
    }
  }

  get rank(): number {
    return this.#rank
  }

  /** Throws ERR_ARGUMENT on anything but an integer in [0, worldSize). */
  set rank(rank: number) {
    this.#checkRank(rank)
    this.#rank = rank
  }

  get tpRank(): number {
    return this.#rankAlong('tp')
  }

  /** The pipeline stage. */
  get ppRank(): number {
    return this.#rankAlong('pp')
  }

  get cpRank(): number {
    return this.#rankAlong('cp')
  }

  get moeTpRank(): number {
    return this.#rankAlong('moeTp')
  }

  get moeClusterRank(): number {
    return this.tpRank % this.moeClusterSize
  }

  get moeEpRank(): number {
    return this.#rankAlong('moeEp')
  }

  get nodeRank(): number {
    return this.getNodeRank(this.rank)
  }

  get localRank(): number {
    return this.getLocalRank(this.rank)
  }

  /** The ranks of this rank's tensor-parallel group, itself included, ascending; likewise the groups below. */
  get tpGroup(): RankGroup {
    return this.#groupAlong('tp')
  }

  get ppGroup(): RankGroup {
    return this.#groupAlong('pp')
  }

  get cpGroup(): RankGroup {
    return this.#groupAlong('cp')
  }

  get moeTpGroup(): RankGroup {
    return this.#groupAlong('moeTp')
  }

  /** The moeClusterSize * moeEpSize ranks between two members of a moe tp group; with moeEpSize 1 the cluster, otherwise the moe ep group. */
  get moeClusterGroup(): RankGroup {
    return this.#groupAlong('moeCluster')
  }

  get moeEpGroup(): RankGroup {
    return this.#groupAlong('moeEp')
  }

  /** All tensor-parallel groups of the world; every rank is in exactly one. Likewise the lists below. */
  get tpGroups(): readonly RankGroup[] {
    return this.#groupsAlong('tp')
  }

  get ppGroups(): readonly RankGroup[] {
    return this.#groupsAlong('pp')
  }

  get cpGroups(): readonly RankGroup[] {
    return this.#groupsAlong('cp')
  }

  get moeTpGroups(): readonly RankGroup[] {
    return this.#groupsAlong('moeTp')
  }

  get moeClusterGroups(): readonly RankGroup[] {
    return this.#groupsAlong('moeCluster')
  }

  get moeEpGroups(): readonly RankGroup[] {
    return this.#groupsAlong('moeEp')
  }

  hasCp(): boolean {
    return this.cpSize > 1
  }

  hasTp(): boolean {
    return this.tpSize > 1
  }

  hasPp(): boolean {
    return this.ppSize > 1
  }

  hasMoeCluster(): boolean {
    return this.moeClusterSize > 1
  }

  hasMoeTp(): boolean {
    return this.moeTpSize > 1
  }

  hasMoeEp(): boolean {
    return this.moeEpSize > 1
  }

  isMultiNode(): boolean {
    return this.worldSize > this.gpusPerNode
  }

  /** The node that `rank` runs on, counted from 0. */
  getNodeRank(rank: number): number {
    this.#checkRank(rank)
    return Math.floor(rank / this.gpusPerNode)
  }

  /** The place of `rank` on its node. */
  getLocalRank(rank: number): number {
    this.#checkRank(rank)
    return rank % this.gpusPerNode
  }

  isFirstPpRank(): boolean {
    return this.ppRank === 0
  }

  isLastPpRank(): boolean {
    return this.ppRank === this.ppSize - 1
  }

  isSecondLastPpRank(): boolean {
    return this.ppRank === this.ppSize - 2
  }

  /** The same place one pipeline stage before; the first stage wraps to the last. */
  prevPpRank(): number {
    return this.ppGroup.at(this.ppRank - 1) as number
  }

  /** The same place one pipeline stage on; the last stage wraps to the first. */
  nextPpRank(): number {
    return this.ppGroup[(this.ppRank + 1) % this.ppSize] as number
  }

  /**
   * The layers of this pipeline stage out of `layerCount`: contiguous, in stage order, the first `layerCount % ppSize` stages taking one
   * more than the others. A stage gets none if there are fewer layers than stages.
   */
  ppLayers(layerCount: number): number[] {
    checkInteger('layerCount', layerCount, 0)
    const each = Math.floor(layerCount / this.ppSize)
    const larger = layerCount % this.ppSize
    return range(this.ppRank * each + Math.min(this.ppRank, larger), each + (this.ppRank < larger ? 1 : 0), 1)
  }

  /**
   * The experts of this moe ep rank out of `expertCount`: floor(expertCount / moeEpSize) contiguous ones. The remainder belongs to no rank,
   * as in the original. Throws ERR_ARGUMENT when cpSize > 1.
   */
  epExperts(expertCount: number): number[] {
    checkInteger('expertCount', expertCount, 0)
    if (this.cpSize > 1) {
      throw new ArgumentError(
        `Expected cpSize 1 for epExperts but received ${this.cpSize}; experts are not divided under context parallelism`,
      )
    }
    const each = Math.floor(expertCount / this.moeEpSize)
    return range(this.moeEpRank * each, each, 1)
  }

  /** The mapping under the names of the Python class. As there, cp_config and enable_attention_dp are left out. */
  toDict(): MappingDict {
    return {
      world_size: this.worldSize,
      rank: this.rank,
      gpus_per_node: this.gpusPerNode,
      cp_size: this.cpSize,
      tp_size: this.tpSize,
      pp_size: this.ppSize,
      moe_tp_size: this.moeTpSize,
      moe_cluster_size: this.moeClusterSize,
      moe_ep_size: this.moeEpSize,
      attn_tp_size: this.attnTpSize,
      attn_cp_size: this.attnCpSize,
      auto_parallel: this.autoParallel,
    }
  }

  /** The constructor under the names of the Python class; a key that it does not have throws ERR_ARGUMENT. */
  static fromDict(dict: MappingDictInput): Mapping {
    const options: Record<string, unknown> = {}
    for (const [key, value] of Object.entries(dict)) {
      if (!Object.hasOwn(OPTION_OF_KEY, key)) {
        throw new ArgumentError(`Unknown key ${describe(key)} in a mapping; expected some of ${Object.keys(OPTION_OF_KEY).join(', ')}`)
      }
      options[OPTION_OF_KEY[key as keyof MappingDictInput]] = value
    }
    return new Mapping(options as MappingOptions)
  }

  /** Whether `other` is a mapping whose `toDict` has the same values; cpConfig and enableAttentionDp do not count, as in the original. */
  equals(other: unknown): boolean {
    if (!(other instanceof Mapping)) return false
    const theirs = other.toDict()
    return Object.entries(this.toDict()).every(([key, value]) => theirs[key as keyof MappingDict] === value)
  }

  #checkRank(rank: number): void {
    if (!Number.isInteger(rank) || rank < 0 || rank >= this.worldSize) {
      throw invalidArgument('rank', `an integer in [0, ${this.worldSize - 1}] (worldSize ${this.worldSize})`, rank)
    }
  }

  #rankAlong(name: AxisName): number {
    const { size, stride } = this.#axes[name]
    return Math.floor(this.rank / stride) % size
  }

  #groupAlong(name: AxisName): RankGroup {
    const { size, stride } = this.#axes[name]
    return Object.freeze(range(this.rank - this.#rankAlong(name) * stride, size, stride))
  }

  #groupsAlong(name: AxisName): readonly RankGroup[] {
    let groups = this.#groups.get(name)
    if (groups === undefined) {
      groups = Object.freeze(groupsOf(this.worldSize, this.#axes[name]))
      this.#groups.set(name, groups)
    }
    return groups
  }
}

function groupsOf(worldSize: number, { size, stride }: Axis): RankGroup[] {
  const groups: RankGroup[] = []
  for (let start = 0; start < worldSize; start += size * stride) {
    for (let offset = 0; offset < stride; offset++) groups.push(Object.freeze(range(start + offset, size, stride)))
  }
  return groups
}

function range(start: number, count: number, step: number): number[] {
  return Array.from({ length: count }, (_, i) => start + i * step)
}
