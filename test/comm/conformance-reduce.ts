// Conformance of allReduce and reduceScatter: bits equal to the fixed float32 order, in every dtype, layout and placement.
import { expect, it } from 'vitest'
import { type DType, decode, dtypeSize, encode, type TensorData } from '../../runtime/core/dtype.ts'
import { sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { clustersOf, fixedOrder, fixedOrderBytes } from '../support/fixed-order.ts'
import type { Random } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'
import { type Group, type Placed, placed, poison, STYLES } from './conformance.ts'

export const FLOATS: readonly DType[] = ['float32', 'bfloat16', 'float16']
const DTYPES: readonly DType[] = [...FLOATS, 'int32', 'uint32']
const OPS: readonly reference.ReduceOp[] = ['sum', 'prod', 'min', 'max', 'avg']
const SIZES = [0, 1, 7, 10, 64, 1000, 1023, 1024, 4096, 4097]
const OUTS = ['none', 'symmetric', 'separate', 'narrow', 'shared', 'in place'] as const

/** Relative error of one rounding; a device may divide with 2.5 ulp (avg). */
const EPSILON: Partial<Record<DType, number>> = { float32: 2 ** -24, bfloat16: 2 ** -8, float16: 2 ** -11 }

/** Values whose sums round and whose products stay in every format's range; integers that overflow. */
export function values(random: Random, dtype: DType, op: reference.ReduceOp, size: number): number[] {
  if (dtype === 'int32') return Array.from({ length: size }, () => random.bits() | 0)
  if (dtype === 'uint32') return Array.from({ length: size }, () => random.bits())
  const sign = (): number => (random.bits() & 1 ? 1 : -1)
  if (op === 'prod') return Array.from({ length: size }, () => sign() * (0.7 + 0.7 * random.uniform()))
  return Array.from({ length: size }, () => sign() * random.uniform() * 2 ** (random.int(9) - 4))
}

/** Every rank's operand as raw bytes, and as what those bytes mean. */
function operands(group: Group, dtype: DType, op: reference.ReduceOp, size: number): { bytes: Uint8Array[]; data: TensorData[] } {
  const bytes = Array.from({ length: group.ranks }, () => encode(dtype, values(group.random, dtype, op, size)))
  return { bytes, data: bytes.map((raw) => decode(dtype, raw)) }
}

interface Wanted {
  /** In the fixed order, not yet rounded to 16 bits. */
  fixed: Float64Array
  /** In float64, and the sum of magnitudes that bounds how far float32 may be from it. */
  exact: Float64Array
  magnitudes: Float64Array
}

function wanted(data: readonly TensorData[], group: Group, op: reference.ReduceOp, dtype: DType): Wanted {
  const fixed = fixedOrder(data, group.place, op, dtype)
  if (!FLOATS.includes(dtype)) return { fixed, exact: fixed, magnitudes: fixed }
  const numbers = data as readonly Float32Array[]
  const absolute = numbers.map((x) => x.map(Math.abs))
  return { fixed, exact: reference.allReduce(numbers, op), magnitudes: reference.allReduce(absolute, op === 'min' ? 'max' : op) }
}

/** The whole result, or the part of it at the indices `at`. */
function checkReduced(
  found: Uint8Array,
  { fixed, exact, magnitudes }: Wanted,
  { group, op, dtype, what, at = [...fixed.keys()] }: { group: Group; op: reference.ReduceOp; dtype: DType; what: string; at?: number[] },
): void {
  const bits = encode(
    dtype,
    at.map((i) => fixed[i]!),
  )
  if (op !== 'avg') expect(Buffer.compare(found, bits), `${what}: bits differ from the fixed order`).toBe(0)
  if (!FLOATS.includes(dtype)) return
  const numbers = decode(dtype, found) as Float32Array
  const steps = (group.ranks + 4) * 2 ** -24
  for (const [k, i] of at.entries()) {
    // The last term is half of float16's smallest step.
    const allowed = steps * magnitudes[i]! + EPSILON[dtype]! * 2 * Math.abs(exact[i]!) + 2 ** -25
    if (!(Math.abs(numbers[k]! - exact[i]!) <= allowed))
      throw new Error(`${what} [${k}]: got ${numbers[k]}, expected ${exact[i]} ± ${allowed}`)
  }
}

async function outOf(context: RankContext, kind: (typeof OUTS)[number], x: Placed): Promise<Placed | null> {
  const { shape, dtype, byteLength } = x.tensor
  if (kind === 'none') return null
  if (kind === 'in place') return { ...x, [Symbol.dispose]: () => {} }
  if (kind !== 'shared') return placed(context, kind, shape, dtype, poison(byteLength))
  const tensor = await context.comm.allocate(shape, { dtype, shared: true })
  if (byteLength > 0) context.device.write(tensor.storage, tensor.byteOffset, poison(byteLength))
  return { tensor, checkSurroundings: async () => {}, [Symbol.dispose]: () => tensor.dispose() }
}

function allReduceCases(group: Group, brief: boolean): void {
  const factors = { op: OPS, dtype: DTYPES, size: brief ? [7, 1000] : SIZES, style: STYLES, out: OUTS }
  const all = group.share(factors)
  const refused = ({ op, dtype }: { op: reference.ReduceOp; dtype: DType }): boolean => op === 'avg' && !FLOATS.includes(dtype)
  const rows = (brief ? all.slice(0, 8) : all).filter((row) => !refused(row))

  it(`allReduce: ${rows.length} cases`, async () => {
    const cases = rows.map(({ op, dtype, size, style, out }) => {
      const what = `${op} of ${size} ${dtype}, ${style}, out ${out}`
      return { what, op, dtype, size, style, out, ...operands(group, dtype, op, size) }
    })
    const results = await group.each(cases, async (context, { op, dtype, size, style, out, bytes }) => {
      using x = await placed(context, style, [size], dtype, bytes[context.rank]!)
      using to = await outOf(context, out, x)
      const y = await context.comm.allReduce(x.tensor, { op, out: to?.tensor })
      expect([y.shape, y.dtype]).toEqual([[size], dtype])
      if (to) expect(y).toBe(to.tensor)
      const found = await y.bytes()
      const kept = out === 'in place' ? bytes[context.rank]! : await x.tensor.bytes()
      await Promise.all([x.checkSurroundings(), to?.checkSurroundings()])
      if (!to) y.dispose()
      return { found, kept }
    })
    for (const [i, { what, op, dtype, bytes, data }] of cases.entries()) {
      checkReduced(results[i]![0]!.found, wanted(data, group, op, dtype), { group, op, dtype, what })
      for (const [rank, { found, kept }] of results[i]!.entries()) {
        expect(Buffer.compare(found, results[i]![0]!.found), `${what}: ranks 0 and ${rank} differ`).toBe(0)
        expect(Buffer.compare(kept, bytes[rank]!), `${what}: the operand of rank ${rank} changed`).toBe(0)
      }
    }
  })

  it('allReduce refuses avg of integers', async () => {
    for (const dtype of ['int32', 'uint32'] as const) {
      await group.run(async ({ comm, device }) => {
        using x = Tensor.full([3], 1, { dtype, device })
        await expect(comm.allReduce(x, { op: 'avg' })).rejects.toMatchObject({ code: 'ERR_DTYPE' })
      })
    }
  })

  it('allReduce min and max keep the last of equals, as of 0 and -0', async () => {
    const last = clustersOf(group.place).at(-1)!.at(-1)!
    const zero = (rank: number): number => (rank % 2 === 0 ? 0 : -0)
    await group.run(async ({ comm, device, rank }) => {
      for (const dtype of FLOATS) {
        for (const op of ['min', 'max'] as const) {
          using x = Tensor.from([zero(rank), -zero(rank)], { dtype, device })
          using y = await comm.allReduce(x, { op })
          expect([...((await y.data()) as Float32Array)], `${op}, ${dtype}`).toEqual([zero(last), -zero(last)])
        }
      }
    })
  })

  it('allReduce min and max give NaN where any rank has one', async () => {
    const results = await group.run(async ({ comm, device, rank }) => {
      const found: number[] = []
      for (const dtype of FLOATS) {
        for (const op of ['min', 'max'] as const) {
          using x = Tensor.from([rank === group.ranks - 1 ? Number.NaN : rank, rank === 0 ? Number.NaN : rank, rank], { dtype, device })
          using y = await comm.allReduce(x, { op })
          found.push(...((await y.data()) as Float32Array))
        }
      }
      return found
    })
    const last = group.ranks - 1
    for (const found of results) expect(found).toEqual(FLOATS.flatMap(() => [Number.NaN, Number.NaN, 0, Number.NaN, Number.NaN, last]))
  })
}

/** 2^24, 1 and -2^24 on every choice of three ranks in a row: float32 keeps or loses the 1 by the order of the sum. */
function orderCases(group: Group): void {
  const orders = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ]
  const parts = [2 ** 24, 1, -(2 ** 24)]
  it('allReduce and reduceScatter add in the documented order', async () => {
    const starts = Array.from({ length: group.ranks - 2 }, (_, i) => i)
    const columns = starts.flatMap((first) => orders.map((order) => ({ first, order })))
    const padded = Math.ceil(columns.length / group.ranks) * group.ranks
    const inputs = Array.from({ length: group.ranks }, (_, rank) => {
      const row = columns.map(({ first, order }) => (rank >= first && rank < first + 3 ? parts[order[rank - first]!]! : 0))
      return Float32Array.from({ length: padded }, (_, i) => row[i] ?? 0)
    })
    const sums = Float32Array.from(fixedOrder(inputs, group.place, 'sum', 'float32'))
    const onOne = group.place.map(() => 0)
    const others = [inputs, inputs.toReversed()].map((list) => Float32Array.from(fixedOrder(list, onOne, 'sum', 'float32')))
    expect(
      others.some((other) => Buffer.compare(Buffer.from(other.buffer), Buffer.from(sums.buffer)) !== 0),
      'the inputs tell orders apart',
    ).toBe(true)
    const results = await group.run(async ({ comm, device, rank }) => {
      using x = Tensor.from(inputs[rank]!, { device })
      using y = await comm.allReduce(x)
      using part = await comm.reduceScatter(x)
      return { y: await y.data(), part: await part.data() }
    })
    const each = padded / group.ranks
    for (const [rank, { y, part }] of results.entries()) {
      expect(y).toEqual(sums)
      expect(part).toEqual(sums.slice(rank * each, (rank + 1) * each))
    }
  })
}

const PARTS: readonly { shape: readonly number[]; dim: number }[] = [
  { shape: [1], dim: 0 },
  { shape: [7], dim: -1 },
  { shape: [300], dim: 0 },
  { shape: [3, 5], dim: 0 },
  { shape: [3, 5], dim: 1 },
  { shape: [8, 64], dim: -2 },
  { shape: [8, 64], dim: -1 },
  { shape: [2, 3, 5], dim: 1 },
  { shape: [1, 3, 4], dim: 1 },
  { shape: [2, 1, 3, 3], dim: -1 },
  { shape: [2, 3, 1, 6], dim: 0 },
  { shape: [0, 4], dim: 1 },
]

function reduceScatterCases(group: Group, brief: boolean): void {
  const all = group.share({ part: PARTS, op: OPS, dtype: DTYPES, style: STYLES })
  const rows = (brief ? all.slice(0, 6) : all).filter(({ op, dtype }) => op !== 'avg' || FLOATS.includes(dtype))
  it(`reduceScatter: ${rows.length} cases`, async () => {
    const cases = rows.map(({ part, op, dtype, style }) => {
      const axis = part.dim < 0 ? part.dim + part.shape.length : part.dim
      const shape = part.shape.map((n, i) => (i === axis ? n * group.ranks : n))
      const what = `${op} of [${shape}] ${dtype} along ${part.dim}, ${style}`
      return { what, part, axis, shape, op, dtype, style, ...operands(group, dtype, op, sizeOf(shape)) }
    })
    const results = await group.each(cases, async (context, { part, shape, op, dtype, style, bytes }) => {
      using x = await placed(context, style, shape, dtype, bytes[context.rank]!)
      using y = await context.comm.reduceScatter(x.tensor, { dim: part.dim, op })
      expect([y.shape, y.dtype]).toEqual([part.shape, dtype])
      return y.bytes()
    })
    for (const [i, { what, part, axis, op, dtype, data }] of cases.entries()) {
      const run = part.shape[axis]! * sizeOf(part.shape.slice(axis + 1))
      const whole = wanted(data, group, op, dtype)
      for (const [rank, found] of results[i]!.entries()) {
        const at = Array.from({ length: sizeOf(part.shape) }, (_, k) => (Math.floor(k / run) * group.ranks + rank) * run + (k % run))
        checkReduced(found, whole, { group, op, dtype, what: `${what}, rank ${rank}`, at })
      }
    }
  })

  it('reduceScatter gives each rank memory of its own', async () => {
    const results = await group.run(async ({ comm, device, rank }) => {
      using x = Tensor.full([4 * group.ranks], 1, { device })
      using y = await comm.reduceScatter(x)
      if (group.ranks > 1) y.set([rank, rank, rank, rank])
      await comm.barrier()
      return [...((await y.data()) as Float32Array)]
    })
    for (const [rank, found] of results.entries()) expect(found).toEqual(Array(4).fill(group.ranks > 1 ? rank : 1))
  })
}

/** The bits of an element depend on nothing but the ranks' values of that element. */
function invarianceCases(group: Group): void {
  it('allReduce: bits are the same when repeated, in any layout, alone or among others', async () => {
    for (const dtype of FLOATS) {
      const { bytes, data } = operands(group, dtype, 'sum', 256)
      const bits = fixedOrderBytes(data, group.place, 'sum', dtype)
      const width = dtypeSize(dtype)
      await group.run(async (context) => {
        for (const style of [...STYLES, ...STYLES]) {
          using x = await placed(context, style, [256], dtype, bytes[context.rank]!)
          using y = await context.comm.allReduce(x.tensor)
          expect(Buffer.compare(await y.bytes(), bits), `${dtype}, ${style}`).toBe(0)
          for (const at of [0, 5, 255]) {
            using one = x.tensor.narrow(0, at, 1)
            using sum = await context.comm.allReduce(one)
            expect(Buffer.compare(await sum.bytes(), bits.subarray(at * width, (at + 1) * width)), `${dtype}, ${style}, [${at}]`).toBe(0)
          }
        }
      })
    }
  })
}

export function reduceCases(group: Group, brief: boolean): void {
  allReduceCases(group, brief)
  reduceScatterCases(group, brief)
  if (group.ranks >= 3) orderCases(group)
  if (!brief) invarianceCases(group)
}
