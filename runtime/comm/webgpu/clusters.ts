// Clusters: which ranks of a group share a device, and how their operands come to lie side by side on the devices that need them.
import type { DType } from '../../core/dtype.ts'
import { roundUp } from '../../core/shape.ts'
import { type Range, single } from '../../device/webgpu/commands.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import type { Gpu } from '../../device/webgpu/gpu.ts'
import { copyBytes, type Sink } from '../../device/webgpu/launch.ts'
import { ALIGNMENT } from '../../device/webgpu/pool.ts'
import type { Scope } from './scope.ts'

/** The ranks of a group on one device, ascending. Clusters are ordered by their lowest rank. */
export interface Cluster {
  readonly gpu: Gpu
  readonly ranks: readonly number[]
  readonly lanes: readonly number[]
  /** Records behind what the cluster's lanes have recorded up to the last merge. */
  readonly sink: Sink
}

/** Operands of several ranks (or clusters) on one device: operand i begins at `range.offset + i * pitch` bytes. */
export interface Slices {
  range: Range
  pitch: number
  count: number
  dtype: DType
}

/** What one of several devices brings to an exchange. */
export interface Source {
  cluster: Cluster
  range: Range
}

export function clustersOf(devices: readonly WebGpuDevice[]): Cluster[] {
  const byGpu = new Map<Gpu, number[]>()
  devices.forEach(({ gpu }, rank) => {
    byGpu.set(gpu, [...(byGpu.get(gpu) ?? []), rank])
  })
  return [...byGpu].map(([gpu, ranks]) => ({
    gpu,
    ranks,
    lanes: ranks.map((rank) => (devices[rank] as WebGpuDevice).lane),
    sink: { gpu, record: (command) => gpu.recorder.push(single(command)) },
  }))
}

/** Puts the ranks' own commands before whatever the collective records next. */
export function mergeLanes(clusters: readonly Cluster[]): void {
  for (const { gpu, lanes } of clusters) gpu.recorder.merge(lanes)
}

/**
 * A cluster's operands as slices: where they are, when they are slices of one buffer (`comm.allocate`) or one and the same tensor, else
 * copied side by side.
 */
export function slicesOf(scope: Scope, cluster: Cluster, ranges: readonly Range[], dtype: DType): Slices {
  const first = ranges[0] as Range
  const pitch = ranges.length > 1 ? (ranges[1] as Range).offset - first.offset : 0
  const regular = ranges.every((range, i) => range.buffer === first.buffer && range.offset === first.offset + i * pitch)
  if (regular && pitch >= 0 && pitch % 16 === 0 && first.offset % 16 === 0) {
    const byteLength = (ranges.length - 1) * pitch + first.byteLength
    return { range: { ...first, byteLength }, pitch, count: ranges.length, dtype }
  }
  const slices = emptySlices(scope, cluster, ranges.length, first.byteLength, dtype)
  for (const [i, range] of ranges.entries()) copyBytes(cluster.sink, range, sliceAt(slices, i, first.byteLength), first.byteLength)
  return slices
}

export function emptySlices(scope: Scope, { gpu }: Cluster, count: number, byteLength: number, dtype: DType): Slices {
  const pitch = Math.max(ALIGNMENT, roundUp(byteLength, ALIGNMENT))
  const { buffer, offset } = scope.scratch(gpu.pool.allocate(count * pitch))
  return { range: { buffer, offset, byteLength: count * pitch }, pitch, count, dtype }
}

export function sliceAt({ range, pitch }: Slices, index: number, byteLength: number): Range {
  return { buffer: range.buffer, offset: range.offset + index * pitch, byteLength }
}

/** Reads ranges of several devices; each device is asked once, all at the same time. */
export async function readAll(sources: readonly Source[]): Promise<Uint8Array<ArrayBuffer>[]> {
  const pending = sources.map(
    ({ cluster, range }) =>
      new Promise<Uint8Array<ArrayBuffer>>((resolve, reject) => {
        cluster.gpu.recorder.push({ kind: 'read', from: range, readers: [{ resolve, reject }] })
      }),
  )
  for (const gpu of new Set(sources.map(({ cluster }) => cluster.gpu))) gpu.recorder.flush()
  const outcomes = await Promise.allSettled(pending)
  return outcomes.map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason
    return outcome.value
  })
}

export function upload({ sink }: Cluster, to: Range, bytes: Uint8Array<ArrayBuffer>): void {
  const padded = bytes.byteLength % 4 === 0 ? bytes : new Uint8Array(roundUp(bytes.byteLength, 4))
  if (padded !== bytes) padded.set(bytes)
  sink.record({ kind: 'upload', to, bytes: padded })
}

/** Operands of equal size, one from each source, side by side on every device in `targets`; each crosses the host once. */
export async function exchange(
  scope: Scope,
  sources: readonly Source[],
  targets: readonly Cluster[],
  byteLength: number,
  dtype: DType,
): Promise<Slices[]> {
  if (byteLength === 0) return targets.map((target) => emptySlices(scope, target, sources.length, 0, dtype))
  const leaving = sources.filter(({ cluster }) => targets.some((target) => target !== cluster))
  const bytes = new Map((await readAll(leaving)).map((data, i) => [leaving[i], data]))
  return targets.map((target) => {
    const slices = emptySlices(scope, target, sources.length, byteLength, dtype)
    sources.forEach((source, i) => {
      const to = sliceAt(slices, i, byteLength)
      if (source.cluster === target) copyBytes(target.sink, source.range, to, byteLength)
      else upload(target, to, bytes.get(source) as Uint8Array<ArrayBuffer>)
    })
    return slices
  })
}
