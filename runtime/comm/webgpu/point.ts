// Messages between two ranks of a WebGPU group: send and recv, matched in order on the channel of their pair.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError, checkInteger } from '../../core/errors.ts'
import { checkShape, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyBytes, type Operand } from '../../device/webgpu/launch.ts'
import type { MeetOptions, Offer } from '../rendezvous.ts'
import { checkHere, describeShape, describeTensor } from './checks.ts'
import { land } from './land.ts'
import type { Hold, Member } from './member.ts'
import type { Scope } from './scope.ts'

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
    return { shape: [...shape], dtype, bytes: sizeOf(shape) * dtypeSize(dtype) }
  }
  const what = `${describeShape(shape)} ${dtype}`
  const result = await member.holding(prepare, (offer) => pass(member, src, member.rank, what, offer, options))
  return member.counted(null, result as Tensor)
}

interface Wanted {
  shape: Shape
  dtype: DType
  bytes: number
}

/** A peer cannot be told of a call that names no peer: it throws on its own rank alone. */
function checkPeer(member: Member, name: string, peer: number): void {
  member.checkOpen()
  checkInteger(name, peer, 0, member.size - 1)
  if (peer === member.rank) throw new ArgumentError(`Rank ${peer} cannot send to itself; use the tensor as it is`)
}

function pass(
  { host, channels, rank }: Member,
  src: number,
  dst: number,
  what: string,
  offer: Offer<Operand | Wanted>,
  options: MeetOptions,
): Promise<Tensor | null> {
  const channel = channels.get(src, dst, (ranks) => host.channel(ranks))
  const deliver = async ([from, wanted]: (Operand | Wanted)[], scope: Scope): Promise<(Tensor | null)[]> => {
    const pair = channel.group
    const [cluster, to] = [pair.home(0), pair.home(1)]
    const { shape, dtype, bytes } = wanted as Wanted
    const storage = to.gpu.pool.allocate(bytes)
    const result = pair.tensor(scope, 1, storage, shape, dtype)
    const [range] = (await land(scope, [{ cluster, range: (from as Operand).range, to }])) as [Range]
    copyBytes(to.sink, range, { buffer: storage.buffer, offset: storage.offset, byteLength: bytes }, bytes)
    return [null, result]
  }
  const call = `send(${src} → ${dst}, ${what})`
  const complete = (payloads: (Operand | Wanted)[]): Promise<(Tensor | null)[]> => channel.group.run((scope) => deliver(payloads, scope))
  return channel.rendezvous.meet<Operand | Wanted, Tensor | null>(rank === src ? 0 : 1, call, offer, complete, options)
}
