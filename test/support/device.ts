// Devices for tests: one WebGPU device a file, the system's adapter or the software one.
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'

export async function testDevice(): Promise<WebGpuDevice> {
  return (await openDevice('webgpu')) as WebGpuDevice
}
