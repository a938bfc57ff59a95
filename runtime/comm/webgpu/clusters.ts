// Clusters: which ranks of a group share a device, here or elsewhere, and how operands come to lie side by side on the devices that need them.
import type { DType } from '../../core/dtype.ts'
import { roundUp } from '../../core/shape.ts'
import { type Range, single } from '../../device/webgpu/commands.ts'
import { WebGpuDevice } from '../../device/webgpu/device.ts'
import type { Gpu } from '../../device/webgpu/gpu.ts'
import { copyBytes, type Sink } from '../../device/webgpu/launch.ts'
import { ALIGNMENT } from '../../device/webgpu/pool.ts'
import type { Scope } from './scope.ts'

/** A rank's device in another thread, process or machine, as this one knows it. */
export interface FarDevice {
  readonly adapter: string
}

/** The ranks of a group on one device, ascending; sites are ordered by their lowest rank. Those of this thread are clusters. */
export interface Site {
  readonly ranks: readonly number[]
  readonly adapter: string
}

/** A site whose device is here. */
export interface Cluster extends Site {
  readonly gpu: Gpu
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

/** Bytes of some device, as all sites know them: which are the same, and how many. */
export interface Extent {
  readonly buffer: { readonly id: number }
  readonly offset: number
  readonly byteLength: number
}

/** What one of several devices brings to an exchange. */
export interface Source {
  site: Site
  range: Extent
}

/** A source of this thread. */
export interface LocalSource extends Source {
  site: Cluster
  range: Range
}

export function sitesOf(devices: readonly (WebGpuDevice | FarDevice)[]): Site[] {
  const byMemory = new Map<Gpu | FarDevice, number[]>()
  devices.forEach((device, rank) => {
    const key = device instanceof WebGpuDevice ? device.gpu : device
    byMemory.set(key, [...(byMemory.get(key) ?? []), rank])
  })
  return [...byMemory].map(([memory, ranks]): Site | Cluster => {
    if (!('recorder' in memory)) return { ranks, adapter: memory.adapter }
    return clusterOf(
      memory,
      ranks,
      ranks.map((rank) => (devices[rank] as WebGpuDevice).lane),
    )
  })
}

export function clusterOf(gpu: Gpu, ranks: readonly number[], lanes: readonly number[]): Cluster {
  return { ranks, adapter: gpu.info.adapter, gpu, lanes, sink: { gpu, record: (command) => gpu.recorder.push(single(command)) } }
}

export function isHere(site: Site): site is Cluster {
  return 'gpu' in site
}

export function isLocal(source: Source): source is LocalSource {
  return isHere(source.site)
}

let far = 0

/** Stands for bytes that another site takes on its way. */
export function elsewhere(byteLength: number): Extent {
  return { buffer: { id: --far }, offset: 0, byteLength }
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
export async function readAll(sources: readonly LocalSource[]): Promise<Uint8Array<ArrayBuffer>[]> {
  const pending = sources.map(
    ({ site, range }) =>
      new Promise<Uint8Array<ArrayBuffer>>((resolve, reject) => {
        site.gpu.recorder.push({ kind: 'read', from: range, readers: [{ resolve, reject }] })
      }),
  )
  for (const gpu of new Set(sources.map(({ site }) => site.gpu))) gpu.recorder.flush()
  const outcomes = await Promise.allSettled(pending)
  return outcomes.map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason
    return outcome.value
  })
}

/** Bytes that a crossing gave, or a part of them, to a place on a device. */
export function upload({ crossing }: Scope, { sink }: Cluster, to: Range, bytes: Uint8Array): void {
  const own = bytes.byteLength % 4 === 0 && !crossing.passing
  const plain = own ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(roundUp(bytes.byteLength, 4))
  if (!own) plain.set(bytes)
  sink.record({ kind: 'upload', to, bytes: plain })
}

/**
 * Operands of equal size, one from each source, side by side on every device in `targets` that is here; each crosses the host once. All
 * sites name all targets.
 */
export async function exchange(
  scope: Scope,
  sources: readonly Source[],
  targets: readonly Site[],
  byteLength: number,
  dtype: DType,
): Promise<Slices[]> {
  const here = targets.filter(isHere)
  if (byteLength === 0) return here.map((target) => emptySlices(scope, target, sources.length, 0, dtype))
  const leaving = sources.filter(({ site }) => targets.some((target) => target !== site))
  const bytes = new Map((await scope.crossing.read(leaving)).map((data, i) => [leaving[i], data]))
  return here.map((target) => {
    const slices = emptySlices(scope, target, sources.length, byteLength, dtype)
    sources.forEach((source, i) => {
      const to = sliceAt(slices, i, byteLength)
      if (isLocal(source) && source.site === target) copyBytes(target.sink, source.range, to, byteLength)
      else upload(scope, target, to, bytes.get(source) as Uint8Array)
    })
    return slices
  })
}
