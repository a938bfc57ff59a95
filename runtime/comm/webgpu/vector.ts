// The WebGPU collectives over parts of different lengths: allGatherV and reduceScatterV.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, type Shape, sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyRuns, type Operand } from '../../device/webgpu/launch.ts'
import { describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions, ScatterVOptions } from '../device-comm.ts'
import { checkCut, checkGathered, describeOpen, isEven, lengthAt } from '../part-checks.ts'
import { emptySlices, type Slices } from './clusters.ts'
import { reduceSlices } from './kernels.ts'
import { land, partOf } from './land.ts'
import { type Hold, held, type Member } from './member.ts'
import { interleave } from './moves.ts'
import { reduceScatter } from './reduce.ts'
import type { Scope } from './scope.ts'

/** All ranks' x concatenated along dim, where its length may differ between ranks; of a list, each of its tensors. */
export async function allGatherV(
  member: Member,
  x: Tensor | readonly Tensor[],
  { dim = 0, sizes, ...options }: GatherVOptions = {},
): Promise<Tensor | Tensor[]> {
  const list = (Array.isArray(x) ? x : [x]) as readonly Tensor[]
  const check = (): void => checkGathered(member.device, list, dim, { rank: member.rank, size: member.size, sizes })
  if (member.size === 1) {
    member.checkOpen()
    check()
    const same = list.map((tensor) => tensor.share())
    return Array.isArray(x) ? same : (same[0] as Tensor)
  }
  const call = `allGatherV(${list.map((tensor) => describeOpen(tensor, dim)).join('; ')}, dim ${dim}, sizes ${sizes === undefined ? 'of the operands' : describeShape(sizes)})`
  const prepare = (hold: Hold): Part[] => {
    check()
    return list.map((tensor) => ({ operand: hold(tensor, 'r'), length: lengthAt(tensor.shape, dim) }))
  }
  const results = await member.run(call, prepare, options, async (payloads, scope) => {
    const gathered: Tensor[][] = []
    for (const [i, { shape }] of list.entries()) {
      const parts = payloads.map((p) => p[i] as Part)
      gathered.push(await gatherParts(member, scope, parts, shape, resolveDim(dim, shape.length)))
    }
    return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
  })
  for (const tensor of list.slice(1)) member.counts.bytes += tensor.byteLength
  return member.counted(list[0] as Tensor, Array.isArray(x) ? results : (results[0] as Tensor))
}

/** A rank's operand, and its length along dim. */
interface Part {
  operand: Operand
  length: number
}

async function gatherParts({ group }: Member, scope: Scope, parts: readonly Part[], like: Shape, dim: number): Promise<Tensor[]> {
  const [{ operand: first, length: common }] = parts as [Part]
  const { dtype } = first
  const lengths = parts.map(({ length }) => length)
  const total = lengths.reduce((a: number, b: number) => a + b, 0)
  const shape = like.map((n, i) => (i === dim ? total : n))
  if (lengths.every((length) => length === common)) {
    const own = like.map((n, i) => (i === dim ? common : n))
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

/** The reduction over ranks, of which rank r gets sizes[r] along dim. Equal sizes, and none, are those of reduceScatter. */
export async function reduceScatterV(
  member: Member,
  x: Tensor,
  { dim = -1, sizes, op = 'sum', ...options }: ScatterVOptions = {},
): Promise<Tensor> {
  if (sizes === undefined || isEven(sizes, member.size, x, dim)) return reduceScatter(member, x, { dim, op, ...options })
  const check = (): void => checkCut(member.device, x, op, dim, sizes, member.size)
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatterV(${op}, ${describeTensor(x)}, dim ${dim}, sizes ${describeShape(sizes)})`
  const result = await member.run(call, held(x, check), options, async (operands, scope) => {
    const { group } = member
    const partials = await group.partials(scope, operands, op)
    const at = resolveDim(dim, x.shape.length)
    const { outer, length, inner } = splitAt(x.shape, at)
    const unit = inner * dtypeSize(x.dtype)
    const results: Tensor[] = []
    for (const [i, cluster] of group.clusters.entries()) {
      const whole = emptySlices(scope, cluster, 1, x.byteLength, x.dtype)
      const y: Operand = { range: whole.range, dtype: x.dtype, use: 'w', count: x.size, padded: true }
      reduceSlices(cluster, partials[i] as Slices, y, op, member.size)
      for (const rank of cluster.ranks) {
        const own = sizes[rank] as number
        const start = sizes.slice(0, rank).reduce((a: number, b: number) => a + b, 0) * unit
        const part = x.shape.map((n, k) => (k === at ? own : n))
        const { buffer, offset, byteLength, storage } = take(sizeOf(part) * dtypeSize(x.dtype))
        results[rank] = group.tensor(scope, rank, storage, part, x.dtype)
        const width = own * unit
        const from = partOf(whole.range, start, x.byteLength - start)
        copyRuns(
          cluster.sink,
          from,
          { buffer, offset, byteLength },
          { a: 1, b: outer, width, srcA: width, srcB: length * unit, dstA: width, dstB: width },
        )
      }
      function take(bytes: number) {
        const storage = cluster.gpu.pool.allocate(bytes)
        return { buffer: storage.buffer, offset: storage.offset, byteLength: bytes, storage }
      }
    }
    return results
  })
  return member.counted(x, result)
}
