// What the ranks of one GPU do there before their bytes go to the host: join their experts, and add up, so that one partial is read for all.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import type { Subtree } from '../../core/tree.ts'
import type { Operand as GpuOperand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { treeSum } from '../../device/webgpu/tree.ts'
import { wireType } from '../algorithms.ts'
import type { ReduceOp } from '../device-comm.ts'
import type { RankExperts } from '../fusion/experts.ts'
import { endToEnd } from '../link.ts'
import { type Cluster, emptySlices, mergeLanes, type Slices, sliceAt, slicesOf } from '../webgpu/clusters.ts'
import { WITHIN_THREAD } from '../webgpu/crossing.ts'
import { joinExperts } from '../webgpu/fusion-kernels.ts'
import { reduceSlices } from '../webgpu/kernels.ts'
import { Scope } from '../webgpu/scope.ts'
import type { Operand } from './group.ts'
import { type Numbers, numbersIn } from './numbers.ts'

/** The operands of the site's ranks as one, combined in float32 where they are floats; avg as their sum. */
export function sumOnGpu(site: Cluster, operands: readonly Operand[], op: ReduceOp): Promise<Numbers> {
  return Scope.run(WITHIN_THREAD, async (scope) => {
    mergeLanes([site])
    const [{ dtype, count }] = operands as [Operand]
    const ranges = operands.map((operand) => onGpu(operand).range)
    return readSum(scope, site, slicesOf(scope, site, ranges, dtype), count, op)
  })
}

/** Subtree sums of the site's ranks, `slots` of `count` float32 each, joined into fewer: those, end to end. */
export function joinOnGpu(
  site: Cluster,
  operands: readonly Operand[],
  { count, slots, subtrees }: { count: number; slots: number; subtrees: readonly Subtree[] },
): Promise<Uint8Array> {
  return Scope.run(WITHIN_THREAD, async (scope) => {
    mergeLanes([site])
    const bytes = count * 4
    const ranges = operands.map((operand) => onGpu(operand).range)
    const { range, pitch } = slicesOf(scope, site, ranges, 'float32')
    const sums = emptySlices(scope, site, subtrees.length, bytes, 'float32')
    for (const [i, { merges }] of subtrees.entries()) treeSum(site.sink, range, pitch, sliceAt(sums, i, bytes), count, slots, merges)
    const read = subtrees.map((_, i) => site.gpu.recorder.read(site.lanes[0] as number, sliceAt(sums, i, bytes)))
    return endToEnd(await Promise.all(read))
  })
}

/** The partial of each rank's experts, `count` elements of `dtype` rounded once; of all the site's ranks as one, unrounded. */
export function expertsOnGpu(
  site: Cluster,
  experts: readonly RankExperts<Operand>[],
  { count, hidden, dtype }: { count: number; hidden: number; dtype: DType },
): Promise<Numbers> {
  return Scope.run(WITHIN_THREAD, async (scope) => {
    mergeLanes([site])
    const bytes = count * dtypeSize(dtype)
    const slices = emptySlices(scope, site, experts.length, bytes, dtype)
    for (const [i, own] of experts.entries()) {
      const y: GpuOperand = { range: sliceAt(slices, i, bytes), dtype, use: 'w', count, padded: true }
      const held = { rows: onGpu(own.rows), scale: orNull(own.scale), index: orNull(own.index), shared: orNull(own.shared) }
      joinExperts(site.sink, { ...held, count: own.count, k: own.k, routed: own.routed }, y, hidden)
    }
    return readSum(scope, site, slices, count, 'sum')
  })
}

/** One partial is read as it is. */
async function readSum(scope: Scope, site: Cluster, x: Slices, count: number, op: ReduceOp): Promise<Numbers> {
  const dtype = wireType(x.dtype, x.count === 1)
  const byteLength = count * dtypeSize(dtype)
  let range = sliceAt(x, 0, byteLength)
  if (x.count > 1) {
    range = sliceAt(emptySlices(scope, site, 1, byteLength, dtype), 0, byteLength)
    reduceSlices(site, x, { range, dtype, use: 'w', count, padded: true }, op === 'avg' ? 'sum' : op, 1)
  }
  return numbersIn(dtype, await site.gpu.recorder.read(site.lanes[0] as number, range))
}

function onGpu({ buffer, offset, byteLength, dtype, count }: Operand): GpuOperand {
  const storage = buffer as GpuStorage
  const range = { buffer: storage.buffer, offset: storage.offset + offset, byteLength }
  return { range, dtype, use: 'r', count, padded: offset + byteLength === storage.byteLength }
}

function orNull(operand: Operand | null): GpuOperand | null {
  return operand && onGpu(operand)
}
