// The staged collectives that compute: allReduce, reduce, reduceScatter, and the reduction fused with residual, bias and RMSNorm.
import { sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
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
import type { Operand, Staging } from './group.ts'
import { type Member, run } from './member.ts'
import { normed } from './norm.ts'
import { bytesOf } from './numbers.ts'
import { reduced } from './partials.ts'
import { slab } from './pieces.ts'
import { joinedTree } from './tree.ts'

export const allReduce: AllReduce<Member> = allReduceBy(run, async ({ group }, payloads, staging, { x, op, algorithm }) => {
  const operands = payloads.map((p) => p.x)
  const nothing = payloads.map((p) => p.nothing)
  const sum = await reduced(group, staging, operands, op, { algorithm, nothing }, group.part(x.size))
  return staging.spread(
    x.shape,
    { dtype: x.dtype, bytes: bytesOf(x.dtype, sum) },
    payloads.map((p) => p.out),
  )
})

export const reduce: Reduce<Member> = reduceBy(run, async ({ group }, operands, staging, { x, op, dst }) => {
  const total = await reduced(group, staging, operands, op)
  if (!group.here.includes(dst)) return operands.map(() => null)
  const whole = staging.result(dst, x.shape, x.dtype, bytesOf(x.dtype, total))
  return operands.map((_, rank) => (rank === dst ? whole : null))
})

export const reduceScatter: ReduceScatter<Member> = reduceScatterBy(run, scattered)
export const reduceScatterV: ReduceScatterV<Member> = reduceScatterVBy(run, reduceScatter, scattered)

export const allReduceTree: AllReduceTree<Member> = allReduceTreeBy(run, async ({ group }, operands, staging, { tree, shape }) => {
  const sum = await joinedTree(group, staging, operands, sizeOf(shape), tree)
  return staging.spread(shape, { dtype: 'float32', bytes: bytesOf('float32', sum) })
})

export const allReduceResidualBiasRMSNorm: Norm<Member> = normBy(
  run,
  (operand) => operand,
  async ({ group }, payloads, staging, { residual, n, eps, zeroCentered, tree, algorithm }) => {
    const { dtype, size } = residual
    const lead = payloads[group.lead] as NormOperands<Operand>
    const operands = payloads.map((p) => p.x)
    const residuals = payloads.map((p) => p.residual)
    const nothing = payloads.map((p) => p.nothing)
    const unit = n
    // Whole rows: where a rank finishes a part of them, it needs no more of the sum.
    const span = tree ? { start: 0, count: size } : group.part(size, unit)
    const [sum, before, [gamma, added = null]] = await Promise.all([
      tree
        ? joinedTree(group, staging, operands, size, tree)
        : (reduced(group, staging, operands, 'sum', { algorithm, unit, nothing }, span) as Promise<Float32Array>),
      staging.alike(residuals, span, unit),
      staging.own([lead.weight, ...(lead.bias ? [lead.bias] : [])]) as Promise<[Uint8Array, Uint8Array?]>,
    ])
    const rows = normed({ sum, residual: before, weight: gamma, bias: added, dtype, n, eps, zeroCentered })
    await staging.replace(residuals, size, { dtype, bytes: rows.residual, unit })
    return staging.spread(
      residual.shape,
      { dtype, bytes: rows.out, unit },
      payloads.map((p) => p.out),
    )
  },
)

/** The reduction, cut into the ranks' parts. */
async function scattered(
  { group }: Member,
  operands: readonly Operand[],
  staging: Staging,
  { x, op, at, lengths }: ScatterCall,
): Promise<Tensor[]> {
  const bytes = bytesOf(x.dtype, await reduced(group, staging, operands, op))
  const results: Tensor[] = []
  let start = 0
  for (const [rank, length] of lengths.entries()) {
    const part = slab(bytes, x.shape, x.dtype, { dim: at, start, length })
    if (group.here.includes(rank)) results[rank] = staging.result(rank, part.shape, x.dtype, part.bytes())
    start += length
  }
  return results
}
