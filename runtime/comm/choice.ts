// The choice of a group's DeviceComm: by name, or the one that suits its ranks' devices.
import { BackendUnavailableError, invalidArgument } from '../core/errors.ts'
import { CudaDevice } from '../device/cuda/device.ts'
import type { Device } from '../device/device.ts'
import { EngineDevice } from '../device/engine/device.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'
import { CudaComm } from './cuda/comm.ts'
import { type Home, type Reach, reachOf } from './cuda/reach.ts'
import type { DeviceComm } from './device-comm.ts'
import { EngineComm } from './engine/comm.ts'
import { type GroupHost, type HostComm, LocalHostComm } from './host.ts'
import { NcclComm, type NcclReach, ncclReachOf } from './nccl/comm.ts'
import { StagedComm } from './staged/comm.ts'
import type { Joining } from './staged/joining.ts'
import { debug } from './webgpu/choose.ts'
import { WebGpuComm } from './webgpu/comm.ts'
import { WireHostComm } from './wire-host.ts'

/**
 * `hybrid` is for ranks on devices of any kind, together; `cpu` the same for ranks on the CPU alone; `cuda-ipc` for ranks on CUDA devices of one
 * machine, or of machines that NVLink joins; `nccl` for ranks on a CUDA device each, on one machine or several.
 */
export type DeviceBackend = 'webgpu' | 'cpu' | 'hybrid' | 'cuda-ipc' | 'nccl'

/** What a rank joins with, and, for `cuda-ipc`, where the memory lies that all ranks use; absent: on the devices where they reach each other's. */
export interface DeviceCommOptions {
  host: HostComm
  device: Device
  memory?: Home
}

/** Makes this rank's DeviceComm; all ranks of `host` call it. @throws ERR_BACKEND_UNAVAILABLE for a backend that is not built. */
export async function createDeviceComm(backend: DeviceBackend, { host, device, memory }: DeviceCommOptions): Promise<DeviceComm> {
  if (!BACKENDS.includes(backend)) {
    throw new BackendUnavailableError(`Device backend '${backend}' is not built; this version has ${BACKENDS.join(', ')}`)
  }
  const group = groupHostOf(host, backend)
  if (backend === 'webgpu') {
    if (!(device instanceof WebGpuDevice)) throw invalidArgument('device', 'a WebGPU device', device)
    return WebGpuComm.create(group, device)
  }
  if (backend === 'cuda-ipc') return CudaComm.create(group, device, { memory })
  if (backend === 'nccl') return NcclComm.create(group, device)
  if (!(device instanceof EngineDevice || (backend === 'hybrid' && device instanceof WebGpuDevice))) {
    throw invalidArgument('device', backend === 'cpu' ? 'a CPU device' : 'a device from openDevice', device)
  }
  return commFor(host, device, backend === 'hybrid')
}

const BACKENDS: readonly DeviceBackend[] = ['webgpu', 'cpu', 'hybrid', 'cuda-ipc', 'nccl']

/** Other ranks' devices are known by their kind, and what they call themselves. */
interface DeviceOutline {
  kind: Device['kind']
  adapter: string
  /** Of a CUDA device, and of this rank's NCCL. */
  reach: Reach | null
  nccl: NcclReach | null
}

/**
 * As createDeviceComm, with the backend that suits all the group's devices: WebGPU's or an engine's where they are of that kind alone; kernels over
 * memory that all have where CUDA devices are of one machine or joined by NVLink, else NCCL where all ranks have it. `hybrid`: through the host's memory, whatever they are.
 */
export async function commFor(host: HostComm, device: Device, hybrid: boolean = false): Promise<DeviceComm> {
  const group = groupHostOf(host, 'chosen')
  if (!(device instanceof WebGpuDevice || device instanceof EngineDevice))
    throw invalidArgument('device', 'a device from openDevice', device)
  const outline = (one: Device): DeviceOutline => ({ kind: one.kind, adapter: one.description, reach: reach(one), nccl: ncclReach(one) })
  const complete = (devices: Device[]): MakeComm[] => {
    const make = hybrid ? stagedMakerOf(group, devices) : makerOf(group, devices)
    return devices.map(() => make)
  }
  const make = await group.meet(`createDeviceComm(${hybrid ? 'hybrid' : ''})`, { payload: device }, complete, {}, outline)
  return make(group, device)
}

type MakeComm = (host: GroupHost, device: Device) => Promise<DeviceComm>

/** Null of devices of other kinds. */
function reach(device: Device | DeviceOutline): Reach | null {
  if ('reach' in device) return device.reach
  return device instanceof CudaDevice ? reachOf(device) : null
}

function ncclReach(device: Device | DeviceOutline): NcclReach | null {
  if ('nccl' in device) return device.nccl
  return device instanceof CudaDevice ? ncclReachOf(device) : null
}

/** Kinds of groups that exchange nothing through the host's memory, and how a rank joins one. */
const TRANSPORTS = {
  engine: EngineComm,
  cuda: CudaComm,
  nccl: NcclComm,
} satisfies Record<string, { create(host: GroupHost, device: Device): Promise<DeviceComm> }>

/** Those that ranks with these devices can try, the best one first. */
function transportsOf(group: GroupHost, devices: readonly (Device | DeviceOutline)[]): (keyof typeof TRANSPORTS)[] {
  if (EngineComm.joins(group, devices)) return ['engine']
  const found: (keyof typeof TRANSPORTS)[] = []
  const reaches = devices.map(reach)
  if (reaches.every((one) => one !== null) && CudaComm.obstacle(reaches) === null) found.push('cuda')
  const libraries = devices.map(ncclReach)
  if (libraries.every((one) => one !== null) && NcclComm.obstacle(libraries) === null) found.push('nccl')
  return found
}

/** This rank's part in a group by the first of them that no driver or library refuses on any rank; null where there is none. */
async function joinedBy(transports: readonly (keyof typeof TRANSPORTS)[], host: GroupHost, device: Device): Promise<DeviceComm | null> {
  for (const [tried, transport] of transports.entries()) {
    try {
      return await TRANSPORTS[transport].create(host, device)
    } catch (error) {
      if (!(error instanceof BackendUnavailableError)) throw error
      const next = transports[tried + 1]
      debug(`${error.message}; ${next ? `${next} is tried` : "collectives go through the host's memory"}`)
    }
  }
  return null
}

/** How each rank makes its DeviceComm; `devices` by rank. */
function makerOf(group: GroupHost, devices: readonly Device[]): MakeComm {
  if (devices.every(({ kind }) => kind === 'webgpu')) {
    const common = WebGpuComm.commonOf(group, devices as readonly WebGpuDevice[])
    return async (host, device) => new WebGpuComm(host, device as WebGpuDevice, common)
  }
  if (EngineComm.joins(group, devices)) {
    const common = EngineComm.commonOf(group, devices)
    return async (host, device) => new EngineComm(host, device, common)
  }
  const transports = transportsOf(group, devices)
  if (transports.length === 0) return stagedMakerOf(group, devices)
  return async (host, device) => (await joinedBy(transports, host, device)) ?? StagedComm.create(host, device)
}

/** As `makerOf`, through the host's memory; CUDA ranks of which a transport joins some, but not all, are sites of it. */
function stagedMakerOf(group: GroupHost, devices: readonly Device[]): MakeComm {
  const sets = joinedSets(group, devices).filter(({ length }) => length > 1 && length < devices.length)
  if (sets.length === 0) {
    const common = StagedComm.commonOf(group, devices)
    return async (host, device) => new StagedComm(host, device, common)
  }
  const create = (host: GroupHost, device: Device): Promise<StagedComm> => commFor(host, device, true) as Promise<StagedComm>
  const join: Joining['join'] = (host, view) => {
    const ranks = sets.find((set) => set.some((rank) => group.members[rank] === host.members[0])) as number[]
    return joinedBy(transportsOf(group, of(devices, ranks)), host, view)
  }
  return (host, device) => StagedComm.joined(host, device, { sets, join, create })
}

/** CUDA ranks that a transport joins: each with the first others that it can be joined with. */
function joinedSets(group: GroupHost, devices: readonly Device[]): number[][] {
  const sets: number[][] = []
  for (const [rank, { kind }] of devices.entries()) {
    if (kind !== 'cuda') continue
    const set = sets.find((ranks) => transportsOf(group, of(devices, [...ranks, rank])).length > 0)
    if (set) set.push(rank)
    else sets.push([rank])
  }
  return sets
}

function of(devices: readonly Device[], ranks: readonly number[]): Device[] {
  return ranks.map((rank) => devices[rank] as Device)
}

function groupHostOf(host: HostComm, backend: string): LocalHostComm | WireHostComm {
  if (host instanceof LocalHostComm || host instanceof WireHostComm) return host
  throw new BackendUnavailableError(`The ${backend} backend needs a HostComm that launch or a HostGroup gave`)
}
