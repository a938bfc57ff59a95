// How ranks are joined by NCCL: what they must know of each other, what those of one thread share, and groups split off others.
import { platform } from '#platform'
import type { Nccl, NcclCommunicator, NcclError } from '../../core/addon.ts'
import { ArgumentError, BackendUnavailableError, type RankmeshError } from '../../core/errors.ts'
import type { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import { type FarDevice, StagedGroup, type Staging } from '../staged/group.ts'
import type { Common } from '../staged/member.ts'
import type { Wire } from '../wire.ts'
import { NcclGroup } from './group.ts'

/** The release that lets ranks share a device, where NCCL_MULTI_RANK_GPU_ENABLE says so. */
const SHARES = 23003

/** What ranks must know of each other to be joined by NCCL; data. */
export interface NcclReach {
  /** The device's own number. */
  uuid: string
  /** Of the library, as NCCL numbers its releases; or why there is none. */
  version: number | string
}

export function ncclReachOf(device: CudaDevice): NcclReach {
  const { uuid } = device.engine
  const addon = platform.addon()
  const { available, detail } = addon?.features().nccl ?? { available: false, detail: 'the native addon is not there' }
  return { uuid, version: available && addon?.nccl ? addon.nccl.version() : detail }
}

/** What a rank brings, and what the others see of it. */
export interface Entering extends NcclReach {
  device: Device | FarDevice
  /** Of rank 0, where the group is no part of another one. */
  id: Uint8Array | null
}

/** Why ranks with such devices cannot be joined so, by rank; or null. */
export function obstacle(reaches: readonly NcclReach[]): string | null {
  const [first] = reaches as [NcclReach]
  for (const [rank, { uuid, version }] of reaches.entries()) {
    if (typeof version === 'string') return `rank ${rank} has no NCCL: ${version}`
    if (version !== first.version) return `rank ${rank} has NCCL ${version} and rank 0 has ${first.version}; install the same on all`
    const other = reaches.findIndex((reach) => reach.uuid === uuid)
    if (other < rank && !(version >= SHARES && platform.env('NCCL_MULTI_RANK_GPU_ENABLE') === '1')) {
      return `ranks ${other} and ${rank} share the device ${uuid}, and NCCL wants one for each`
    }
  }
  return null
}

/** A rank's place in a part of a group. */
export interface Part {
  color: number | null
  rank: number
  size: number
}

/** A communicator that was split off, and the group that it is for, once that is there. */
export interface Joint {
  native: NcclCommunicator
  group: NcclGroup | null
}

/** By rank, of those that are here. */
export async function splitAll(group: NcclGroup, parts: readonly Part[], timeoutMs: number): Promise<Joint[]> {
  const joints: Joint[] = []
  for (const rank of group.here) {
    const onFailure = (error: NcclError): void => {
      joints[rank]?.group?.fail(error)
    }
    const native = (group.natives[rank] as NcclCommunicator).split({ ...(parts[rank] as Part), timeoutMs }, onFailure)
    joints[rank] = { native, group: null }
  }
  const stop = group.watch()
  try {
    await Promise.all(joints.map(({ native }) => native.joined))
  } catch (error) {
    for (const { native } of joints.filter(Boolean)) native.abort('the split has failed')
    throw group.fail(error as NcclError)
  } finally {
    stop()
  }
  for (const rank of group.here) if ((parts[rank] as Part).color === null) joints[rank]?.native.close(timeoutMs)
  return joints
}

/** What the ranks that are here share. */
export function commonOf(host: GroupHost, all: readonly Entering[]): Common {
  const devices = all.map(({ device }) => device)
  if (new Set(devices).size < devices.length) {
    throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
  }
  const why = obstacle(all)
  if (why !== null) throw new BackendUnavailableError(`These ranks cannot be joined by NCCL: ${why}`)
  const { timeoutMs, wire } = host
  const traffic = { crossings: 0, bytes: 0 }
  const link = wire && { lane: wire.data, timeoutMs, traffic }
  const channels = channelsOf(host, devices, traffic)
  const onEnd = (error: RankmeshError): void => {
    host.end(error)
    channels.end(error)
  }
  const nccl = platform.addon()?.nccl as Nccl
  const group = new NcclGroup(devices, link, { nccl, version: (all[0] as Entering).version as number, host, onEnd })
  return { group, channels, traffic }
}

/** How two ranks reach each other. */
function channelsOf(host: GroupHost, devices: readonly (Device | FarDevice)[], traffic: Common['traffic']): Common['channels'] {
  const of = (pair: readonly number[]): (Device | FarDevice)[] => pair.map((rank) => devices[rank] as Device | FarDevice)
  if (host instanceof LocalHostComm) return new LocalChannels<Staging, StagedGroup>(host, (pair) => new StagedGroup(of(pair), null))
  const { timeoutMs } = host
  return new WireChannels<Staging, StagedGroup>(
    host,
    host.wire as Wire,
    (pair, lane) => new StagedGroup(of(pair), { lane, timeoutMs, traffic }),
  )
}

export function versionText(version: number): string {
  const scale = version < 10000 ? 1000 : 10000
  return `${Math.floor(version / scale)}.${Math.floor((version % scale) / 100)}.${version % 100}`
}
