// Member: one rank's part in a group of NCCL.
import type { Run } from '../calls/run.ts'
import { type QueuedMember, recordedBy } from '../queued.ts'
import type { Operand } from '../staged/group.ts'
import type { NcclGroup, Results } from './group.ts'

export type Member = QueuedMember<NcclGroup>

export const recorded: Run<Member, Operand, Results, 'now'> = recordedBy()

/** By rank of the group, for the ranks that are here. */
export function byRank<T>({ here }: NcclGroup, of: (rank: number) => T): T[] {
  const all: T[] = []
  for (const rank of here) all[rank] = of(rank)
  return all
}
