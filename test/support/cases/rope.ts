// ropeAppend against float64: rotation from a table, queries out, keys and values appended to caches that keep their other rows.
import { describe, expect, it } from 'vitest'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import * as reference from '../reference-ops.ts'
import { expectRounded, Guarded, place, sample } from '../tensors.ts'

export function ropeCases(device: Device): void {
  const start = seed()
  const random = new Random(start)

  /** (cos, sin) of position * frequency, [positions, dim / 2, 2], rounded to float32 once. */
  function table(positions: number, frequencies: Float64Array, shift = 0): Tensor {
    const half = frequencies.length
    const values = new Float32Array(positions * half * 2)
    for (let m = 0; m < positions; m++) {
      for (let i = 0; i < half; i++) {
        const angle = m * (frequencies[i] as number)
        values.set([Math.cos(angle), Math.sin(angle)], (m * half + i) * 2)
      }
    }
    return place(device, values, [positions, half, 2], 'float32', shift).tensor
  }

  /** Columns [from, from + width) of rows of `n`. */
  function columns(values: Float32Array, n: number, from: number, width: number): Float32Array {
    const rows = values.length / n
    return Float32Array.from({ length: rows * width }, (_, i) => values[Math.floor(i / width) * n + from + (i % width)] as number)
  }

  interface Case {
    tokens: number
    heads: number
    kvHeads: number
    dim: number
    first: number
    /** Elements that operands are shifted by inside longer storages. */
    shift?: number
  }

  /** Two products and their sum, each rounded, and the rounding of cos and sin: 3 units of the larger element. */
  const TOLERANCE = { abs: 4 * 3 * 2 ** -24 * 4, rel: 2 ** -22 }

  async function check({ tokens, heads, kvHeads, dim, first, shift = 0 }: Case): Promise<void> {
    const width = (heads + 2 * kvHeads) * dim
    const capacity = first + tokens + random.int(4)
    const frequencies = reference.inverseFrequencies(dim, 10_000)
    const x = sample(device, random, [tokens, width], 'float32', 1, shift)
    const keys = new Guarded(device, [capacity, kvHeads * dim], 'float32', shift)
    const values = new Guarded(device, [capacity, kvHeads * dim], 'float32', shift)
    const out = new Guarded(device, [tokens, heads * dim], 'float32', shift)
    const options = { table: table(capacity, frequencies, shift), heads, kvHeads, dim, start: first }
    device.ropeAppend(x.tensor, { ...options, keys: keys.tensor, values: values.tensor, out: out.tensor })

    const positions = Array.from({ length: tokens }, (_, t) => first + t)
    const turned = (from: number, count: number): Float64Array =>
      reference.rope(columns(x.values, width, from * dim, count * dim), { t: tokens, heads: count, headDim: dim }, positions, frequencies)
    expectRounded('float32', await out.bytes(), turned(0, heads), TOLERANCE)
    const row = kvHeads * dim
    const [k, v] = [(await keys.data()) as Float32Array, (await values.data()) as Float32Array]
    for (const cache of [k, v]) {
      for (const untouched of [cache.subarray(0, first * row), cache.subarray((first + tokens) * row)]) {
        expect(untouched.every(Number.isNaN), 'rows of other positions').toBe(true)
      }
    }
    reference.expectClose(k.subarray(first * row, (first + tokens) * row), turned(heads, kvHeads), TOLERANCE)
    const appended = v.subarray(first * row, (first + tokens) * row)
    expect([...appended]).toEqual([...columns(x.values, width, (heads + kvHeads) * dim, row)])
  }

  describe(`ropeAppend (seed ${start})`, () => {
    for (const given of [
      { tokens: 1, heads: 1, kvHeads: 1, dim: 2, first: 0 },
      { tokens: 1, heads: 8, kvHeads: 2, dim: 64, first: 37 },
      { tokens: 7, heads: 4, kvHeads: 4, dim: 6, first: 0 },
      { tokens: 19, heads: 6, kvHeads: 3, dim: 10, first: 5 },
      { tokens: 5, heads: 2, kvHeads: 1, dim: 128, first: 2000 },
    ]) {
      const { tokens, heads, kvHeads, dim, first } = given
      it(`${tokens} tokens at ${first}, ${heads} / ${kvHeads} heads of ${dim}`, () => check(given))
      it(`${tokens} tokens at ${first}, ${heads} / ${kvHeads} heads of ${dim}, inside longer storages`, () => check({ ...given, shift: 3 }))
    }

    it('in one go and token by token gives the same bits', async () => {
      const [tokens, heads, kvHeads, dim] = [6, 4, 2, 16]
      const x = sample(device, random, [tokens, (heads + 2 * kvHeads) * dim])
      const turns = table(tokens, reference.inverseFrequencies(dim, 10_000))
      const caches = (): { keys: Tensor; values: Tensor } => ({
        keys: Tensor.zeros([tokens, kvHeads * dim], { device }),
        values: Tensor.zeros([tokens, kvHeads * dim], { device }),
      })
      const [whole, single] = [caches(), caches()]
      const q = await device.ropeAppend(x.tensor, { ...whole, table: turns, heads, kvHeads, dim, start: 0 }).bytes()
      for (let t = 0; t < tokens; t++) {
        const one = device.ropeAppend(x.tensor.narrow(0, t, 1), { ...single, table: turns, heads, kvHeads, dim, start: t })
        expect(Buffer.compare(await one.bytes(), q.subarray(t * heads * dim * 4, (t + 1) * heads * dim * 4))).toBe(0)
      }
      expect(await single.keys.bytes()).toEqual(await whole.keys.bytes())
      expect(await single.values.bytes()).toEqual(await whole.values.bytes())
    })

    it('appends to keys and values that are parts of one storage', async () => {
      const [tokens, heads, kvHeads, dim, capacity] = [3, 2, 1, 6, 5]
      const row = kvHeads * dim
      const both = Tensor.zeros([2 * capacity, row], { device })
      const [keys, values] = [both.narrow(0, 0, capacity), both.narrow(0, capacity, capacity)]
      const x = sample(device, random, [tokens, (heads + 2 * kvHeads) * dim])
      const frequencies = reference.inverseFrequencies(dim, 10_000)
      const q = device.ropeAppend(x.tensor, { table: table(capacity, frequencies), keys, values, heads, kvHeads, dim, start: 1 })
      const turned = reference.rope(columns(x.values, 24, 12, 6), { t: tokens, heads: 1, headDim: dim }, [1, 2, 3], frequencies)
      const cache = (await both.data()) as Float32Array
      reference.expectClose(cache.subarray(row, 4 * row), turned, TOLERANCE)
      expect([...cache.subarray(6 * row, 9 * row)]).toEqual([...columns(x.values, 24, 18, 6)])
      for (const r of [0, 4, 5, 9]) expect(cache.subarray(r * row, (r + 1) * row).every((v) => v === 0)).toBe(true)
      expect((await q.data()).length).toBe(tokens * heads * dim)
    })
  })
}
