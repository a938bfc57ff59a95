// attention against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { attentionCases } from '../support/cases/attention.ts'
import { testDevice } from '../support/device.ts'
import { tuned } from '../support/ways.ts'

const device = await testDevice()
afterAll(() => device.dispose())
attentionCases(
  device,
  [4, 16, 32].map((attention) => ({ name: `workgroups of ${attention}`, run: tuned(device, { attention }) })),
)
