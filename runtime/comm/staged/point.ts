// Messages between two ranks of a staged group: send and recv, matched in order on the channel of their pair.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { checkShape, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkHere, describeShape, describeTensor } from '../checks.ts'
import { checkPeer } from '../part-checks.ts'
import type { MeetOptions, Offer } from '../rendezvous.ts'
import type { Operand, Source } from './group.ts'
import type { Deliver, Hold, Member } from './member.ts'

/** Sends x to rank dst (by default the next one, the last sends to the first); resolves once it is received. */
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
    return { shape: [...shape], dtype, byteLength: sizeOf(shape) * dtypeSize(dtype) }
  }
  const what = `${describeShape(shape)} ${dtype}`
  const result = await member.holding(prepare, (offer) => pass(member, src, member.rank, what, offer, options))
  return member.counted(null, result as Tensor)
}

interface Wanted {
  shape: Shape
  dtype: DType
  byteLength: number
}

/** Rank 0 of the pair sends, rank 1 receives. */
function pass(
  { channels, rank }: Member,
  src: number,
  dst: number,
  what: string,
  offer: Offer<Operand | Wanted>,
  options: MeetOptions,
): Promise<Tensor | null> {
  const deliver: Deliver<Operand | Wanted, Tensor | null> = async ([from, wanted], staging, pair) => {
    const [bytes] = await staging.all([{ ...(from ?? wanted), rank: 0 } as Source])
    if (!pair.here.includes(1)) return [null, null]
    const { shape, dtype } = wanted as Wanted
    return [null, staging.result(1, shape, dtype, bytes as Uint8Array)]
  }
  return channels.meet([src, dst], rank === src ? 0 : 1, `send(${src} → ${dst}, ${what})`, offer, deliver, options)
}
