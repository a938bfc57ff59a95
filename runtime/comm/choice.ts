// The choice of a group's DeviceComm: by name, or the one that suits its ranks' devices.
import { BackendUnavailableError, invalidArgument } from '../core/errors.ts'
import { CudaDevice } from '../device/cuda/device.ts'
import type { Device } from '../device/device.ts'
import { EngineDevice } from '../device/engine/device.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'
import { CudaComm } from './cuda/comm.ts'
import { type Reach, reachOf } from './cuda/reach.ts'
import type { DeviceComm } from './device-comm.ts'
import { EngineComm } from './engine/comm.ts'
import { type GroupHost, type HostComm, LocalHostComm } from './host.ts'
import { NcclComm, type NcclReach, ncclReachOf } from './nccl/comm.ts'
import { StagedComm } from './staged/comm.ts'
import { debug } from './webgpu/choose.ts'
import { WebGpuComm } from './webgpu/comm.ts'
import { WireHostComm } from './wire-host.ts'

/**
 * `hybrid` is for ranks on devices of any kind, together; `cpu` the same for ranks on the CPU alone; `cuda-ipc` for ranks on CUDA devices that can
 * use each other's memory; `nccl` for ranks on a CUDA device each, on one machine or several.
 */
export type DeviceBackend = 'webgpu' | 'cpu' | 'hybrid' | 'cuda-ipc' | 'nccl'

/** Makes this rank's DeviceComm; all ranks of `host` call it. @throws ERR_BACKEND_UNAVAILABLE for a backend that is not built. */
export async function createDeviceComm(backend: DeviceBackend, { host, device }: { host: HostComm; device: Device }): Promise<DeviceComm> {
  if (!BACKENDS.includes(backend)) {
    throw new BackendUnavailableError(`Device backend '${backend}' is not built; this version has ${BACKENDS.join(', ')}`)
  }
  const group = groupHostOf(host, backend)
  if (backend === 'webgpu') {
    if (!(device instanceof WebGpuDevice)) throw invalidArgument('device', 'a WebGPU device', device)
    return WebGpuComm.create(group, device)
  }
  if (backend === 'cuda-ipc') return CudaComm.create(group, device)
  if (backend === 'nccl') return NcclComm.create(group, device)
  if (!(device instanceof EngineDevice || (backend === 'hybrid' && device instanceof WebGpuDevice))) {
    throw invalidArgument('device', backend === 'cpu' ? 'a CPU device' : 'a device from openDevice', device)
  }
  return backend === 'cpu' ? commFor(host, device) : StagedComm.create(group, device)
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
 * peers' memory where CUDA devices can use that, else NCCL where all ranks have it.
 */
export async function commFor(host: HostComm, device: Device): Promise<DeviceComm> {
  const group = groupHostOf(host, 'chosen')
  if (!(device instanceof WebGpuDevice || device instanceof EngineDevice))
    throw invalidArgument('device', 'a device from openDevice', device)
  const outline = (one: Device): DeviceOutline => ({ kind: one.kind, adapter: one.description, reach: reach(one), nccl: ncclReach(one) })
  const complete = (devices: Device[]): MakeComm[] => {
    const make = makerOf(group, devices)
    return devices.map(() => make)
  }
  const make = await group.meet('createDeviceComm()', { payload: device }, complete, {}, outline)
  return make(group, device)
}

type MakeComm = (host: GroupHost, device: Device) => DeviceComm | Promise<DeviceComm>

/** Null of devices of other kinds. */
function reach(device: Device | DeviceOutline): Reach | null {
  if ('reach' in device) return device.reach
  return device instanceof CudaDevice ? reachOf(device) : null
}

function ncclReach(device: Device | DeviceOutline): NcclReach | null {
  if ('nccl' in device) return device.nccl
  return device instanceof CudaDevice ? ncclReachOf(device) : null
}

/** As `create`, or, where a driver or a library then refuses that on some rank, through the host's memory. */
function unlessRefused(create: (host: GroupHost, device: Device) => Promise<DeviceComm>): MakeComm {
  return async (host, device) => {
    try {
      return await create(host, device)
    } catch (error) {
      if (!(error instanceof BackendUnavailableError)) throw error
      debug(`${error.message}; collectives go through the host's memory`)
      return StagedComm.create(host, device)
    }
  }
}

/** How each rank makes its DeviceComm; `devices` by rank. */
function makerOf(group: GroupHost, devices: readonly Device[]): MakeComm {
  if (devices.every(({ kind }) => kind === 'webgpu')) {
    const common = WebGpuComm.commonOf(group, devices as readonly WebGpuDevice[])
    return (host, device) => new WebGpuComm(host, device as WebGpuDevice, common)
  }
  if (EngineComm.joins(group, devices)) {
    const common = EngineComm.commonOf(group, devices)
    return (host, device) => new EngineComm(host, device, common)
  }
  const reaches = devices.map(reach)
  if (reaches.every((one) => one !== null) && CudaComm.obstacle(reaches) === null)
    return unlessRefused((host, device) => CudaComm.create(host, device))
  const libraries = devices.map(ncclReach)
  if (libraries.every((one) => one !== null) && NcclComm.obstacle(libraries) === null)
    return unlessRefused((host, device) => NcclComm.create(host, device))
  const common = StagedComm.commonOf(group, devices)
  return (host, device) => new StagedComm(host, device, common)
}

function groupHostOf(host: HostComm, backend: string): LocalHostComm | WireHostComm {
  if (host instanceof LocalHostComm || host instanceof WireHostComm) return host
  throw new BackendUnavailableError(`The ${backend} backend needs a HostComm that launch or a HostGroup gave`)
}
