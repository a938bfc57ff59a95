// The WebGPU collectives that deal parts out: scatter from one rank, allToAll between all.
import { dtypeSize } from '../../core/dtype.ts'
import { sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyBytes, copyRuns, type Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { type AllToAll, allToAllBy, type Dealt, type Scatter, scatterBy } from '../calls/deal.ts'
import { type Cluster, elsewhere, isHere, slicesOf } from './clusters.ts'
import type { WebGpuGroup } from './group.ts'
import { land, type Piece, partOf } from './land.ts'
import { type Member, run } from './member.ts'
import type { Scope } from './scope.ts'

export const scatter: Scatter<Member> = scatterBy(run, async ({ group, size }, _, scope, { operand, shape, src, at }) => {
  const { outer, length, inner } = splitAt(shape, at)
  const part = shape.with(at, length / size)
  const bytes = sizeOf(part) * dtypeSize(operand.dtype)
  const home = group.home(src)
  const results: Tensor[] = []
  const cut = (cluster: Cluster): Range[] => {
    const storages = cluster.gpu.pool.allocateSlices(size, bytes)
    for (const [rank, storage] of storages.entries()) {
      if (cluster.ranks.includes(rank)) results[rank] = group.tensor(scope, rank, storage, part, operand.dtype)
      else scope.scratch(storage)
    }
    const ranges = storages.map(({ buffer, offset }) => ({ buffer, offset, byteLength: bytes }))
    const [first, second] = ranges as [Range, Range]
    const pitch = second.offset - first.offset
    const width = (length / size) * inner * dtypeSize(operand.dtype)
    const runs = { a: outer, b: size, width, srcA: size * width, srcB: width, dstA: width, dstB: pitch }
    copyRuns(cluster.sink, operand.range, { ...first, byteLength: size * pitch }, runs)
    return ranges
  }
  const ranges = isHere(home) ? cut(home) : group.sites.flatMap(({ ranks }) => ranks.map(() => elsewhere(bytes)))
  const away = ranges.map((range, rank) => ({ site: home, range, to: group.home(rank), rank })).filter(({ to }) => to !== home)
  const landed = await land(scope, away)
  for (const [i, { rank, to }] of away.entries()) {
    if (!isHere(to)) continue
    const storage = to.gpu.pool.allocate(bytes)
    results[rank] = group.tensor(scope, rank, storage, part, operand.dtype)
    copyBytes(to.sink, landed[i] as Range, { buffer: storage.buffer, offset: storage.offset, byteLength: bytes }, bytes)
  }
  return results
})

export const allToAll: AllToAll<Member> = allToAllBy(run, async ({ group, size }, payloads, scope, { x }) => {
  const tail = x.shape.slice(1)
  const unit = sizeOf(tail) * dtypeSize(x.dtype)
  const received = payloads.map((_, to) => payloads.reduce((sum, { splits: given }) => sum + (given[to] as number), 0))
  const places = results(scope, group, received, tail, x)
  const even = payloads.every(({ splits: given }) => given.every((n) => n === payloads[0]?.splits[0]))
  if (group.sites.length === 1 && even && x.size > 0) transpose(scope, group, payloads, places, x.byteLength / size)
  else await deal(scope, group, payloads, places, unit)
  return places.map(({ tensor }) => tensor)
})

/** The results of the ranks that are here: of one device, slices of one buffer. */
function results(scope: Scope, group: WebGpuGroup, rows: readonly number[], tail: readonly number[], x: Tensor): Place[] {
  const unit = sizeOf(tail) * dtypeSize(x.dtype)
  const places: Place[] = []
  for (const { gpu, ranks } of group.clusters) {
    const storages = gpu.pool.allocateSlices(ranks.length, Math.max(...ranks.map((rank) => rows[rank] as number)) * unit)
    for (const [k, rank] of ranks.entries()) {
      const storage = storages[k] as GpuStorage
      const range = { buffer: storage.buffer, offset: storage.offset, byteLength: (rows[rank] as number) * unit }
      places[rank] = { range, tensor: group.tensor(scope, rank, storage, [rows[rank] as number, ...tail], x.dtype) }
    }
  }
  return places
}

interface Place {
  range: Range
  tensor: Tensor
}

/** Equal splits on one device: one dispatch. */
function transpose(
  scope: Scope,
  { clusters }: WebGpuGroup,
  payloads: readonly Dealt<Operand>[],
  places: readonly Place[],
  width: number,
): void {
  const [cluster] = clusters as [Cluster]
  const operands = payloads.map(({ operand }) => operand)
  const slices = slicesOf(
    scope,
    cluster,
    operands.map(({ range }) => range),
    (operands[0] as Operand).dtype,
  )
  const [{ range: first }, { range: second }] = places as [Place, Place]
  const pitch = second.offset - first.offset
  const n = payloads.length
  const runs = { a: n, b: n, width, srcA: slices.pitch, srcB: width, dstA: width, dstB: pitch }
  copyRuns(cluster.sink, slices.range, { ...first, byteLength: n * pitch }, runs)
}

async function deal(
  scope: Scope,
  group: WebGpuGroup,
  payloads: readonly Dealt<Operand>[],
  places: readonly Place[],
  unit: number,
): Promise<void> {
  const pieces: (Piece & { place: Range | null })[] = []
  const filled = payloads.map(() => 0)
  for (const [from, { operand, splits }] of payloads.entries()) {
    let start = 0
    for (const [rank, rows] of splits.entries()) {
      const bytes = rows * unit
      const own = places[rank]
      const place = own ? partOf(own.range, filled[rank] as number, bytes) : null
      if (bytes > 0) pieces.push({ site: group.home(from), range: partOf(operand.range, start, bytes), to: group.home(rank), place })
      filled[rank] = (filled[rank] as number) + bytes
      start += bytes
    }
  }
  const landed = await land(scope, pieces)
  for (const [i, { to, place }] of pieces.entries()) {
    if (isHere(to) && place) copyBytes(to.sink, landed[i] as Range, place, place.byteLength)
  }
}
