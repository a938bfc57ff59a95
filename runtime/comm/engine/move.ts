// The collectives of ranks on one engine that move operands: gathered side by side, or copied from one rank, in one command whose work all share.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, type Shape, splitAt } from '../../core/shape.ts'
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
import type { Operand, Target } from '../staged/group.ts'
import { type EngineGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'

export const allGather: AllGather<Member> = allGatherBy(recorded, ({ group }, operands, results, { x, at }) =>
  results.shared(sideBySide(group, alike(operands, x, at), x, at, { rank: 0, results })),
)

export const gather: Gather<Member> = gatherBy(recorded, ({ group }, operands, results, { x, at, dst }) => {
  const { tensor } = sideBySide(group, alike(operands, x, at), x, at, { rank: dst, results })
  return operands.map((_, rank) => (rank === dst ? tensor : null))
})

export const allGatherV: AllGatherV<Member> = allGatherVBy(recorded, ({ group }, payloads, results, { list, dim }) => {
  const gathered = list.map((tensor, i) => {
    const parts = payloads.map((own) => own[i] as PartOf<Operand>)
    return results.shared(sideBySide(group, parts, tensor, resolveDim(dim, tensor.shape.length), { rank: 0, results }))
  })
  return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
})

export const broadcast: Broadcast<Member> = broadcastBy(recorded, ({ group }, operands, results, { x, src }) => {
  const y = results.of(src, x.shape, x.dtype)
  group.copy(operands[src] as Operand, y.operand)
  return results.shared(y)
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(recorded, ({ group }, operands, _, { src }) =>
  operands.map((operand) => {
    group.copy(operands[src] as Operand, operand)
    return null
  }),
)

/** All ranks' parts concatenated along dimension `at`, as a result of `rank`. */
function sideBySide(
  group: EngineGroup,
  parts: readonly PartOf<Operand>[],
  { shape: like, dtype }: { shape: Shape; dtype: Tensor['dtype'] },
  at: number,
  { rank, results }: { rank: number; results: Results },
): Target {
  const { outer, inner } = splitAt(like, at)
  const unit = inner * dtypeSize(dtype)
  const total = parts.reduce((sum, { length }) => sum + length, 0)
  const y = results.of(rank, like.with(at, total), dtype)
  const numbers = [outer, parts.length, total * unit, ...parts.map(({ length }) => length * unit)]
  const operands = [...parts.map(({ operand }) => placeOf(operand)), placeOf(y.operand)]
  if (outer * total * unit > 0) group.together(OP.gather, numbers, operands, [parts.length])
  return y
}
