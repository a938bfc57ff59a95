// The results of a fused all-reduce on WebGPU: placed on each device, computed there, and handed to its ranks.
import { sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { type FusionResult, type FusionResultName, RESULT_NAMES } from '../fusion/options.ts'
import { bytesOfResult, emptyResult, largestSpecs, type RankPlaces, type ResultSpec, type ResultSpecs } from '../fusion/results.ts'
import type { RowsPlan } from '../fusion/rows.ts'
import type { Cluster } from './clusters.ts'
import { mirror } from './fusion-kernels.ts'
import type { WebGpuGroup } from './group.ts'
import type { Scope } from './scope.ts'

interface Placed {
  range: Range
  operand: Operand
  storage: GpuStorage | null
}

/**
 * Places the results on every device, has `run` compute them, and hands each rank its handles: its own tensor where it brought one, else
 * memory of the lead rank's workspace, or new, that the ranks of a device share.
 */
export function spreadResults(
  scope: Scope,
  group: WebGpuGroup,
  ranks: readonly RankPlaces<Operand>[],
  { traits, spec: rows, results: specs }: RowsPlan,
  run: (cluster: Cluster, index: number, operands: Partial<Record<FusionResultName, Operand>>) => void,
): FusionResult[] {
  const results: FusionResult[] = ranks.map(() => emptyResult())
  for (const [i, cluster] of group.clusters.entries()) {
    const lead = ranks[cluster.ranks[0] as number] as RankPlaces<Operand>
    const largest: ResultSpecs = lead.workspace ? largestSpecs(lead.workspace, traits, rows) : {}
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
      const targets = cluster.ranks.map((rank) => (ranks[rank] as RankPlaces<Operand>).targets[name])
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

function placeOf(
  scope: Scope,
  cluster: Cluster,
  lead: RankPlaces<Operand>,
  name: FusionResultName,
  spec: ResultSpec,
  largest: ResultSpec | undefined,
): Placed {
  const target = lead.targets[name]
  if (target) return { range: target.operand.range, operand: target.operand, storage: null }
  const bytes = bytesOfResult(spec)
  const { gpu } = cluster
  const capacity = largest ? bytesOfResult(largest) : bytes
  const kept = lead.workspace?.result(gpu, `${name} ${spec.dtype}`, bytes, capacity, (size) => gpu.pool.allocate(size))
  const storage = kept ?? scope.scratch(gpu.pool.allocate(bytes))
  const range = { buffer: storage.buffer, offset: storage.offset, byteLength: bytes }
  return { range, operand: { range, dtype: spec.dtype, use: 'w', count: sizeOf(spec.shape), padded: true }, storage }
}

function shared(scope: Scope, group: WebGpuGroup, rank: number, { storage }: Placed, { shape, dtype }: ResultSpec): Tensor {
  const memory = storage as GpuStorage
  memory.retain()
  return group.tensor(scope, rank, memory, shape, dtype)
}
