// The staged collectives that move operands: allGather, allGatherV, gather, broadcast, in place or to memory of its own.
import { checkInteger } from '../../core/errors.ts'
import { resolveDim } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkHere, checkMoved, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions } from '../device-comm.ts'
import { checkGathered, describeOpen, lengthAt } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand } from './group.ts'
import { type Hold, held, type Member } from './member.ts'
import { concatenated } from './pieces.ts'

export async function allGather(member: Member, x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => checkMoved(member.device, x, dim)
  if (member.size === 1) return member.bypass(x, check)
  const result = await member.run(`allGather(${describeTensor(x)}, dim ${dim})`, held(x, check), options, async (operands, staging) => {
    const { shape, bytes } = sideBySide(await staging.all(operands), x, dim)
    return staging.spread(shape, x.dtype, bytes)
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
  const result = await member.run<Operand, Tensor | null>(call, held(x, check), options, async (operands, staging) => {
    const parts = await staging.all(operands)
    if (!member.group.here.includes(dst)) return operands.map(() => null)
    const { shape, bytes } = sideBySide(parts, x, dim)
    const whole = staging.result(dst, shape, x.dtype, bytes)
    return operands.map((_, rank) => (rank === dst ? whole : null))
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
  const results = await member.run(call, prepare, options, async (payloads, staging) => {
    const all = await staging.all(payloads.flatMap((parts) => parts.map(({ operand }) => operand)))
    const gathered = list.map((tensor, i) => {
      const parts = payloads.map((_, rank) => all[rank * list.length + i] as Uint8Array)
      const lengths = payloads.map((own) => (own[i] as Part).length)
      const { shape, bytes } = concatenated(parts, lengths, tensor.shape, tensor.dtype, resolveDim(dim, tensor.shape.length))
      return staging.spread(shape, tensor.dtype, bytes)
    })
    return payloads.map((_, rank) => gathered.map((tensors) => tensors[rank] as Tensor))
  })
  for (const tensor of list.slice(1)) member.counts.bytes += tensor.byteLength
  return member.counted(list[0] as Tensor, Array.isArray(x) ? results : (results[0] as Tensor))
}

export async function broadcast(member: Member, x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => {
    checkHere(member.device, x, 'x')
    checkInteger('src', src, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const result = await member.run(`broadcast(${describeTensor(x)}, src ${src})`, held(x, check), options, async (operands, staging) => {
    const [bytes] = await staging.all([operands[src] as Operand])
    return staging.spread(x.shape, x.dtype, bytes as Uint8Array)
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
  await member.run<Operand, null>(call, prepare, options, async (operands, staging) => {
    const [bytes] = await staging.all([operands[src] as Operand])
    staging.writeEach(
      operands.filter(({ rank }) => rank !== src),
      bytes as Uint8Array,
    )
    return operands.map(() => null)
  })
  return member.counted(member.rank === src ? x : null, x)
}

function sideBySide(parts: readonly Uint8Array[], { shape, dtype }: Tensor, dim: number): { shape: number[]; bytes: Uint8Array } {
  const at = resolveDim(dim, shape.length)
  return concatenated(
    parts,
    parts.map(() => shape[at] as number),
    shape,
    dtype,
    at,
  )
}
