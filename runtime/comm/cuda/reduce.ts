// The collectives over peers' memory that compute: reductions, and the sum fused with residual, bias and RMSNorm. What the kernels do not know, the
// callers in comm.ts leave to StagedComm.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { elementType } from '../../device/checks.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { AlgorithmName } from '../algorithms.ts'
import {
  type AllReduce,
  allReduceBy,
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
import type { FusedNorm, ReduceOp } from '../device-comm.ts'
import { joiningOf } from '../engine/reduce.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Target } from '../staged/group.ts'
import { operandOf } from '../staged/member.ts'
import { type CudaGroup, type Part, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'
import { blocksFor, piecesOf, WAY, wayOf } from './plan.ts'
import { normNumbers, othersOf, recordRows } from './rows.ts'

function isSummed(dtype: DType | undefined): boolean {
  return dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16'
}

/** Whether the kernels can do all of a fused norm: its operands are of one type, and partials are no subtrees. */
export function norms({ x, residual, tree, portable }: FusedNorm): boolean {
  return !tree && !portable && isSummed(x?.dtype) && x.dtype === residual?.dtype
}

export const allReduce: AllReduce<Member> = allReduceBy(recorded, ({ group }, payloads, results, { x, op, algorithm, options }) => {
  const targets = group.here.map((rank) => payloads[rank]?.out ?? results.of(rank, x.shape, x.dtype))
  const operands = payloads.map((p) => p.x)
  reduceTo(
    group,
    results,
    operands,
    byRank(group, targets, ({ operand }) => operand),
    { op, algorithm, options },
  )
  return byRank(group, targets, ({ tensor }) => tensor)
})

export const reduce: Reduce<Member> = reduceBy(recorded, ({ group }, operands, results, { x, op, dst, options }) => {
  const targets = group.here.map((rank) => (rank === dst ? results.of(rank, x.shape, x.dtype) : null))
  const places = byRank(group, targets, (target, rank) => target?.operand ?? scratchOf(results, rank, operands[rank] as Operand))
  reduceTo(group, results, operands, places, { op, options })
  return byRank(group, targets, (target) => target?.tensor ?? null)
})

export const reduceScatter: ReduceScatter<Member> = reduceScatterBy(recorded, scattered)
export const reduceScatterV: ReduceScatterV<Member> = reduceScatterVBy(recorded, reduceScatter, scattered)

export const allReduceResidualBiasRMSNorm: Norm<Member> = normBy(
  recorded,
  (operand) => operand,
  ({ group }, payloads, results, { residual, rows, n, eps, zeroCentered, algorithm, options }) => {
    const targets = group.here.map((rank) => payloads[rank]?.out ?? results.of(rank, residual.shape, residual.dtype))
    if (residual.size > 0) {
      const shape = { rows, n, type: TYPE[elementType(residual.dtype, 'residual')], size: dtypeSize(residual.dtype) }
      const bias = payloads[group.here[0] as number]?.bias != null
      const numbers = normNumbers({ eps, weightBias: Number(zeroCentered), bias, out: true })
      const used = group.here.map((rank, i) => {
        const { x, residual, weight, bias } = payloads[rank] as NormOperands<Operand>
        const { operand: y } = targets[i] as Target
        return { inPlace: [x, residual], own: [weight, ...(bias ? [bias] : [])], written: [residual, y] }
      })
      const parts = used.map(({ inPlace, own, written }, i): Part => {
        const near = { others: othersOf(used, i), own, inPlace }
        const [h, y] = written.map((place) => results.place(place, near)) as [Place, Place]
        const [weight, added = weight] = own.map(placeOf) as [Place, Place?]
        const operands = [...inPlace.map(placeOf), h, weight, added, y, weight, weight, weight, weight]
        return { rank: group.here[i] as number, numbers, operands, written: [2, 5] }
      })
      recordRows(group, OP.peerNorm, shape, { algorithm, options }, parts)
      results.settle()
    }
    return byRank(group, targets, ({ tensor }) => tensor)
  },
)

/** All ranks' operands as one in `to`, by rank of those that are here; `rounded`: each sum of two is rounded. */
export function reduceTo(
  group: CudaGroup,
  results: Results,
  operands: readonly Operand[],
  to: readonly (Operand | undefined)[],
  {
    op,
    algorithm,
    rounded = false,
    options,
  }: { op: ReduceOp; algorithm?: AlgorithmName | undefined; rounded?: boolean; options: MeetOptions },
): void {
  const { plan, here } = group
  const [{ dtype, byteLength }] = operands as [Operand]
  const size = dtypeSize(dtype)
  const fastest = wayOf(plan, byteLength, algorithm)
  // What is no sum of floats has kernels of its own, which know no packets.
  const way = fastest === WAY.packets && !(op === 'sum' && isSummed(dtype)) ? WAY.oneShot : fastest
  const numbers = [TYPE[elementType(dtype, 'x')], joiningOf(op, dtype), Number(op === 'avg'), Number(rounded)]
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
      return { rank, numbers: [count, ...numbers], operands: ends, written: [1] }
    })
    group.together(OP.peerReduce, { way, blocks: blocksFor(plan, count * size) }, options, parts)
  }
  results.settle()
}

/** The reduction, cut into the ranks' parts. */
function scattered(
  { group }: Member,
  operands: readonly Operand[],
  results: Results,
  { x, op, at, lengths, options }: ScatterCall,
): Tensor[] {
  const { outer, length: whole, inner } = splitAt(x.shape, at)
  const wholes = byRank(group, group.here, (rank) => scratchOf(results, rank, operands[rank] as Operand))
  reduceTo(group, results, operands, wholes, { op, options })
  return byRank(group, group.here, (rank) => {
    const start = lengths.slice(0, rank).reduce((a, b) => a + b, 0)
    const length = lengths[rank] as number
    const y = results.of(rank, x.shape.with(at, length), x.dtype)
    const type = TYPE[elementType(x.dtype, 'x')]
    const { block, offset } = placeOf(wholes[rank] as Operand)
    const from = { block, offset: offset + start * inner * dtypeSize(x.dtype) }
    const numbers = [outer, length * inner, whole * inner, 1, REDUCTION.sum, 1, type, type, 0]
    if (y.tensor.size > 0) group.alone(rank, OP.reduce, numbers, [from, placeOf(y.operand)], [1])
    return y.tensor
  })
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
