// The collectives of ranks on one engine that compute: each is one command, whose work all share. The bits are those of StagedComm.
import { type DType, dtypeSize } from '../../core/dtype.ts'
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
  type NormOperands,
  normBy,
  type Reduce,
  type ReduceScatter,
  type ReduceScatterV,
  reduceBy,
  reduceScatterBy,
  reduceScatterVBy,
  type ScatterCall,
} from '../calls/reduce.ts'
import type { ReduceOp, TreeCut } from '../device-comm.ts'
import type { Operand, Source, Target } from '../staged/group.ts'
import { type EngineGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'

export const allReduce: AllReduce<Member> = allReduceBy(recorded, ({ group }, payloads, results, { x, op }) => {
  const y = payloads[0]?.out ?? results.of(0, x.shape, x.dtype)
  const operands = payloads.map((p) => p.x)
  const numbers = [1, x.size, x.size]
  if (x.size > 0) reduceInto(group, operands, y.operand, op, { numbers, results })
  return handedOut(group, y, payloads, results)
})

export const reduce: Reduce<Member> = reduceBy(recorded, ({ group }, operands, results, { x, op, dst }) => {
  const y = results.of(dst, x.shape, x.dtype)
  if (x.size > 0) reduceInto(group, operands, y.operand, op, { numbers: [1, x.size, x.size], results })
  return operands.map((_, rank) => (rank === dst ? y.tensor : null))
})

export const reduceScatter: ReduceScatter<Member> = reduceScatterBy(recorded, scattered)
export const reduceScatterV: ReduceScatterV<Member> = reduceScatterVBy(recorded, reduceScatter, scattered)

export const allReduceTree: AllReduceTree<Member> = allReduceTreeBy(recorded, ({ group }, operands, results, { tree, shape }) => {
  const y = results.of(0, shape, 'float32')
  const count = sizeOf(shape)
  const { slices, joins } = treeOf(operands.map(placeOf), tree, count)
  const { sum } = REDUCTION
  const numbers = [1, count, count, slices.length, sum, 1, TYPE.f32, TYPE.f32, ...joins]
  if (count > 0) group.together(OP.reduce, numbers, [...slices, placeOf(y.operand)], [slices.length])
  return results.shared(y)
})

export const allReduceResidualBiasRMSNorm: Norm<Member> = normBy(
  recorded,
  (operand) => operand,
  ({ group }, payloads, results, { x, residual, rows, n, eps, zeroCentered, portable, tree }) => {
    const lead = payloads[0] as NormOperands<Operand>
    const y = lead.out ?? results.of(0, residual.shape, residual.dtype)
    if (residual.size > 0) {
      const written = [lead.residual, y.operand]
      const own = payloads.map((p) => group.steady(p.x, written, !tree, results))
      const { slices, joins } = tree ? treeOf(own, tree, residual.size) : { slices: own, joins: group.joins }
      const gamma = group.steady(lead.weight, written, false, results)
      const added = lead.bias ? group.steady(lead.bias, written, false, results) : gamma
      const xType = TYPE[elementType(x.dtype, 'x')]
      const type = TYPE[elementType(residual.dtype, 'residual')]
      const flags = [zeroCentered, lead.bias !== null, portable].map(Number)
      const numbers = [rows, n, slices.length, xType, type, eps, ...flags]
      const operands = [placeOf(lead.residual), gamma, added, placeOf(y.operand)]
      group.together(OP.reduceNorm, numbers.concat(joins), slices.concat(operands), [slices.length, slices.length + 3])
      for (const p of payloads) group.copy(lead.residual, p.residual)
    }
    return handedOut(group, y, payloads, results)
  },
)

/** One result for all ranks, or, where they brought targets, in each of those. */
function handedOut(group: EngineGroup, y: Target, payloads: readonly { out: Target | undefined }[], results: Results): Tensor[] {
  if (!payloads[0]?.out) return results.shared(y)
  return payloads.map(({ out }) => {
    group.copy(y.operand, (out as Target).operand)
    return (out as Target).tensor
  })
}

/** Ranks' operands, or parts of them, joined into `y`; `numbers` are its rows, their length, and the length of the operands' rows. */
function reduceInto(
  group: EngineGroup,
  operands: readonly Operand[],
  y: Source,
  op: ReduceOp,
  { numbers, results }: { numbers: readonly number[]; results: Results },
): void {
  const [{ dtype }] = operands as [Operand]
  const slices = operands.map((operand) => group.steady(operand, [y], true, results))
  group.together(OP.reduce, reduction(numbers, dtype, op, group.joins), [...slices, placeOf(y)], [slices.length])
}

/** How a command names what joins two elements. */
export function joiningOf(op: ReduceOp, dtype: DType): number {
  const signed = dtype === 'int32'
  const kind = op === 'min' && signed ? 'minSigned' : op === 'max' && signed ? 'maxSigned' : op === 'avg' ? 'sum' : op
  return REDUCTION[kind]
}

/** The numbers of a `reduce` of one slice a rank. */
function reduction(sizes: readonly number[], dtype: DType, op: ReduceOp, joins: readonly number[]): number[] {
  const type = TYPE[elementType(dtype, 'x')]
  return [...sizes, joins.length, joiningOf(op, dtype), op === 'avg' ? joins.length : 1, type, type, ...joins]
}

/** The reduction, cut into the ranks' parts, each of which its own rank computes. */
function scattered({ group }: Member, operands: readonly Operand[], results: Results, { x, op, at, lengths }: ScatterCall): Tensor[] {
  const { outer, length: whole, inner } = splitAt(x.shape, at)
  const parts = lengths.map((length, rank) => results.of(rank, x.shape.with(at, length), x.dtype))
  let start = 0
  for (const [rank, length] of lengths.entries()) {
    const from = start * dtypeSize(x.dtype)
    const slices = operands.map((operand) => placeOf({ ...operand, offset: operand.offset + from }))
    const numbers = reduction([outer, length * inner, whole * inner], x.dtype, op, group.joins)
    const y = placeOf((parts[rank] as Target).operand)
    if (outer * length * inner > 0) group.alone(rank, OP.reduce, numbers, [...slices, y], [slices.length])
    start += length * inner
  }
  return parts.map(({ tensor }) => tensor)
}

/** The ranks' subtree sums of `count` elements, in the order of the tree. */
function treeOf(operands: readonly Place[], { spans }: TreeCut, count: number): { slices: Place[]; joins: readonly number[] } {
  const slots = slotsOf(spans)
  const { used, joins } = joinsOf(spans)
  const slices = used.map((slot) => {
    const { block, offset } = operands[Math.floor(slot / slots)] as Place
    return { block, offset: offset + (slot % slots) * count * 4 }
  })
  return { slices, joins }
}
