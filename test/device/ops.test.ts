// Device operations against the float64 reference: dtypes, odd sizes, poisoned outputs.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'

const device = await testDevice()
afterAll(() => device.dispose())

describe('operations', () => {
  const start = seed()
  const random = new Random(start)
  for (const [tokens, k, n] of [
    [1, 4, 1],
    [1, 256, 65],
    [3, 7, 5],
    [9, 20, 33],
    [70, 100, 130],
  ] as const) {
    it(`matmul ${tokens}x${k}x${n} (seed ${start})`, async () => {
      const x = random.floats(tokens * k)
      const w = random.floats(n * k)
      const bias = random.floats(n)
      const y = device.matmul(Tensor.from(x, { shape: [tokens, k], device }), Tensor.from(w, { shape: [n, k], device }), {
        bias: Tensor.from(bias, { device }),
      })
      reference.expectClose((await y.data()) as Float32Array, reference.matmul(x, w, { t: tokens, k, n }, bias), { abs: 1e-4 })
    })
  }
  it('adds', async () => {
    const x = Tensor.from([1, 2, 3, 4, 5], { device })
    expect([...((await device.add(x, x).data()) as Float32Array)]).toEqual([2, 4, 6, 8, 10])
  })
})
