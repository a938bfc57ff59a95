// Messages between two ranks, as every kind of group is called: send and recv, matched in order on the channel of their pair.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { checkShape, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Device } from '../../device/device.ts'
import type { Deliver } from '../channels.ts'
import { checkHere, describeShape, describeTensor } from '../checks.ts'
import type { GroupMember, HoldAs } from '../member.ts'
import { checkPeer } from '../part-checks.ts'
import type { MeetOptions, Offer } from '../rendezvous.ts'
import type { Turns } from '../turns.ts'

/** What the receiver asks for. */
export interface Wanted {
  shape: Shape
  dtype: DType
  byteLength: number
}

/** What the ends bring, as far as they are here, and who they are: `pair` is their group, rank 0 of it sends, rank 1 receives. */
export interface Message<O, G> {
  operand: O | undefined
  wanted: Wanted | undefined
  src: number
  dst: number
  pair: G
  options: MeetOptions
}

/** How a kind of group brings a message over: the receiver's tensor, or null where the receiver is elsewhere. */
export type Bring<M, O, S, G> = (member: M, scope: S, message: Message<O, G>) => Promise<Tensor | null>

export type Send<M> = (member: M, x: Tensor, options?: { dst?: number } & MeetOptions) => Promise<void>

/** Sends x to rank dst (by default the next one, the last sends to the first); resolves once it is received. */
export function sendBy<D extends Device, G extends Turns<S>, S, O>(
  bring: Bring<GroupMember<D, G, S, O>, O, S, G>,
): Send<GroupMember<D, G, S, O>> {
  return async (member, x, { dst = (member.rank + 1) % member.size, ...options } = {}) => {
    checkPeer(member, 'dst', dst)
    const prepare = (hold: HoldAs<O>): O => {
      checkHere(member.device, x, 'x')
      return hold(x, 'r')
    }
    await member.holding(prepare, (offer) => pass(member, bring, [member.rank, dst], describeTensor(x), offer, options))
    member.counted(x, null)
  }
}

export type Receive<M> = (member: M, shape: Shape, dtype: DType, options?: { src?: number } & MeetOptions) => Promise<Tensor>

/** Receives from rank src (by default the one before this one) a tensor of this shape and dtype, into memory of its own. */
export function recvBy<D extends Device, G extends Turns<S>, S, O>(
  bring: Bring<GroupMember<D, G, S, O>, O, S, G>,
): Receive<GroupMember<D, G, S, O>> {
  return async (member, shape, dtype, { src = (member.rank + member.size - 1) % member.size, ...options } = {}) => {
    checkPeer(member, 'src', src)
    const prepare = (): Wanted => {
      if (member.device.failure) throw member.device.failure
      checkShape(shape)
      return { shape: [...shape], dtype, byteLength: sizeOf(shape) * dtypeSize(dtype) }
    }
    const what = `${describeShape(shape)} ${dtype}`
    const result = await member.holding(prepare, (offer) => pass(member, bring, [src, member.rank], what, offer, options))
    return member.counted(null, result as Tensor)
  }
}

function pass<D extends Device, G extends Turns<S>, S, O>(
  member: GroupMember<D, G, S, O>,
  bring: Bring<GroupMember<D, G, S, O>, O, S, G>,
  [src, dst]: readonly [src: number, dst: number],
  what: string,
  offer: Offer<O | Wanted>,
  options: MeetOptions,
): Promise<Tensor | null> {
  const deliver: Deliver<O | Wanted, Tensor | null, S, G> = async ([sent, asked], scope, pair) => {
    const [operand, wanted] = [sent as O | undefined, asked as Wanted | undefined]
    return [null, await bring(member, scope, { operand, wanted, src, dst, pair, options })]
  }
  return member.channels.meet([src, dst], member.rank === src ? 0 : 1, `send(${src} → ${dst}, ${what})`, offer, deliver, options)
}
