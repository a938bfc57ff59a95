// Member: one rank's part in a group whose kernels use each other's memory.
import type { Run } from '../calls/run.ts'
import { type QueuedMember, recordedBy } from '../queued.ts'
import type { Operand } from '../staged/group.ts'
import type { CudaGroup, Results } from './group.ts'

export type Member = QueuedMember<CudaGroup>

const inTurn = recordedBy<Results, CudaGroup>()

/** Where a call fails, its rank has heard of it: see CudaGroup.heard. */
export const recorded: Run<Member, Operand, Results, 'now'> = async (member, ...call) => {
  try {
    return await inTurn(member, ...call)
  } catch (error) {
    if (member.group.ended) member.group.heard(member.rank)
    throw error
  }
}
