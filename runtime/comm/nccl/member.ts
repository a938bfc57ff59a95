// Member: one rank's part in a group of NCCL. Over a wire its calls go to NCCL in the order in which it made them, whatever groups they are of.
import type { Device } from '../../device/device.ts'
import type { Run } from '../calls/run.ts'
import { type GroupMember, type HoldAs, outline } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Staging } from '../staged/group.ts'
import { inOrderOfCalls, orEnd } from '../turns.ts'
import type { NcclGroup, Results } from './group.ts'

export type Member = GroupMember<Device, NcclGroup, Staging, Operand>

/** As GroupMember.run, with a `record` that awaits nothing; its results are by rank, of those that are here. */
export const recorded: Run<Member, Operand, Results, 'now'> = async <P, R>(
  member: Member,
  call: string,
  prepare: (hold: HoldAs<Operand>) => P,
  options: MeetOptions,
  record: (payloads: P[], results: Results) => R[],
): Promise<R> => {
  const { host, group, device } = member
  const now = (payloads: P[]): R[] | Promise<R[]> => group.turn(call, options, (results) => record(payloads, results))
  if (!host.wire) return member.holding(prepare, (offer) => host.meet(call, offer, now, options))
  return inOrderOfCalls(device, (before) => {
    // Its turn in the group is taken now, so that what the group is asked for later stays behind it.
    const inOrder = (payloads: P[]): Promise<R[]> =>
      group.run(call, options, async () => {
        await before
        return group.record((results) => record(payloads, results))
      })
    return member.holding(prepare, (offer) =>
      host.meet(call, offer, (payloads: P[]) => orEnd(host, call, inOrder(payloads)), options, outline),
    )
  })
}

/** By rank of the group, for the ranks that are here. */
export function byRank<T>({ here }: NcclGroup, of: (rank: number) => T): T[] {
  const all: T[] = []
  for (const rank of here) all[rank] = of(rank)
  return all
}
