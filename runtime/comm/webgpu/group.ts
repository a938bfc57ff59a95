// WebGpuGroup: what the ranks of one group share: their devices, the order of their collectives, and how partials and results are laid out.
import { type DType, dtypeSize, isFloat } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { copyBytes, type Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import type { ReduceOp } from '../device-comm.ts'
import { type Cluster, clustersOf, emptySlices, exchange, mergeLanes, type Slices, slicesOf } from './clusters.ts'
import { reduceSlices } from './kernels.ts'
import { Scope } from './scope.ts'

/** A tensor that a rank named as the place of its result. */
export interface Target {
  tensor: Tensor
  operand: Operand
}

export class WebGpuGroup {
  /** By rank of the group. */
  readonly devices: readonly WebGpuDevice[]
  readonly clusters: readonly Cluster[]
  #last: Promise<unknown> = Promise.resolve()

  constructor(devices: readonly WebGpuDevice[]) {
    this.devices = devices
    this.clusters = clustersOf(devices)
  }

  /** Runs a collective once those before it have ended, so that ranks may start several without awaiting each. */
  run<R>(action: (scope: Scope) => Promise<R>): Promise<R> {
    const result = this.#last.then(() =>
      Scope.run((scope) => {
        mergeLanes(this.clusters)
        return action(scope)
      }),
    )
    this.#last = result.then(
      () => {},
      () => {},
    )
    return result
  }

  /** The cluster of a rank. */
  home(rank: number): Cluster {
    return this.clusters.find(({ ranks }) => ranks.includes(rank)) as Cluster
  }

  /** A rank's own handle on memory of its device; takes over one count of `storage`. */
  tensor(scope: Scope, rank: number, storage: GpuStorage, shape: Shape, dtype: DType): Tensor {
    return scope.result(new Tensor(this.devices[rank] as WebGpuDevice, storage, shape, dtype))
  }

  /**
   * What is left to reduce on each device: its ranks' operands where it is alone, else one partial of every device. Between devices
   * floats travel as float32, so that the result is rounded once.
   */
  async partials(scope: Scope, operands: readonly Operand[], op: ReduceOp): Promise<Slices[]> {
    const [{ dtype, count }] = operands as [Operand]
    const { clusters } = this
    if (clusters.length === 1 || clusters.length === operands.length) return this.side(scope, operands, clusters)
    const wire = isFloat(dtype) ? 'float32' : dtype
    const bytes = count * dtypeSize(wire)
    const sources = clusters.map((cluster) => {
      const x = slicesOf(scope, cluster, rangesOf(cluster, operands), dtype)
      const y = emptySlices(scope, cluster, 1, bytes, wire)
      reduceSlices(cluster, x, { range: y.range, dtype: wire, use: 'w', count, padded: true }, op === 'avg' ? 'sum' : op, 1)
      return { cluster, range: { ...y.range, byteLength: bytes } }
    })
    return exchange(scope, sources, clusters, bytes, wire)
  }

  /** All ranks' operands side by side, in rank order, on each device of `targets`. */
  async side(scope: Scope, operands: readonly Operand[], targets: readonly Cluster[]): Promise<Slices[]> {
    const [{ dtype, range }] = operands as [Operand]
    const [first] = this.clusters as [Cluster]
    if (this.clusters.length === 1) return [slicesOf(scope, first, rangesOf(first, operands), dtype)]
    const sources = operands.map((operand, rank) => ({ cluster: this.home(rank), range: operand.range }))
    return exchange(scope, sources, targets, range.byteLength, dtype)
  }

  /** One result a device, computed by `run` and held by all its ranks; where ranks brought targets, the result goes there. */
  spread(
    scope: Scope,
    shape: Shape,
    dtype: DType,
    targets: readonly (Target | undefined)[],
    run: (cluster: Cluster, index: number, y: Operand) => void,
  ): Tensor[] {
    const results: Tensor[] = []
    const count = sizeOf(shape)
    for (const [i, cluster] of this.clusters.entries()) {
      const own = cluster.ranks.map((rank) => targets[rank])
      const common = commonOperand(own)
      if (common) {
        run(cluster, i, common)
        for (const [k, rank] of cluster.ranks.entries()) results[rank] = (own[k] as Target).tensor
        continue
      }
      const storage = scope.scratch(cluster.gpu.pool.allocate(count * dtypeSize(dtype)))
      const { buffer, offset, byteLength } = storage
      const y: Operand = { range: { buffer, offset, byteLength }, dtype, use: 'w', count, padded: true }
      run(cluster, i, y)
      storage.readOnly = true
      for (const [k, rank] of cluster.ranks.entries()) {
        const target = own[k]
        if (target) copyBytes(cluster.sink, y.range, target.operand.range, byteLength)
        else storage.retain()
        results[rank] = target ? target.tensor : this.tensor(scope, rank, storage, shape, dtype)
      }
    }
    return results
  }
}

function rangesOf(cluster: Cluster, operands: readonly Operand[]): Range[] {
  return cluster.ranks.map((rank) => (operands[rank] as Operand).range)
}

/** The memory that all ranks of a device named as their target, where it is one and the same. */
function commonOperand(targets: readonly (Target | undefined)[]): Operand | null {
  const first = targets[0]?.operand
  const same = targets.every((target) => {
    const range = target?.operand.range
    return range && range.buffer === first?.range.buffer && range.offset === first.range.offset
  })
  return first && same ? first : null
}
