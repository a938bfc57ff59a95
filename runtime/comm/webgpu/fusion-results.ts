// The results of a fused all-reduce: what each pattern writes, of which shape, and whose memory it goes to.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { type FusionResult, type FusionResultName, RESULT_NAMES } from '../fusion/options.ts'
import { type PatternTraits, QUANT } from '../fusion/patterns.ts'
import { FP4_BLOCK, fp4ScaleBytes, packedScales, QuantizationSFLayout } from '../fusion/scale-layout.ts'
import type { Cluster } from './clusters.ts'
import { mirror } from './fusion-kernels.ts'
import type { AllReduceFusionWorkspace } from './fusion-workspace.ts'
import type { Target, WebGpuGroup } from './group.ts'
import type { Scope } from './scope.ts'

export interface ResultSpec {
  shape: Shape
  dtype: DType
}
export type ResultSpecs = Partial<Record<FusionResultName, ResultSpec>>

export interface RowsSpec {
  tokens: number
  hidden: number
  dtype: DType
  layout: QuantizationSFLayout
  group: number
}

/** What a pattern writes for rows of this kind. */
export function resultSpecs({ norm, normOut, quant }: PatternTraits, { tokens, hidden, dtype, layout, group }: RowsSpec): ResultSpecs {
  const rows = { shape: [tokens, hidden], dtype }
  if (!norm) return { output: rows }
  const specs: ResultSpecs = { residualOut: rows }
  if (normOut) specs.normOut = rows
  if (quant === QUANT.fp4) {
    const columns = hidden / FP4_BLOCK
    const linear = layout === QuantizationSFLayout.LINEAR
    specs.quantOut = { shape: [tokens, hidden / 2], dtype: 'float4_e2m1x2' }
    specs.scaleOut = { shape: linear ? [tokens, columns] : [fp4ScaleBytes(layout, tokens, columns)], dtype: 'uint8' }
  } else if (quant !== QUANT.none) {
    specs.quantOut = { shape: [tokens, hidden], dtype: 'float8_e4m3fn' }
    if (quant === QUANT.fp8Rows) specs.scaleOut = { shape: [tokens, 1], dtype: 'float32' }
    if (quant === QUANT.fp8Groups) specs.scaleOut = { shape: [packedScales(tokens, hidden / group).length], dtype: 'int32' }
  }
  return specs
}

/** What a rank brought: its own places for results, and its workspace. */
export interface RankPlaces {
  targets: Partial<Record<FusionResultName, Target>>
  workspace: AllReduceFusionWorkspace | undefined
}

interface Placed {
  range: Range
  operand: Operand
  storage: GpuStorage | null
}

/**
 * Places the results on every device, has `run` compute them, and hands each rank its handles: its own tensor where it brought one, else
 * memory of the lead rank's workspace, or new, that the ranks of a device share. `most` is `specs` for the most tokens of a workspace.
 */
export function spreadResults(
  scope: Scope,
  group: WebGpuGroup,
  ranks: readonly RankPlaces[],
  specs: ResultSpecs,
  most: (workspace: AllReduceFusionWorkspace) => ResultSpecs,
  run: (cluster: Cluster, index: number, operands: Partial<Record<FusionResultName, Operand>>) => void,
): FusionResult[] {
  const results: FusionResult[] = ranks.map(() => emptyResult())
  for (const [i, cluster] of group.clusters.entries()) {
    const lead = ranks[cluster.ranks[0] as number] as RankPlaces
    const largest = lead.workspace ? most(lead.workspace) : {}
    const placed: Partial<Record<FusionResultName, Placed>> = {}
    const operands: Partial<Record<FusionResultName, Operand>> = {}
    for (const name of RESULT_NAMES) {
      const spec = specs[name]
      if (!spec) continue
      const place = placeOf(scope, cluster, lead, name, spec, largest[name])
      placed[name] = place
      operands[name] = place.operand
    }
    run(cluster, i, operands)
    for (const name of RESULT_NAMES) {
      const place = placed[name]
      if (!place) continue
      const targets = cluster.ranks.map((rank) => (ranks[rank] as RankPlaces).targets[name])
      const own = targets.filter((target) => target !== undefined)
      mirror(
        cluster.sink,
        place.range,
        own.map((target) => target.operand.range),
      )
      if (place.storage) place.storage.readOnly = true
      for (const [k, rank] of cluster.ranks.entries()) {
        const result = results[rank] as FusionResult
        result[name] = targets[k]?.tensor ?? shared(scope, group, rank, place, specs[name] as ResultSpec)
      }
    }
  }
  return results
}

function emptyResult(): FusionResult {
  return { output: undefined, residualOut: undefined, normOut: undefined, quantOut: undefined, scaleOut: undefined }
}

function placeOf(
  scope: Scope,
  cluster: Cluster,
  lead: RankPlaces,
  name: FusionResultName,
  spec: ResultSpec,
  largest: ResultSpec | undefined,
): Placed {
  const target = lead.targets[name]
  if (target) return { range: target.operand.range, operand: target.operand, storage: null }
  const bytes = bytesOf(spec)
  const { gpu } = cluster
  const kept = lead.workspace?.result(gpu, `${name} ${spec.dtype}`, bytes, largest ? bytesOf(largest) : bytes)
  const storage = kept ?? scope.scratch(gpu.pool.allocate(bytes))
  const range = { buffer: storage.buffer, offset: storage.offset, byteLength: bytes }
  return { range, operand: { range, dtype: spec.dtype, use: 'w', count: sizeOf(spec.shape), padded: true }, storage }
}

function bytesOf({ shape, dtype }: ResultSpec): number {
  return sizeOf(shape) * dtypeSize(dtype)
}

function shared(scope: Scope, group: WebGpuGroup, rank: number, { storage }: Placed, { shape, dtype }: ResultSpec): Tensor {
  const memory = storage as GpuStorage
  memory.retain()
  return group.tensor(scope, rank, memory, shape, dtype)
}
