// attention against float64: workgroups, grouped heads, windows, one token and many, deep caches, rows that do not depend on their company.
import { describe, expect, it } from 'vitest'
import type { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, Guarded, place, sample } from '../tensors.ts'
import type { Way } from '../ways.ts'

export function attentionCases(device: Device, ways: readonly Way[]): void {
  const start = seed()
  const random = new Random(start)

  interface Case {
    tokens: number
    first: number
    heads: number
    kvHeads: number
    dim: number
    window?: number
    scale?: number
    shift?: number
    /** Size of the scores: large ones make the softmax sharp. */
    spread?: number
  }

  /** Scores of size s carry an error of about s * 2^-22 into the exponent; the rest is a weighted mean of normal values. */
  const tolerance = (spread: number): { abs: number } => ({ abs: 2e-6 * (1 + spread * spread) })

  async function check({ tokens, first, heads, kvHeads, dim, window = 0, scale, shift = 0, spread = 1 }: Case): Promise<void> {
    const capacity = first + tokens + random.int(3)
    const q = sample(device, random, [tokens, heads * dim], 'float32', spread, shift)
    const keys = sample(device, random, [capacity, kvHeads * dim], 'float32', spread, shift)
    const values = sample(device, random, [capacity, kvHeads * dim], 'float32', 1, shift)
    const out = new Guarded(device, [tokens, heads * dim], 'float32', shift)
    device.attention(q.tensor, {
      keys: keys.tensor,
      values: values.tensor,
      heads,
      kvHeads,
      dim,
      start: first,
      window,
      out: out.tensor,
      ...(scale === undefined ? {} : { scale }),
    })
    const shape = { t: tokens, s: capacity, heads, kvHeads, headDim: dim, start: first, window: window || Number.POSITIVE_INFINITY }
    const expected = reference.attention(q.values, keys.values, values.values, scale === undefined ? shape : { ...shape, scale })
    expectRounded('float32', await out.bytes(), expected, tolerance(spread * Math.sqrt(scale ? scale * Math.sqrt(dim) : 1)))
  }

  for (const way of ways) {
    describe(`${way.name} (seed ${start})`, () => {
      for (const given of [
        { tokens: 1, first: 0, heads: 1, kvHeads: 1, dim: 4 },
        { tokens: 1, first: 100, heads: 8, kvHeads: 8, dim: 64 },
        { tokens: 9, first: 0, heads: 4, kvHeads: 2, dim: 20 },
        { tokens: 21, first: 6, heads: 8, kvHeads: 1, dim: 32 },
        { tokens: 3, first: 1, heads: 2, kvHeads: 2, dim: 256 },
        { tokens: 12, first: 30, heads: 4, kvHeads: 4, dim: 16, window: 7 },
        { tokens: 5, first: 0, heads: 2, kvHeads: 1, dim: 8, window: 1 },
        { tokens: 40, first: 0, heads: 2, kvHeads: 1, dim: 12, window: 33 },
        { tokens: 2, first: 50, heads: 2, kvHeads: 1, dim: 16, window: 1000 },
        { tokens: 6, first: 3, heads: 4, kvHeads: 2, dim: 32, scale: 0.01 },
        { tokens: 6, first: 90, heads: 4, kvHeads: 2, dim: 32, spread: 6 },
      ] satisfies Case[]) {
        const { tokens, first, heads, kvHeads, dim, window, scale, spread } = given as Case
        const more = Object.entries({ window, scale, spread }).flatMap(([name, value]) => (value ? [`${name} ${value}`] : []))
        it([`${tokens} tokens at ${first}`, `${heads} / ${kvHeads} heads of ${dim}`, ...more].join(', '), () => way.run(() => check(given)))
      }

      it('inside longer storages', () =>
        way.run(async () => {
          for (const shift of [1, 2, 4]) await check({ tokens: 4, first: 9, heads: 4, kvHeads: 2, dim: 8, shift })
        }))

      it('gives a row the same bits alone, in company, and again', () =>
        way.run(async () => {
          const [tokens, first, heads, kvHeads, dim] = [11, 20, 4, 2, 24]
          const q = sample(device, random, [tokens, heads * dim])
          const keys = sample(device, random, [first + tokens, kvHeads * dim]).tensor
          const values = sample(device, random, [first + tokens, kvHeads * dim]).tensor
          const run = (rows: Tensor, at: number): Promise<Uint8Array> =>
            device.attention(rows, { keys, values, heads, kvHeads, dim, start: at }).bytes()
          const all = await run(q.tensor, first)
          expect(Buffer.compare(await run(q.tensor, first), all)).toBe(0)
          const row = heads * dim * 4
          for (let t = 0; t < tokens; t++) {
            const alone = await run(q.tensor.narrow(0, t, 1), first + t)
            expect(Buffer.compare(alone, all.subarray(t * row, (t + 1) * row)), `row ${t}`).toBe(0)
          }
        }))
    })
  }

  describe('what a query sees', () => {
    it('ends at its own key and begins a window before', async () => {
      const [tokens, dim] = [6, 4]
      // Every key is alike, so that each row is the mean of the values it sees: those of positions 2^0, 2^1, ...
      const keys = place(device, new Float32Array(tokens * dim), [tokens, dim]).tensor
      const values = place(
        device,
        Float32Array.from({ length: tokens * dim }, (_, i) => 2 ** Math.floor(i / dim)),
        [tokens, dim],
      ).tensor
      const q = sample(device, random, [tokens, dim]).tensor
      for (const window of [0, 1, 2, 5]) {
        const y = (await device.attention(q, { keys, values, heads: 1, kvHeads: 1, dim, start: 0, window }).data()) as Float32Array
        const expected = Array.from({ length: tokens }, (_, t) => {
          const seen = Math.min(window || tokens, t + 1)
          return (2 ** (t + 1) - 2 ** (t + 1 - seen)) / seen
        })
        for (let t = 0; t < tokens; t++) expect(y[t * dim]).toBeCloseTo(expected[t] as number, 4)
      }
    })

    it('NaN in rows behind it does not reach it', async () => {
      const rows = new Float32Array(8 * 4).fill(Number.NaN)
      rows.fill(1, 0, 12)
      const cache = place(device, rows, [8, 4]).tensor
      const q = place(device, new Float32Array(8).fill(1), [2, 4]).tensor
      const y = await device.attention(q, { keys: cache, values: cache, heads: 1, kvHeads: 1, dim: 4, start: 1 }).data()
      expect([...(y as Float32Array)]).toEqual(new Array(8).fill(1))
    })

    it('scores as large as float32 allows give the value of the largest', async () => {
      const keys = place(device, [1e18, 0, 0, 0, 2e18, 0, 0, 0, 1.5e18, 0, 0, 0], [3, 4]).tensor
      const values = place(device, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], [3, 4]).tensor
      const q = place(device, [1e18, 0, 0, 0], [1, 4]).tensor
      const y = await device.attention(q, { keys, values, heads: 1, kvHeads: 1, dim: 4, start: 2 }).data()
      expect([...(y as Float32Array)]).toEqual([2, 2, 2, 2])
    })
  })
}
