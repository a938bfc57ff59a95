// rms_norm against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { rmsNormCases } from '../support/cases/rms_norm.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
rmsNormCases(device, device.gpu.tuning.row)
