// Data movement of the WebGPU collectives: operands interleaved along a dimension, and a sum cut into the ranks' parts.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyRuns } from '../../device/webgpu/launch.ts'
import { ALIGNMENT, type GpuStorage } from '../../device/webgpu/pool.ts'
import type { ReduceOp } from '../device-comm.ts'
import { type Cluster, emptySlices, type Slices } from './clusters.ts'
import { reduceSlices, scatterSlices } from './kernels.ts'

/** y = the slices concatenated along `dim`; `x` has the shape of one slice. One dispatch. */
export function interleave({ sink }: Cluster, slices: Slices, y: Range, x: Tensor, dim: number): void {
  const { outer, length, inner } = splitAt(x.shape, resolveDim(dim, x.shape.length))
  const width = length * inner * dtypeSize(x.dtype)
  const runs = { a: slices.count, b: outer, width, srcA: slices.pitch, srcB: width, dstA: width, dstB: slices.count * width }
  copyRuns(sink, slices.range, y, runs)
}

/** Reduces the slices and gives the r-th part along `dim` to rank r; `parts` are the memory of the device's own ranks, slices of one buffer. */
export function scatterParts(
  cluster: Cluster,
  slices: Slices,
  parts: readonly GpuStorage[],
  x: Tensor,
  dim: number,
  op: ReduceOp,
  size: number,
): void {
  const { sink, ranks } = cluster
  const [first, second] = parts as [GpuStorage, GpuStorage?]
  const pitch = second ? second.offset - first.offset : Math.max(ALIGNMENT, first.byteLength)
  const range = { buffer: first.buffer, offset: first.offset, byteLength: (parts.length - 1) * pitch + first.byteLength }
  const { outer, length, inner } = splitAt(x.shape, resolveDim(dim, x.shape.length))
  const count = (length / size) * inner
  const step = (ranks[1] ?? 0) - (ranks[0] as number)
  const regular = ranks.every((rank, i) => rank === (ranks[0] as number) + i * step)
  if (outer === 1 && count % 4 === 0 && regular) {
    scatterSlices(cluster, slices, { range: { ...range, byteLength: first.byteLength }, pitch, dtype: x.dtype }, count, op, size)
    return
  }
  const whole = emptySlices(cluster, 1, x.byteLength, x.dtype)
  reduceSlices(cluster, slices, { range: whole.range, dtype: x.dtype, use: 'w', count: x.size, padded: true }, op, size)
  const width = count * dtypeSize(x.dtype)
  const from = { ...whole.range, byteLength: x.byteLength }
  if (regular) {
    const start = { ...from, offset: from.offset + (ranks[0] as number) * width }
    copyRuns(sink, start, range, { a: outer, b: ranks.length, width, srcA: size * width, srcB: step * width, dstA: width, dstB: pitch })
  } else {
    ranks.forEach((rank, i) => {
      const start = { ...from, offset: from.offset + rank * width }
      const to = { buffer: first.buffer, offset: first.offset + i * pitch, byteLength: first.byteLength }
      copyRuns(sink, start, to, { a: 1, b: outer, width, srcA: 0, srcB: size * width, dstA: width, dstB: width })
    })
  }
  whole.release()
}
