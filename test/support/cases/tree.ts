// matmulTree against float64, its subtrees, and rows whose bits do not depend on their company.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../../runtime/core/tensor.ts'
import { nodesOf, type Span } from '../../../runtime/core/tree.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'

const block = 32
const bitsOf = async (tensor: Tensor): Promise<string> => Buffer.from(await tensor.bytes()).toString('hex')

/** Columns of a row-major matrix. */
export function cutColumns(matrix: Float32Array, width: number, { start, count }: Span): Float32Array {
  return Float32Array.from(
    { length: (matrix.length / width) * count },
    (_, i) => matrix[Math.floor(i / count) * width + start + (i % count)] as number,
  )
}

export function treeCases(device: Device): void {
  const start = seed()
  const random = new Random(start)

  describe(`matmulTree (seed ${start})`, () => {
    it.each([
      [1, 4, 1],
      [1, 256, 65],
      [3, 100, 5],
      [7, 224, 130],
      [9, 1000, 33],
    ])('is the product: %i tokens, k %i, %i outputs', async (tokens, k, outs) => {
      const [x, w, bias] = [random.floats(tokens * k), random.floats(outs * k), random.floats(outs)]
      const tensors = { x: Tensor.from(x, { shape: [tokens, k], device }), w: Tensor.from(w, { shape: [outs, k], device }) }
      const y = device.matmulTree(tensors.x, tensors.w, { block, whole: true, bias: Tensor.from(bias, { device }) })
      reference.expectClose((await y.data()) as Float32Array, reference.matmul(x, w, { t: tokens, k, n: outs }, bias), { abs: 2e-4 })
    })

    it('a row has the same bits among 1, 4 and 9 tokens, in every weight type', async () => {
      const [k, outs] = [160, 40]
      const x = random.floats(9 * k)
      const w = random.floats(outs * k)
      for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
        const weight = Tensor.from(w, { shape: [outs, k], dtype, device })
        const rows = async (tokens: number): Promise<string> => {
          const y = device.matmulTree(Tensor.from(x.slice(0, tokens * k), { shape: [tokens, k], device }), weight, { block, whole: true })
          return (await bitsOf(y)).slice(0, outs * 8)
        }
        expect(new Set([await rows(1), await rows(4), await rows(9)]).size).toBe(1)
      }
    })

    it("gives this rank's whole subtrees, and leaves the rest of a larger out alone", async () => {
      const [tokens, k, outs] = [2, 7 * block, 8]
      const x = random.floats(tokens * k)
      const w = random.floats(outs * k)
      const nodes = nodesOf({ start: 1, count: 7 }) // blocks 1, 2-3, 4-7
      const out = Tensor.full([4, tokens, outs], Number.NaN, { device })
      device.matmulTree(Tensor.from(x, { shape: [tokens, k], device }), Tensor.from(w, { shape: [outs, k], device }), {
        block,
        first: 1,
        out,
      })
      const sums = (await out.data()) as Float32Array
      for (const [i, { start, level }] of nodes.entries()) {
        const span = { start: (start - 1) * block, count: 2 ** level * block }
        const part = reference.matmul(cutColumns(x, k, span), cutColumns(w, k, span), { t: tokens, k: span.count, n: outs })
        reference.expectClose(sums.slice(i * tokens * outs, (i + 1) * tokens * outs), part, { abs: 1e-4 })
      }
      expect([...sums.slice(3 * tokens * outs)].every(Number.isNaN)).toBe(true)
    })

    it.each([
      ['a block that is no multiple of 4', { block: 6 }, 'ERR_ARGUMENT'],
      ['a bias on part of a sum', { block, bias: Tensor.zeros([4], { device }) }, 'ERR_ARGUMENT'],
      ['an out that is too small', { block, out: Tensor.zeros([2], { device }) }, 'ERR_SHAPE'],
    ])('refuses %s', (_, options, code) => {
      const [x, w] = [Tensor.zeros([2, 64], { device }), Tensor.zeros([4, 64], { device })]
      expect(() => device.matmulTree(x, w, options)).toThrow(expect.objectContaining({ code }))
    })
  })
}
