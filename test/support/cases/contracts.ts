// The numeric contracts of the kernels' headers, as bounds: on random data, and on data that makes the order of additions show.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'

export function contractCases(device: Device, lanes: number): void {
  const start = seed()
  const random = new Random(start)
  const EPSILON = 2 ** -24

  /** Worst ratio of an error to its bound; the contract holds up to 1. */
  function worst(actual: ArrayLike<number>, expected: ArrayLike<number>, bound: (i: number) => number): number {
    let most = 0
    for (let i = 0; i < expected.length; i++) {
      const error = Math.abs((actual[i] as number) - (expected[i] as number))
      if (!(error >= 0)) return Number.POSITIVE_INFINITY
      if (error > 0) most = Math.max(most, error / bound(i))
    }
    return most
  }

  /** ULPs of float32 between a result and what it should be. */
  const ulp = (value: number): number => 2 ** (Math.max(Math.floor(Math.log2(Math.abs(value) || 2 ** -126)), -126) - 23)
  const data = async (tensor: Tensor): Promise<Float32Array> => (await tensor.data()) as Float32Array

  describe(`contracts (seed ${start})`, () => {
    const k = 512
    const big = Float32Array.from({ length: k }, (_, i) => [2 ** 24, 1, -(2 ** 24)][i % 3] as number)

    it.each([
      ['random', () => random.floats(6 * k)],
      ['2^24, 1, -2^24, ...', () => Float32Array.from({ length: 6 * k }, (_, i) => big[i % k] as number)],
    ])('matrix products of %s data: (k + 2) 2^-24 sum |x w|', async (name, make) => {
      const [tokens, outs] = [6, 20]
      const x = make()
      const w = name === 'random' ? random.floats(outs * k) : new Float32Array(outs * k).fill(1)
      const expected = reference.matmul(x, w, { t: tokens, k, n: outs })
      const sizes = reference.matmul(x.map(Math.abs), w.map(Math.abs), { t: tokens, k, n: outs })
      const bound = (i: number): number => (k + 2) * EPSILON * (sizes[i] as number)
      const [xs, ws] = [Tensor.from(x, { shape: [tokens, k], device }), Tensor.from(w, { shape: [outs, k], device })]
      expect(worst(await data(device.matmul(xs, ws)), expected, bound)).toBeLessThanOrEqual(1)
      expect(worst(await data(device.matmulTree(xs, ws, { block: 32, whole: true })), expected, bound)).toBeLessThanOrEqual(1)
      const one = device.matmul(xs.narrow(0, 0, 1), ws)
      expect(worst(await data(one), expected.slice(0, outs), bound)).toBeLessThanOrEqual(1)
    })

    it('add: 0.5 ULP', async () => {
      const [a, b] = [random.floats(4097), random.floats(4097)]
      const y = await data(device.add(Tensor.from(a, { device }), Tensor.from(b, { device })))
      expect([...y]).toEqual([...a.map((value, i) => Math.fround(value + (b[i] as number)))])
    })

    it('silu_mul: 8 + 2 |v| ULP', async () => {
      const n = 1000
      const x = Float32Array.from(random.floats(2 * n), (value) => value * 8)
      const y = await data(device.siluMul(Tensor.from(x, { shape: [1, 2 * n], device })))
      const expected = reference.siluMul(x, { t: 1, i: n })
      expect(worst(y, expected, (i) => (8 + 2 * Math.abs(x[i] as number)) * ulp(expected[i] as number))).toBeLessThanOrEqual(1)
    })

    it('softmax: (12 + 4 d + n) 2^-24, d below the maximum, or 2^-126', async () => {
      const n = 777
      const x = Float32Array.from(random.floats(n), (value) => value * 10)
      const top = Math.max(...x)
      for (let i = 1; i <= 20; i++) x[i * 30] = top - 85 - i // subnormal results, and zero
      const y = await data(device.softmax(Tensor.from(x, { shape: [1, n], device })))
      const expected = reference.softmax(x, { t: 1, n })
      const bound = (i: number): number => (12 + 4 * (top - (x[i] as number)) + n) * EPSILON * (expected[i] as number)
      expect(worst(y, expected, (i) => bound(i) + 2 ** -126)).toBeLessThanOrEqual(1)
    })

    it("rms_norm: 4 ULP and the sum's (n / WG + log2 WG) 2^-24", async () => {
      const n = 1024
      const [x, gamma] = [random.floats(n), random.floats(n)]
      const y = await data(device.rmsNorm(Tensor.from(x, { shape: [1, n], device }), Tensor.from(gamma, { device }), { eps: 1e-6 }))
      const expected = reference.rmsNorm(x, gamma, { t: 1, h: n, eps: 1e-6 })
      const sum = (n / lanes + Math.log2(lanes)) * EPSILON
      expect(worst(y, expected, (i) => 4 * ulp(expected[i] as number) + sum * Math.abs(expected[i] as number))).toBeLessThanOrEqual(1)
    })

    it('rope: 4 * 2^-24 (|a| + |b|), values exact', async () => {
      const [tokens, dim] = [5, 16]
      const half = dim / 2
      const x = random.floats(tokens * 3 * dim)
      const angles = Float64Array.from({ length: tokens * half }, (_, i) => Math.floor(i / half) * 10_000 ** (-(i % half) / half))
      const table = Float32Array.from([...angles].flatMap((angle) => [Math.cos(angle), Math.sin(angle)]))
      const caches = { keys: Tensor.zeros([tokens, dim], { device }), values: Tensor.zeros([tokens, dim], { device }) }
      const q = device.ropeAppend(Tensor.from(x, { shape: [tokens, 3 * dim], device }), {
        ...caches,
        table: Tensor.from(table, { shape: [tokens, half, 2], device }),
        heads: 1,
        kvHeads: 1,
        dim,
        start: 0,
      })
      const at = (t: number, head: number, i: number): number => x[t * 3 * dim + head * dim + i] as number
      const turned = (head: number): { expected: number[]; bound: number[] } => {
        const expected: number[] = []
        const bound: number[] = []
        for (let t = 0; t < tokens; t++) {
          for (let i = 0; i < dim; i++) {
            const angle = angles[t * half + (i % half)] as number
            const [a, b] = [at(t, head, i % half), at(t, head, (i % half) + half)]
            expected.push(i < half ? a * Math.cos(angle) - b * Math.sin(angle) : b * Math.cos(angle) + a * Math.sin(angle))
            bound.push(4 * EPSILON * (Math.abs(a) + Math.abs(b)))
          }
        }
        return { expected, bound }
      }
      for (const [tensor, head] of [
        [q, 0],
        [caches.keys, 1],
      ] as const) {
        const { expected, bound } = turned(head)
        expect(worst(await data(tensor), expected, (i) => bound[i] as number)).toBeLessThanOrEqual(1)
      }
      expect([...(await data(caches.values))]).toEqual(Array.from({ length: tokens * dim }, (_, i) => at(Math.floor(i / dim), 2, i % dim)))
    })

    it('attention: (16 + 4 r + keys + dim) 2^-24 max |v|, and the error of the scores', async () => {
      const [keys, dim] = [77, 32]
      const [q, k, v] = [random.floats(dim), random.floats(keys * dim), random.floats(keys * dim)]
      const y = device.attention(Tensor.from(q, { shape: [1, dim], device }), {
        keys: Tensor.from(k, { shape: [keys, dim], device }),
        values: Tensor.from(v, { shape: [keys, dim], device }),
        ...{ heads: 1, kvHeads: 1, dim, start: keys - 1 },
      })
      const expected = reference.attention(q, k, v, { t: 1, s: keys, heads: 1, kvHeads: 1, headDim: dim })
      const scores = reference.matmul(q, k, { t: 1, k: dim, n: keys }).map((score) => score / Math.sqrt(dim))
      const sizes = reference.matmul(q.map(Math.abs), k.map(Math.abs), { t: 1, k: dim, n: keys })
      const range = Math.max(...scores) - Math.min(...scores)
      const scoreError = (2 * (dim + 4) * EPSILON * Math.max(...sizes)) / Math.sqrt(dim)
      const largest = Math.max(...v.map(Math.abs))
      expect(
        worst(await data(y), expected, () => ((16 + 4 * range + keys + dim) * EPSILON + 2 * scoreError) * largest),
      ).toBeLessThanOrEqual(1)
    })
  })
}
