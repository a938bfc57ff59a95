// Messages between two ranks of a staged group, through host memory.

import type { Tensor } from '../../core/tensor.ts'
import { type Message, type Receive, recvBy, type Send, sendBy, type Wanted } from '../calls/point.ts'
import type { Operand, Source, StagedGroup, Staging } from './group.ts'
import type { Member } from './member.ts'

export const send: Send<Member> = sendBy(bring)
export const recv: Receive<Member> = recvBy(bring)

async function bring(_: Member, staging: Staging, { operand, wanted, pair }: Message<Operand, StagedGroup>): Promise<Tensor | null> {
  const [bytes] = await staging.all([{ ...(operand ?? wanted), rank: 0 } as Source])
  if (!pair.here.includes(1)) return null
  const { shape, dtype } = wanted as Wanted
  return staging.result(1, shape, dtype, bytes as Uint8Array)
}
