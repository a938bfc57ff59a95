// Products that may round their activations, by native kernels of each kind, gpu.js and loops: within the bounds stated, and exact where they stay so.
import { afterAll, describe, expect, it } from 'vitest'
import { addonReport } from '../../runtime/core/addon-node.ts'
import { type BlockDType, blockLength, type DType, isBlockDType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Activations, Device } from '../../runtime/device/device.ts'
import { BLOCK_TYPES, blockWeights } from '../support/block-samples.ts'
import { cpuDevices, reason } from '../support/cpu.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'
import { FLOATS, Guarded, sample } from '../support/tensors.ts'

const start = seed()
const random = new Random(start)

/** Rows of x: what integers are for, and what bfloat16 is for. */
const FEW = [1, 2, 3, 4]
const MANY = [5, 16, 17, 48, 65]
/** Elements of a row in 32s, and rows of weights. */
const SIZES = [
  [1, 1],
  [2, 9],
  [5, 301],
  [19, 87],
] as const
const WEIGHTS: readonly DType[] = [...BLOCK_TYPES, ...FLOATS]
const INTEGERS: readonly BlockDType[] = ['q8_0', 'q4_0', 'q4_1']

interface Case {
  device: Device
  x: ReturnType<typeof sample>
  w: { tensor: Tensor; values: Float32Array }
  bias: ReturnType<typeof sample> | undefined
  shape: { t: number; k: number; n: number }
}

/** What is wrong with results: the first that is further from the float64 product than `bounds` and what float32 may add. */
function wrong(got: Float32Array, x: Float32Array, { w, bias, shape }: Case, bounds: Float64Array | Float32Array): string | undefined {
  const expected = reference.matmul(x, w.values, shape, bias?.values)
  const sizes = reference.matmul(x.map(Math.abs), w.values.map(Math.abs), shape)
  for (const [i, value] of expected.entries()) {
    const rest = (shape.k + 2) * 2 ** -24 * (sizes[i] as number) + (bias ? 2 ** -24 * Math.abs(value) : 0)
    const most = (bounds[i] as number) + 1.01 * rest
    if (!(Math.abs((got[i] as number) - value) <= most))
      return `${JSON.stringify(shape)}: [${i}] is ${got[i]}, expected ${value} within ${most}`
  }
  return undefined
}

/** Of every result, the sum over each 32 elements of the largest |x| / 254 and all |w|. */
function integerBounds(x: Float32Array, w: Float32Array, { t, k, n }: Case['shape']): Float64Array {
  const bounds = new Float64Array(t * n)
  for (let row = 0; row < t; row++) {
    for (let at = 0; at < k; at += 32) {
      const largest = Math.max(...x.subarray(row * k + at, row * k + at + 32).map(Math.abs))
      for (let o = 0; o < n; o++) {
        const sum = w.subarray(o * k + at, o * k + at + 32).reduce((sum, value) => sum + Math.abs(value), 0)
        bounds[row * n + o] = (bounds[row * n + o] as number) + (1.0001 * largest * sum) / 254
      }
    }
  }
  return bounds
}

/** Every 32 elements as multiples of a 127th of the largest. */
function asIntegers(x: Float32Array): Float32Array {
  return x.map((value, i) => {
    const largest = Math.max(...x.subarray(i - (i % 32), i - (i % 32) + 32).map(Math.abs))
    const scaled = Math.fround(value * Math.fround(127 / largest))
    const below = Math.floor(scaled)
    const rest = scaled - below
    const code = rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below
    return largest > 0 ? code * Math.fround(largest / 127) : 0
  })
}

/** The results, written between guarded columns. */
async function multiply(at: Case, activations?: Activations): Promise<Float32Array> {
  const { t, n } = at.shape
  const [column, behind] = [random.int(4), random.int(4)]
  const width = column + n + behind
  const out = new Guarded(at.device, [t, width], 'float32', random.int(5))
  at.device.matmul(at.x.tensor, at.w.tensor, { bias: at.bias?.tensor, out: out.tensor, column, activations })
  const rows = (await out.data()) as Float32Array
  const own = (i: number): boolean => i % width >= column && i % width < column + n
  expect(rows.every((value, i) => own(i) || Number.isNaN(value))).toBe(true)
  return rows.filter((_, i) => own(i))
}

const bytes = (values: Float32Array): Buffer => Buffer.from(values.buffer, values.byteOffset, values.byteLength)

if (reason) it.skip(`native kernels${reason}`, () => {})

/** By type and shape, the bits of integer products: they are alike on all kinds of processors. */
const alike = new Map<string, Buffer>()

for (const { name, open } of cpuDevices()) {
  const device = open()
  afterAll(() => device.dispose())
  const integers = name.includes('AVX')
  const onednn = addonReport().features?.onednn.available === true
  const rounds = name.includes('AVX-512') && onednn

  const take = (dtype: DType, t: number, [blocks, n]: readonly [number, number], of: DType, from: Random): Case => {
    const length = blockLength(dtype)
    const k = length * Math.ceil((32 * blocks) / length)
    const x = sample(device, from, [t, k], of, 1, from.int(5))
    const w = isBlockDType(dtype)
      ? blockWeights(device, from, dtype, [n, k], { offset: from.int(70) })
      : sample(device, from, [n, k], dtype, 1, from.int(5))
    return { device, x, w, bias: from.int(2) ? sample(device, from, [n]) : undefined, shape: { t, k, n } }
  }

  describe(`${name} (seed ${start})`, () => {
    it.each(WEIGHTS)('%s, few tokens, as integers or exactly', async (dtype) => {
      const rounded = integers && INTEGERS.includes(dtype as BlockDType)
      let differ = 0
      for (const [i, size] of SIZES.entries()) {
        for (const t of FEW) {
          const own = new Random(start + 10 * i + t)
          const at = take(dtype, t, size, FLOATS[own.int(3)] as DType, own)
          const got = await multiply(at, 'int8')
          const exact = await multiply(at)
          if (bytes(got).equals(bytes(exact))) continue
          differ++
          expect(wrong(got, at.x.values, at, integerBounds(at.x.values, at.w.values, at.shape))).toBe(undefined)
          const widest = 4 * at.w.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
          const codes = asIntegers(at.x.values)
          const sizes = reference.matmul(
            codes.map(Math.abs),
            at.w.values.map(() => widest),
            at.shape,
          )
          const close = Float64Array.from(sizes, (size) => (at.shape.k + 2) * 2 ** -24 * size)
          expect(wrong(got, codes, at, close)).toBe(undefined)
          const key = `${dtype} ${i} ${t}`
          expect(bytes(got).equals(alike.get(key) ?? bytes(got)), key).toBe(true)
          alike.set(key, bytes(got))
        }
      }
      expect(differ > 0).toBe(rounded)
    })

    it.each(WEIGHTS)('%s, many tokens, as bfloat16 or exactly', async (dtype) => {
      let differ = 0
      for (const size of SIZES) {
        for (const t of MANY) {
          const at = take(dtype, t, size, FLOATS[random.int(3)] as DType, random)
          const exact = await multiply(at)
          const sizes = reference.matmul(at.x.values.map(Math.abs), at.w.values.map(Math.abs), at.shape)
          for (const activations of ['bfloat16', 'int8'] as const) {
            const got = await multiply(at, activations)
            if (bytes(got).equals(bytes(exact))) continue
            differ++
            expect(
              wrong(
                got,
                at.x.values,
                at,
                sizes.map((value) => 1.01 * 2 ** -8 * value),
              ),
            ).toBe(undefined)
          }
        }
      }
      expect(differ > 0).toBe(rounds && dtype !== 'float32')
    })

    it.each(integers ? INTEGERS : [])('%s: what is not finite stays in its row, what is next to nothing is nothing', async (dtype) => {
      for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 1e-37, 1e-45]) {
        const [k, n] = [160, 11]
        const w = blockWeights(device, random, dtype, [n, k])
        const numbers = random.floats(2 * k)
        if (Number.isFinite(value)) numbers.fill(value, 0, k)
        else numbers[random.int(k)] = value
        using x = Tensor.from(numbers, { shape: [2, k], device })
        using second = x.narrow(0, 1, 1)
        const got = (await device.matmul(x, w.tensor, { activations: 'int8' }).data()) as Float32Array
        expect(got.subarray(0, n).every(Number.isFinite(value) ? (y) => y === 0 : Number.isNaN), `${value}`).toBe(true)
        const alone = (await device.matmul(second, w.tensor, { activations: 'int8' }).data()) as Float32Array
        expect(got.subarray(n)).toEqual(alone)
      }
    })

    it('refuses what it cannot round to', () => {
      using x = Tensor.zeros([1, 32], { device })
      using w = Tensor.zeros([2, 32], { device })
      for (const given of ['float32', 'none', 8, null]) {
        expect(() => device.matmul(x, w, { activations: given as 'int8' })).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
      }
    })
  })
}
