// dtype names and sizes, and bytes to numbers and back for each of them.
import { describe, expect, test } from 'vitest'
import { DTYPES, type DType, decode, dtypeSize, encode, isDType, isFloat } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'

const SIZES: Record<DType, number> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float8_e4m3fn: 1,
  float8_e5m2: 1,
  float4_e2m1x2: 1,
  int8: 1,
  uint8: 1,
  int32: 4,
  uint32: 4,
  int64: 8,
  uint64: 8,
  q8_0: 34 / 32,
  q4_0: 18 / 32,
  q4_1: 20 / 32,
  q4_k: 144 / 256,
  q5_k: 176 / 256,
  q6_k: 210 / 256,
}

function thrown(action: () => unknown): unknown {
  try {
    action()
  } catch (error) {
    return error
  }
  return expect.fail('nothing was thrown')
}

test('names and sizes', () => {
  expect([...DTYPES].sort()).toEqual(
    Object.keys(SIZES)
      .filter((name) => !name.startsWith('q'))
      .sort(),
  )
  for (const [dtype, size] of Object.entries(SIZES)) {
    expect(isDType(dtype)).toBe(true)
    expect(dtypeSize(dtype as DType)).toBe(size)
  }
  for (const other of ['float64', 'toString', '', 4, null, undefined]) expect(isDType(other)).toBe(false)
  expect(DTYPES.filter(isFloat)).toEqual(DTYPES.filter((dtype) => /float/.test(dtype)))
})

test('blocks are decoded, and not made of numbers', () => {
  const block = new Uint8Array(34)
  block.set([0, 0x40, 3, 255]) // 2.0 in float16, then 3 and -1
  expect([...decode('q8_0', block)].slice(0, 3)).toEqual([6, -2, 0])
  expect(thrown(() => encode('q8_0', [1]))).toMatchObject({ code: 'ERR_DTYPE' })
  expect(thrown(() => Tensor.fromBytes(new Uint8Array(34), [2, 16], 'q8_0'))).toMatchObject({ code: 'ERR_SHAPE' })
  expect(Tensor.fromBytes(new Uint8Array(68), [2, 32], 'q8_0').byteLength).toBe(68)
})

test('an unknown dtype is refused with the names that are known', () => {
  for (const action of [() => dtypeSize('float64' as DType), () => encode('float64' as DType, [1])]) {
    expect(thrown(action)).toMatchObject({ code: 'ERR_DTYPE', message: expect.stringMatching(/"float64".*bfloat16/) })
  }
})

describe.each(DTYPES)('%s', (dtype) => {
  const signed = !dtype.startsWith('uint')
  const numbers = signed ? [0, 1, 2, -3, 4, -6] : [0, 1, 2, 3, 4, 6]

  test('encode, then decode, gives the numbers back in whole elements', () => {
    const bytes = encode(dtype, numbers)
    const elements = dtype === 'float4_e2m1x2' ? numbers.length / 2 : numbers.length
    expect(bytes).toBeInstanceOf(Uint8Array)
    expect(bytes.length).toBe(elements * dtypeSize(dtype))
    expect(Array.from(decode(dtype, bytes), Number)).toEqual(numbers)
  })

  test('decode copies: neither a later write nor an odd byte offset shows', () => {
    const bytes = encode(dtype, numbers)
    const shifted = new Uint8Array(bytes.length + 1)
    shifted.set(bytes, 1)
    const view = shifted.subarray(1)
    const decoded = decode(dtype, view)
    view.fill(0xff)
    expect(Array.from(decoded, Number)).toEqual(numbers)
  })

  test('nothing in, nothing out', () => {
    expect(encode(dtype, []).length).toBe(0)
    expect(decode(dtype, new Uint8Array(0)).length).toBe(0)
  })
})

test('bytes are little-endian', () => {
  expect([...encode('float32', [1])]).toEqual([0, 0, 0x80, 0x3f])
  expect([...encode('float16', [1])]).toEqual([0, 0x3c])
  expect([...encode('bfloat16', [1])]).toEqual([0x80, 0x3f])
  expect([...encode('int32', [-2])]).toEqual([0xfe, 0xff, 0xff, 0xff])
  expect([...encode('int64', [-2n])]).toEqual([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
})

test('float4_e2m1x2 packs two values a byte, low nibble first', () => {
  expect([...encode('float4_e2m1x2', [0.5, 6, -1, 0])]).toEqual([0x71, 0x0a])
  expect([...decode('float4_e2m1x2', Uint8Array.of(0x71, 0x0a))]).toEqual([0.5, 6, -1, 0])
  expect(thrown(() => encode('float4_e2m1x2', [1, 2, 3]))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('3') })
})

test('fp8 and fp4 saturate, float16 and bfloat16 overflow to infinity', () => {
  const huge = [1e39, -1e39]
  expect([...decode('float8_e4m3fn', encode('float8_e4m3fn', huge))]).toEqual([448, -448])
  expect([...decode('float8_e5m2', encode('float8_e5m2', huge))]).toEqual([57344, -57344])
  expect([...decode('float4_e2m1x2', encode('float4_e2m1x2', huge))]).toEqual([6, -6])
  expect([...decode('float16', encode('float16', huge))]).toEqual([Infinity, -Infinity])
  expect([...decode('bfloat16', encode('bfloat16', huge))]).toEqual([Infinity, -Infinity])
})

test('64-bit integers take bigints and numbers, and give bigints', () => {
  expect(decode('int64', encode('int64', [-(2n ** 63n), 2n ** 63n - 1n]))).toEqual(BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n))
  expect(decode('uint64', encode('uint64', [2n ** 64n - 1n]))).toEqual(BigUint64Array.of(2n ** 64n - 1n))
  expect(decode('int64', encode('int64', [-5, 2 ** 40]))).toEqual(BigInt64Array.of(-5n, 2n ** 40n))
  expect(decode('int64', encode('int64', BigInt64Array.of(7n)))).toEqual(BigInt64Array.of(7n))
})

test('bigints for any other dtype are refused with what to do', () => {
  for (const dtype of DTYPES.filter((name) => !name.endsWith('64'))) {
    expect(thrown(() => encode(dtype, [1n, 2n]))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringMatching(/bigint.*int64/) })
  }
})
