// What a Mapping is made from: its options, the Python class's dict of the same facts, and the checks of both.
import { ArgumentError, describe, invalidArgument } from '../core/errors.ts'

/** Every size is a positive integer; the moe and attn sizes may be -1, which derives them from tpSize and cpSize. */
export interface MappingOptions {
  /** Ranks in the world; default 1. */
  worldSize?: number
  /** This rank, in [0, worldSize); default 0. */
  rank?: number
  /** Ranks on one node; default 8. */
  gpusPerNode?: number
  /** Ranks that share a sequence (context parallelism); default 1. */
  cpSize?: number
  /** Carried along, never read. */
  cpConfig?: Readonly<Record<string, unknown>>
  /** Ranks that share a layer (tensor parallelism); default 1. */
  tpSize?: number
  /** Pipeline stages; default 1. */
  ppSize?: number
  /** Neighbouring ranks of a tp group that form one MoE cluster; default 1. */
  moeClusterSize?: number
  /** Ranks of a tp group that share an expert; by default what the other two moe sizes leave of tpSize. */
  moeTpSize?: number
  /** Parts into which the experts are divided; by default what the other two moe sizes leave of tpSize, 1 if neither is given. */
  moeEpSize?: number
  /** Ranks that share attention; default tpSize * cpSize. */
  attnTpSize?: number
  /** Only 1 is supported. */
  attnCpSize?: number
  /** The layout is chosen elsewhere: the world may have any size, every group is a rank alone. Needs tpSize, ppSize and cpSize of 1. */
  autoParallel?: boolean
  /** Carried along, never read. */
  enableAttentionDp?: boolean
}

/** What `toDict` gives: the names of the Python class, so that a mapping can be exchanged with it. */
export interface MappingDict {
  world_size: number
  rank: number
  gpus_per_node: number
  cp_size: number
  tp_size: number
  pp_size: number
  moe_tp_size: number
  moe_cluster_size: number
  moe_ep_size: number
  attn_tp_size: number
  attn_cp_size: number
  auto_parallel: boolean
}

/** What `fromDict` takes: any of the Python constructor's arguments. */
export type MappingDictInput = Partial<MappingDict> & {
  cp_config?: Readonly<Record<string, unknown>> | null
  enable_attention_dp?: boolean
}

/** The option that each key of a dict stands for. */
export const OPTION_OF_KEY: Readonly<Record<keyof Required<MappingDictInput>, keyof MappingOptions>> = {
  world_size: 'worldSize',
  rank: 'rank',
  gpus_per_node: 'gpusPerNode',
  cp_size: 'cpSize',
  cp_config: 'cpConfig',
  tp_size: 'tpSize',
  pp_size: 'ppSize',
  moe_cluster_size: 'moeClusterSize',
  moe_tp_size: 'moeTpSize',
  moe_ep_size: 'moeEpSize',
  attn_tp_size: 'attnTpSize',
  attn_cp_size: 'attnCpSize',
  auto_parallel: 'autoParallel',
  enable_attention_dp: 'enableAttentionDp',
}

const OPTION_NAMES: ReadonlySet<string> = new Set(Object.values(OPTION_OF_KEY))

/** Refuses names that are no options. */
export function checkNames(options: MappingOptions): void {
  for (const name of Object.keys(options)) {
    if (OPTION_NAMES.has(name)) continue
    const hint = Object.hasOwn(OPTION_OF_KEY, name)
      ? 'Mapping.fromDict takes such names'
      : `expected some of ${[...OPTION_NAMES].join(', ')}`
    throw new ArgumentError(`Unknown option ${describe(name)} of a mapping; ${hint}`)
  }
}

/** A boolean; absent means false. */
export function checkFlag(name: string, value: boolean | undefined): boolean {
  if (value !== undefined && typeof value !== 'boolean') throw invalidArgument(name, 'a boolean', value)
  return value ?? false
}

/** A size of which -1 and undefined mean `fallback`. */
export function sizeOrDefault(name: string, size: number | undefined, fallback: number): number
export function sizeOrDefault(name: string, size: number | undefined, fallback?: number): number | undefined
export function sizeOrDefault(name: string, size: number | undefined, fallback?: number): number | undefined {
  if (size === undefined || size === -1) return fallback
  if (!Number.isSafeInteger(size) || size < 1) throw invalidArgument(name, 'a positive integer, or -1 for the default,', size)
  return size
}
