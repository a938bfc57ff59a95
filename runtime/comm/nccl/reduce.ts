// The collectives of NCCL that compute. It adds in an order of its own, and rounds to the operands' type on the way; sums by a tree are moved by it
// and added in the tree's order behind it, as everywhere.
import { dtypeSize } from '../../core/dtype.ts'
import { sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { joinsOf, slotsOf } from '../../core/tree.ts'
import { elementType } from '../../device/checks.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import {
  type AllReduce,
  type AllReduceTree,
  allReduceBy,
  allReduceTreeBy,
  type Norm,
  type NormCall,
  type NormOperands,
  normBy,
  type Reduce,
  type ReduceScatter,
  type ReduceScatterV,
  reduceBy,
  reduceScatterBy,
  reduceScatterVBy,
  type ScatterCall,
  type Summand,
} from '../calls/reduce.ts'
import type { TreeCut } from '../device-comm.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Source, Target } from '../staged/group.ts'
import { pack } from './arrange.ts'
import { type NcclGroup, placeOf, type Results, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

export const allReduce: AllReduce<Member> = allReduceBy(recorded, ({ group }, payloads, results, { x, op, options }) => {
  const targets = byRank(group, (rank) => payloads[rank]?.out ?? results.of(rank, x.shape, x.dtype))
  if (x.size > 0) {
    const parts = group.here.map((rank) => {
      const { operand } = targets[rank] as Target
      return { rank, from: group.steady((payloads[rank] as Summand<Operand>).x, operand, results), to: placeOf(operand) }
    })
    group.together({ kind: 'allReduce', reduction: { dtype: x.dtype, op }, count: x.size }, options, parts)
  }
  return targets.map(({ tensor }) => tensor)
})

export const reduce: Reduce<Member> = reduceBy(recorded, ({ group }, operands, results, { x, op, dst, options }) => {
  const targets = byRank(group, (rank) => (rank === dst ? results.of(rank, x.shape, x.dtype) : null))
  if (x.size > 0) {
    const parts = group.here.map((rank) => {
      const from = placeOf(operands[rank] as Operand)
      const target = targets[rank]
      return { rank, from, to: target ? placeOf(target.operand) : from, writes: rank === dst }
    })
    group.together({ kind: 'reduce', reduction: { dtype: x.dtype, op }, root: dst, count: x.size }, options, parts)
  }
  return targets.map((target) => target?.tensor ?? null)
})

export const reduceScatter: ReduceScatter<Member> = reduceScatterBy(recorded, scattered)
export const reduceScatterV: ReduceScatterV<Member> = reduceScatterVBy(recorded, reduceScatter, scattered)

export const allReduceTree: AllReduceTree<Member> = allReduceTreeBy(recorded, ({ group }, operands, results, { tree, shape, options }) => {
  const targets = byRank(group, (rank) => results.of(rank, shape, 'float32'))
  const count = sizeOf(shape)
  if (count > 0) {
    const trees = treesOf(group, results, operands, tree, count, options)
    const { sum } = REDUCTION
    for (const rank of group.here) {
      const { slices, joins } = trees[rank] as Slices
      const numbers = [1, count, count, slices.length, sum, 1, TYPE.f32, TYPE.f32, ...joins]
      group.alone(rank, OP.reduce, numbers, [...slices, placeOf((targets[rank] as Target).operand)], [slices.length])
    }
  }
  return targets.map(({ tensor }) => tensor)
})

/** NCCL's sum, or the ranks' subtrees, then one kernel on each rank. */
export const allReduceResidualBiasRMSNorm: Norm<Member> = normBy(
  recorded,
  (operand) => operand,
  ({ group }, payloads, results, call) => {
    const { x, residual, tree, options } = call
    const targets = byRank(group, (rank) => payloads[rank]?.out ?? results.of(rank, residual.shape, residual.dtype))
    if (residual.size > 0) {
      const operands = payloads.map((p) => p.x)
      const sums = tree ? treesOf(group, results, operands, tree, residual.size, options) : sumsOf(group, results, operands, x, options)
      for (const rank of group.here) {
        norm(group, results, rank, payloads[rank] as NormOperands<Operand>, targets[rank] as Target, sums[rank] as Slices, call)
      }
    }
    return targets.map(({ tensor }) => tensor)
  },
)

/** Slices that one rank has, and how they are joined. */
interface Slices {
  slices: Place[]
  joins: readonly number[]
}

function norm(
  group: NcclGroup,
  results: Results,
  rank: number,
  { residual: before, weight, bias }: NormOperands<Operand>,
  { operand: y }: Target,
  { slices, joins }: Slices,
  { x, residual, rows, n, eps, zeroCentered, portable }: NormCall,
): void {
  const aside = (operand: Operand): Place => {
    const kept = group.steady(operand, y, results)
    return kept.block === placeOf(operand).block ? group.steady(operand, before, results) : kept
  }
  const gamma = aside(weight)
  const added = bias ? aside(bias) : gamma
  const xType = TYPE[elementType(x.dtype, 'x')]
  const type = TYPE[elementType(residual.dtype, 'residual')]
  const flags = [zeroCentered, bias !== null, portable].map(Number)
  const numbers = [rows, n, slices.length, xType, type, eps, ...flags, ...joins]
  const operands = [...slices, placeOf(before), gamma, added, placeOf(y)]
  group.alone(rank, OP.reduceNorm, numbers, operands, [slices.length, slices.length + 3])
}

/** By rank, the sum over ranks, in memory of its own. */
function sumsOf(group: NcclGroup, results: Results, operands: readonly Operand[], x: Tensor, options: MeetOptions): Slices[] {
  const places = byRank(group, (rank) => results.scratch(rank, x.byteLength))
  const parts = group.here.map((rank) => ({ rank, from: placeOf(operands[rank] as Operand), to: places[rank] as Place }))
  group.together({ kind: 'allReduce', reduction: { dtype: x.dtype, op: 'sum' }, count: x.size }, options, parts)
  return places.map((place) => ({ slices: [place], joins: [0] }))
}

/** By rank, all ranks' subtree sums of `count` elements, in the order of the tree. */
function treesOf(
  group: NcclGroup,
  results: Results,
  operands: readonly Operand[],
  { spans }: TreeCut,
  count: number,
  options: MeetOptions,
): Slices[] {
  const slots = slotsOf(spans)
  const bytes = slots * count * 4
  const places = byRank(group, (rank) => results.scratch(rank, operands.length * bytes))
  const parts = group.here.map((rank) => ({ rank, from: placeOf(operands[rank] as Operand), to: places[rank] as Place }))
  group.together({ kind: 'allGather', count: bytes }, options, parts)
  const { used, joins } = joinsOf(spans)
  return places.map((place) => ({ slices: used.map((slot) => shifted(place, slot * count * 4)), joins }))
}

/** The reduction, cut into the ranks' parts. */
function scattered(
  { group }: Member,
  operands: readonly Operand[],
  results: Results,
  { x, op, at, lengths, options }: ScatterCall,
): Tensor[] {
  const { outer, length: whole, inner } = splitAt(x.shape, at)
  const unit = inner * dtypeSize(x.dtype)
  const targets = byRank(group, (rank) => results.of(rank, x.shape.with(at, lengths[rank] as number), x.dtype))
  if (x.size > 0) {
    const cuts = lengths.map((length) => length * unit)
    const parts = group.here.map((rank) => {
      const operand = placeOf(operands[rank] as Operand)
      const from = pack(group, results, { rank, from: operand }, { outer, whole: whole * unit }, cuts, x.dtype)
      return { rank, from, to: placeOf((targets[rank] as { operand: Source }).operand) }
    })
    const counts = lengths.map((length) => outer * length * inner)
    const reduction = { dtype: x.dtype, op }
    const even = counts.every((count) => count === counts[0])
    const [count] = counts as [number]
    group.together(even ? { kind: 'reduceScatter', reduction, count } : { kind: 'reduceScatterV', reduction, counts }, options, parts)
  }
  return targets.map(({ tensor }) => tensor)
}
