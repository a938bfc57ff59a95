// The WebGPU collectives that compute: allReduce, reduceScatter, reduce, and the reduction fused with residual, bias and RMSNorm.
import { dtypeSize } from '../../core/dtype.ts'
import { sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { copyRuns, type Operand, rangeOf } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { reductionCall } from '../algorithms.ts'
import {
  type AllReduce,
  type AllReduceTree,
  allReduceBy,
  allReduceTreeBy,
  type Norm,
  type NormOperands,
  normBy,
  type Reduce,
  type ReduceScatter,
  type ReduceScatterV,
  reduceBy,
  reduceScatterBy,
  reduceScatterVBy,
} from '../calls/reduce.ts'
import { scatterParts } from './arrange.ts'
import { algorithmFor } from './choose.ts'
import { emptySlices, isHere, type Slices } from './clusters.ts'
import { fusedNorm, reduceSlices } from './kernels.ts'
import { partOf } from './land.ts'
import { type Member, operandsOf, run } from './member.ts'
import { shareResidual, twoShotAllReduce, twoShotFused } from './two-shot.ts'

export const allReduce: AllReduce<Member> = allReduceBy(run, async (member, payloads, scope, { x, op, algorithm }) => {
  const call = reductionCall(member, 'allReduce', x, Math.ceil(x.size / 4))
  if (algorithmFor(member, call, algorithm) === 'two-shot') return twoShotAllReduce(member, scope, payloads, x, op)
  const partials = await member.group.partials(scope, operandsOf(payloads), op)
  const targets = payloads.map((p) => p.out)
  return member.group.spread(scope, x.shape, x.dtype, targets, (cluster, i, y) => {
    reduceSlices(cluster, partials[i] as Slices, y, op, member.size)
  })
})

export const allReduceResidualBiasRMSNorm: Norm<Member> = normBy(
  run,
  ({ range }) => range,
  async (member, payloads, scope, { x, residual, tree, algorithm, rows, n, eps, zeroCentered, portable }) => {
    const dims = { rows, n, eps, zeroCentered, portable }
    const call = reductionCall(member, 'allReduceResidualBiasRMSNorm', x, rows)
    if (!tree && algorithmFor(member, call, algorithm) === 'two-shot') return twoShotFused(member, scope, payloads, residual, dims)
    const operands = operandsOf(payloads)
    const partials = tree ? await member.group.joined(scope, operands, tree) : await member.group.partials(scope, operands, 'sum')
    const targets = payloads.map((p) => p.out)
    return member.group.spread(scope, residual.shape, residual.dtype, targets, (cluster, i, y) => {
      if (residual.size === 0) return
      const lead = payloads[cluster.ranks[0] as number] as NormOperands<Operand>
      fusedNorm(scope, cluster, partials[i] as Slices, { ...lead, out: y }, dims)
      shareResidual(cluster, payloads)
    })
  },
)

export const reduceScatter: ReduceScatter<Member> = reduceScatterBy(
  run,
  async ({ group, size }, operands, scope, { x, op, at, lengths }) => {
    const partials = await group.partials(scope, operands, op)
    const cut = { shape: x.shape, dtype: x.dtype, at, size }
    const part = x.shape.with(at, lengths[0] as number)
    const results: Tensor[] = []
    for (const [i, cluster] of group.clusters.entries()) {
      const storages = cluster.gpu.pool.allocateSlices(cluster.ranks.length, sizeOf(part) * dtypeSize(x.dtype))
      for (const [k, rank] of cluster.ranks.entries()) {
        results[rank] = group.tensor(scope, rank, storages[k] as GpuStorage, part, x.dtype)
      }
      if (x.size > 0) scatterParts(scope, cluster, partials[i] as Slices, storages, cut, op)
    }
    return results
  },
)

/** Each device reduces all of it and keeps its ranks' parts. */
export const reduceScatterV: ReduceScatterV<Member> = reduceScatterVBy(
  run,
  reduceScatter,
  async ({ group, size }, operands, scope, { x, op, at, lengths }) => {
    const partials = await group.partials(scope, operands, op)
    const { outer, length, inner } = splitAt(x.shape, at)
    const unit = inner * dtypeSize(x.dtype)
    const results: Tensor[] = []
    for (const [i, cluster] of group.clusters.entries()) {
      const whole = emptySlices(scope, cluster, 1, x.byteLength, x.dtype)
      const y: Operand = { range: whole.range, dtype: x.dtype, use: 'w', count: x.size, padded: true }
      reduceSlices(cluster, partials[i] as Slices, y, op, size)
      for (const rank of cluster.ranks) {
        const own = lengths[rank] as number
        const start = lengths.slice(0, rank).reduce((a, b) => a + b, 0) * unit
        const result = group.tensor(scope, rank, cluster.gpu.pool.allocate(outer * own * unit), x.shape.with(at, own), x.dtype)
        const width = own * unit
        const from = partOf(whole.range, start, x.byteLength - start)
        const runs = { a: 1, b: outer, width, srcA: width, srcB: length * unit, dstA: width, dstB: width }
        copyRuns(cluster.sink, from, rangeOf(cluster.gpu, result), runs)
        results[rank] = result
      }
    }
    return results
  },
)

/** Partials travel to dst's device alone. */
export const reduce: Reduce<Member> = reduceBy(run, async ({ group, size }, operands, scope, { x, op, dst }) => {
  const cluster = group.home(dst)
  const [slices] = (await group.partials(scope, operands, op, [cluster])) as [Slices]
  if (!isHere(cluster)) return operands.map(() => null)
  const storage = cluster.gpu.pool.allocate(x.byteLength)
  const whole = group.tensor(scope, dst, storage, x.shape, x.dtype)
  const { buffer, offset, byteLength } = storage
  const y: Operand = { range: { buffer, offset, byteLength }, dtype: x.dtype, use: 'w', count: x.size, padded: true }
  reduceSlices(cluster, slices, y, op, size)
  return operands.map((_, rank) => (rank === dst ? whole : null))
})

export const allReduceTree: AllReduceTree<Member> = allReduceTreeBy(run, async ({ group }, operands, scope, { tree, shape }) => {
  const sums = await group.joined(scope, operands, tree)
  return group.spread(scope, shape, 'float32', [], (cluster, i, y) => reduceSlices(cluster, sums[i] as Slices, y, 'sum', 1))
})
