// The staged collectives that move operands: allGather, allGatherV, gather, broadcast, in place or to memory of its own.
import { resolveDim } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import {
  type AllGather,
  type AllGatherV,
  allGatherBy,
  allGatherVBy,
  type Broadcast,
  broadcastBy,
  broadcastIntoBy,
  type Gather,
  gatherBy,
  type PartOf,
} from '../calls/move.ts'
import type { Operand } from './group.ts'
import { type Member, run } from './member.ts'
import { concatenated } from './pieces.ts'

export const allGather: AllGather<Member> = allGatherBy(run, async (_, operands, staging, { x, at }) => {
  const { shape, bytes } = sideBySide(await staging.all(operands), x, at)
  return staging.spread(shape, { dtype: x.dtype, bytes })
})

export const gather: Gather<Member> = gatherBy(run, async ({ group }, operands, staging, { x, at, dst }) => {
  const parts = await staging.all(operands)
  if (!group.here.includes(dst)) return operands.map(() => null)
  const { shape, bytes } = sideBySide(parts, x, at)
  const whole = staging.result(dst, shape, x.dtype, bytes)
  return operands.map((_, rank) => (rank === dst ? whole : null))
})

export const allGatherV: AllGatherV<Member> = allGatherVBy(run, async (_, payloads, staging, { list, dim }) => {
  const all = await staging.all(payloads.flatMap((parts) => parts.map(({ operand }) => operand)))
  const gathered: Tensor[][] = []
  for (const [i, tensor] of list.entries()) {
    const parts = payloads.map((_, rank) => all[rank * list.length + i] as Uint8Array)
    const lengths = payloads.map((own) => (own[i] as PartOf<Operand>).length)
    const { shape, bytes } = concatenated(parts, lengths, tensor.shape, tensor.dtype, resolveDim(dim, tensor.shape.length))
    gathered.push(await staging.spread(shape, { dtype: tensor.dtype, bytes }))
  }
  return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
})

export const broadcast: Broadcast<Member> = broadcastBy(run, async (_, operands, staging, { x, src }) => {
  const [bytes] = await staging.all([operands[src] as Operand])
  return staging.spread(x.shape, { dtype: x.dtype, bytes: bytes as Uint8Array })
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(run, async (_, operands, staging, { x, src }) => {
  const [bytes] = await staging.all([operands[src] as Operand])
  const others = operands.filter(({ rank }) => rank !== src)
  await staging.replace(others, x.size, { dtype: x.dtype, bytes: bytes as Uint8Array })
  return operands.map(() => null)
})

function sideBySide(parts: readonly Uint8Array[], { shape, dtype }: Tensor, at: number): { shape: number[]; bytes: Uint8Array } {
  return concatenated(
    parts,
    parts.map(() => shape[at] as number),
    shape,
    dtype,
    at,
  )
}
