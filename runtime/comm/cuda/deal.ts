// The collectives over peers' memory that deal parts out: scatter from one rank, rows between all, blocks gathered in place at a pitch.
import { dtypeSize } from '../../core/dtype.ts'
import { sizeOf, splitAt } from '../../core/shape.ts'
import { type AllGather2D, type AllToAll, allGather2DBy, allToAllBy, type Scatter, scatterBy } from '../calls/deal.ts'
import type { Operand } from '../staged/group.ts'
import { placeOf } from './group.ts'
import { type Member, recorded } from './member.ts'
import { move, placesOf, startsOf, total, type Wanted } from './move.ts'
import { byRank } from './reduce.ts'

export const scatter: Scatter<Member> = scatterBy(recorded, ({ group, size }, _, results, { operand, shape, src, at, options }) => {
  const { outer, length, inner } = splitAt(shape, at)
  const part = (length / size) * inner * dtypeSize(operand.dtype)
  const only = (bytes: number): number[] => Array.from({ length: size }, (_, rank) => (rank === src ? bytes : 0))
  const targets = group.here.map((rank) => results.of(rank, shape.with(at, length / size), operand.dtype))
  const wants = targets.map((target, i): Wanted => {
    const from = only((group.here[i] as number) * part)
    return { to: placeOf(target.operand), pitch: part, from, width: only(part), start: only(0) }
  })
  const operands = byRank(group, group.here, (rank) => (rank === src ? placeOf(operand) : undefined))
  move(group, operands, { rows: outer, widths: only(size * part), grain: [part] }, wants, options)
  return byRank(group, targets, ({ tensor }) => tensor)
})

export const allToAll: AllToAll<Member> = allToAllBy(recorded, ({ group }, payloads, results, { x, options }) => {
  const tail = x.shape.slice(1)
  const row = sizeOf(tail) * dtypeSize(x.dtype)
  const cuts = payloads.map(({ splits }) => splits.map((rows) => rows * row))
  const targets = group.here.map((rank) => {
    return results.of(rank, [total(payloads.map(({ splits }) => splits[rank] as number)), ...tail], x.dtype)
  })
  const wants = targets.map(({ operand }, i): Wanted => {
    const rank = group.here[i] as number
    const width = cuts.map((own) => own[rank] as number)
    const from = cuts.map((own) => startsOf(own)[rank] as number)
    return { to: placeOf(operand), pitch: total(width), from, width, start: startsOf(width) }
  })
  const operands = placesOf(
    group,
    payloads.map(({ operand }) => operand),
  )
  move(group, operands, { rows: 1, widths: cuts.map(total), grain: cuts.flat() }, wants, options)
  return byRank(group, targets, ({ tensor }) => tensor)
})

export const allGather2D: AllGather2D<Member> = allGather2DBy(
  recorded,
  ({ group, size }, operands, results, { buffer, layout: { pitch: between, stride, width: columns, height }, options }) => {
    if (columns * height === 0 || size === 1) return operands.map(() => null)
    const unit = dtypeSize(buffer.dtype)
    const [pitch, width] = [between * unit, operands.map(() => columns * unit)]
    const start = operands.map((_, rank) => rank * stride * unit)
    const wants = group.here.map((rank): Wanted => {
      const others = group.here.filter((other) => other !== rank).map((other) => operands[other] as Operand)
      // The rest of the buffer stays as it was.
      const to = results.place(operands[rank] as Operand, { others, own: [] }, true)
      return { to, pitch, from: start.map(() => 0), width, start }
    })
    const blocks = placesOf(group, operands).map(({ block, offset }, rank) => ({ block, offset: offset + (start[rank] as number) }))
    move(group, blocks, { rows: height, widths: width, pitch, grain: start }, wants, options)
    results.settle()
    return byRank(group, group.here, () => null)
  },
)
