// embedding: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { embeddingCases } from '../support/cases/embedding.ts'
import { testDevice } from '../support/device.ts'

const device = await testDevice()
afterAll(() => device.dispose())
embeddingCases(device)
