// The collectives of NCCL that deal parts out: scatter from one rank, rows between all, blocks gathered in place at a pitch; and messages.
import { dtypeSize } from '../../core/dtype.ts'
import { sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import { type AllGather2D, type AllToAll, allGather2DBy, allToAllBy, type Dealt, type Scatter, scatterBy } from '../calls/deal.ts'
import { type Message, type Receive, recvBy, type Send, sendBy, type Wanted } from '../calls/point.ts'
import type { Pitched } from '../device-comm.ts'
import type { Operand, Staging, Target } from '../staged/group.ts'
import { pack } from './arrange.ts'
import { type NcclGroup, placeOf, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

export const scatter: Scatter<Member> = scatterBy(recorded, ({ group, size }, _, results, { operand, shape, src, at, options }) => {
  const { outer, length, inner } = splitAt(shape, at)
  const unit = (length / size) * inner * dtypeSize(operand.dtype)
  const targets = byRank(group, (rank) => results.of(rank, shape.with(at, length / size), operand.dtype))
  if (outer * unit > 0) {
    const parts = group.here.map((rank) => {
      const to = placeOf((targets[rank] as Target).operand)
      if (rank !== src) return { rank, from: to, to }
      const cuts = Array<number>(size).fill(unit)
      return { rank, from: pack(group, results, { rank, from: placeOf(operand) }, { outer, whole: size * unit }, cuts), to }
    })
    group.together({ kind: 'scatter', root: src, count: outer * unit }, options, parts)
  }
  return targets.map(({ tensor }) => tensor)
})

export const allToAll: AllToAll<Member> = allToAllBy(recorded, ({ group }, payloads, results, { x, options }) => {
  const tail = x.shape.slice(1)
  const row = sizeOf(tail) * dtypeSize(x.dtype)
  const got = (rank: number): number[] => payloads.map((own) => own.splits[rank] as number)
  const rows = (rank: number): number => got(rank).reduce((a, b) => a + b, 0)
  const targets = byRank(group, (rank) => results.of(rank, [rows(rank), ...tail], x.dtype))
  const all = payloads.flatMap((own) => own.splits)
  if (row > 0 && all.some((n) => n > 0)) {
    const even = all.every((n) => n === all[0])
    const parts = group.here.map((rank) => {
      const { operand, splits } = payloads[rank] as Dealt<Operand>
      const counts = [...splits, ...got(rank)].map((n) => n * row)
      return { rank, from: placeOf(operand), to: placeOf((targets[rank] as Target).operand), ...(!even && { counts }) }
    })
    group.together(even ? { kind: 'allToAll', count: (all[0] as number) * row } : { kind: 'allToAllV' }, options, parts)
  }
  return targets.map(({ tensor }) => tensor)
})

/** Whether blocks lie end to end, or side by side in rows without gaps. */
export function gathers2D({ pitch, stride, width, height }: Pitched, ranks: number): boolean {
  const endToEnd = stride === width * height && (height === 1 || pitch === width)
  return endToEnd || (stride === width && pitch === ranks * width)
}

export const allGather2D: AllGather2D<Member> = allGather2DBy(
  recorded,
  ({ group, size }, operands, results, { buffer, layout: { stride, width, height }, options }) => {
    const row = width * dtypeSize(buffer.dtype)
    const count = row * height
    const nothing = operands.map(() => null)
    if (count === 0 || size === 1) return nothing
    const endToEnd = stride === width * height
    const places = byRank(group, (rank) => placeOf(operands[rank] as Operand))
    const gathered = byRank(group, (rank) => (endToEnd ? placeOf(operands[rank] as Operand) : results.scratch(rank, size * count)))
    const parts = group.here.map((rank) => {
      const to = gathered[rank] as (typeof gathered)[number]
      const own = shifted(to, rank * count)
      const from = places[rank] as (typeof places)[number]
      for (let y = 0; y < height && !endToEnd; y++) {
        group.alone(rank, OP.copy, [row], [shifted(from, (y * size + rank) * row), shifted(own, y * row)], [1])
      }
      return { rank, from: own, to }
    })
    group.together({ kind: 'allGather', count }, options, parts)
    for (const rank of endToEnd ? [] : group.here) {
      const slices = operands.map((_, source) => shifted(gathered[rank] as (typeof gathered)[number], source * count))
      const numbers = [height, size, size * row, ...slices.map(() => row)]
      group.alone(rank, OP.gather, numbers, [...slices, places[rank] as (typeof places)[number]], [size])
    }
    return nothing
  },
)

/** Of ranks of one thread. */
export const send: Send<Member> = sendBy(bring)
export const recv: Receive<Member> = recvBy(bring)

async function bring({ group }: Member, _: Staging, { operand, wanted, src, dst, options }: Message<Operand, NcclGroup>): Promise<Tensor> {
  const { shape, dtype, byteLength } = wanted as Wanted
  const [tensor] = group.record((results) => {
    const target = results.of(dst, shape, dtype)
    const [from, to] = [placeOf(operand as Operand), placeOf(target.operand)]
    if (byteLength > 0) {
      group.together({ kind: 'send', count: byteLength }, options, [
        { rank: src, kind: 'send', peer: dst, from, to: from, writes: false },
        { rank: dst, kind: 'recv', peer: src, from: to, to },
      ])
    }
    return [target.tensor]
  })
  return tensor as Tensor
}
