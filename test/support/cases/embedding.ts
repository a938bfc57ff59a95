// embedding: rows of a table or of a vocabulary shard, bit by bit, with ids outside the shard.
import { describe, expect, it } from 'vitest'
import { encodeBfloat16, encodeFloat16 } from '../../../runtime/core/codecs.ts'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import { FLOATS, Guarded, sample } from '../tensors.ts'

export function embeddingCases(device: Device): void {
  const start = seed()
  const random = new Random(start)

  /** Rows `ids - first` of a table, zeros for ids outside it. */
  function rowsOf(table: Float32Array, n: number, ids: readonly number[], first = 0): Float32Array {
    const out = new Float32Array(ids.length * n)
    ids.forEach((id, i) => {
      const row = id - first
      if (row >= 0 && (row + 1) * n <= table.length) out.set(table.subarray(row * n, (row + 1) * n), i * n)
    })
    return out
  }

  const idsTensor = (ids: readonly number[]): Tensor => Tensor.from(Uint32Array.from(ids), { device })

  for (const tableType of FLOATS) {
    for (const dtype of FLOATS) {
      it(`${tableType} table to ${dtype}, rows of many lengths (seed ${start})`, async () => {
        for (const n of [1, 4, 7, 64, 1000]) {
          const rows = 1 + random.int(50)
          const shift = random.int(3)
          const table = sample(device, random, [rows, n], tableType, 1, shift)
          const ids = Array.from({ length: 1 + random.int(9) }, () => random.int(rows))
          const out = new Guarded(device, [ids.length, n], dtype, shift)
          device.embedding(idsTensor(ids), table.tensor, { out: out.tensor })
          const expected = await Tensor.from(rowsOf(table.values, n, ids), { dtype }).bytes()
          expect(Buffer.compare(await out.bytes(), expected), `rows of ${n}`).toBe(0)
        }
      })
    }
  }

  describe('rounding', () => {
    for (const dtype of ['bfloat16', 'float16'] as const) {
      // Rows of 7 take the one-value form of the kernels, rows of 8 the packed form.
      for (const n of [7, 8]) {
        it(`to ${dtype} in rows of ${n}: ties to even, subnormals, overflow, infinities, NaN (seed ${start})`, async () => {
          const drop = dtype === 'bfloat16' ? 16 : 13
          const bits = Uint32Array.from({ length: n * 500 }, () => {
            const tie = (random.bits() << drop) | (1 << (drop - 1))
            return ((tie & 0x87ffffff) | ((0x60 + random.int(0x40)) << 23)) + random.int(3) - 1
          })
          const special = Float32Array.of(1 / 0, -1 / 0, -0, 65520, 65519.99, 3.4e38, 2 ** -25, 6e-8)
          bits.set(new Uint32Array(special.buffer))
          bits.set([0x7fc00000, 0xffc00000, 0x7f812345, 0xffabcdef], special.length) // NaN of both signs, with payload
          const table = Tensor.fromBytes(new Uint8Array(bits.buffer), [500, n], 'float32', device)
          const ids = Array.from({ length: 500 }, (_, i) => i)
          const out = new Guarded(device, [500, n], dtype)
          device.embedding(idsTensor(ids), table, { out: out.tensor })
          const rounded = (dtype === 'bfloat16' ? encodeBfloat16 : encodeFloat16)(new Float32Array(bits.buffer))
          expect(Buffer.compare(await out.bytes(), new Uint8Array(rounded.buffer))).toBe(0)
        })
      }
    }
  })

  describe(`vocabulary shards (seed ${start})`, () => {
    it('give zeros for ids before and behind them', async () => {
      const [first, rows, n] = [100, 20, 12]
      const table = sample(device, random, [rows, n], 'bfloat16')
      const ids = [0, 99, 100, 105, 119, 120, 121, 5000, 2 ** 31, 2 ** 32 - 1]
      const out = new Guarded(device, [ids.length, n], 'float32')
      device.embedding(idsTensor(ids), table.tensor, { first, out: out.tensor })
      expect(await out.data()).toEqual(rowsOf(table.values, n, ids, first))
    })

    it('of a whole table sum to its rows', async () => {
      const [rows, n, shards] = [36, 8, 3]
      const table = sample(device, random, [rows, n])
      const ids = Array.from({ length: 40 }, () => random.int(rows))
      const ask = idsTensor(ids)
      const parts = Array.from({ length: shards }, (_, r) => {
        const first = (r * rows) / shards
        return device.embedding(ask, table.tensor.narrow(0, first, rows / shards), { first })
      })
      const sum = parts.reduce((a, b) => device.add(a, b))
      expect(await sum.data()).toEqual(rowsOf(table.values, n, ids))
    })

    it('at the end of the id range', async () => {
      const table = sample(device, random, [4, 4])
      const first = 2 ** 32 - 4
      const ids = [2 ** 32 - 1, 2 ** 32 - 4, 2 ** 32 - 5, 0]
      const y = device.embedding(idsTensor(ids), table.tensor, { first })
      expect(await y.data()).toEqual(rowsOf(table.values, 4, ids, first))
    })
  })

  it('no ids, no rows', async () => {
    const table = Tensor.zeros([3, 8], { device })
    expect(device.embedding(idsTensor([]), table).shape).toEqual([0, 8])
  })
}
