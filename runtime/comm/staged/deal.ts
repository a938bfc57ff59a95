// The staged collectives that deal parts out: scatter from one rank, allToAll between all, blocks gathered in place at a pitch.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, type Shape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkMoved, checkParts, checkWritten, describeTensor } from '../checks.ts'
import type { AllToAllOptions, Pitched } from '../device-comm.ts'
import { checkDealt, checkLayout, checkReceived, describeOpen, type Splits } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Source } from './group.ts'
import type { Hold, Member } from './member.ts'
import { concatenated, slab } from './pieces.ts'

/** Rank r gets the r-th part of rank src's x along dim. The others' x is not looked at. */
export async function scatter(
  member: Member,
  x: Tensor | null,
  { src = 0, dim = 0, ...options }: { src?: number; dim?: number } & MeetOptions = {},
): Promise<Tensor> {
  const { group, size } = member
  const check = (): void => {
    checkInteger('src', src, 0, size - 1)
    if (member.rank !== src) return
    checkMoved(member.device, x as Tensor, dim)
    checkParts((x as Tensor).shape, dim, size)
  }
  if (size === 1) {
    check()
    return member.bypass(x as Tensor, check)
  }
  const prepare = (hold: Hold): { operand: Operand; shape: Shape } | null => {
    check()
    return member.rank === src ? { operand: hold(x as Tensor, 'r'), shape: (x as Tensor).shape } : null
  }
  const result = await member.run(`scatter(src ${src}, dim ${dim})`, prepare, options, async (payloads, staging) => {
    const { operand, shape } = payloads[src] as { operand: Operand; shape: Shape }
    const [bytes] = (await staging.all([operand])) as [Uint8Array]
    const at = resolveDim(dim, shape.length)
    const length = (shape[at] as number) / size
    const results: Tensor[] = []
    for (const rank of group.here) {
      const part = slab(bytes, shape, operand.dtype, { dim: at, start: rank * length, length })
      results[rank] = staging.result(rank, part.shape, operand.dtype, part.bytes())
    }
    return results
  })
  return member.counted(member.rank === src ? x : null, result)
}

interface Dealt extends Splits {
  operand: Operand
}

/** Rank s's rows, cut by its splits: the r-th cut goes to rank r, which gets its cuts in the order of their senders. */
export async function allToAll(member: Member, x: Tensor, { splits, outputSplits, ...options }: AllToAllOptions = {}): Promise<Tensor> {
  const { group, size } = member
  const check = (): Splits => checkDealt(member.device, x, size, { splits, outputSplits })
  if (size === 1) {
    const same = member.bypass(x, check)
    checkReceived([check()])
    return same
  }
  const prepare = (hold: Hold): Dealt => ({ ...check(), operand: hold(x, 'r') })
  const result = await member.run(`allToAll(${describeOpen(x, 0)})`, prepare, options, async (payloads, staging) => {
    checkReceived(payloads)
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
  return member.counted(x, result)
}

/** Gives the buffer, which then holds every rank's block. */
export async function allGather2D(member: Member, buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor> {
  const { pitch, stride, width, height, ...options } = layout ?? ({} as Pitched)
  const { group, size } = member
  const check = (): void => {
    checkWritten(member.device, buffer, buffer, buffer?.dtype, 'buffer')
    checkLayout({ pitch, stride, width, height }, size, buffer)
  }
  const call = `allGather2D(${describeTensor(buffer)}, pitch ${pitch}, stride ${stride}, ${height} x ${width})`
  const prepare = (hold: Hold): Operand => {
    check()
    return hold(buffer, 'rw')
  }
  await member.run<Operand, null>(call, prepare, options, async (operands, staging) => {
    const nothing = operands.map(() => null)
    if (width * height === 0 || size === 1) return nothing
    const rows = (operand: Operand, rank: number): Source[] => rowsOf(operand, { pitch, stride, width, height }, rank, buffer.dtype)
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
  return member.counted(buffer, buffer)
}

/** The rows of rank's block in a buffer. */
function rowsOf(buffer: Operand, { pitch, stride, width, height }: Pitched, rank: number, dtype: DType): Source[] {
  const unit = dtypeSize(dtype)
  return Array.from({ length: height }, (_, y) => {
    return { ...buffer, offset: buffer.offset + (rank * stride + y * pitch) * unit, byteLength: width * unit }
  })
}
