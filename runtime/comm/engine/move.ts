// The collectives of ranks on one engine that move operands: gathered side by side, or copied from one rank, in one command whose work all share.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, type Shape, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import { checkHere, checkMoved, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions } from '../device-comm.ts'
import { checkGathered, describeOpen, lengthAt } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Target } from '../staged/group.ts'
import { type Hold, held } from '../staged/member.ts'
import { type EngineGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'

export async function allGather(member: Member, x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => checkMoved(member.device, x, dim)
  if (member.size === 1) return member.bypass(x, check)
  const result = await recorded(member, `allGather(${describeTensor(x)}, dim ${dim})`, held(x, check), options, (operands, results) =>
    results.shared(sideBySide(member.group, operands.map(alike(x, dim)), x, dim, { rank: 0, results })),
  )
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
    const { tensor } = sideBySide(member.group, operands.map(alike(x, dim)), x, dim, { rank: dst, results })
    return operands.map((_, rank) => (rank === dst ? tensor : null))
  })
  return member.counted(x, result)
}

/** A rank's operand, and its length along dim. */
interface Part {
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
  const prepare = (hold: Hold): Part[] => {
    check()
    return list.map((tensor) => ({ operand: hold(tensor, 'r'), length: lengthAt(tensor.shape, dim) }))
  }
  const made = await recorded(member, call, prepare, options, (payloads, results) => {
    const gathered = list.map((tensor, i) => {
      const parts = payloads.map((own) => own[i] as Part)
      return results.shared(sideBySide(member.group, parts, tensor, dim, { rank: 0, results }))
    })
    return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
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
  const result = await recorded(member, call, held(x, check), options, (operands, results) => {
    const y = results.of(src, x.shape, x.dtype)
    member.group.copy(operands[src] as Operand, y.operand)
    return results.shared(y)
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
    return operands.map((operand) => {
      member.group.copy(operands[src] as Operand, operand)
      return null
    })
  })
  return member.counted(member.rank === src ? x : null, x)
}

function alike(x: Tensor, dim: number): (operand: Operand) => Part {
  const length = lengthAt(x.shape, dim)
  return (operand) => ({ operand, length })
}

/** All ranks' parts concatenated along dim, as a result of `rank`. */
function sideBySide(
  group: EngineGroup,
  parts: readonly Part[],
  { shape: like, dtype }: { shape: Shape; dtype: Tensor['dtype'] },
  dim: number,
  { rank, results }: { rank: number; results: Results },
): Target {
  const at = resolveDim(dim, like.length)
  const { outer, inner } = splitAt(like, at)
  const unit = inner * dtypeSize(dtype)
  const total = parts.reduce((sum, { length }) => sum + length, 0)
  const y = results.of(rank, like.with(at, total), dtype)
  const numbers = [outer, parts.length, total * unit, ...parts.map(({ length }) => length * unit)]
  const operands = [...parts.map(({ operand }) => placeOf(operand)), placeOf(y.operand)]
  if (outer * total * unit > 0) group.together(OP.gather, numbers, operands, [parts.length])
  return y
}
