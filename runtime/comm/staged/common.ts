// What the ranks of a staged group that are here share: the group, how two of them reach each other, and whom the failure of a device is told.
import { RankFailedError } from '../../core/errors.ts'
import type { Device } from '../../device/device.ts'
import { WebGpuDevice } from '../../device/webgpu/device.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import type { Rendezvous } from '../rendezvous.ts'
import type { Wire } from '../wire.ts'
import { type FarDevice, StagedGroup, type Staging } from './group.ts'
import type { JoinedSite } from './joined-site.ts'
import type { Common } from './member.ts'

/** `devices` by rank; over a wire those of other ranks are outlines. */
export function commonOf(host: GroupHost, devices: readonly (Device | FarDevice)[], joined: readonly JoinedSite[]): Common {
  const common = host instanceof LocalHostComm ? withinThread(host, devices as readonly Device[], joined) : overWire(host, devices, joined)
  // Behind the collectives that are under way.
  const leave = (site: JoinedSite) => (): void => void common.group.run('destroy()', {}, async () => site.leave())
  for (const site of joined) host.watch(() => leave(site))
  return common
}

function withinThread(host: LocalHostComm, devices: readonly Device[], joined: readonly JoinedSite[]): Common {
  const group = new StagedGroup(devices, null, joined)
  watchFailures(devices, host)
  const channels = new LocalChannels<Staging, StagedGroup>(host, (pair, rendezvous) => {
    const two = pair.map((rank) => devices[rank] as Device)
    watchFailures(two, rendezvous)
    return new StagedGroup(two, null)
  })
  return { group, channels, traffic: { crossings: 0, bytes: 0 } }
}

/** Of all `devices` the one of this rank is here. */
function overWire(host: GroupHost, devices: readonly (Device | FarDevice)[], joined: readonly JoinedSite[]): Common {
  const wire = host.wire as Wire
  const traffic = { crossings: 0, bytes: 0 }
  const { timeoutMs } = host
  const group = new StagedGroup(devices, { lane: wire.data, timeoutMs, traffic }, joined)
  const rank = host.members[host.rank] as number
  watchFailures([group.device(host.rank)], {
    watch: (watch) =>
      host.watch((end) => watch((error) => end(new RankFailedError(`Rank ${rank} failed: ${error.message}`, { rank, cause: error })))),
  })
  const channels = new WireChannels<Staging, StagedGroup>(host, wire, (pair, lane) => {
    const two = pair.map((index) => devices[index] as Device | FarDevice)
    return new StagedGroup(two, { lane, timeoutMs, traffic })
  })
  return { group, channels, traffic }
}

/** The loss of a GPU ends the group at once; that of a CPU device is told by the next call. */
function watchFailures(devices: readonly Device[], ranks: Pick<Rendezvous, 'watch'>): void {
  const gpus = new Set(devices.flatMap((device) => (device instanceof WebGpuDevice ? device.gpu : [])))
  for (const gpu of gpus) ranks.watch((end) => gpu.onFailure(end))
}
