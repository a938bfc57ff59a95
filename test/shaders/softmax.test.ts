// softmax against float64: the cases of every device, on the WebGPU one.
import { afterAll } from 'vitest'
import { softmaxCases } from '../support/cases/softmax.ts'
import { testDevice } from '../support/device.ts'
import { tuned } from '../support/ways.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const rows = [device.gpu.tuning.row, 64, 256]
softmaxCases(
  device,
  rows.map((row) => ({ name: `${row} lanes a row`, run: tuned(device, { row }) })),
)
