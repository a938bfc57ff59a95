// Joining: how ranks of a staged group come to transports of their own, before all ranks learn which of these there are.
import type { Device } from '../../device/device.ts'
import type { EngineDevice } from '../../device/engine/device.ts'
import type { DeviceComm } from '../device-comm.ts'
import type { GroupHost } from '../host.ts'
import type { StagedComm } from './comm.ts'
import { type End, JoinedSite } from './joined-site.ts'

export interface Joining {
  /** Ranks that a transport joins, ascending, set by set; alike on all ranks. */
  readonly sets: readonly (readonly number[])[]
  /** This rank's end of the transport of its set, whose ranks `host` has; null where a driver or a library refuses it. */
  join(host: GroupHost, view: EngineDevice): Promise<DeviceComm | null>
  /** Makes a group that is split off. */
  create(host: GroupHost, device: Device): Promise<StagedComm>
}

/** A rank's device and its end of a transport; of a rank that is elsewhere, what is known of them. */
export interface Entering<D> {
  device: D
  end: End | boolean
}

/** All ranks of `host` call it. Gives this rank's end; false where it is of no set, or was refused. */
export async function enter(host: GroupHost, device: Device, { sets, join }: Joining): Promise<End | false> {
  const set = sets.findIndex((ranks) => ranks.includes(host.rank))
  const own = await host.split({ color: set < 0 ? null : set, key: host.rank })
  if (!own) return false
  const view = (device as EngineDevice).view()
  const comm = await join(own, view)
  if (!comm) own.close()
  return comm !== null && { comm, view, device: device as EngineDevice }
}

/** The sites of the sets all of whose ranks have come; `all` by rank. The ends of other sets that are here are given up. */
export function sitesOf(host: GroupHost, sets: Joining['sets'], all: readonly Entering<unknown>[]): JoinedSite[] {
  return sets.flatMap((ranks) => {
    const ends = new Map<number, End>()
    for (const rank of ranks) {
      const { end } = all[rank] as Entering<unknown>
      if (typeof end === 'object') ends.set(rank, end)
    }
    if (ranks.every((rank) => (all[rank] as Entering<unknown>).end !== false)) return [new JoinedSite(host, ranks, ends)]
    for (const { comm } of ends.values()) comm.destroy()
    return []
  })
}
