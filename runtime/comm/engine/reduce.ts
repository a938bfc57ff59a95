// The collectives of ranks on one engine that compute: each is one command, whose work all share. The bits are those of StagedComm.
import { type DType, dtypeSize } from '../../core/dtype.ts'
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
import { type EngineGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'

export async function allReduce(
  member: Member,
  x: Tensor,
  { op = 'sum', out, algorithm, ...options }: AllReduceOptions = {},
): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
  }
  if (member.size === 1 && out === undefined) return member.bypass(x, check)
  const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'}${algorithm ? `, ${algorithm}` : ''})`
  const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
    check()
    return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
  }
  const result = await recorded(member, call, prepare, options, (payloads, results) => {
    const y = payloads[0]?.out ?? results.of(0, x.shape, x.dtype)
    const operands = payloads.map((p) => p.x)
    const numbers = [1, x.size, x.size]
    if (x.size > 0) reduceInto(member.group, operands, y.operand, op, { numbers, results })
    return handedOut(member.group, y, payloads, results)
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
    const y = results.of(dst, x.shape, x.dtype)
    if (x.size > 0) reduceInto(member.group, operands, y.operand, op, { numbers: [1, x.size, x.size], results })
    return operands.map((_, rank) => (rank === dst ? y.tensor : null))
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
  const result = await recorded(member, call, held(x, check), options, (operands, results) => {
    const y = results.of(0, shape, 'float32')
    const count = sizeOf(shape)
    const { slices, joins } = treeOf(operands.map(placeOf), tree, count)
    const { sum } = REDUCTION
    const numbers = [1, count, count, slices.length, sum, 1, TYPE.f32, TYPE.f32, ...joins]
    if (count > 0) member.group.together(OP.reduce, numbers, [...slices, placeOf(y.operand)], [slices.length])
    return results.shared(y)
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

export async function allReduceResidualBiasRMSNorm(member: Member, args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
  const given = args ?? ({} as FusedNorm)
  const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, tree, algorithm, out } = given
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${describeTree(tree)}${out ? ', out' : ''}${algorithm ? `, ${algorithm}` : ''}`
  const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
  const prepare = (hold: Hold): FusedOperands => {
    checkFused(member.device, given, eps)
    const own = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
    const target = out && { tensor: out, operand: hold(out, 'w') }
    if (target) checkApart(own.residual, target.operand, 'residual and out')
    return { ...own, out: target }
  }
  const result = await recorded(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const lead = payloads[0] as FusedOperands
    const y = lead.out ?? results.of(0, residual.shape, residual.dtype)
    const n = residual.shape.at(-1) as number
    if (residual.size > 0) {
      const written = [lead.residual, y.operand]
      const own = payloads.map((p) => group.steady(p.x, written, !tree, results))
      const { slices, joins } = tree ? treeOf(own, tree, residual.size) : { slices: own, joins: group.joins }
      const gamma = group.steady(lead.weight, written, false, results)
      const added = lead.bias ? group.steady(lead.bias, written, false, results) : gamma
      const xType = TYPE[elementType(x.dtype, 'x')]
      const type = TYPE[elementType(residual.dtype, 'residual')]
      const numbers = [residual.size / n, n, slices.length, xType, type, eps, Number(zeroCentered), Number(bias !== undefined)]
      const operands = [placeOf(lead.residual), gamma, added, placeOf(y.operand)]
      group.together(OP.reduceNorm, numbers.concat(joins), slices.concat(operands), [slices.length, slices.length + 3])
      for (const p of payloads) group.copy(lead.residual, p.residual)
    }
    return handedOut(group, y, payloads, results)
  })
  member.counts.fused++
  return member.counted(x, result)
}

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

/** The numbers of a `reduce` of one slice a rank. */
function reduction(sizes: readonly number[], dtype: DType, op: ReduceOp, joins: readonly number[]): number[] {
  const type = TYPE[elementType(dtype, 'x')]
  const signed = dtype === 'int32'
  const kind = op === 'min' && signed ? 'minSigned' : op === 'max' && signed ? 'maxSigned' : op === 'avg' ? 'sum' : op
  return [...sizes, joins.length, REDUCTION[kind], op === 'avg' ? joins.length : 1, type, type, ...joins]
}

/** The reduction, cut along dim into the ranks' parts, each of which its own rank computes. */
async function scattered(
  member: Member,
  x: Tensor,
  call: string,
  check: () => void,
  { dim, op, options, lengths }: { dim: number; op: ReduceOp; options: MeetOptions; lengths: () => readonly number[] },
): Promise<Tensor> {
  const result = await recorded(member, call, held(x, check), options, (operands, results) => {
    const at = resolveDim(dim, x.shape.length)
    const { outer, length: whole, inner } = splitAt(x.shape, at)
    const parts = lengths().map((length, rank) => results.of(rank, x.shape.with(at, length), x.dtype))
    let start = 0
    for (const [rank, length] of lengths().entries()) {
      const from = start * dtypeSize(x.dtype)
      const slices = operands.map((operand) => placeOf({ ...operand, offset: operand.offset + from }))
      const numbers = reduction([outer, length * inner, whole * inner], x.dtype, op, member.group.joins)
      const y = placeOf((parts[rank] as Target).operand)
      if (outer * length * inner > 0) member.group.alone(rank, OP.reduce, numbers, [...slices, y], [slices.length])
      start += length * inner
    }
    return parts.map(({ tensor }) => tensor)
  })
  return member.counted(x, result)
}

/** The ranks' subtree sums of `count` elements, in the order of the tree. */
function treeOf(operands: readonly Place[], { spans }: TreeCut, count: number): { slices: Place[]; joins: number[] } {
  const slots = slotsOf(spans)
  const slices: Place[] = []
  const joins: number[] = []
  for (const [slot, merges] of mergesOf(spans, slots).entries()) {
    if (merges === NO_NODE) continue
    const { block, offset } = operands[Math.floor(slot / slots)] as Place
    slices.push({ block, offset: offset + (slot % slots) * count * 4 })
    joins.push(merges)
  }
  return { slices, joins }
}
