// The fused kernel by itself: a number of ranks known beforehand gives the bits of any number, and both the values of the reference.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { dispatch, f32, grid, rangeOf } from '../../runtime/device/webgpu/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'
import { expectRounded, Guarded, place, sample } from '../support/tensors.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)

describe(`all_reduce_rms_norm (seed ${start})`, () => {
  for (let ranks = 1; ranks <= 9; ranks++) {
    it(`${ranks} ranks`, async () => {
      const [t, n] = [1 + random.int(3), 4 * (1 + random.int(70))]
      const x = sample(device, random, [ranks, t, n])
      const [w, bias] = [sample(device, random, [n]), sample(device, random, [n])]
      const before = random.floats(t * n)
      const run = async (RANKS: number): Promise<{ residual: Uint8Array; y: Uint8Array }> => {
        const residual = place(device, before, [t, n]).tensor
        const out = new Guarded(device, [t, n])
        const ranges = [x.tensor, residual, w.tensor, bias.tensor, out.tensor].map((tensor) => rangeOf(device.gpu, tensor))
        const constants = { WG: device.gpu.tuning.row, HAS_BIAS: true, RANKS }
        const variant = { name: 'all_reduce_rms_norm', element: 'f32', weight: 'f32', constants } as const
        dispatch(device.sink, variant, ranges, [t, n / 4, n, f32(1e-6), (t * n) / 4, ranks], grid(t))
        return { y: await out.bytes(), residual: await residual.bytes() }
      }
      const any = await run(0)
      const inputs = {
        ranks: Array.from({ length: ranks }, (_, r) => x.values.subarray(r * t * n, (r + 1) * t * n)),
        residual: before,
        bias: bias.values,
        gamma: w.values,
      }
      const expected = reference.allReduceResidualBiasRmsNorm(inputs, { t, h: n, eps: 1e-6 })
      expectRounded('float32', any.residual, expected.residual, { abs: 4e-6 })
      expectRounded('float32', any.y, expected.out, { abs: 2e-5 })
      if (ranks > 8) return
      const known = await run(ranks)
      expect(Buffer.compare(known.residual, any.residual)).toBe(0)
      expect(Buffer.compare(known.y, any.y)).toBe(0)
    })
  }

  it('adds ranks in ascending order', async () => {
    const rows = [2 ** 24, 1, -(2 ** 24), 1].flatMap((v) => [v, v, v, v])
    const x = place(device, rows, [4, 1, 4]).tensor
    const residual = Tensor.zeros([1, 4], { device })
    const w = Tensor.full([4], 1, { device })
    const y = Tensor.empty([1, 4], { device })
    const ranges = [x, residual, w, w, y].map((tensor) => rangeOf(device.gpu, tensor))
    const variant = { name: 'all_reduce_rms_norm', element: 'f32', weight: 'f32', constants: { WG: 4, RANKS: 4 } } as const
    dispatch(device.sink, variant, ranges, [1, 1, 4, f32(0), 1, 4], grid(1))
    expect([...((await residual.data()) as Float32Array)]).toEqual([1, 1, 1, 1]) // (2^24 + 1 = 2^24) - 2^24 + 1
  })
})
