// Products by every kernel against float64: types of activations and weights, odd sizes, bias, rows that do not depend on their company.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, Guarded, sample } from '../tensors.ts'
import type { ProductWay } from '../ways.ts'

/** Sums of k products of normal values have a deviation of sqrt(k); float32 adds errors of 2^-24 of the running sum in each step. */
function toleranceOf(k: number, oneByOne = false): { abs: number } {
  return { abs: (oneByOne ? 3 : 1) * 2 ** -23 * k + 1e-6 }
}

export function matmulCases(device: Device, ways: readonly ProductWay[]): void {
  const start = seed()
  const random = new Random(start)

  for (const { name, run, tokens, types, oneByOne } of ways) {
    const tolerance = (k: number): { abs: number } => toleranceOf(k, oneByOne)
    describe(`${name} (seed ${start})`, () => {
      for (const [x, w] of types) {
        it(`${x} by ${w}`, () =>
          run(async () => {
            for (const [k, outs] of [
              [4, 1],
              [7, 5],
              [64, 63],
              [100, 130],
            ] as const) {
              const t = tokens[random.int(tokens.length)] as number
              const a = sample(device, random, [t, k], x)
              const b = sample(device, random, [outs, k], w)
              const out = new Guarded(device, [t, outs])
              device.matmul(a.tensor, b.tensor, { out: out.tensor })
              const expected = reference.matmul(a.values, b.values, { t, k, n: outs })
              expectRounded('float32', await out.bytes(), expected, { ...tolerance(k), what: `${t} x ${k} x ${outs}` })
            }
          }))
      }

      for (const t of tokens) {
        it(`${t} tokens, with bias, inside longer storages`, () =>
          run(async () => {
            const [k, outs] = [256 + 4 * random.int(9), 60 + random.int(10)]
            const a = sample(device, random, [t, k], 'float32', 1, 1)
            const b = sample(device, random, [outs, k], 'bfloat16', 1, 2)
            const bias = sample(device, random, [outs], 'float32', 5, 3)
            const out = new Guarded(device, [t, outs], 'float32', 1 + random.int(4))
            device.matmul(a.tensor, b.tensor, { bias: bias.tensor, out: out.tensor })
            const expected = reference.matmul(a.values, b.values, { t, k, n: outs }, bias.values)
            expectRounded('float32', await out.bytes(), expected, tolerance(k))
          }))
      }

      it('gives a row the same bits in any company, and again', () =>
        run(async () => {
          const [k, outs, many] = [200, 37, tokens.at(-1) as number]
          const a = sample(device, random, [many, k])
          const b = sample(device, random, [outs, k], 'float16')
          const all = device.matmul(a.tensor, b.tensor)
          const again = device.matmul(a.tensor, b.tensor)
          const reversed = device.matmul(reverseRows(a.values, many, k), b.tensor)
          const bytes = await all.bytes()
          expect(Buffer.compare(await again.bytes(), bytes)).toBe(0)
          const back = await reversed.bytes()
          for (let t = 0; t < many; t++) {
            const row = bytes.subarray(t * outs * 4, (t + 1) * outs * 4)
            expect(Buffer.compare(back.subarray((many - 1 - t) * outs * 4, (many - t) * outs * 4), row), `row ${t}`).toBe(0)
          }
          for (const few of tokens) {
            const part = await device.matmul(a.tensor.narrow(0, 0, few), b.tensor).bytes()
            expect(Buffer.compare(part, bytes.subarray(0, part.length)), `the first ${few}`).toBe(0)
          }
        }))
    })
  }

  function reverseRows(values: Float32Array, rows: number, n: number): Tensor {
    const reversed = values.map((_, i) => values[(rows - 1 - Math.floor(i / n)) * n + (i % n)] as number)
    return Tensor.from(reversed, { shape: [rows, n], device })
  }

  describe('edges', () => {
    it('no tokens, no outputs', () => {
      const x = Tensor.zeros([0, 8], { device })
      expect(device.matmul(x, Tensor.zeros([3, 8], { device })).shape).toEqual([0, 3])
      expect(device.matmul(Tensor.zeros([2, 8], { device }), Tensor.zeros([0, 8], { device })).shape).toEqual([2, 0])
    })

    it(`an output among its operands is computed from what they held (seed ${start})`, async () => {
      const a = sample(device, random, [6, 6])
      const b = sample(device, random, [6, 6])
      device.matmul(a.tensor, b.tensor, { out: b.tensor })
      expectRounded('float32', await b.tensor.bytes(), reference.matmul(a.values, b.values, { t: 6, k: 6, n: 6 }), toleranceOf(6))
    })
  })
}
