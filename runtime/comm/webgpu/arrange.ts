// Data movement of the WebGPU collectives: operands interleaved along a dimension, and a sum cut into the ranks' parts.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, splitAt } from '../../core/shape.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyRuns } from '../../device/webgpu/launch.ts'
import { ALIGNMENT, type GpuStorage } from '../../device/webgpu/pool.ts'
import type { ReduceOp } from '../device-comm.ts'
import { type Cluster, emptySlices, type Slices } from './clusters.ts'
import { reduceSlices, scatterSlices } from './kernels.ts'
import type { Scope } from './scope.ts'

/** y = the slices concatenated along dimension `at`; `shape` is that of one slice. One dispatch. */
export function interleave({ sink }: Cluster, slices: Slices, y: Range, shape: Shape, at: number): void {
  const { outer, length, inner } = splitAt(shape, at)
  const width = length * inner * dtypeSize(slices.dtype)
  const runs = { a: slices.count, b: outer, width, srcA: slices.pitch, srcB: width, dstA: width, dstB: slices.count * width }
  copyRuns(sink, slices.range, y, runs)
}

/** What is cut, and how: the r-th of `size` parts of `shape` along dimension `at` goes to rank r. */
export interface Cut {
  shape: Shape
  dtype: DType
  at: number
  size: number
}

/** Reduces the slices and cuts the result; `parts` are the memory of the device's own ranks, slices of one buffer. */
export function scatterParts(
  scope: Scope,
  cluster: Cluster,
  slices: Slices,
  parts: readonly GpuStorage[],
  { shape, dtype, at, size }: Cut,
  op: ReduceOp,
): void {
  const { sink, ranks } = cluster
  const [first, second] = parts as [GpuStorage, GpuStorage?]
  const pitch = second ? second.offset - first.offset : Math.max(ALIGNMENT, first.byteLength)
  const range = { buffer: first.buffer, offset: first.offset, byteLength: (parts.length - 1) * pitch + first.byteLength }
  const { outer, length, inner } = splitAt(shape, at)
  const count = (length / size) * inner
  const lowest = ranks[0] as number
  const step = ranks.length > 1 ? (ranks[1] as number) - lowest : 0
  const regular = ranks.every((rank, i) => rank === lowest + i * step)
  if (outer === 1 && count % 4 === 0 && regular) {
    scatterSlices(cluster, slices, { range: { ...range, byteLength: first.byteLength }, pitch, dtype }, count, op, size)
    return
  }
  const total = outer * length * inner
  const whole = emptySlices(scope, cluster, 1, total * dtypeSize(dtype), dtype)
  reduceSlices(cluster, slices, { range: whole.range, dtype, use: 'w', count: total, padded: true }, op, size)
  const width = count * dtypeSize(dtype)
  const from = { ...whole.range, byteLength: total * dtypeSize(dtype) }
  if (regular) {
    const start = { ...from, offset: from.offset + lowest * width }
    copyRuns(sink, start, range, { a: outer, b: ranks.length, width, srcA: size * width, srcB: step * width, dstA: width, dstB: pitch })
    return
  }
  ranks.forEach((rank, i) => {
    const start = { ...from, offset: from.offset + rank * width }
    const to = { buffer: first.buffer, offset: first.offset + i * pitch, byteLength: first.byteLength }
    copyRuns(sink, start, to, { a: 1, b: outer, width, srcA: 0, srcB: size * width, dstA: width, dstB: width })
  })
}
