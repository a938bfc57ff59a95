// Bad operands are refused at the call: with the right code, with nothing queued on the device and nothing left allocated.
import { afterAll } from 'vitest'
import { adoptDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { refusalCases } from '../support/cases/refusals.ts'
import { testDevice } from '../support/device.ts'
import { rawDevice } from '../support/injected.ts'

const device = await testDevice()
const other = adoptDevice(await rawDevice(), { software: true }) as WebGpuDevice
afterAll(() => {
  device.dispose()
  other.dispose()
})

refusalCases(device, other, () => {
  device.gpu.recorder.flush()
  return { stats: device.stats, liveBuffers: device.gpu.pool.liveBuffers }
})
