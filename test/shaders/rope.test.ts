// ropeAppend against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { ropeCases } from '../support/cases/rope.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
ropeCases(device)
