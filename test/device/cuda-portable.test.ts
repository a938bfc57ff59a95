// Portable operations have the same bits on a CUDA device as everywhere: its kernels, emulated.
import { afterAll, it } from 'vitest'
import { portableCases } from '../support/cases/portable.ts'
import { cudaDevices, reason } from '../support/cuda.ts'

if (reason) it.skip(`CUDA${reason}`, () => {})

const [first] = cudaDevices()
if (first) {
  const device = await first.open()
  afterAll(() => device.dispose())
  portableCases(device)
}
