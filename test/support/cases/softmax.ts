// softmax against float64: row lengths around a workgroup, large and masked values, rows inside longer storages.
import { describe, expect, it } from 'vitest'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, Guarded, place, sample } from '../tensors.ts'
import type { Way } from '../ways.ts'

export function softmaxCases(device: Device, ways: readonly Way[]): void {
  const start = seed()
  const random = new Random(start)

  /** exp may be off by 3 + 2 |x| units, its argument by half a unit of the values; the sum adds little. */
  const tolerance = (scale: number): { rel: number; abs: number } => ({ rel: (16 + 24 * scale) * 2 ** -23, abs: 1e-37 })

  for (const way of ways) {
    describe(`${way.name} (seed ${start})`, () => {
      for (const n of [1, 7, 64, 1000, 4096, 4097]) {
        for (const scale of [1, 20]) {
          it(`rows of ${n}, values of size ${scale}`, async () => {
            const t = 1 + random.int(3)
            const shift = random.int(3)
            const x = sample(device, random, [t, n], 'float32', scale, shift)
            const out = new Guarded(device, [t, n], 'float32', shift)
            await way.run(async () => device.softmax(x.tensor, { out: out.tensor }))
            const y = await out.bytes()
            expectRounded('float32', y, reference.softmax(x.values, { t, n }), tolerance(scale))
          })
        }
      }
    })
  }

  describe('edges', () => {
    it('values far from zero do not overflow', async () => {
      const y = await device.softmax(place(device, [3e38, 3e38, -3e38, 1e30, 1e30, 1e30], [2, 3]).tensor).data()
      reference.expectClose(y as Float32Array, [0.5, 0.5, 0, 1 / 3, 1 / 3, 1 / 3], { rel: 1e-6 })
    })

    it('masked values (-infinity) get nothing', async () => {
      const masked = Number.NEGATIVE_INFINITY
      const y = await device.softmax(place(device, [masked, 1, masked, 1, masked], [1, 5]).tensor).data()
      expect([...(y as Float32Array)]).toEqual([0, 0.5, 0, 0.5, 0])
    })

    it(`works in place and on any shape (seed ${start})`, async () => {
      const x = sample(device, random, [2, 3, 11])
      device.softmax(x.tensor, { out: x.tensor })
      expectRounded('float32', await x.tensor.bytes(), reference.softmax(x.values, { t: 6, n: 11 }), tolerance(1))
    })
  })
}
