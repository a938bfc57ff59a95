// topK and argmax: order, ties, NaN, infinities, zeros of both signs, and outputs that leave their neighbours alone.
import { describe, expect, it } from 'vitest'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import { Guarded, place } from '../tensors.ts'
import type { Way } from '../ways.ts'

export function topKCases(device: Device, ways: readonly Way[]): void {
  const start = seed()
  const random = new Random(start)
  const { POSITIVE_INFINITY: inf, NEGATIVE_INFINITY: low, NaN: nan } = Number

  /** Indices by descending value, equal ones (0 and -0 too) ascending, NaN last. */
  function ranked(row: ArrayLike<number>): number[] {
    const key = (i: number): number => (Number.isNaN(row[i]) ? Number.NEGATIVE_INFINITY : (row[i] as number))
    const nans = (i: number): number => (Number.isNaN(row[i]) ? 1 : 0)
    return Array.from({ length: row.length }, (_, i) => i).sort(
      (i, j) => nans(i) - nans(j) || (key(i) === key(j) ? i - j : key(i) < key(j) ? 1 : -1),
    )
  }

  async function check(rows: readonly (readonly number[])[], k: number, shift = 0): Promise<void> {
    const n = (rows[0] as readonly number[]).length
    const x = place(device, rows.flat(), [rows.length, n], 'float32', shift)
    const { values, indices } = device.topK(x.tensor, k)
    const [best, at] = [(await values.data()) as Float32Array, [...((await indices.data()) as Uint32Array)]]
    const expected = rows.flatMap((_, r) => ranked(x.values.subarray(r * n, (r + 1) * n)).slice(0, k))
    expect(at).toEqual(expected)
    expect([...best]).toEqual(expected.map((i, j) => x.values[Math.floor(j / k) * n + i]))
    const out = new Guarded(device, [rows.length], 'uint32', shift)
    device.argmax(x.tensor, { out: out.tensor })
    expect([...((await out.data()) as Uint32Array)]).toEqual(rows.map((_, r) => expected[r * k]))
  }

  describe(`random rows (seed ${start})`, () => {
    for (const n of [1, 7, 64, 1000, 4097]) {
      for (const k of [1, 5, 40].filter((k) => k <= n)) {
        it(`${k} of ${n}`, () => {
          const rows = Array.from({ length: 1 + random.int(3) }, () => [...random.floats(n)])
          return check(rows, k, random.int(3))
        })

        it(`${k} of ${n} with many ties`, () => {
          const rows = Array.from({ length: 2 }, () => Array.from({ length: n }, () => random.int(4) - 1.5))
          return check(rows, k)
        })
      }
    }

    it('all of a row, sorted', () => check([[...random.floats(100)], Array.from({ length: 100 }, () => random.int(9))], 100))

    for (const way of ways) {
      it(way.name, () => way.run(() => check([[...random.floats(301)], Array.from({ length: 301 }, () => random.int(3))], 9, 1)))
    }
  })

  describe('special values', () => {
    it('zeros of both signs are equal, in the order of their places', () => check([[-1, -0, 0, -0, 0, -2]], 6))
    it('infinities stand at the ends', () => check([[0, low, 5, inf, low, inf, -5]], 7))
    it('NaN comes last, in the order of its places', () => check([[nan, 1, low, nan, -3, inf, nan]], 7))
    it('a row of NaN', () => check([[nan, nan, nan, nan, nan]], 3))
    it('a row of -infinity', () => check([new Array(70).fill(low)], 70))
    it('NaN beside one number', () => check([[...new Array(200).fill(nan), -1e38, nan]], 2))
    it('the largest and the smallest numbers', () => check([[3.4e38, -3.4e38, 1e-38, -1e-38, 1.17549435e-38]], 5))
  })

  describe('shapes', () => {
    it('argmax drops the last dimension', async () => {
      const best = device.argmax(place(device, [1, 3, 2, 9, 8, 7, 0, 0, 1, 5, 6, 4], [2, 2, 3]).tensor)
      expect(best.shape).toEqual([2, 2])
      expect([...((await best.data()) as Uint32Array)]).toEqual([1, 0, 2, 1])
    })

    it('argmax of one row is a scalar', async () => {
      const best = device.argmax(place(device, [1, 3, 2], [3]).tensor)
      expect(best.shape).toEqual([])
      expect(await best.item()).toBe(1)
    })

    it('gives the same bits again', async () => {
      const x = place(device, random.floats(2000), [2, 1000]).tensor
      const [a, b] = [device.topK(x, 20), device.topK(x, 20)]
      expect(await a.indices.bytes()).toEqual(await b.indices.bytes())
      expect(await a.values.bytes()).toEqual(await b.values.bytes())
    })
  })
}
