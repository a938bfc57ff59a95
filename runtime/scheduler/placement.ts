// Placement: which device each rank of a program sits on.
import { platform } from '#platform'
import { memoryOf } from '../comm/checks.ts'
import { invalidArgument } from '../core/errors.ts'
import { countCudaDevices } from '../device/cuda/device.ts'
import type { Device } from '../device/device.ts'
import { EngineDevice } from '../device/engine/device.ts'
import { openDevice } from '../device/open.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'

export interface Placed {
  /** One device a rank; ranks on one device have views of it. */
  devices: Device[]
  /** Gives back what was opened here; devices the program brought stay open. */
  dispose(): void
}

/** A device that several ranks can have, each with a view of its own. */
type Viewed = WebGpuDevice | EngineDevice

/** Views that no program uses any more, by device: each holds a queue of it, so that they are used again rather than made anew. */
const idle = new WeakMap<object, Viewed[]>()

/** Ranks in contiguous blocks over the devices: with 4 ranks and 2 devices, ranks 0 and 1 share the first. */
export function blockOf(rank: number, ranks: number, devices: number): number {
  return Math.floor((rank * devices) / ranks)
}

/**
 * The devices that a program's names stand for: `cuda` alone is every CUDA device of this machine, as many as there are ranks for; of a rank that a
 * launcher has started on a machine, as the `local.rank`-th of `local.size`, it is the rank's own.
 */
export function devicesFor<T>(devices: readonly T[], ranks: number, local?: { rank: number; size: number }): readonly (T | string)[] {
  if (!Array.isArray(devices) || devices.length !== 1 || devices[0] !== 'cuda') return devices
  const count = Math.min(countCudaDevices(platform.addon()), local?.size ?? ranks)
  if (count < 2) return devices
  return local ? [`cuda:${blockOf(local.rank, local.size, count)}`] : Array.from({ length: count }, (_, index) => `cuda:${index}`)
}

/** Opens each name once. `devices` holds one entry a device, or one a rank. */
export async function place(ranks: number, devices: readonly (string | Device)[]): Promise<Placed> {
  if (!Array.isArray(devices) || devices.length === 0) throw invalidArgument('devices', 'a list of at least one device', devices)
  if (devices.length > ranks) throw invalidArgument('devices', `at most one for each of the ${ranks} ranks`, devices.length)
  for (const device of devices) {
    if (typeof device !== 'string' && !(device instanceof WebGpuDevice || device instanceof EngineDevice)) {
      throw invalidArgument('devices', 'names or devices from openDevice', device)
    }
    if (typeof device !== 'string' && device.failure) throw device.failure
  }
  const opened = new Map<string, Device>()
  const dispose = (): void => {
    for (const device of opened.values()) device.dispose()
  }
  try {
    for (const device of devices) {
      if (typeof device === 'string' && !opened.has(device)) opened.set(device, await openDevice(device))
    }
  } catch (error) {
    dispose()
    throw error
  }
  const unused = new Set(opened.values())
  const placed = Array.from({ length: ranks }, (_, rank) => {
    const choice = devices[blockOf(rank, ranks, devices.length)] as string | Viewed
    const device = (typeof choice === 'string' ? opened.get(choice) : choice) as Viewed
    if (unused.delete(device)) return device // opened for these ranks: the first of them has it as it is
    return idle.get(memoryOf(device))?.pop() ?? device.view()
  })
  const giveBack = (): void => {
    for (const view of placed) {
      const views = idle.get(memoryOf(view))
      if (views) views.push(view)
      else idle.set(memoryOf(view), [view])
    }
    dispose()
  }
  return { devices: placed, dispose: giveBack }
}
