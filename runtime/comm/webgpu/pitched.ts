// allGather2D on WebGPU: blocks of rows gathered in place, at any pitch and distance between the ranks' blocks.
import { dtypeSize } from '../../core/dtype.ts'
import { copyRuns, type Operand } from '../../device/webgpu/launch.ts'
import { type AllGather2D, allGather2DBy } from '../calls/deal.ts'
import { elsewhere, emptySlices, isHere, type Slices, type Source, sliceAt, upload } from './clusters.ts'
import { partOf, sameRange } from './land.ts'
import { type Member, run } from './member.ts'

export const allGather2D: AllGather2D<Member> = allGather2DBy(run, async ({ group, size }, operands, scope, { buffer, layout }) => {
  const { pitch, stride, width, height } = layout
  const nothing = operands.map(() => null)
  if (width * height === 0 || size === 1) return nothing
  const unit = dtypeSize(buffer.dtype)
  const [row, bytes] = [width * unit, width * height * unit]
  const all = group.clusters.map((cluster) => emptySlices(scope, cluster, size, bytes, buffer.dtype))
  const own = operands.map(({ range }, rank): Source => {
    const site = group.home(rank)
    if (!isHere(site)) return { site, range: elsewhere(bytes) }
    const to = sliceAt(all[group.clusters.indexOf(site)] as Slices, rank, bytes)
    const from = partOf(range, rank * stride * unit, range.byteLength - rank * stride * unit)
    copyRuns(site.sink, from, to, { a: 1, b: height, width: row, srcA: row, srcB: pitch * unit, dstA: row, dstB: row })
    return { site, range: to }
  })
  const read = group.sites.length > 1 ? await scope.crossing.read(own) : []
  for (const [i, cluster] of group.clusters.entries()) {
    const slices = all[i] as Slices
    for (const [rank, { site }] of own.entries()) {
      if (site !== cluster) upload(scope, cluster, sliceAt(slices, rank, bytes), read[rank] as Uint8Array)
    }
    const ranks = { count: size, src: slices.pitch, dst: stride * unit }
    const rows = { count: height, src: row, dst: pitch * unit }
    const [a, b] = height === 1 || stride < pitch ? [ranks, rows] : [rows, ranks]
    const runs = { a: a.count, b: b.count, width: row, srcA: a.src, srcB: b.src, dstA: a.dst, dstB: b.dst }
    const places = cluster.ranks.map((rank) => (operands[rank] as Operand).range)
    for (const [k, place] of places.entries()) {
      if (!places.slice(0, k).some((other) => sameRange(other, place))) copyRuns(cluster.sink, slices.range, place, runs)
    }
  }
  return nothing
})
