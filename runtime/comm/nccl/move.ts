// The collectives of NCCL that move operands: gathered, broadcast, scattered, dealt out. NCCL lays the ranks' bytes end to end; where the result has
// them side by side, a command behind it or before it arranges them.
import { dtypeSize } from '../../core/dtype.ts'
import { resolveDim, type Shape, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
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
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Source, Target } from '../staged/group.ts'
import { type NcclGroup, placeOf, type Results, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

export const allGather: AllGather<Member> = allGatherBy(recorded, ({ group, size }, operands, results, { x, at, options }) => {
  const targets = byRank(group, (rank) => sideBySide(results, rank, x, at, size))
  if (x.byteLength > 0) {
    const parts = group.here.map((rank) => ({ rank, from: placeOf(operands[rank] as Operand), to: (targets[rank] as Side).gathered }))
    group.together({ kind: 'allGather', count: x.byteLength }, options, parts)
    for (const target of targets) target?.arrange()
  }
  return targets.map(({ tensor }) => tensor)
})

export const gather: Gather<Member> = gatherBy(recorded, ({ group, size }, operands, results, { x, at, dst, options }) => {
  const targets = byRank(group, (rank) => (rank === dst ? sideBySide(results, rank, x, at, size) : null))
  if (x.byteLength > 0) {
    const parts = group.here.map((rank) => {
      const from = placeOf(operands[rank] as Operand)
      return { rank, from, to: targets[rank]?.gathered ?? from, writes: rank === dst }
    })
    group.together({ kind: 'gather', root: dst, count: x.byteLength }, options, parts)
    targets[dst]?.arrange()
  }
  return targets.map((target) => target?.tensor ?? null)
})

export const allGatherV: AllGatherV<Member> = allGatherVBy(recorded, ({ group }, payloads, results, { list, dim, options }) => {
  const gathered = list.map((tensor, i) => {
    const brought = payloads.map((own) => own[i] as PartOf<Operand>)
    const lengths = brought.map(({ length }) => length)
    const targets = byRank(group, (rank) => joinedAlong(results, rank, tensor, resolveDim(dim, tensor.shape.length), lengths))
    const counts = brought.map(({ operand }) => operand.byteLength)
    if (counts.some((count) => count > 0)) {
      const parts = group.here.map((rank) => {
        return { rank, from: placeOf((brought[rank] as PartOf<Operand>).operand), to: (targets[rank] as Side).gathered }
      })
      group.together({ kind: 'allGatherV', counts }, options, parts)
      for (const target of targets) target?.arrange()
    }
    return targets
  })
  return byRank(group, (rank) => gathered.map((targets) => (targets[rank] as Side).tensor))
})

export const broadcast: Broadcast<Member> = broadcastBy(recorded, ({ group }, operands, results, { x, src, options }) => {
  const targets = byRank(group, (rank) => results.of(rank, x.shape, x.dtype))
  send(group, operands, src, (rank) => (targets[rank] as Target).operand, options)
  return targets.map(({ tensor }) => tensor)
})

export const broadcastInto: Broadcast<Member> = broadcastIntoBy(recorded, ({ group }, operands, _, { src, options }) => {
  send(group, operands, src, (rank) => operands[rank] as Operand, options)
  return operands.map(() => null)
})

function send(group: NcclGroup, operands: readonly Operand[], src: number, to: (rank: number) => Source, options: MeetOptions): void {
  const { byteLength } = operands[src] as Operand
  if (byteLength === 0) return
  const parts = group.here.map((rank) => {
    const place = placeOf(to(rank))
    return { rank, from: rank === src ? placeOf(operands[src] as Operand) : place, to: place }
  })
  group.together({ kind: 'broadcast', root: src, count: byteLength }, options, parts)
}

/** A rank's result, and the place where NCCL puts the ranks' bytes end to end: the result's own, or one from which `arrange` brings them there. */
interface Side {
  tensor: Tensor
  gathered: Place
  arrange(): void
}

function sideBySide(results: Results, rank: number, x: Tensor, at: number, ranks: number): Side {
  return joinedAlong(results, rank, x, at, Array<number>(ranks).fill(x.shape[at] as number))
}

function joinedAlong(
  results: Results,
  rank: number,
  { shape: like, dtype }: { shape: Shape; dtype: Tensor['dtype'] },
  at: number,
  lengths: readonly number[],
): Side {
  const { outer, inner } = splitAt(like, at)
  const unit = inner * dtypeSize(dtype)
  const total = lengths.reduce((sum, length) => sum + length, 0)
  const { tensor, operand } = results.of(rank, like.with(at, total), dtype)
  if (outer <= 1) return { tensor, gathered: placeOf(operand), arrange: () => {} }
  const gathered = results.scratch(rank, outer * total * unit)
  const arrange = (): void => {
    let start = 0
    const slices = lengths.map((length) => {
      const slice = shifted(gathered, start)
      start += outer * length * unit
      return slice
    })
    const numbers = [outer, lengths.length, total * unit, ...lengths.map((length) => length * unit)]
    results.group.alone(rank, OP.gather, numbers, [...slices, placeOf(operand)], [lengths.length])
  }
  return { tensor, gathered, arrange }
}
