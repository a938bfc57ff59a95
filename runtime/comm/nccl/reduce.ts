// The collectives of NCCL that compute. It adds in an order of its own, and rounds to the operands' type on the way; sums by a tree are moved by it
// and added in the tree's order behind it, as everywhere.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { mergesOf, NO_NODE, slotsOf } from '../../core/tree.ts'
import { elementType } from '../../device/checks.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import {
  checkApart,
  checkFused,
  checkHere,
  checkParts,
  checkReduced,
  checkTree,
  checkWritten,
  describeShape,
  describeTensor,
  describeTree,
} from '../checks.ts'
import type { AllReduceOptions, FusedNorm, ReduceOp, ScatterVOptions, TreeCut } from '../device-comm.ts'
import { checkCut, isEven } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Source, Target } from '../staged/group.ts'
import { type Hold, held } from '../staged/member.ts'
import { pack } from './arrange.ts'
import { type NcclGroup, placeOf, type Results, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

export async function allReduce(member: Member, x: Tensor, { op = 'sum', out, ...options }: AllReduceOptions = {}): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
  }
  if (member.size === 1 && out === undefined) return member.bypass(x, check)
  const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'})`
  const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
    check()
    return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
  }
  const result = await recorded<ReturnType<typeof prepare>, Tensor>(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const targets = byRank(group, (rank) => payloads[rank]?.out ?? results.of(rank, x.shape, x.dtype))
    if (x.size > 0) {
      const parts = group.here.map((rank) => {
        const { operand } = targets[rank] as Target
        return { rank, from: group.steady((payloads[rank] as { x: Operand }).x, operand, results), to: placeOf(operand) }
      })
      group.together({ kind: 'allReduce', reduction: { dtype: x.dtype, op }, count: x.size }, options, parts)
    }
    return targets.map(({ tensor }) => tensor)
  })
  return member.counted(x, result)
}

/** As allReduce on rank dst, null on the others. */
export async function reduce(
  member: Member,
  x: Tensor,
  { dst = 0, op = 'sum', ...options }: { dst?: number; op?: ReduceOp } & MeetOptions = {},
): Promise<Tensor | null> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkInteger('dst', dst, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduce(${op}, ${describeTensor(x)}, dst ${dst})`
  const result = await recorded<Operand, Tensor | null>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
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
  return member.counted(x, result)
}

export async function reduceScatter(
  member: Member,
  x: Tensor,
  { dim = -1, op = 'sum', ...options }: { dim?: number; op?: ReduceOp } & MeetOptions = {},
): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkParts(x.shape, dim, member.size)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatter(${op}, ${describeTensor(x)}, dim ${dim})`
  const lengths = (): number[] => {
    const length = x.shape[resolveDim(dim, x.shape.length)] as number
    return Array<number>(member.size).fill(length / member.size)
  }
  return scattered(member, x, call, check, { dim, op, options, lengths })
}

/** The reduction over ranks, of which rank r gets sizes[r] along dim. Equal sizes, and none, are those of reduceScatter. */
export async function reduceScatterV(
  member: Member,
  x: Tensor,
  { dim = -1, sizes, op = 'sum', ...options }: ScatterVOptions = {},
): Promise<Tensor> {
  if (sizes === undefined || isEven(sizes, member.size, x, dim)) return reduceScatter(member, x, { dim, op, ...options })
  const check = (): void => checkCut(member.device, x, op, dim, sizes, member.size)
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatterV(${op}, ${describeTensor(x)}, dim ${dim}, sizes ${describeShape(sizes)})`
  return scattered(member, x, call, check, { dim, op, options, lengths: () => sizes })
}

/** See DeviceComm.allReduceTree. */
export async function allReduceTree(
  member: Member,
  x: Tensor,
  { tree, shape, ...options }: { tree: TreeCut; shape: Shape } & MeetOptions,
): Promise<Tensor> {
  const check = (): void => {
    checkHere(member.device, x, 'x')
    checkShape(shape)
    checkTree(x, sizeOf(shape), tree)
  }
  const call = `allReduceTree(${describeTensor(x)}, ${describeShape(shape)}${describeTree(tree)})`
  const result = await recorded<Operand, Tensor>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
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
  return member.counted(x, result)
}

interface FusedOperands {
  x: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
  out: Target | undefined
}

/** NCCL's sum, or the ranks' subtrees, then one kernel on each rank. */
export async function allReduceResidualBiasRMSNorm(member: Member, args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
  const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, tree, out } = args
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${describeTree(tree)}${out ? ', out' : ''}`
  const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
  const prepare = (hold: Hold): FusedOperands => {
    checkFused(member.device, args, eps)
    const own = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
    const target = out && { tensor: out, operand: hold(out, 'w') }
    if (target) checkApart(own.residual, target.operand, 'residual and out')
    return { ...own, out: target }
  }
  const result = await recorded<FusedOperands, Tensor>(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const targets = byRank(group, (rank) => payloads[rank]?.out ?? results.of(rank, residual.shape, residual.dtype))
    if (residual.size > 0) {
      const operands = payloads.map((p) => p.x)
      const sums = tree ? treesOf(group, results, operands, tree, residual.size, options) : sumsOf(group, results, operands, x, options)
      for (const rank of group.here) {
        norm(group, results, rank, payloads[rank] as FusedOperands, targets[rank] as Target, sums[rank] as Slices, {
          x,
          residual,
          eps,
          zeroCentered,
        })
      }
    }
    return targets.map(({ tensor }) => tensor)
  })
  member.counts.fused++
  return member.counted(x, result)
}

/** Slices that one rank has, and how they are joined. */
interface Slices {
  slices: Place[]
  joins: number[]
}

function norm(
  group: NcclGroup,
  results: Results,
  rank: number,
  { residual: before, weight, bias }: FusedOperands,
  { operand: y }: Target,
  { slices, joins }: Slices,
  { x, residual, eps, zeroCentered }: { x: Tensor; residual: Tensor; eps: number; zeroCentered: boolean },
): void {
  const n = residual.shape.at(-1) as number
  const aside = (operand: Operand): Place => {
    const kept = group.steady(operand, y, results)
    return kept.block === placeOf(operand).block ? group.steady(operand, before, results) : kept
  }
  const gamma = aside(weight)
  const added = bias ? aside(bias) : gamma
  const xType = TYPE[elementType(x.dtype, 'x')]
  const type = TYPE[elementType(residual.dtype, 'residual')]
  const numbers = [residual.size / n, n, slices.length, xType, type, eps, Number(zeroCentered), Number(bias !== null), ...joins]
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
  const merges = mergesOf(spans, slots)
  const used = [...merges.keys()].filter((slot) => merges[slot] !== NO_NODE)
  const joins = used.map((slot) => merges[slot] as number)
  return places.map((place) => ({ slices: used.map((slot) => shifted(place, slot * count * 4)), joins }))
}

/** The reduction, cut along dim into the ranks' parts. */
async function scattered(
  member: Member,
  x: Tensor,
  call: string,
  check: () => void,
  { dim, op, options, lengths }: { dim: number; op: ReduceOp; options: MeetOptions; lengths: () => readonly number[] },
): Promise<Tensor> {
  const result = await recorded<Operand, Tensor>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
    const at = resolveDim(dim, x.shape.length)
    const { outer, length: whole, inner } = splitAt(x.shape, at)
    const all = lengths()
    const unit = inner * dtypeSize(x.dtype)
    const targets = byRank(group, (rank) => results.of(rank, x.shape.with(at, all[rank] as number), x.dtype))
    if (x.size > 0) {
      const cuts = all.map((length) => length * unit)
      const parts = group.here.map((rank) => {
        const operand = placeOf(operands[rank] as Operand)
        const from = pack(group, results, { rank, from: operand }, { outer, whole: whole * unit }, cuts, x.dtype)
        return { rank, from, to: placeOf((targets[rank] as { operand: Source }).operand) }
      })
      const counts = all.map((length) => outer * length * inner)
      const reduction = { dtype: x.dtype, op }
      const even = counts.every((count) => count === counts[0])
      const [count] = counts as [number]
      group.together(even ? { kind: 'reduceScatter', reduction, count } : { kind: 'reduceScatterV', reduction, counts }, options, parts)
    }
    return targets.map(({ tensor }) => tensor)
  })
  return member.counted(x, result)
}
