// topK and argmax: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { topKCases } from '../support/cases/top_k.ts'
import { testDevice } from '../support/device.ts'
import { tuned } from '../support/ways.ts'

const device = await testDevice()
afterAll(() => device.dispose())
topKCases(
  device,
  [1, 16, 256].map((row) => ({ name: `with ${row} lanes a row`, run: tuned(device, { row }) })),
)
