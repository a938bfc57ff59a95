// The numeric contracts of the kernels' headers, as bounds: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { contractCases } from '../support/cases/contracts.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
contractCases(device, device.gpu.tuning.row)
