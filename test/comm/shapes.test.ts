// Property tests: data movement over shapes, dims, sizes and numbers of ranks that nobody chose, against plain arrays.
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { seed } from '../support/random.ts'

const devices: readonly WebGpuDevice[] = [await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of devices) device.dispose()
})

const start = seed()
const DTYPES = ['float32', 'bfloat16', 'uint8', 'int32'] as const

/** Whole numbers below 128, exact in every dtype; different for every rank and place. */
const fill = (rank: number, i: number): number => (rank * 37 + i * 11) % 128
const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1)

type Nested = { shape: number[]; at(index: readonly number[]): number }

function nested(rank: number, shape: number[]): Nested {
  return {
    shape,
    at: (index) =>
      fill(
        rank,
        index.reduce((offset, i, d) => offset * (shape[d] as number) + i, 0),
      ),
  }
}

/** All elements in order. */
function listed({ shape, at }: Nested): number[] {
  return Array.from({ length: sizeOf(shape) }, (_, flat) => {
    const index: number[] = []
    let rest = flat
    for (let d = shape.length - 1; d >= 0; d--) {
      index.unshift(rest % (shape[d] as number))
      rest = Math.floor(rest / (shape[d] as number))
    }
    return at(index)
  })
}

function concatenated(parts: readonly Nested[], dim: number): Nested {
  const [{ shape }] = parts as [Nested]
  const ends = parts.map((_, i) => parts.slice(0, i + 1).reduce((n, part) => n + (part.shape[dim] as number), 0))
  return {
    shape: shape.with(dim, ends.at(-1) as number),
    at: (index) => {
      const part = ends.findIndex((end) => (index[dim] as number) < end)
      return (parts[part] as Nested).at(index.with(dim, (index[dim] as number) - (part > 0 ? (ends[part - 1] as number) : 0)))
    },
  }
}

const given = fc
  .record({
    shape: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 4 }),
    ranks: fc.integer({ min: 1, max: 5 }),
    dim: fc.nat(3),
    fromEnd: fc.boolean(),
    dtype: fc.constantFrom(...DTYPES),
    several: fc.boolean(),
    sizes: fc.array(fc.nat(5), { minLength: 5, maxLength: 5 }),
  })
  .map((one) => ({ ...one, dim: one.dim % one.shape.length }))

type Given = typeof given extends fc.Arbitrary<infer T> ? T : never

/** Checks the property on every rank: `body` gives what a rank got and what it should have. */
async function holds(
  body: (context: RankContext, one: Given, tensor: (own: Nested) => Tensor, dim: number) => Promise<[Tensor, Nested]>,
): Promise<void> {
  await fc.assert(
    fc.asyncProperty(given, async (one) => {
      const { ranks, several, dtype, dim, fromEnd, shape } = one
      await launch({ ranks, devices: several && ranks > 1 ? devices : devices.slice(0, 1) }, async (context) => {
        const tensor = (own: Nested): Tensor =>
          Tensor.from(Float32Array.from(listed(own)), { shape: own.shape, dtype, device: context.device })
        const [got, wanted] = await body(context, one, tensor, fromEnd ? dim - shape.length : dim)
        expect(got.shape).toEqual(wanted.shape)
        expect([...(await got.data())]).toEqual(listed(wanted))
      })
    }),
    { numRuns: 100, seed: start | 0 },
  )
}

describe(`any shape (seed ${start})`, () => {
  it('allGather concatenates along any dim', () =>
    holds(async ({ rank, size, comm }, { shape, dim }, tensor, at) => {
      const all = Array.from({ length: size }, (_, r) => nested(r, shape))
      return [await comm.allGather(tensor(all[rank] as Nested), { dim: at }), concatenated(all, dim)]
    }))

  it('allGatherV concatenates parts of any length, none included', () =>
    holds(async ({ rank, size, comm }, { shape, dim, sizes }, tensor, at) => {
      const all = Array.from({ length: size }, (_, r) => nested(r, shape.with(dim, sizes[r] as number)))
      return [await comm.allGatherV(tensor(all[rank] as Nested), { dim: at }), concatenated(all, dim)]
    }))

  it('reduceScatterV gives each rank its part of the sum', () =>
    holds(async ({ rank, size, comm }, { shape, dim, sizes, dtype }, tensor, at) => {
      const lengths = sizes.slice(0, size)
      const whole = shape.with(
        dim,
        lengths.reduce((a, b) => a + b, 0),
      )
      const own = nested(rank, whole)
      if (dtype === 'uint8') return [tensor(own), own] // no sums of bytes
      const begin = lengths.slice(0, rank).reduce((a, b) => a + b, 0)
      const sum = (index: readonly number[]): number =>
        Array.from({ length: size }, (_, r) => nested(r, whole).at(index)).reduce((a, b) => a + b, 0)
      const part: Nested = {
        shape: whole.with(dim, lengths[rank] as number),
        at: (index) => rounded(sum(index.with(dim, (index[dim] as number) + begin)), dtype),
      }
      return [await comm.reduceScatterV(tensor(own), { dim: at, sizes: lengths }), part]
    }))

  it('allToAll sends the r-th part of everybody to rank r', () =>
    holds(async ({ rank, size, comm }, { shape, sizes }, tensor) => {
      const splits = (r: number): number[] => Array.from({ length: size }, (_, to) => ((sizes[r] as number) + to) % 4)
      const rows = (r: number): number => splits(r).reduce((a, b) => a + b, 0)
      const all = Array.from({ length: size }, (_, r) => nested(r, shape.with(0, rows(r))))
      const parts = all.map((from, r): Nested => {
        const begin = splits(r)
          .slice(0, rank)
          .reduce((a, b) => a + b, 0)
        return { shape: shape.with(0, splits(r)[rank] as number), at: (index) => from.at(index.with(0, (index[0] as number) + begin)) }
      })
      return [await comm.allToAll(tensor(all[rank] as Nested), { splits: splits(rank) }), concatenated(parts, 0)]
    }))
})

/** bfloat16 has 8 bits: sums above 256 round to even. */
function rounded(value: number, dtype: (typeof DTYPES)[number]): number {
  if (dtype !== 'bfloat16' || value < 256) return value
  const step = value < 512 ? 2 : 4
  const down = Math.floor(value / step) * step
  const rest = value - down
  return rest < step / 2 || (rest === step / 2 && (down / step) % 2 === 0) ? down : down + step
}
