// WebGpuGroup: what the ranks of one group share: their devices, the order of their collectives, and how partials and results are laid out.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import { mergesOf, slotsOf } from '../../core/tree.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { copyBytes, type Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { treeSum } from '../../device/webgpu/tree.ts'
import { STEP_BYTES, sumsOnHost, wireType } from '../algorithms.ts'
import type { TargetOf } from '../calls/run.ts'
import type { ReduceOp, TreeCut } from '../device-comm.ts'
import type { Link } from '../link.ts'
import type { MeetOptions } from '../rendezvous.ts'
import {
  type Cluster,
  emptySlices,
  exchange,
  type FarDevice,
  isHere,
  mergeLanes,
  type Site,
  type Slices,
  type Source,
  sitesOf,
  slicesOf,
} from './clusters.ts'
import { WITHIN_THREAD, WireCrossing } from './crossing.ts'
import { sumSlice } from './host-sum.ts'
import { reduceSlices } from './kernels.ts'
import { Scope } from './scope.ts'

export type Target = TargetOf<Operand>

export class WebGpuGroup {
  /** All devices of the group. */
  readonly sites: readonly Site[]
  /** Those of them that are here, in the same order: all, or over a wire the one of this thread's rank. */
  readonly clusters: readonly Cluster[]
  /** What one more wait for a device is worth in bytes, for the choice of algorithms; `tune` measures it. */
  stepBytes: number = STEP_BYTES
  readonly #devices: readonly (WebGpuDevice | FarDevice)[]
  readonly #link: Link | null
  #last: Promise<unknown> = Promise.resolve()

  /** `devices` by rank of the group. */
  constructor(devices: readonly (WebGpuDevice | FarDevice)[], link: Link | null) {
    this.#devices = devices
    this.#link = link
    this.sites = sitesOf(devices)
    this.clusters = this.sites.filter(isHere)
  }

  /**
   * Runs a collective once those before it have ended, so that ranks may start several without awaiting each. Over a wire every rank runs
   * it, in the same order: what all know of all operands decides what is exchanged, kernels run on the devices that are here.
   */
  run<R>(call: string, { timeoutMs }: MeetOptions, action: (scope: Scope) => Promise<R>): Promise<R> {
    const crossing = this.#link ? new WireCrossing(this.#link, this.sites, call, timeoutMs) : WITHIN_THREAD
    const result = this.#last.then(() =>
      Scope.run(crossing, (scope) => {
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

  /** The device of a rank. */
  home(rank: number): Site {
    return this.sites.find(({ ranks }) => ranks.includes(rank)) as Site
  }

  /** A rank's own handle on memory of its device; takes over one count of `storage`. */
  tensor(scope: Scope, rank: number, storage: GpuStorage, shape: Shape, dtype: DType): Tensor {
    return scope.result(new Tensor(this.#devices[rank] as WebGpuDevice, storage, shape, dtype))
  }

  /**
   * What is left to reduce on each device of `targets` that is here: its ranks' operands where it is alone, else one partial of every device. Between
   * devices floats travel as float32, so that the result is rounded once. Or their sum; see `sumsOnHost`.
   */
  async partials(scope: Scope, operands: readonly Operand[], op: ReduceOp, targets: readonly Site[] = this.sites): Promise<Slices[]> {
    if (this.sites.length === 1) return this.side(scope, operands, targets)
    const { sources, dtype } = this.sources(scope, operands, op)
    const { byteLength } = (sources[0] as Source).range
    if (byteLength > 0 && targets === this.sites && scope.crossing.passing && sumsOnHost(op, dtype)) {
      const parts = await scope.crossing.read(sources)
      return this.clusters.map((cluster) => sumSlice(scope, cluster, parts))
    }
    return exchange(scope, sources, targets, byteLength, dtype)
  }

  /**
   * One partial a device, ready to travel: what its ranks add up to, as float32 where they are floats so that the result is rounded once; or
   * the operands themselves where every device has one rank.
   */
  sources(scope: Scope, operands: readonly Operand[], op: ReduceOp): { sources: Source[]; dtype: DType } {
    const [{ dtype, count }] = operands as [Operand]
    const single = this.sites.length === operands.length
    const wire = wireType(dtype, single)
    if (single) return { sources: operands.map(({ range }, rank) => ({ site: this.home(rank), range })), dtype: wire }
    const sources = this.clusters.map((cluster) => {
      const y = emptySlices(scope, cluster, 1, count * dtypeSize(wire), wire)
      const x = slicesOf(scope, cluster, rangesOf(cluster, operands), dtype)
      reduceSlices(cluster, x, { range: y.range, dtype: wire, use: 'w', count, padded: true }, op === 'avg' ? 'sum' : op, 1)
      return { site: cluster, range: { ...y.range, byteLength: count * dtypeSize(wire) } }
    })
    return { sources, dtype: wire }
  }

  /** The sums of all ranks' subtrees, joined on each device in the order of the tree. */
  async joined(scope: Scope, operands: readonly Operand[], { spans }: TreeCut): Promise<Slices[]> {
    const slots = slotsOf(spans)
    const merges = mergesOf(spans, slots)
    const count = (operands[0] as Operand).count / slots
    const sides = await this.side(scope, operands)
    return this.clusters.map((cluster, i) => {
      const { range, pitch } = sides[i] as Slices
      const sum = emptySlices(scope, cluster, 1, count * 4, 'float32')
      if (count > 0) treeSum(cluster.sink, range, pitch, { ...sum.range, byteLength: count * 4 }, count, slots, merges)
      return sum
    })
  }

  /** All ranks' operands side by side, in rank order, on each device of `targets` that is here. */
  async side(scope: Scope, operands: readonly Operand[], targets: readonly Site[] = this.sites): Promise<Slices[]> {
    const [{ dtype, range }] = operands as [Operand]
    const [first] = this.clusters as [Cluster]
    if (this.sites.length === 1) return [slicesOf(scope, first, rangesOf(first, operands), dtype)]
    const sources = operands.map((operand, rank) => ({ site: this.home(rank), range: operand.range }))
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
