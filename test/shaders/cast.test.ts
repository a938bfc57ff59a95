// Conversions between float types, bit by bit: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { castCases } from '../support/cases/cast.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
castCases(device)
