// add and silu_mul against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { elementwiseCases } from '../support/cases/elementwise.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
elementwiseCases(device)
