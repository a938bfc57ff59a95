// The collectives over peers' memory that move operands: each rank's goes to its workspace, and from there to whoever wants it.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import { checkHere, checkMoved, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions } from '../device-comm.ts'
import { checkGathered, describeOpen, lengthAt } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Target } from '../staged/group.ts'
import { type Hold, held } from '../staged/member.ts'
import { type Part as Command, type CudaGroup, placeOf, type Results } from './group.ts'
import { type Member, recorded } from './member.ts'
import { blocksFor, WAY } from './plan.ts'
import { byRank } from './reduce.ts'

export async function allGather(member: Member, x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => checkMoved(member.device, x, dim)
  if (member.size === 1) return member.bypass(x, check)
  const result = await recorded(member, `allGather(${describeTensor(x)}, dim ${dim})`, held(x, check), options, (operands, results) => {
    const made = sideBySide(member.group, results, operands.map(alike(x, dim)), x, { dim, options })
    return byRank(member.group, made, (target) => (target as Target).tensor)
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
    const made = sideBySide(member.group, results, operands.map(alike(x, dim)), x, { dim, options, dst })
    return byRank(member.group, made, (target) => target?.tensor ?? null)
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
      return sideBySide(member.group, results, parts, tensor, { dim, options })
    })
    return byRank(member.group, member.group.here, (_, rank) =>
      gathered.map((made) => (made[member.group.here.indexOf(rank)] as Target).tensor),
    )
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
    const { group } = member
    const targets = group.here.map((rank) => results.of(rank, x.shape, x.dtype))
    const to = targets.map(({ operand }) => operand)
    move(group, operands, [1, operands.map((operand, rank) => (rank === src ? operand.byteLength : 0))], to, options)
    return byRank(group, targets, ({ tensor }) => tensor)
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
  await recorded<Operand, null>(member, call, prepare, options, (operands, results) => {
    const { group } = member
    const source = operands[src] as Operand
    const to = group.here.map((rank) => {
      if (rank === src) return null
      const target = operands[rank] as Operand
      // Ranks of one device may have brought one tensor, or some of its parts.
      const at = results.place(target, { others: [source], own: [] })
      return { ...target, at }
    })
    move(group, operands, [1, operands.map((operand, rank) => (rank === src ? operand.byteLength : 0))], to, options)
    results.settle()
    return byRank(group, to, () => null)
  })
  return member.counted(member.rank === src ? x : null, x)
}

function alike(x: Tensor, dim: number): (operand: Operand) => Part {
  const length = lengthAt(x.shape, dim)
  return (operand) => ({ operand, length })
}

/** All ranks' parts concatenated along dim, for the ranks that are here, or for `dst` of them alone. */
function sideBySide(
  group: CudaGroup,
  results: Results,
  parts: readonly Part[],
  { shape: like, dtype }: Tensor,
  { dim, dst, options }: { dim: number; dst?: number; options: MeetOptions },
): (Target | null)[] {
  const at = resolveDim(dim, like.length)
  const { outer, inner } = splitAt(like, at)
  const total = parts.reduce((sum, { length }) => sum + length, 0)
  const made = group.here.map((rank) => (dst === undefined || rank === dst ? results.of(rank, like.with(at, total), dtype) : null))
  const widths = parts.map(({ length }) => length * inner * dtypeSize(dtype))
  const to = made.map((target) => target?.operand ?? null)
  const operands = parts.map(({ operand }) => operand)
  move(group, operands, [outer, widths], to, options)
  return made
}

const UNITS = [16, 4, 1] as const

/**
 * The ranks' rows side by side in `to`, by ranks that are here; of a rank with null nowhere. Rows are as many on all ranks, of so many bytes each
 * by rank.
 */
function move(
  group: CudaGroup,
  operands: readonly Operand[],
  [rows, widths]: readonly [number, readonly number[]],
  to: readonly ((Operand & { at?: ReturnType<typeof placeOf> }) | null)[],
  options: MeetOptions,
): void {
  const { plan, here } = group
  const unit = UNITS.find((bytes) => widths.every((width) => width % bytes === 0)) as number
  const units = widths.map((width) => width / unit)
  const pitch = units.reduce((sum, width) => sum + width, 0)
  const most = Math.max(...units) * rows
  const pieces = Math.ceil((most * unit) / plan.dataBytes)
  for (let piece = 0; piece < pieces; piece++) {
    const spans = units.flatMap((row) => {
      const [first, end] = [piece, piece + 1].map((at) => Math.floor((rows * row * at) / pieces)) as [number, number]
      return [row, first, end - first]
    })
    const parts = here.map((rank, i): Command => {
      const own = placeOf(operands[rank] as Operand)
      const target = to[i]
      const y = target ? (target.at ?? placeOf(target)) : own
      return { rank, numbers: [rows, unit, pitch, ...spans, Number(target !== null)], operands: [own, y], written: target ? [1] : [] }
    })
    group.together(OP.peerGather, { way: WAY.oneShot, blocks: blocksFor(plan, Math.ceil(most / pieces) * unit) }, options, parts)
  }
}
