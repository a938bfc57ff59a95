// Lanes in lockstep: what several ranks of one GPU do alike becomes one dispatch, what they do differently stays apart and right.
import { afterAll, describe, expect, it } from 'vitest'
import type { DType } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)

const RANKS = 4
const ranks = Array.from({ length: RANKS }, () => device.view())

/** A tensor for each rank, all of them slices of one buffer. */
function slices(shape: Shape, dtype: DType = 'float32'): Tensor[] {
  const bytes = sizeOf(shape) * (dtype === 'float32' || dtype === 'uint32' ? 4 : 2)
  return device.gpu.pool.allocateSlices(RANKS, bytes).map((storage, r) => new Tensor(ranks[r] as WebGpuDevice, storage, shape, dtype))
}

/** Slices that hold random values. */
function filled(shape: Shape): { tensors: Tensor[]; values: Float32Array[] } {
  const tensors = slices(shape)
  const values = tensors.map(() => random.floats(sizeOf(shape)))
  tensors.forEach((tensor, r) => void tensor.set(values[r] as Float32Array))
  return { tensors, values }
}

/** Dispatches that `work` takes, up to a flush. */
async function dispatches(work: () => void): Promise<number> {
  await device.sync()
  const before = device.stats.dispatches
  work()
  await device.sync()
  return device.stats.dispatches - before
}

const values = async (tensor: Tensor | undefined): Promise<Float32Array> => (await (tensor as Tensor).data()) as Float32Array

describe(`one dispatch for ${RANKS} ranks (seed ${start})`, () => {
  it('of the same operation on slices', async () => {
    const [a, b, out] = [filled([300]), filled([300]), slices([300])]
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries()) rank.add(a.tensors[r] as Tensor, b.tensors[r] as Tensor, { out: out[r] as Tensor })
    })
    expect(count).toBe(1)
    for (let r = 0; r < RANKS; r++) {
      const sums = reference.add(a.values[r] as Float32Array, b.values[r] as Float32Array)
      reference.expectClose(await values(out[r]), sums, { rel: 2 ** -23 })
    }
  })

  it('with operands that all share', async () => {
    const [x, out] = [random.floats(3 * 64), slices([3, 20])]
    const shared = Tensor.from(x, { shape: [3, 64], device })
    const weights = filled([20, 64])
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries()) rank.matmul(shared, weights.tensors[r] as Tensor, { out: out[r] as Tensor })
    })
    expect(count).toBe(1)
    for (let r = 0; r < RANKS; r++) {
      const expected = reference.matmul(x, weights.values[r] as Float32Array, { t: 3, k: 64, n: 20 })
      reference.expectClose(await values(out[r]), expected, { abs: 1e-5 })
    }
  })

  it('of a sequence of operations, one for each step', async () => {
    const [x, y, z] = [filled([8, 32]), slices([8, 32]), slices([8, 16])]
    const weight = Tensor.from(random.floats(32), { device })
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries()) {
        rank.rmsNorm(x.tensors[r] as Tensor, weight, { out: y[r] as Tensor })
        rank.siluMul(y[r] as Tensor, { out: z[r] as Tensor })
      }
    })
    expect(count).toBe(2)
    const gamma = await values(weight)
    for (let r = 0; r < RANKS; r++) {
      const normed = reference.rmsNorm(x.values[r] as Float32Array, gamma, { t: 8, h: 32, eps: 1e-6 })
      reference.expectClose(await values(z[r]), reference.siluMul(normed, { t: 8, i: 16 }), { abs: 1e-5, rel: 1e-5 })
    }
  })

  it('whose own numbers are in arithmetic progression', async () => {
    const [rows, n] = [10, 8]
    const tables = filled([rows, n])
    const ids = Array.from({ length: 20 }, () => random.int(RANKS * rows))
    const asked = Tensor.from(Uint32Array.from(ids), { device })
    const out = slices([ids.length, n])
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries())
        rank.embedding(asked, tables.tensors[r] as Tensor, { first: r * rows, out: out[r] as Tensor })
    })
    expect(count).toBe(1)
    for (let r = 0; r < RANKS; r++) {
      const got = await values(out[r])
      ids.forEach((id, t) => {
        const row = id - r * rows
        const expected = row >= 0 && row < rows ? (tables.values[r] as Float32Array).subarray(row * n, (row + 1) * n) : new Float32Array(n)
        expect(got.subarray(t * n, (t + 1) * n)).toEqual(expected)
      })
    }
  })

  it('also descending', async () => {
    const [rows, n] = [3, 4]
    const tables = filled([rows, n])
    const asked = Tensor.from(Uint32Array.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), { device })
    const out = slices([12, n])
    const first = (r: number): number => (RANKS - 1 - r) * rows
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries())
        rank.embedding(asked, tables.tensors[r] as Tensor, { first: first(r), out: out[r] as Tensor })
    })
    expect(count).toBe(1)
    for (let r = 0; r < RANKS; r++) {
      expect((await values(out[r])).subarray(first(r) * n, (first(r) + rows) * n)).toEqual(tables.values[r])
    }
  })

  it('where all do the very same to what they share', async () => {
    const shared = Tensor.from([1, 2, 3, 4], { device })
    const count = await dispatches(() => {
      for (const rank of ranks) rank.add(shared, Tensor.from([1, 1, 1, 1], { device: rank }), { out: shared })
    })
    expect(count).toBe(RANKS) // different second operands: each adds
    expect([...(await values(shared))]).toEqual([5, 6, 7, 8])
    const one = Tensor.from([1, 1, 1, 1], { device })
    const y = Tensor.empty([4], { device })
    const same = await dispatches(() => {
      for (const rank of ranks) rank.add(shared, one, { out: y })
    })
    expect(same).toBe(1)
    expect([...(await values(y))]).toEqual([6, 7, 8, 9])
  })
})

describe(`apart (seed ${start})`, () => {
  it('stay operations that differ', async () => {
    const [a, out] = [filled([64]), slices([64])]
    const count = await dispatches(() => {
      ranks.forEach((rank, r) => {
        const x = a.tensors[r] as Tensor
        if (r === 2) rank.softmax(x, { out: out[r] as Tensor })
        else rank.add(x, x, { out: out[r] as Tensor })
      })
    })
    expect(count).toBe(RANKS)
    for (let r = 0; r < RANKS; r++) {
      const x = a.values[r] as Float32Array
      const expected = r === 2 ? reference.softmax(x, { t: 1, n: 64 }) : reference.add(x, x)
      reference.expectClose(await values(out[r]), expected, { rel: 1e-5 })
    }
  })

  it('stay own numbers without a step', async () => {
    const tables = filled([4, 4])
    const asked = Tensor.from(Uint32Array.from([5, 6, 100]), { device })
    const firsts = [3, 5, 97, 4]
    const out = slices([3, 4])
    const count = await dispatches(() => {
      for (const [r, rank] of ranks.entries()) {
        rank.embedding(asked, tables.tensors[r] as Tensor, { first: firsts[r] as number, out: out[r] as Tensor })
      }
    })
    expect(count).toBe(RANKS)
    expect((await values(out[1])).subarray(0, 8)).toEqual((tables.values[1] as Float32Array).subarray(0, 8))
    expect((await values(out[2])).subarray(8, 12)).toEqual((tables.values[2] as Float32Array).subarray(12, 16))
  })

  it('stay lanes of different lengths, each right', async () => {
    const x = filled([16])
    const sums = ranks.map((rank, r) => {
      let sum = (x.tensors[r] as Tensor).share()
      for (let i = 0; i < r; i++) sum = rank.add(sum, x.tensors[r] as Tensor)
      return sum
    })
    for (let r = 0; r < RANKS; r++) {
      const expected = (x.values[r] as Float32Array).map((v) => v * (r + 1))
      reference.expectClose(await values(sums[r]), expected, { rel: 1e-6 })
    }
  })

  it('stay results that share a word', async () => {
    const storage = Tensor.zeros([RANKS * 5 + 3], { dtype: 'uint8', device })
    const from = Tensor.from(Uint8Array.from([1, 2, 3, 4, 5]), { device })
    ranks.forEach((rank, r) => void rank.copy(from, storage.narrow(0, 1 + 5 * r, 5)))
    const expected = [0, ...Array.from({ length: RANKS }, () => [1, 2, 3, 4, 5]).flat(), 0, 0]
    expect([...((await storage.data()) as Uint8Array)]).toEqual(expected)
  })
})
