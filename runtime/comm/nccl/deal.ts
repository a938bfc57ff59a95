// The collectives of NCCL that deal parts out: scatter from one rank, rows between all, blocks gathered in place at a pitch; and messages.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf, splitAt } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Deliver as DeliverAs } from '../channels.ts'
import { checkHere, checkMoved, checkParts, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { AllToAllOptions, Pitched } from '../device-comm.ts'
import { checkDealt, checkLayout, checkPeer, checkReceived, describeOpen, type Splits } from '../part-checks.ts'
import type { MeetOptions, Offer } from '../rendezvous.ts'
import type { Operand, Staging, Target } from '../staged/group.ts'
import type { Hold } from '../staged/member.ts'
import { pack } from './arrange.ts'
import { type NcclGroup, placeOf, shifted } from './group.ts'
import { byRank, type Member, recorded } from './member.ts'

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
    return member.rank === src ? { operand: hold(x as Tensor, 'r'), shape: [...(x as Tensor).shape] } : null
  }
  const result = await recorded<ReturnType<typeof prepare>, Tensor>(
    member,
    `scatter(src ${src}, dim ${dim})`,
    prepare,
    options,
    (payloads, results) => {
      const { operand, shape } = payloads[src] as { operand: Operand; shape: Shape }
      const at = resolveDim(dim, shape.length)
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
    },
  )
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
  const result = await recorded<Dealt, Tensor>(member, `allToAll(${describeOpen(x, 0)})`, prepare, options, (payloads, results) => {
    checkReceived(payloads)
    const tail = x.shape.slice(1)
    const row = sizeOf(tail) * dtypeSize(x.dtype)
    const got = (rank: number): number[] => payloads.map((own) => own.splits[rank] as number)
    const rows = (rank: number): number => got(rank).reduce((a, b) => a + b, 0)
    const targets = byRank(group, (rank) => results.of(rank, [rows(rank), ...tail], x.dtype))
    const all = payloads.flatMap((own) => own.splits)
    if (row > 0 && all.some((n) => n > 0)) {
      const even = all.every((n) => n === all[0])
      const parts = group.here.map((rank) => {
        const { operand, splits } = payloads[rank] as Dealt
        const counts = [...splits, ...got(rank)].map((n) => n * row)
        return { rank, from: placeOf(operand), to: placeOf((targets[rank] as Target).operand), ...(!even && { counts }) }
      })
      group.together(even ? { kind: 'allToAll', count: (all[0] as number) * row } : { kind: 'allToAllV' }, options, parts)
    }
    return targets.map(({ tensor }) => tensor)
  })
  return member.counted(x, result)
}

/** Whether blocks lie end to end, or side by side in rows without gaps. */
export function gathers2D({ pitch, stride, width, height }: Pitched, ranks: number): boolean {
  const endToEnd = stride === width * height && (height === 1 || pitch === width)
  return endToEnd || (stride === width && pitch === ranks * width)
}

/** Gives the buffer, which then holds every rank's block. */
export async function allGather2D(member: Member, buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor> {
  const { pitch, stride, width, height, ...options } = layout
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
  await recorded<Operand, null>(member, call, prepare, options, (operands, results) => {
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
  })
  return member.counted(buffer, buffer)
}

/** Sends x to rank dst (by default the next one, the last sends to the first); resolves once both ends have met. Of ranks of one thread. */
export async function send(
  member: Member,
  x: Tensor,
  { dst = (member.rank + 1) % member.size, ...options }: { dst?: number } & MeetOptions = {},
): Promise<void> {
  checkPeer(member, 'dst', dst)
  const prepare = (hold: Hold): Operand => {
    checkHere(member.device, x, 'x')
    return hold(x, 'r')
  }
  await member.holding(prepare, (offer) => pass(member, member.rank, dst, describeTensor(x), offer, options))
  member.counted(x, null)
}

/** Receives from rank src (by default the one before this one) a tensor of this shape and dtype, into memory of its own. */
export async function recv(
  member: Member,
  shape: Shape,
  dtype: DType,
  { src = (member.rank + member.size - 1) % member.size, ...options }: { src?: number } & MeetOptions = {},
): Promise<Tensor> {
  checkPeer(member, 'src', src)
  const prepare = (): Wanted => {
    if (member.device.failure) throw member.device.failure
    checkShape(shape)
    dtypeSize(dtype) // throws for an unknown one
    return { shape: [...shape], dtype }
  }
  const what = `${describeShape(shape)} ${dtype}`
  const result = await member.holding(prepare, (offer) => pass(member, src, member.rank, what, offer, options))
  return member.counted(null, result as Tensor)
}

interface Wanted {
  shape: Shape
  dtype: DType
}

function pass(
  { channels, group, rank }: Member,
  src: number,
  dst: number,
  what: string,
  offer: Offer<Operand | Wanted>,
  options: MeetOptions,
): Promise<Tensor | null> {
  const deliver: DeliverAs<Operand | Wanted, Tensor | null, Staging, NcclGroup> = async (payloads) => {
    const [operand, { shape, dtype }] = payloads as [Operand, Wanted]
    return deliverTo(group, operand, { src, dst }, { shape, dtype }, options)
  }
  return channels.meet([src, dst], rank === src ? 0 : 1, `send(${src} → ${dst}, ${what})`, offer, deliver, options)
}

function deliverTo(
  group: NcclGroup,
  operand: Operand,
  { src, dst }: { src: number; dst: number },
  { shape, dtype }: Wanted,
  options: MeetOptions,
): (Tensor | null)[] {
  return group.record((results) => {
    const target = results.of(dst, shape, dtype)
    const [from, to] = [placeOf(operand), placeOf(target.operand)]
    if (operand.byteLength > 0) {
      group.together({ kind: 'send', count: operand.byteLength }, options, [
        { rank: src, kind: 'send', peer: dst, from, to: from, writes: false },
        { rank: dst, kind: 'recv', peer: src, from: to, to },
      ])
    }
    return [null, target.tensor]
  })
}
