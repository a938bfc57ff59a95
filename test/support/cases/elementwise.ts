// add and silu_mul against float64: dtypes, lengths around a quad and a workgroup, operands and outputs inside longer storages.
import { describe, expect, it } from 'vitest'
import { encode } from '../../../runtime/core/dtype.ts'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, FLOATS, Guarded, place, sample } from '../tensors.ts'

export function elementwiseCases(device: Device): void {
  const start = seed()
  const random = new Random(start)

  const LENGTHS = [1, 7, 64, 1000, 4096, 4097]
  /** One float32 operation: half a unit in the last place. */
  const ONE_ROUNDING = { rel: 2 ** -24, abs: 2 ** -126 }
  /** exp, a division and two multiplications; WGSL allows exp 3 + 2 |x| units, a division 2.5. */
  const SILU = { rel: 2e-6, abs: 1e-37 }

  for (const dtype of FLOATS) {
    describe(`${dtype} (seed ${start})`, () => {
      for (const n of LENGTHS) {
        it(`adds ${n}`, async () => {
          const a = sample(device, random, [n], dtype)
          const b = sample(device, random, [n], dtype, 3)
          const out = new Guarded(device, [n], dtype)
          device.add(a.tensor, b.tensor, { out: out.tensor })
          expectRounded(dtype, await out.bytes(), reference.add(a.values, b.values), ONE_ROUNDING)
        })

        it(`adds ${n} inside longer storages`, async () => {
          const a = sample(device, random, [n], dtype, 1, 3)
          const b = sample(device, random, [n], dtype, 1, 1)
          const out = new Guarded(device, [n], dtype, 1 + random.int(9))
          device.add(a.tensor, b.tensor, { out: out.tensor })
          expectRounded(dtype, await out.bytes(), reference.add(a.values, b.values), ONE_ROUNDING)
        })

        it(`silu(gate) * up, rows of ${n}`, async () => {
          const rows = n > 1000 ? 2 : 3
          const shift = random.int(3)
          const x = sample(device, random, [rows, 2 * n], dtype, 4, shift)
          const out = new Guarded(device, [rows, n], dtype, shift)
          device.siluMul(x.tensor, { out: out.tensor })
          expectRounded(dtype, await out.bytes(), reference.siluMul(x.values, { t: rows, i: n }), SILU)
        })
      }

      it('adds infinities, NaN and signed zeros as IEEE 754 has it', async () => {
        const { POSITIVE_INFINITY: inf, NaN: nan } = Number
        const a = [inf, inf, nan, 0, -0, -inf, 1]
        const b = [1, -inf, 1, -0, -0, -inf, nan]
        const y = device.add(place(device, a, [7], dtype).tensor, place(device, b, [7], dtype).tensor)
        expect([...((await y.data()) as Float32Array)]).toEqual([inf, nan, nan, 0, -0, -inf, nan])
      })

      it('silu of large gates is the gate, or zero', async () => {
        const gates = [60, 30, 0, -60, -200]
        const x = place(device, [...gates, 1, 2, 3, 4, 5], [1, 10], dtype)
        const y = [...((await device.siluMul(x.tensor).data()) as Float32Array)]
        expect(y.slice(0, 3)).toEqual([60, 60, 0])
        for (const value of y.slice(3)) expect(Math.abs(value)).toBeLessThan(1e-23)
      })
    })
  }

  for (const [dtype, draw] of [
    ['int32', (): number => random.bits() | 0],
    ['uint32', (): number => random.bits()],
  ] as const) {
    describe(`${dtype} (seed ${start})`, () => {
      for (const n of LENGTHS) {
        it(`adds ${n}, wrapping`, async () => {
          const [a, b] = [Array.from({ length: n }, draw), Array.from({ length: n }, draw)]
          const shift = random.int(4)
          const out = new Guarded(device, [n], dtype, random.int(6))
          device.add(place(device, a, [n], dtype, shift).tensor, place(device, b, [n], dtype).tensor, { out: out.tensor })
          const sums = a.map((x, i) => (dtype === 'int32' ? (x + (b[i] as number)) | 0 : (x + (b[i] as number)) >>> 0))
          expect(await out.bytes()).toEqual(encode(dtype, sums))
        })
      }
    })
  }

  describe(`operands and results in one storage (seed ${start})`, () => {
    for (const dtype of FLOATS) {
      it(`${dtype}: adds into its own operand`, async () => {
        const a = sample(device, random, [1001], dtype, 1, 2)
        const b = sample(device, random, [1001], dtype)
        device.add(a.tensor, b.tensor, { out: a.tensor })
        expectRounded(dtype, await a.tensor.bytes(), reference.add(a.values, b.values), ONE_ROUNDING)
      })

      it(`${dtype}: adds two parts of a storage into a third`, async () => {
        const n = 333
        const all = sample(device, random, [3 * n], dtype)
        const [a, b, out] = [0, 1, 2].map((i) => all.tensor.narrow(0, i * n, n)) as [Tensor, Tensor, Tensor]
        device.add(a, b, { out })
        const sums = reference.add(all.values.subarray(0, n), all.values.subarray(n, 2 * n))
        expectRounded(dtype, await out.bytes(), sums, ONE_ROUNDING)
        expectRounded(dtype, await a.bytes(), all.values.subarray(0, n), {})
        expectRounded(dtype, await b.bytes(), all.values.subarray(n, 2 * n), {})
      })
    }
  })

  describe('empty tensors', () => {
    it('give empty tensors', async () => {
      const none = Tensor.zeros([0], { device })
      expect((await device.add(none, none).data()).length).toBe(0)
      expect(device.siluMul(Tensor.zeros([3, 0], { device })).shape).toEqual([3, 0])
      expect(device.siluMul(Tensor.zeros([0, 8], { device })).shape).toEqual([0, 4])
    })
  })
}
