// Messages between two ranks of a WebGPU group: x read where it lies, or landed on the receiver's device.

import type { Tensor } from '../../core/tensor.ts'
import { copyBytes, type Operand, rangeOf } from '../../device/webgpu/launch.ts'
import { type Message, type Receive, recvBy, type Send, sendBy, type Wanted } from '../calls/point.ts'
import { elsewhere, isHere } from './clusters.ts'
import type { WebGpuGroup } from './group.ts'
import { land } from './land.ts'
import type { Member } from './member.ts'
import type { Scope } from './scope.ts'

export const send: Send<Member> = sendBy(bring)
export const recv: Receive<Member> = recvBy(bring)

async function bring(_: Member, scope: Scope, { operand, wanted, pair }: Message<Operand, WebGpuGroup>): Promise<Tensor | null> {
  const [site, to] = [pair.home(0), pair.home(1)]
  const { shape, dtype, byteLength } = (wanted ?? {}) as Wanted
  const result = isHere(to) ? pair.tensor(scope, 1, to.gpu.pool.allocate(byteLength), shape, dtype) : null
  const range = operand?.range ?? elsewhere(byteLength)
  const [landed] = await land(scope, [{ site, range, to }])
  if (result && isHere(to) && landed) copyBytes(to.sink, landed, rangeOf(to.gpu, result), byteLength)
  return result
}
