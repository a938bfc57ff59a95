// Two-shot reductions over several devices: each device finishes its own part of everybody's partials, then all get all finished parts.
import { dtypeSize } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Span } from '../../core/tree.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyBytes, type Operand } from '../../device/webgpu/launch.ts'
import { sumsOnHost } from '../algorithms.ts'
import type { NormOperands, Summand } from '../calls/reduce.ts'
import type { ReduceOp } from '../device-comm.ts'
import { type Cluster, type Extent, elsewhere, emptySlices, isLocal, type Slices, type Source, sliceAt, upload } from './clusters.ts'
import { sumSlice } from './host-sum.ts'
import { fusedNorm, type NormDims, reduceSlices } from './kernels.ts'
import { type Member, operandsOf } from './member.ts'
import type { Scope } from './scope.ts'

/** Elements [start, start + count) for each of `devices`, cut at multiples of `unit`; the last parts may be empty. */
export function partsOf(count: number, devices: number, unit: number): Span[] {
  const size = Math.ceil(Math.ceil(count / unit) / devices) * unit
  return Array.from({ length: devices }, (_, i) => {
    const start = Math.min(i * size, count)
    return { start, count: Math.min(size, count - start) }
  })
}

/**
 * `sources` are the partials of a reduction by `op`, one a device, in the order of the sites; device i finishes elements `parts[i]`. `finish`
 * records the kernels for the part of a device that is here and returns what is finished, one range for each of its results, whose elements
 * have `widths` bytes. Gives a function that puts a result's parts, of every device, into a range of a device here. Two waits for each device.
 */
export async function twoShot(
  scope: Scope,
  sources: readonly Source[],
  dtype: Slices['dtype'],
  parts: readonly Span[],
  op: ReduceOp,
  widths: readonly number[],
  finish: (cluster: Cluster, x: Slices, part: Span) => Range[],
): Promise<(cluster: Cluster, result: number, to: Range) => void> {
  const size = dtypeSize(dtype)
  const partials = await scope.crossing.read(sources)
  const onHost = scope.crossing.passing && sumsOnHost(op, dtype)
  const finished: Extent[][] = sources.map((source, i) => {
    const part = parts[i] as Span
    if (part.count === 0) return []
    if (!isLocal(source)) return widths.map((width) => elsewhere(part.count * width))
    const { site, range } = source
    const bytes = part.count * size
    const at = part.start * size
    if (onHost) {
      const parts = partials.map((partial) => partial.subarray(at, at + bytes))
      return finish(site, sumSlice(scope, site, parts), part)
    }
    const slices = emptySlices(scope, site, sources.length, bytes, dtype)
    partials.forEach((partial, k) => {
      const to = sliceAt(slices, k, bytes)
      if (k === i) copyBytes(site.sink, { ...range, offset: range.offset + at, byteLength: bytes }, to, bytes)
      else upload(scope, site, to, partial.subarray(at, at + bytes))
    })
    return finish(site, slices, part)
  })
  const leaving = finished.flatMap((ranges, i) => ranges.map((range) => ({ site: (sources[i] as Source).site, range })))
  const data = await scope.crossing.read(leaving)
  const bytesOf = new Map(leaving.map(({ range }, i) => [range, data[i] as Uint8Array]))
  return (cluster, result, to) => {
    let at = to.offset
    for (const [i, ranges] of finished.entries()) {
      const range = ranges[result]
      if (!range) continue
      const place = { ...to, offset: at, byteLength: range.byteLength }
      const { site } = sources[i] as Source
      put(scope, cluster, site === cluster ? (range as Range) : (bytesOf.get(range) as Uint8Array), place)
      at += range.byteLength
    }
  }
}

/** Writes bytes, or copies a range of the same device, to a place of any alignment. */
function put(scope: Scope, cluster: Cluster, from: Range | Uint8Array, to: Range): void {
  if (!(from instanceof Uint8Array)) {
    if (from.buffer !== to.buffer || from.offset !== to.offset) copyBytes(cluster.sink, from, to, to.byteLength)
    return
  }
  if (to.offset % 4 === 0 && to.byteLength % 4 === 0) {
    upload(scope, cluster, to, from)
    return
  }
  const { range } = emptySlices(scope, cluster, 1, to.byteLength, 'uint8')
  upload(scope, cluster, { ...range, byteLength: to.byteLength }, from)
  copyBytes(cluster.sink, range, to, to.byteLength)
}

/** allReduce: each device reduces its own elements. */
export async function twoShotAllReduce(
  { group, size }: Member,
  scope: Scope,
  payloads: readonly Summand<Operand>[],
  x: Tensor,
  op: ReduceOp,
): Promise<Tensor[]> {
  const { sources, dtype } = group.sources(scope, operandsOf(payloads), op)
  const parts = partsOf(x.size, sources.length, 4)
  const deliver = await twoShot(scope, sources, dtype, parts, op, [dtypeSize(x.dtype)], (cluster, slices, { count }) => {
    const byteLength = count * dtypeSize(x.dtype)
    const y = emptySlices(scope, cluster, 1, byteLength, x.dtype)
    reduceSlices(cluster, slices, { range: y.range, dtype: x.dtype, use: 'w', count, padded: true }, op, size)
    return [{ ...y.range, byteLength }]
  })
  const targets = payloads.map(({ out }) => out)
  return group.spread(scope, x.shape, x.dtype, targets, (cluster, _, y) => deliver(cluster, 0, y.range))
}

/** The sums alone, float32 and whole on every device: for kernels that then finish all rows on each of them. */
export async function twoShotSums({ group, size }: Member, scope: Scope, operands: readonly Operand[]): Promise<Slices[]> {
  const { sources, dtype } = group.sources(scope, operands, 'sum')
  const [{ count }] = operands as [Operand]
  const deliver = await twoShot(scope, sources, dtype, partsOf(count, sources.length, 4), 'sum', [4], (cluster, slices, part) => {
    const byteLength = part.count * 4
    const { range } = emptySlices(scope, cluster, 1, byteLength, 'float32')
    reduceSlices(cluster, slices, { range, dtype: 'float32', use: 'w', count: part.count, padded: true }, 'sum', size)
    return [{ ...range, byteLength }]
  })
  return group.clusters.map((cluster) => {
    const sum = emptySlices(scope, cluster, 1, count * 4, 'float32')
    deliver(cluster, 0, { ...sum.range, byteLength: count * 4 })
    return sum
  })
}

/** The fused kernel: each device finishes its own rows, residual and result. Every rank's residual is whole afterwards. */
export async function twoShotFused(
  { group }: Member,
  scope: Scope,
  payloads: readonly NormOperands<Operand>[],
  residual: Tensor,
  { rows, n, ...norm }: NormDims,
): Promise<Tensor[]> {
  const { sources, dtype } = group.sources(scope, operandsOf(payloads), 'sum')
  const leadOf = ({ ranks }: Cluster): NormOperands<Operand> => payloads[ranks[0] as number] as NormOperands<Operand>
  const size = dtypeSize(residual.dtype)
  const parts = partsOf(rows * n, sources.length, n)
  const deliver = await twoShot(scope, sources, dtype, parts, 'sum', [size, size], (cluster, slices, { start, count }) => {
    const { residual: whole, weight, bias } = leadOf(cluster)
    const byteLength = count * size
    const own: Operand = {
      ...whole,
      range: { ...whole.range, offset: whole.range.offset + start * size, byteLength },
      count,
      padded: false,
    }
    const y = emptySlices(scope, cluster, 1, byteLength, residual.dtype)
    const out: Operand = { range: y.range, dtype: residual.dtype, use: 'w', count, padded: true }
    fusedNorm(scope, cluster, slices, { residual: own, weight, bias, out }, { rows: count / n, n, ...norm })
    return [{ ...y.range, byteLength }, own.range]
  })
  const targets = payloads.map(({ out }) => out)
  return group.spread(scope, residual.shape, residual.dtype, targets, (cluster, _, y) => {
    deliver(cluster, 0, y.range)
    deliver(cluster, 1, leadOf(cluster).residual.range)
    shareResidual(cluster, payloads)
  })
}

/** Gives the residual of a device's first rank to those of its others that are memory of their own. */
export function shareResidual({ sink, ranks }: Cluster, payloads: readonly NormOperands<Operand>[]): void {
  const [lead, ...others] = ranks.map((rank) => payloads[rank]) as [NormOperands<Operand>, ...NormOperands<Operand>[]]
  const from = lead.residual.range
  for (const { range: to } of others.map((other) => other.residual)) {
    if (to.buffer !== from.buffer || to.offset !== from.offset) copyBytes(sink, from, to, from.byteLength)
  }
}
