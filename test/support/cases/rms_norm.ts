// rms_norm against float64: dtypes, row lengths around a quad and a workgroup, zero-centred weights, rows inside longer storages.
import { describe, expect, it } from 'vitest'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, FLOATS, Guarded, place, sample } from '../tensors.ts'

export function rmsNormCases(device: Device, lanes: number): void {
  const start = seed()
  const random = new Random(start)

  /** The sum's error is at most (n / lanes + log2 lanes) * 2^-24 relative, halved by the root; the rest is a handful of roundings. */
  const tolerance = (n: number): { rel: number } => ({ rel: (n / lanes / 4 + 16) * 2 ** -24 })

  for (const dtype of FLOATS) {
    describe(`${dtype} (seed ${start})`, () => {
      for (const n of [1, 7, 64, 1000, 4096, 4097]) {
        for (const zeroCentered of [false, true]) {
          it(`rows of ${n}${zeroCentered ? ', zero-centred' : ''}`, async () => {
            const t = 1 + random.int(4)
            const x = sample(device, random, [t, n], dtype, 2)
            const weight = sample(device, random, [n], dtype)
            const out = new Guarded(device, [t, n], dtype)
            const eps = 1e-5
            device.rmsNorm(x.tensor, weight.tensor, { eps, zeroCentered, out: out.tensor })
            const expected = reference.rmsNorm(x.values, weight.values, { t, h: n, eps, zeroCentered })
            expectRounded(dtype, await out.bytes(), expected, { ...tolerance(n), abs: zeroCentered ? 1e-6 : 0 })
          })
        }

        it(`rows of ${n} at odd places of longer storages`, async () => {
          const x = sample(device, random, [3, n], dtype, 1, 1 + random.int(3))
          const weight = sample(device, random, [n], dtype, 1, 1 + random.int(3))
          const out = new Guarded(device, [3, n], dtype, 1 + random.int(3))
          device.rmsNorm(x.tensor, weight.tensor, { out: out.tensor })
          const expected = reference.rmsNorm(x.values, weight.values, { t: 3, h: n, eps: 1e-6 })
          expectRounded(dtype, await out.bytes(), expected, tolerance(n))
        })
      }

      it('normalises the last dimension of any shape, in place too', async () => {
        const x = sample(device, random, [2, 3, 20], dtype)
        const weight = sample(device, random, [20], dtype)
        device.rmsNorm(x.tensor, weight.tensor, { out: x.tensor })
        const expected = reference.rmsNorm(x.values, weight.values, { t: 6, h: 20, eps: 1e-6 })
        expectRounded(dtype, await x.tensor.bytes(), expected, tolerance(20))
      })
    })
  }

  describe(`a row has the same bits (seed ${start})`, () => {
    for (const dtype of FLOATS) {
      it(`${dtype}: alone, in company, and again`, async () => {
        for (const n of [7, 1000]) {
          const rows = 9
          const x = sample(device, random, [rows, n], dtype)
          const weight = sample(device, random, [n], dtype)
          const all = await device.rmsNorm(x.tensor, weight.tensor).bytes()
          expect(Buffer.compare(await device.rmsNorm(x.tensor, weight.tensor).bytes(), all)).toBe(0)
          for (const [first, count] of [
            [0, 1],
            [4, 1],
            [3, 5],
            [8, 1],
          ] as const) {
            const part = await device.rmsNorm(x.tensor.narrow(0, first, count), weight.tensor).bytes()
            const bytes = all.length / rows
            expect(Buffer.compare(part, all.subarray(first * bytes, (first + count) * bytes)), `rows from ${first}`).toBe(0)
          }
        }
      })
    }
  })

  describe('edges', () => {
    it('a row of zeros stays zero; eps carries it', async () => {
      const y = device.rmsNorm(place(device, new Float32Array(12), [1, 12]).tensor, sample(device, random, [12]).tensor)
      for (const value of (await y.data()) as Float32Array) expect(Math.abs(value)).toBe(0)
    })

    it('eps 0 divides by the plain root', async () => {
      const y = device.rmsNorm(place(device, [3, 3, 3, 3], [1, 4]).tensor, place(device, [1, 2, 3, 4], [4]).tensor, { eps: 0 })
      expectRounded('float32', await y.bytes(), [1, 2, 3, 4], { rel: 1e-6 })
    })

    it(`one huge value does not touch other rows (seed ${start})`, async () => {
      const rows = random.floats(3 * 64)
      rows[70] = 1e18
      const x = place(device, rows, [3, 64])
      const weight = sample(device, random, [64])
      const y = device.rmsNorm(x.tensor, weight.tensor)
      const expected = reference.rmsNorm(x.values, weight.values, { t: 3, h: 64, eps: 1e-6 })
      expectRounded('float32', await y.bytes(), expected, { rel: 1e-5, abs: 1e-30 })
    })
  })
}
