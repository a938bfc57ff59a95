// Reach: which memory CUDA devices have in common, and where the workspaces of their ranks lie therefore.
import { platform } from '#platform'
import type { CudaDevice } from '../../device/cuda/device.ts'
import { MOST_RANKS } from './plan.ts'

/** What ranks must know of each other's devices to use each other's memory; data. */
export interface Reach {
  /** The device's own number. */
  uuid: string
  /** Numbers of the devices whose memory it can use, its own among them. */
  peers: readonly string[]
  /** Names the machine that it is in. */
  machine: string
  /** Names the devices that NVLink joins, in whatever machine, this one among them; null where nobody can say. */
  domain: string | null
  /** Why its kernels cannot store to memory of several devices at once; null where they can. */
  noMulticast: string | null
  multiprocessors: number
}

/** Where workspaces lie: each on its rank's device, or all in pinned memory of the machine. */
export type Home = 'device' | 'pinned'
export const HOMES: readonly Home[] = ['device', 'pinned']

export function reachOf({ engine }: CudaDevice): Reach {
  const { uuid, machine, multiprocessors } = engine
  const { available, detail } = engine.multicast()
  const others = platform.addon()?.cudaDevices?.() ?? []
  const peers = others.filter((other) => other.uuid !== uuid && engine.canAccessPeer(other.index)).map((other) => other.uuid)
  return { uuid, peers: [uuid, ...peers], machine, domain: engine.domain(), noMulticast: available ? null : detail, multiprocessors }
}

/** Why ranks with workspaces on such devices have no multicast, by which one store reaches the workspaces of all; null where they can. */
export function noMulticast(reaches: readonly Reach[]): string | null {
  if (reaches.length < 2) return 'there is one rank'
  if (new Set(reaches.map(({ uuid }) => uuid)).size < reaches.length) return 'some ranks share a device'
  return reaches.find((one) => one.noMulticast !== null)?.noMulticast ?? null
}

/** Where they lie, and whether it takes NVLink between machines: `fabric`. */
export interface Found {
  home: Home
  fabric: boolean
}

/**
 * Where the workspaces of ranks with such devices lie: on the devices where all can use each other's memory, as peers or in one domain, else in pinned
 * memory where they are of one machine; or why there is no such place. `asked`: there or nowhere.
 */
export function homeOf(reaches: readonly Reach[], asked?: Home): Found | { why: string } {
  if (reaches.length > MOST_RANKS) return { why: `${reaches.length} ranks are more than the kernels' ${MOST_RANKS}` }
  const pairs = reaches
    .flatMap((one) => reaches.map((other) => ({ one, other })))
    .filter(({ one, other }) => !one.peers.includes(other.uuid))
  const apart = pairs
    .filter(({ one, other }) => one.domain === null || one.domain !== other.domain)
    .map(({ one, other }) => `device ${one.uuid} cannot use the memory of device ${other.uuid}`)
  if (apart.length === 0 && asked !== 'pinned') return { home: 'device', fabric: pairs.length > 0 }
  if (asked === 'device') return { why: apart[0] as string }
  const machines = new Set(reaches.map(({ machine }) => machine))
  return machines.size === 1
    ? { home: 'pinned', fabric: false }
    : { why: `${apart[0] ?? 'pinned memory was asked for'}, and they are in ${machines.size} machines` }
}
