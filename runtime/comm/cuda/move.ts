// The collectives over peers' memory that move operands: each rank's goes to its workspace, and from there to whoever wants some of it.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
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
  const places = targets.map(({ operand }) => placeOf(operand))
  spread(group, operands, src, places, options)
  return byRank(group, targets, ({ tensor }) => tensor)
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(recorded, ({ group }, operands, results, { src, options }) => {
  // Ranks of one device may have brought one tensor, or some of its parts.
  const others = [operands[src] as Operand]
  const places = group.here.map((rank) => (rank === src ? null : results.place(operands[rank] as Operand, { others, own: [] })))
  spread(group, operands, src, places, options)
  results.settle()
  return byRank(group, places, () => null)
})

/** Rank src's operand, to these places of the ranks that are here. */
function spread(
  group: CudaGroup,
  operands: readonly Operand[],
  src: number,
  places: readonly (Place | null)[],
  options: MeetOptions,
): void {
  const widths = operands.map(({ byteLength }, rank) => (rank === src ? byteLength : 0))
  const wants = places.map((to) => to && whole(to, widths))
  move(group, placesOf(group, operands), { rows: 1, widths, grain: [] }, wants, options)
}

/** By rank, of the ranks that are here. */
export function placesOf(group: CudaGroup, operands: readonly Operand[]): Place[] {
  return byRank(group, group.here, (rank) => placeOf(operands[rank] as Operand))
}

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
  const operands = parts.map(({ operand }) => operand)
  const wants = made.map((target) => target && whole(placeOf(target.operand), widths))
  move(group, placesOf(group, operands), { rows: outer, widths, grain: [] }, wants, options)
  return made
}

const UNITS = [16, 4, 1] as const

/** Operands as they are alike on all ranks: so many rows on each, in bytes. */
export interface Rows {
  rows: number
  /** By rank, of a row. */
  widths: readonly number[]
  /** From row to row of each operand, where they do not lie end to end. */
  pitch?: number
  /** Of everything that is said of columns, a common measure. */
  grain: readonly number[]
}

/** What a rank has of all ranks' rows, and where; in bytes. */
export interface Wanted {
  to: Place
  /** From row to row. */
  pitch: number
  /** By rank: the column from which on it has of that rank's rows, how many, and where they begin in its own. */
  from: readonly number[]
  width: readonly number[]
  start: readonly number[]
}

/** The ranks' rows one behind the other. */
function whole(to: Place, widths: readonly number[]): Wanted {
  return { to, pitch: total(widths), from: widths.map(() => 0), width: widths, start: startsOf(widths) }
}

export function total(lengths: readonly number[]): number {
  return lengths.reduce((sum, length) => sum + length, 0)
}

/** The sums of all before each. */
export function startsOf(lengths: readonly number[]): number[] {
  let next = 0
  return lengths.map((length) => {
    next += length
    return next - length
  })
}

/** To each of the ranks that are here what it wants of all ranks' rows; null: nothing. */
export function move(
  group: CudaGroup,
  operands: readonly (Place | undefined)[],
  { rows, widths, pitch, grain }: Rows,
  wants: readonly (Wanted | null)[],
  options: MeetOptions,
): void {
  const { plan, here } = group
  const unit = UNITS.find((bytes) => [...widths, pitch ?? 0, ...grain].every((length) => length % bytes === 0)) as number
  const most = (Math.max(...widths) * rows) / unit
  const pieces = Math.ceil((most * unit) / plan.dataBytes)
  for (let piece = 0; piece < pieces; piece++) {
    const parts = here.map((rank, i): Command => {
      const want = wants[i] ?? null
      const spans = widths.flatMap((width, peer) => {
        const row = width / unit
        const [first, end] = [piece, piece + 1].map((at) => Math.floor((rows * row * at) / pieces)) as [number, number]
        const columns = want ? [want.from, want.width, want.start].map((list) => (list[peer] as number) / unit) : [0, 0, 0]
        return [row, first, end - first, ...columns]
      })
      const pitches = [pitch ?? (widths[rank] as number), want?.pitch ?? 0].map((bytes) => bytes / unit)
      const x = operands[rank] ?? want?.to ?? group.memoryOf(rank).nothing
      return {
        rank,
        numbers: [rows, unit, ...pitches, ...spans, Number(want !== null)],
        operands: [x, want?.to ?? x],
        written: want ? [1] : [],
      }
    })
    group.together(OP.peerGather, { way: WAY.oneShot, blocks: blocksFor(plan, Math.ceil(most / pieces) * unit) }, options, parts)
  }
}
