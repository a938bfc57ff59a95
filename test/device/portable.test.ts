// Portable operations have the same bits on WebGPU as everywhere; the forms that are not portable need not, which shows that it is these that do it.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { portableCases } from '../support/cases/portable.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'

const device = await testDevice()
afterAll(() => device.dispose())

portableCases(device)

const start = seed()
describe(`without portable (seed ${start})`, () => {
  it('the bits of siluMul differ from one kind of device to another', async () => {
    const values = new Random(start).floats(20_000, 8)
    const results = await Promise.all(
      [CpuDevice.open(null), device].map(async (on) => {
        using x = Tensor.from(values, { shape: [1, values.length], device: on })
        using y = on.siluMul(x)
        return Buffer.from(new Uint8Array(await y.bytes())).toString('hex')
      }),
    )
    expect(results[1]).not.toBe(results[0])
  })
})
