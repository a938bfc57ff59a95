// The collectives of NCCL that move operands: gathered, broadcast, scattered, dealt out. NCCL lays the ranks' bytes end to end; where the result has
// them side by side, a command behind it or before it arranges them.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, type Shape, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import { checkHere, checkMoved, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions } from '../device-comm.ts'
import { checkGathered, describeOpen, lengthAt } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Source, Target } from '../staged/group.ts'
import { type Hold, held } from '../staged/member.ts'
import { type NcclGroup, placeOf, type Results, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

export async function allGather(member: Member, x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => checkMoved(member.device, x, dim)
  if (member.size === 1) return member.bypass(x, check)
  const call = `allGather(${describeTensor(x)}, dim ${dim})`
  const result = await recorded<Operand, Tensor>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
    const targets = byRank(group, (rank) => sideBySide(results, rank, x, dim, member.size))
    if (x.byteLength > 0) {
      const parts = group.here.map((rank) => ({ rank, from: placeOf(operands[rank] as Operand), to: (targets[rank] as Side).gathered }))
      group.together({ kind: 'allGather', count: x.byteLength }, options, parts)
      for (const target of targets) target?.arrange()
    }
    return targets.map(({ tensor }) => tensor)
  })
  return member.counted(x, result)
}

export async function gather(
  member: Member,
  x: Tensor,
  { dst = 0, dim = -1, ...options }: { dst?: number; dim?: number } & MeetOptions = {},
): Promise<Tensor | null> {
  const check = (): void => {
    checkMoved(member.device, x, dim)
    checkInteger('dst', dst, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `gather(${describeTensor(x)}, dst ${dst}, dim ${dim})`
  const result = await recorded<Operand, Tensor | null>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
    const targets = byRank(group, (rank) => (rank === dst ? sideBySide(results, rank, x, dim, member.size) : null))
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
  return member.counted(x, result)
}

/** A rank's operand, and its length along dim. */
interface Brought {
  operand: Operand
  length: number
}

/** All ranks' x concatenated along dim, where its length may differ between ranks; of a list, each of its tensors. */
export async function allGatherV(
  member: Member,
  x: Tensor | readonly Tensor[],
  { dim = 0, sizes, ...options }: GatherVOptions = {},
): Promise<Tensor | Tensor[]> {
  const list = (Array.isArray(x) ? x : [x]) as readonly Tensor[]
  const check = (): void => checkGathered(member.device, list, dim, { rank: member.rank, size: member.size, sizes })
  if (member.size === 1) {
    member.checkOpen()
    check()
    const same = list.map((tensor) => tensor.share())
    return Array.isArray(x) ? same : (same[0] as Tensor)
  }
  const call = `allGatherV(${list.map((tensor) => describeOpen(tensor, dim)).join('; ')}, dim ${dim}, sizes ${sizes === undefined ? 'of the operands' : describeShape(sizes)})`
  const prepare = (hold: Hold): Brought[] => {
    check()
    return list.map((tensor) => ({ operand: hold(tensor, 'r'), length: lengthAt(tensor.shape, dim) }))
  }
  const made = await recorded<Brought[], Tensor[]>(member, call, prepare, options, (payloads, results) => {
    const { group } = member
    const gathered = list.map((tensor, i) => {
      const brought = payloads.map((own) => own[i] as Brought)
      const lengths = brought.map(({ length }) => length)
      const targets = byRank(group, (rank) => joinedAlong(results, rank, tensor, dim, lengths))
      const counts = brought.map(({ operand }) => operand.byteLength)
      if (counts.some((count) => count > 0)) {
        const parts = group.here.map((rank) => {
          return { rank, from: placeOf((brought[rank] as Brought).operand), to: (targets[rank] as Side).gathered }
        })
        group.together({ kind: 'allGatherV', counts }, options, parts)
        for (const target of targets) target?.arrange()
      }
      return targets
    })
    return byRank(group, (rank) => gathered.map((targets) => (targets[rank] as Side).tensor))
  })
  for (const tensor of list.slice(1)) member.counts.bytes += tensor.byteLength
  return member.counted(list[0] as Tensor, Array.isArray(x) ? made : (made[0] as Tensor))
}

export async function broadcast(member: Member, x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => {
    checkHere(member.device, x, 'x')
    checkInteger('src', src, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `broadcast(${describeTensor(x)}, src ${src})`
  const result = await recorded<Operand, Tensor>(member, call, held(x, check), options, (operands, results) => {
    const { group } = member
    const targets = byRank(group, (rank) => results.of(rank, x.shape, x.dtype))
    send(group, operands, src, (rank) => (targets[rank] as Target).operand, options)
    return targets.map(({ tensor }) => tensor)
  })
  return member.counted(member.rank === src ? x : null, result)
}

/** Rank src's x in every rank's own x; gives that x. */
export async function broadcastInto(member: Member, x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions): Promise<Tensor> {
  const check = (): void => {
    checkWritten(member.device, x, x, x.dtype, 'x')
    checkInteger('src', src, 0, member.size - 1)
  }
  const call = `broadcast(${describeTensor(x)}, src ${src}, in place)`
  const prepare = (hold: Hold): Operand => {
    check()
    return hold(x, 'rw')
  }
  await recorded<Operand, null>(member, call, prepare, options, (operands) => {
    send(member.group, operands, src, (rank) => operands[rank] as Operand, options)
    return operands.map(() => null)
  })
  return member.counted(member.rank === src ? x : null, x)
}

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

function sideBySide(results: Results, rank: number, x: Tensor, dim: number, ranks: number): Side {
  return joinedAlong(results, rank, x, dim, Array<number>(ranks).fill(lengthAt(x.shape, dim)))
}

function joinedAlong(
  results: Results,
  rank: number,
  { shape: like, dtype }: { shape: Shape; dtype: Tensor['dtype'] },
  dim: number,
  lengths: readonly number[],
): Side {
  const at = resolveDim(dim, like.length)
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
