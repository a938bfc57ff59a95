// Member: one rank's part in a group whose kernels use each other's memory: its collectives are recorded as soon as all have come.
import type { Device } from '../../device/device.ts'
import type { Run } from '../calls/run.ts'
import { type GroupMember, type HoldAs, outline } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Staging } from '../staged/group.ts'
import { inOrderOfCalls, orEnd } from '../turns.ts'
import type { CudaGroup, Results } from './group.ts'

export type Member = GroupMember<Device, CudaGroup, Staging, Operand>

/** As GroupMember.run, with a `record` that awaits nothing; its results are by rank, of those that are here. */
export const recorded: Run<Member, Operand, Results, 'now'> = async <P, R>(
  member: Member,
  call: string,
  prepare: (hold: HoldAs<Operand>) => P,
  options: MeetOptions,
  record: (payloads: P[], results: Results) => R[],
): Promise<R> => {
  const { group, host, device } = member
  const turn = (payloads: P[]): R[] | Promise<R[]> => group.turn(call, options, (results) => record(payloads, results))
  try {
    if (!host.wire) return await member.holding(prepare, (offer) => host.meet(call, offer, turn, options, outline))
    return await inOrderOfCalls(device, (before) => {
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
  } catch (error) {
    if (group.ended) group.heard(member.rank)
    throw error
  }
}
