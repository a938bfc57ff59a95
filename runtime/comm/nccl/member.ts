// Member: one rank's part in a group of NCCL. Over a wire its calls go to NCCL in the order in which it made them, whatever groups they are of: a
// stream that has two collectives in another order than a peer's would wait for ever.
import type { Device } from '../../device/device.ts'
import type { Run } from '../calls/run.ts'
import { type GroupMember, type HoldAs, outline } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Staging } from '../staged/group.ts'
import { orEnd } from '../turns.ts'
import type { NcclGroup, Results } from './group.ts'

export type Member = GroupMember<Device, NcclGroup, Staging, Operand>

/** By device, the end of the last call. */
const last = new WeakMap<Device, Promise<void>>()

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
  const before = last.get(device)
  let done = (): void => {}
  last.set(
    device,
    new Promise((resolve) => {
      done = resolve
    }),
  )
  const inOrder = async (payloads: P[]): Promise<R[]> => {
    await before
    return now(payloads)
  }
  try {
    return await member.holding(prepare, (offer) =>
      host.meet(call, offer, (payloads: P[]) => orEnd(host, call, inOrder(payloads)), options, outline),
    )
  } finally {
    done()
  }
}

/** By rank of the group, for the ranks that are here. */
export function byRank<T>({ here }: NcclGroup, of: (rank: number) => T): T[] {
  const all: T[] = []
  for (const rank of here) all[rank] = of(rank)
  return all
}
