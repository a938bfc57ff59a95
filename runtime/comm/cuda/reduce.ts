// The collectives over peers' memory that compute: sums, and the sum fused with residual, bias and RMSNorm. What the kernels do not know, the
// callers in comm.ts leave to StagedComm.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { elementType } from '../../device/checks.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import { type AlgorithmName, checkAlgorithm, reductionCall } from '../algorithms.ts'
import { checkApart, checkFused, checkParts, checkReduced, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { AllReduceOptions, FusedNorm, ReduceOp, ScatterVOptions } from '../device-comm.ts'
import { checkCut, isEven } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Target } from '../staged/group.ts'
import { type Hold, held, operandOf } from '../staged/member.ts'
import { type CudaGroup, type Part, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'
import { blocksFor, piecesOf, WAY, wayOf } from './plan.ts'
import { normNumbers, othersOf, recordRows } from './rows.ts'

/** Whether the kernels can add such operands. */
export function adds(x: Tensor, op: ReduceOp | undefined): boolean {
  return (op ?? 'sum') === 'sum' && isSummed(x?.dtype)
}

function isSummed(dtype: DType | undefined): boolean {
  return dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16'
}

/** Whether the kernels can do all of a fused norm: its operands are of one type, and partials are no subtrees. */
export function norms({ x, residual, tree }: FusedNorm): boolean {
  return !tree && isSummed(x?.dtype) && x.dtype === residual?.dtype
}

export async function allReduce(
  member: Member,
  x: Tensor,
  { op = 'sum', out, algorithm, ...options }: AllReduceOptions = {},
): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkAlgorithm(algorithm, reductionCall(member, 'allReduce', x, Math.ceil(x.size / 4)))
    if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
  }
  if (member.size === 1 && out === undefined) return member.bypass(x, check)
  const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'}${algorithm ? `, ${algorithm}` : ''})`
  const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
    check()
    return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
  }
  const result = await recorded(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const targets = group.here.map((rank) => payloads[rank]?.out ?? results.of(rank, x.shape, x.dtype))
    const operands = payloads.map((p) => p.x)
    sum(
      group,
      results,
      operands,
      byRank(group, targets, ({ operand }) => operand),
      { algorithm, options },
    )
    return byRank(group, targets, ({ tensor }) => tensor)
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
    const targets = group.here.map((rank) => (rank === dst ? results.of(rank, x.shape, x.dtype) : null))
    const places = byRank(group, targets, (target, rank) => target?.operand ?? scratchOf(results, rank, operands[rank] as Operand))
    sum(group, results, operands, places, { options })
    return byRank(group, targets, (target) => target?.tensor ?? null)
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
  return scattered(member, x, call, check, { dim, options, lengths })
}

/** The sum over ranks, of which rank r gets sizes[r] along dim. Equal sizes, and none, are those of reduceScatter. */
export async function reduceScatterV(
  member: Member,
  x: Tensor,
  { dim = -1, sizes, op = 'sum', ...options }: ScatterVOptions = {},
): Promise<Tensor> {
  if (sizes === undefined || isEven(sizes, member.size, x, dim)) return reduceScatter(member, x, { dim, op, ...options })
  const check = (): void => checkCut(member.device, x, op, dim, sizes, member.size)
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatterV(${op}, ${describeTensor(x)}, dim ${dim}, sizes ${describeShape(sizes)})`
  return scattered(member, x, call, check, { dim, options, lengths: () => sizes })
}

interface FusedOperands {
  x: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
  out: Target | undefined
}

export async function allReduceResidualBiasRMSNorm(member: Member, args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
  const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, algorithm, out } = args
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${out ? ', out' : ''}${algorithm ? `, ${algorithm}` : ''}`
  const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
  const prepare = (hold: Hold): FusedOperands => {
    checkFused(member.device, args, eps)
    const rows = residual.size / Math.max(1, residual.shape.at(-1) as number)
    checkAlgorithm(algorithm, reductionCall(member, 'allReduceResidualBiasRMSNorm', x, rows))
    const own = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
    const target = out && { tensor: out, operand: hold(out, 'w') }
    if (target) checkApart(own.residual, target.operand, 'residual and out')
    return { ...own, out: target }
  }
  const result = await recorded(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const n = residual.shape.at(-1) as number
    const targets = group.here.map((rank) => payloads[rank]?.out ?? results.of(rank, residual.shape, residual.dtype))
    if (residual.size > 0) {
      const shape = { rows: residual.size / n, n, type: TYPE[elementType(residual.dtype, 'residual')], size: dtypeSize(residual.dtype) }
      const numbers = normNumbers({ eps, weightBias: Number(zeroCentered), bias: bias !== undefined, out: true })
      const used = group.here.map((rank, i) => {
        const { x, residual, weight, bias } = payloads[rank] as FusedOperands
        const { operand: y } = targets[i] as Target
        return { inPlace: [x, residual], own: [weight, ...(bias ? [bias] : [])], written: [residual, y] }
      })
      const parts = used.map(({ inPlace, own, written }, i): Part => {
        const near = { others: othersOf(used, i), own, inPlace }
        const [h, y] = written.map((place) => results.place(place, near)) as [Place, Place]
        const [weight, added = weight] = own.map(placeOf) as [Place, Place?]
        const operands = [...inPlace.map(placeOf), h, weight, added, y, weight, weight, weight]
        return { rank: group.here[i] as number, numbers, operands, written: [2, 5] }
      })
      recordRows(group, OP.peerNorm, shape, { algorithm, options }, parts)
      results.settle()
    }
    return byRank(group, targets, ({ tensor }) => tensor)
  })
  member.counts.fused++
  return member.counted(x, result)
}

/** All ranks' operands added into `to`, by rank of those that are here. */
export function sum(
  group: CudaGroup,
  results: Results,
  operands: readonly Operand[],
  to: readonly (Operand | undefined)[],
  { algorithm, options }: { algorithm?: AlgorithmName | undefined; options: MeetOptions },
): void {
  const { plan, here } = group
  const [{ dtype, byteLength }] = operands as [Operand]
  const size = dtypeSize(dtype)
  const way = wayOf(plan, byteLength, algorithm)
  const places = here.map((rank) => {
    const others = here.filter((other) => other !== rank).flatMap((other) => [operands[other] as Operand, to[other] as Operand])
    return results.place(to[rank] as Operand, { others, own: [], inPlace: [operands[rank] as Operand] })
  })
  const room = way === WAY.packets ? plan.packetBytes : plan.dataBytes
  for (const { first, count } of piecesOf(byteLength / size, size, room)) {
    const parts = here.map((rank, i): Part => {
      const x = placeOf(operands[rank] as Operand)
      const y = places[i] as typeof x
      const ends = [x, y].map(({ block, offset }) => ({ block, offset: offset + first * size }))
      return { rank, numbers: [count, TYPE[elementType(dtype, 'x')]], operands: ends, written: [1] }
    })
    group.together(OP.peerReduce, { way, blocks: blocksFor(plan, count * size) }, options, parts)
  }
  results.settle()
}

/** The sum, cut along dim into the ranks' parts. */
async function scattered(
  member: Member,
  x: Tensor,
  call: string,
  check: () => void,
  { dim, options, lengths }: { dim: number; options: MeetOptions; lengths: () => readonly number[] },
): Promise<Tensor> {
  const result = await recorded(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
    const at = resolveDim(dim, x.shape.length)
    const { outer, length: whole, inner } = splitAt(x.shape, at)
    const sums = byRank(group, group.here, (rank) => scratchOf(results, rank, operands[rank] as Operand))
    sum(group, results, operands, sums, { options })
    return byRank(group, group.here, (rank) => {
      const start = lengths()
        .slice(0, rank)
        .reduce((a, b) => a + b, 0)
      const length = lengths()[rank] as number
      const y = results.of(rank, x.shape.with(at, length), x.dtype)
      const type = TYPE[elementType(x.dtype, 'x')]
      const { block, offset } = placeOf(sums[rank] as Operand)
      const from = { block, offset: offset + start * inner * dtypeSize(x.dtype) }
      const numbers = [outer, length * inner, whole * inner, 1, REDUCTION.sum, 1, type, type, 0]
      if (y.tensor.size > 0) group.alone(rank, OP.reduce, numbers, [from, placeOf(y.operand)], [1])
      return y.tensor
    })
  })
  return member.counted(x, result)
}

/** Memory of the call's own for what `like` holds. */
function scratchOf(results: Results, rank: number, like: Operand): Operand {
  const { tensor } = results.of(rank, [like.count], like.dtype)
  results.own(tensor)
  return operandOf(rank)(tensor, 'w')
}

/** A list by rank, of those that are here. */
export function byRank<T, R>({ here }: CudaGroup, all: readonly T[], map: (one: T, rank: number) => R): R[] {
  const list: R[] = []
  for (const [i, rank] of here.entries()) list[rank] = map(all[i] as T, rank)
  return list
}
