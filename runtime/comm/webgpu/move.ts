// The WebGPU collectives that move operands: allGather, allGatherV, gather, broadcast, in place or to memory of its own.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, type Shape, sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyBytes, copyRuns, type Operand, rangeOf } from '../../device/webgpu/launch.ts'
import {
  type AllGather,
  type AllGatherV,
  allGatherBy,
  allGatherVBy,
  type Broadcast,
  broadcastBy,
  broadcastIntoBy,
  type Gather,
  gatherBy,
  type PartOf,
} from '../calls/move.ts'
import { interleave } from './arrange.ts'
import { isHere, type Slices, upload } from './clusters.ts'
import { land, partOf, sameRange } from './land.ts'
import { type Member, run } from './member.ts'
import type { Scope } from './scope.ts'

export const allGather: AllGather<Member> = allGatherBy(run, async ({ group, size }, operands, scope, { x, at }) => {
  const slices = await group.side(scope, operands)
  return group.spread(scope, widened(x.shape, at, size), x.dtype, [], (cluster, i, y) => {
    interleave(cluster, slices[i] as Slices, y.range, x.shape, at)
  })
})

export const gather: Gather<Member> = gatherBy(run, async ({ group, size }, operands, scope, { x, at, dst }) => {
  const cluster = group.home(dst)
  const [slices] = (await group.side(scope, operands, [cluster])) as [Slices]
  if (!isHere(cluster)) return operands.map(() => null)
  const shape = widened(x.shape, at, size)
  const storage = cluster.gpu.pool.allocate(sizeOf(shape) * dtypeSize(x.dtype))
  const whole = group.tensor(scope, dst, storage, shape, x.dtype)
  interleave(cluster, slices, rangeOf(cluster.gpu, whole), x.shape, at)
  return operands.map((_, rank) => (rank === dst ? whole : null))
})

export const allGatherV: AllGatherV<Member> = allGatherVBy(run, async (member, payloads, scope, { list, dim }) => {
  const gathered: Tensor[][] = []
  for (const [i, { shape }] of list.entries()) {
    const parts = payloads.map((own) => own[i] as PartOf<Operand>)
    gathered.push(await gatherParts(member, scope, parts, shape, resolveDim(dim, shape.length)))
  }
  return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
})

export const broadcast: Broadcast<Member> = broadcastBy(run, async ({ group }, operands, scope, { x, src }) => {
  const home = group.home(src)
  const { range } = operands[src] as Operand
  const [bytes] = group.sites.length > 1 && x.size > 0 ? await scope.crossing.read([{ site: home, range }]) : []
  return group.spread(scope, x.shape, x.dtype, [], (cluster, _, y) => {
    if (cluster === home) copyBytes(cluster.sink, range, y.range, range.byteLength)
    else if (bytes) upload(scope, cluster, y.range, bytes)
  })
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(run, async ({ group }, operands, scope, { x, src }) => {
  if (x.size === 0) return operands.map(() => null)
  const { range } = operands[src] as Operand
  const landed = await land(
    scope,
    group.sites.map((to) => ({ site: group.home(src), range, to })),
  )
  for (const [i, site] of group.sites.entries()) {
    if (!isHere(site)) continue
    const from = landed[i] as typeof range
    for (const rank of site.ranks) {
      const to = (operands[rank] as Operand).range
      if (!sameRange(from, to)) copyBytes(site.sink, from, to, from.byteLength)
    }
  }
  return operands.map(() => null)
})

/** The shape of all ranks' tensors concatenated along dimension `at`. */
function widened(shape: Shape, at: number, ranks: number): Shape {
  return shape.with(at, (shape[at] as number) * ranks)
}

async function gatherParts(
  { group }: Member,
  scope: Scope,
  parts: readonly PartOf<Operand>[],
  like: Shape,
  dim: number,
): Promise<Tensor[]> {
  const [{ operand: first, length: common }] = parts as [PartOf<Operand>]
  const { dtype } = first
  const lengths = parts.map(({ length }) => length)
  const total = lengths.reduce((a: number, b: number) => a + b, 0)
  const shape = like.with(dim, total)
  if (lengths.every((length) => length === common)) {
    const own = like.with(dim, common)
    const operands = parts.map((part) => part.operand)
    const slices = await group.side(scope, operands)
    return group.spread(scope, shape, dtype, [], (cluster, i, y) => interleave(cluster, slices[i] as Slices, y.range, own, dim))
  }
  const { outer, inner } = splitAt(shape, dim)
  const unit = inner * dtypeSize(dtype)
  const pieces = group.sites.flatMap((to) => parts.map(({ operand }, rank) => ({ site: group.home(rank), range: operand.range, to })))
  const landed = await land(scope, pieces)
  return group.spread(scope, shape, dtype, [], (cluster, _, y) => {
    let start = 0
    for (const [rank, length] of lengths.entries()) {
      const from = landed[group.sites.indexOf(cluster) * parts.length + rank] as Range
      const width = length * unit
      const to = partOf(y.range, start * unit, y.range.byteLength - start * unit)
      copyRuns(cluster.sink, from, to, { a: 1, b: outer, width, srcA: width, srcB: width, dstA: width, dstB: total * unit })
      start += length
    }
  })
}
