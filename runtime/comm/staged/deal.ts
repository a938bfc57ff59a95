// The staged collectives that deal parts out: scatter from one rank, allToAll between all, blocks gathered in place at a pitch.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import { type AllGather2D, type AllToAll, allGather2DBy, allToAllBy, type Scatter, scatterBy } from '../calls/deal.ts'
import type { Pitched } from '../device-comm.ts'
import type { Operand, Source } from './group.ts'
import { type Member, run } from './member.ts'
import { concatenated, slab } from './pieces.ts'

export const scatter: Scatter<Member> = scatterBy(run, async ({ group, size }, _, staging, { operand, shape, at }) => {
  const [bytes] = (await staging.all([operand])) as [Uint8Array]
  const length = (shape[at] as number) / size
  const results: Tensor[] = []
  for (const rank of group.here) {
    const part = slab(bytes, shape, operand.dtype, { dim: at, start: rank * length, length })
    results[rank] = staging.result(rank, part.shape, operand.dtype, part.bytes())
  }
  return results
})

export const allToAll: AllToAll<Member> = allToAllBy(run, async ({ group }, payloads, staging, { x }) => {
  const all = await staging.all(payloads.map(({ operand }) => operand))
  const tail = x.shape.slice(1)
  const results: Tensor[] = []
  for (const rank of group.here) {
    const lengths = payloads.map((own) => own.splits[rank] as number)
    const cuts = payloads.map((own, from) => {
      const start = own.splits.slice(0, rank).reduce((a, b) => a + b, 0)
      return slab(all[from] as Uint8Array, [0, ...tail], x.dtype, { dim: 0, start, length: lengths[from] as number }).bytes()
    })
    const received = concatenated(cuts, lengths, [0, ...tail], x.dtype, 0)
    results[rank] = staging.result(rank, received.shape, x.dtype, received.bytes)
  }
  return results
})

export const allGather2D: AllGather2D<Member> = allGather2DBy(run, async ({ group, size }, operands, staging, { buffer, layout }) => {
  const { width, height } = layout
  const nothing = operands.map(() => null)
  if (width * height === 0 || size === 1) return nothing
  const rows = (operand: Operand, rank: number): Source[] => rowsOf(operand, layout, rank, buffer.dtype)
  const own = await staging.own(group.here.flatMap((rank) => rows(operands[rank] as Operand, rank)))
  const all = await staging.share(
    operands.flatMap((operand, rank) => rows(operand, rank)),
    own,
  )
  for (const here of group.here) {
    const places = operands.flatMap((_, rank) => (rank === here ? [] : rows(operands[here] as Operand, rank)))
    const blocks = all.filter((_, i) => Math.floor(i / height) !== here)
    for (const [i, place] of places.entries()) staging.write(place, blocks[i] as Uint8Array)
  }
  return nothing
})

/** The rows of rank's block in a buffer. */
function rowsOf(buffer: Operand, { pitch, stride, width, height }: Pitched, rank: number, dtype: DType): Source[] {
  const unit = dtypeSize(dtype)
  return Array.from({ length: height }, (_, y) => {
    return { ...buffer, offset: buffer.offset + (rank * stride + y * pitch) * unit, byteLength: width * unit }
  })
}
