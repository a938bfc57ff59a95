// Member: one rank's part in a group whose collectives go through host memory.
import type { Device } from '../../device/device.ts'
import type { Run } from '../calls/run.ts'
import type { GroupMember, HoldAs, Shared } from '../member.ts'
import type { Operand, StagedGroup, Staging } from './group.ts'

export type Member = GroupMember<Device, StagedGroup, Staging, Operand>
export type Common = Shared<Staging, StagedGroup>
export type Hold = HoldAs<Operand>

/** How a rank's tensors are seen as operands. */
export function operandOf(rank: number): Hold {
  return ({ storage, byteOffset, byteLength, dtype, size }) => {
    return { rank, buffer: storage, offset: byteOffset, byteLength, dtype, count: size }
  }
}

export const run: Run<Member, Operand, Staging, 'later'> = (member, ...call) => member.run(...call)
