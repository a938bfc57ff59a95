// The collectives over peers' memory that move operands: each rank's goes to its workspace, and from there to whoever wants it.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import {
  type AllGather,
  type AllGatherV,
  alike,
  allGatherBy,
  allGatherVBy,
  type Broadcast,
  broadcastBy,
  broadcastIntoBy,
  type Gather,
  gatherBy,
  type PartOf,
} from '../calls/move.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Target } from '../staged/group.ts'
import { type Part as Command, type CudaGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'
import { blocksFor, WAY } from './plan.ts'
import { byRank } from './reduce.ts'

export const allGather: AllGather<Member> = allGatherBy(recorded, ({ group }, operands, results, { x, at, options }) => {
  const made = sideBySide(group, results, alike(operands, x, at), x, { at, options })
  return byRank(group, made, (target) => (target as Target).tensor)
})

export const gather: Gather<Member> = gatherBy(recorded, ({ group }, operands, results, { x, at, dst, options }) => {
  const made = sideBySide(group, results, alike(operands, x, at), x, { at, options, dst })
  return byRank(group, made, (target) => target?.tensor ?? null)
})

export const allGatherV: AllGatherV<Member> = allGatherVBy(recorded, ({ group }, payloads, results, { list, dim, options }) => {
  const gathered = list.map((tensor, i) => {
    const parts = payloads.map((own) => own[i] as PartOf<Operand>)
    return sideBySide(group, results, parts, tensor, { at: resolveDim(dim, tensor.shape.length), options })
  })
  return byRank(group, group.here, (_, rank) => gathered.map((made) => (made[group.here.indexOf(rank)] as Target).tensor))
})

export const broadcast: Broadcast<Member> = broadcastBy(recorded, ({ group }, operands, results, { x, src, options }) => {
  const targets = group.here.map((rank) => results.of(rank, x.shape, x.dtype))
  const to = targets.map(({ operand }) => operand)
  move(group, operands, [1, operands.map((operand, rank) => (rank === src ? operand.byteLength : 0))], to, options)
  return byRank(group, targets, ({ tensor }) => tensor)
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(recorded, ({ group }, operands, results, { src, options }) => {
  const source = operands[src] as Operand
  const to = group.here.map((rank) => {
    if (rank === src) return null
    const target = operands[rank] as Operand
    // Ranks of one device may have brought one tensor, or some of its parts.
    const at = results.place(target, { others: [source], own: [] })
    return { ...target, at }
  })
  move(group, operands, [1, operands.map((operand, rank) => (rank === src ? operand.byteLength : 0))], to, options)
  results.settle()
  return byRank(group, to, () => null)
})

/** All ranks' parts concatenated along dimension `at`, for the ranks that are here, or for `dst` of them alone. */
function sideBySide(
  group: CudaGroup,
  results: Results,
  parts: readonly PartOf<Operand>[],
  { shape: like, dtype }: Tensor,
  { at, dst, options }: { at: number; dst?: number; options: MeetOptions },
): (Target | null)[] {
  const { outer, inner } = splitAt(like, at)
  const total = parts.reduce((sum, { length }) => sum + length, 0)
  const made = group.here.map((rank) => (dst === undefined || rank === dst ? results.of(rank, like.with(at, total), dtype) : null))
  const widths = parts.map(({ length }) => length * inner * dtypeSize(dtype))
  const to = made.map((target) => target?.operand ?? null)
  const operands = parts.map(({ operand }) => operand)
  move(group, operands, [outer, widths], to, options)
  return made
}

const UNITS = [16, 4, 1] as const

/**
 * The ranks' rows side by side in `to`, by ranks that are here; of a rank with null nowhere. Rows are as many on all ranks, of so many bytes each
 * by rank.
 */
function move(
  group: CudaGroup,
  operands: readonly Operand[],
  [rows, widths]: readonly [number, readonly number[]],
  to: readonly ((Operand & { at?: ReturnType<typeof placeOf> }) | null)[],
  options: MeetOptions,
): void {
  const { plan, here } = group
  const unit = UNITS.find((bytes) => widths.every((width) => width % bytes === 0)) as number
  const units = widths.map((width) => width / unit)
  const pitch = units.reduce((sum, width) => sum + width, 0)
  const most = Math.max(...units) * rows
  const pieces = Math.ceil((most * unit) / plan.dataBytes)
  for (let piece = 0; piece < pieces; piece++) {
    const spans = units.flatMap((row) => {
      const [first, end] = [piece, piece + 1].map((at) => Math.floor((rows * row * at) / pieces)) as [number, number]
      return [row, first, end - first]
    })
    const parts = here.map((rank, i): Command => {
      const own = placeOf(operands[rank] as Operand)
      const target = to[i]
      const y = target ? (target.at ?? placeOf(target)) : own
      return { rank, numbers: [rows, unit, pitch, ...spans, Number(target !== null)], operands: [own, y], written: target ? [1] : [] }
    })
    group.together(OP.peerGather, { way: WAY.oneShot, blocks: blocksFor(plan, Math.ceil(most / pieces) * unit) }, options, parts)
  }
}
