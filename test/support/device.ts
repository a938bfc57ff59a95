// Devices for tests: the system's WebGPU adapter or the software one. Files of one process use the same ones, whose kernels are built once for all.
import { platform } from '#platform'
import { openDevice } from '../../runtime/device/open.ts'
import { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'

interface Opened {
  first: WebGpuDevice
  taken: boolean
}
const opened: Opened[] = []

async function open(): Promise<Opened> {
  const own = { first: (await openDevice('webgpu')) as WebGpuDevice, taken: true }
  opened.push(own)
  own.first.gpu.onFailure(() => opened.splice(opened.indexOf(own), 1))
  return own
}

/** A device of the caller's own: nothing is on it, and what it fails at, no other sees. */
export async function testDevice(): Promise<WebGpuDevice> {
  const own = opened.find(({ taken }) => !taken) ?? (await open())
  own.taken = true
  const { gpu, name } = own.first
  gpu.device.label = gpu.info.adapter // what an adopted device is described by
  const device = WebGpuDevice.adopt(platform, gpu.device, { name, software: gpu.info.software })
  device.gpu.onFailure(() => {
    own.taken = false
  })
  return device
}
