// Member: one rank's part in a group of ranks on one engine: its collectives are recorded as soon as all have come.
import type { Device } from '../../device/device.ts'
import type { Run } from '../calls/run.ts'
import type { GroupMember, HoldAs } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Staging } from '../staged/group.ts'
import type { EngineGroup, Results } from './group.ts'

export type Member = GroupMember<Device, EngineGroup, Staging, Operand>

/** As GroupMember.run, with a `record` that awaits nothing: it runs once for all ranks and gives each its result. */
export const recorded: Run<Member, Operand, Results, 'now'> = <P, R>(
  member: Member,
  call: string,
  prepare: (hold: HoldAs<Operand>) => P,
  options: MeetOptions,
  record: (payloads: P[], results: Results) => R[],
): Promise<R> => {
  const complete = (payloads: P[]): R[] | Promise<R[]> => member.group.turn(call, options, (results) => record(payloads, results))
  return member.holding(prepare, (offer) => member.host.meet(call, offer, complete, options))
}
