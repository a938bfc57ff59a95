// Narrow float codecs against an independent reading of the formats: every code, every tie, the overflow thresholds and random values.
import { describe, expect, test } from 'vitest'
import {
  decodeBfloat16,
  decodeFloat16,
  decodeFp4e2m1,
  decodeFp8e4m3,
  decodeFp8e5m2,
  decodeUe8m0,
  encodeBfloat16,
  encodeFloat16,
  encodeFp4e2m1,
  encodeFp8e4m3,
  encodeFp8e5m2,
  encodeUe8m0,
} from '../../runtime/core/codecs.ts'

interface Case {
  name: string
  /** Fields of the format, most significant first: sign, exponent, mantissa. */
  exponentBits: number
  mantissaBits: number
  bias: number
  /** Largest finite code; the codes after it, up to the sign bit, are NaN but for `infinity`. */
  maxCode: number
  infinity?: number
  encode: (x: number) => number
  decode: (code: number) => number
  /** Code for finite overflow and for infinity, without sign. */
  overflow: number
}

const f16 = {
  exponentBits: 5,
  mantissaBits: 10,
  bias: 15,
  maxCode: 0x7bff,
  infinity: 0x7c00,
  encode: (x: number) => encodeFloat16([x])[0] as number,
  decode: (code: number) => decodeFloat16(Uint16Array.of(code))[0] as number,
  overflow: 0x7c00,
}
const bf16 = {
  exponentBits: 8,
  mantissaBits: 7,
  bias: 127,
  maxCode: 0x7f7f,
  infinity: 0x7f80,
  encode: (x: number) => encodeBfloat16([x])[0] as number,
  decode: (code: number) => decodeBfloat16(Uint16Array.of(code))[0] as number,
  overflow: 0x7f80,
}
const e4m3 = { exponentBits: 4, mantissaBits: 3, bias: 7, maxCode: 0x7e, encode: encodeFp8e4m3, decode: decodeFp8e4m3, overflow: 0x7e }
const e5m2 = {
  exponentBits: 5,
  mantissaBits: 2,
  bias: 15,
  maxCode: 0x7b,
  infinity: 0x7c,
  encode: encodeFp8e5m2,
  decode: decodeFp8e5m2,
  overflow: 0x7b,
}
const e2m1 = { exponentBits: 2, mantissaBits: 1, bias: 1, maxCode: 7, encode: encodeFp4e2m1, decode: decodeFp4e2m1, overflow: 7 }

const CASES: Case[] = [
  { name: 'float16', ...f16 },
  { name: 'bfloat16', ...bf16 },
  { name: 'e4m3fn saturating', ...e4m3 },
  { name: 'e4m3fn ieee', ...e4m3, encode: (x) => encodeFp8e4m3(x, 'ieee'), overflow: 0x7f },
  { name: 'e5m2 saturating', ...e5m2 },
  { name: 'e5m2 ieee', ...e5m2, encode: (x) => encodeFp8e5m2(x, 'ieee'), overflow: 0x7c },
  { name: 'e2m1', ...e2m1 },
]

const seed = Number(process.env.RANKMESH_TEST_SEED ?? Math.floor(Math.random() * 2 ** 32))

/** A small seeded generator of 32-bit words (xorshift), so that a failure can be replayed. */
function randomWords(start: number): () => number {
  let state = start >>> 0 || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 0
  }
}

/** The neighbouring float64 of a positive `x`, one ulp away from zero (1) or towards it (-1). */
function nudge(x: number, by: 1 | -1): number {
  const bits = new BigInt64Array(new Float64Array([x]).buffer)
  bits[0] = (bits[0] as bigint) + BigInt(by)
  return new Float64Array(bits.buffer)[0] as number
}

/** The value the format's definition gives a finite non-negative code. */
function definedValue(code: number, { mantissaBits, bias }: Case): number {
  const field = Math.floor(code / 2 ** mantissaBits)
  const fraction = (code % 2 ** mantissaBits) / 2 ** mantissaBits
  return field === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (field - bias)
}

/** values[code] for the finite non-negative codes, then the value the next code would have if the format went on. */
function ladder(format: Case): number[] {
  return Array.from({ length: format.maxCode + 2 }, (_, code) => definedValue(code, format))
}

/** Nearest even by search: midpoints of neighbouring codes are exact in float64, so comparing with them decides. */
function nearest(x: number, values: number[], format: Case): number {
  const magnitude = Math.abs(x)
  let low = 0
  let high = values.length - 1
  if (magnitude >= (values[high] as number)) low = high
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if ((values[middle] as number) <= magnitude) low = middle
    else high = middle
  }
  let code = low
  if (low < values.length - 1) {
    const midpoint = ((values[low] as number) + (values[low + 1] as number)) / 2
    if (magnitude > midpoint || (magnitude === midpoint && low % 2 === 1)) code++
  }
  const sign = x < 0 || Object.is(x, -0) ? 2 ** (format.exponentBits + format.mantissaBits) : 0
  return sign + (code > format.maxCode ? format.overflow : code)
}

/** Every value in `inputs` and its negative, through the encoder and the search; reports the first few that differ. */
function compare(inputs: Iterable<number>, format: Case): void {
  const values = ladder(format)
  const wrong: string[] = []
  let count = 0
  for (const input of inputs) {
    for (const x of [input, -input]) {
      count++
      const expected = nearest(x, values, format)
      const got = format.encode(x)
      if (got !== expected && wrong.length < 5) wrong.push(`${x}: 0x${got.toString(16)} instead of 0x${expected.toString(16)}`)
    }
  }
  expect(count).toBeGreaterThan(0)
  expect(wrong).toEqual([])
}

describe.each(CASES)('$name', (format) => {
  const width = 1 + format.exponentBits + format.mantissaBits
  const signBit = 2 ** (width - 1)

  test('every code decodes to the value of its definition and encodes back to itself', () => {
    let finite = 0
    for (let code = 0; code < 2 * signBit; code++) {
      const magnitude = code % signBit
      const value = format.decode(code)
      if (magnitude <= format.maxCode) {
        finite++
        const expected = definedValue(magnitude, format)
        if (!Object.is(value, code < signBit ? expected : -expected)) expect.fail(`code ${code} decodes to ${value}`)
        if (format.encode(value) !== code) expect.fail(`code ${code} comes back as ${format.encode(value)}`)
      } else if (magnitude === format.infinity) {
        if (value !== (code < signBit ? Infinity : -Infinity)) expect.fail(`code ${code} decodes to ${value}`)
      } else {
        if (!Number.isNaN(value)) expect.fail(`code ${code} decodes to ${value}`)
        if (!Number.isNaN(format.decode(format.encode(value)))) expect.fail(`NaN code ${code} comes back as a number`)
      }
    }
    expect(finite).toBe(2 * (format.maxCode + 1))
  })

  test('midpoints of all neighbouring codes go to the even one, and one float64 ulp either way decides', () => {
    const values = ladder(format)
    function* inputs() {
      for (let code = 0; code <= format.maxCode; code++) {
        const midpoint = ((values[code] as number) + (values[code + 1] as number)) / 2
        yield midpoint
        yield nudge(midpoint, 1)
        yield nudge(midpoint, -1)
      }
    }
    compare(inputs(), format)
  })

  test('codes nudged by one float64 ulp go back to the code', () => {
    const values = ladder(format)
    function* inputs() {
      for (let code = 1; code <= format.maxCode; code++) {
        yield nudge(values[code] as number, 1)
        yield nudge(values[code] as number, -1)
      }
    }
    compare(inputs(), format)
  })

  test(`random values round to nearest even (RANKMESH_TEST_SEED=${seed})`, () => {
    const next = randomWords(seed)
    const values = ladder(format)
    const top = Math.log2(values[format.maxCode] as number) + 1
    const bottom = Math.log2(values[1] as number) - 3
    function* inputs() {
      for (let i = 0; i < 20_000; i++) {
        yield (1 + next() / 2 ** 32) * 2 ** Math.floor(bottom + (next() / 2 ** 32) * (top - bottom))
        yield (next() / 2 ** 32) * (values[1] as number) * 2 ** (format.mantissaBits + 1)
        const anyBits = new Float64Array(Uint32Array.of(next(), next()).buffer)[0] as number
        if (!Number.isNaN(anyBits)) yield anyBits
      }
    }
    compare(inputs(), format)
  })

  test('zeros, the smallest float64, the overflow threshold, the largest float64 and infinity', () => {
    const values = ladder(format)
    const threshold = ((values[format.maxCode] as number) + (values[format.maxCode + 1] as number)) / 2
    const ends = [0, Number.MIN_VALUE, nudge(threshold, -1), threshold, nudge(threshold, 1), Number.MAX_VALUE, Infinity]
    compare(ends, format)
    expect(format.encode(0)).toBe(0)
    expect(format.encode(-0)).toBe(signBit)
    expect(Object.is(format.decode(signBit), -0)).toBe(true)
    expect(format.encode(nudge(threshold, -1))).toBe(format.maxCode)
    expect(format.encode(nudge(threshold, 1))).toBe(format.overflow)
    expect(format.encode(Infinity)).toBe(format.overflow)
    expect(format.encode(-Infinity)).toBe(signBit + format.overflow)
  })
})

test('known constants', () => {
  expect([...encodeFloat16([65504, 1, -2, 65519.99, 65520, 2 ** -24, 2 ** -25])]).toEqual([0x7bff, 0x3c00, 0xc000, 0x7bff, 0x7c00, 1, 0])
  expect([...encodeBfloat16([1, -1, 2 ** 128, 3.3895313892515355e38])]).toEqual([0x3f80, 0xbf80, 0x7f80, 0x7f7f])
  expect([448, 464, 465, Infinity].map((x) => encodeFp8e4m3(x))).toEqual([0x7e, 0x7e, 0x7e, 0x7e])
  expect([448, 464, 465, Infinity].map((x) => encodeFp8e4m3(x, 'ieee'))).toEqual([0x7e, 0x7e, 0x7f, 0x7f])
  expect([57344, 61439, 61440, -Infinity].map((x) => encodeFp8e5m2(x))).toEqual([0x7b, 0x7b, 0x7b, 0xfb])
  expect([57344, 61439, 61440, -Infinity].map((x) => encodeFp8e5m2(x, 'ieee'))).toEqual([0x7b, 0x7b, 0x7c, 0xfc])
  expect(Array.from({ length: 8 }, (_, code) => decodeFp4e2m1(code))).toEqual([0, 0.5, 1, 1.5, 2, 3, 4, 6])
  expect([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, Infinity].map(encodeFp4e2m1)).toEqual([0, 2, 2, 4, 4, 6, 6, 7, 7])
  expect(encodeFp4e2m1(-Infinity)).toBe(15)
})

test('a value just above a tie is not rounded twice', () => {
  // Through float32 these would become the ties 1 + 2 ** -11 and 1 + 2 ** -8, which go down.
  expect(encodeFloat16([1 + 2 ** -11 + 2 ** -40])[0]).toBe(0x3c01)
  expect(encodeBfloat16([1 + 2 ** -8 + 2 ** -40])[0]).toBe(0x3f81)
  expect(encodeFp8e4m3(1 + 2 ** -4 + 2 ** -40)).toBe(0x39)
})

describe('NaN', () => {
  // The sign of a NaN survives in a typed array; as a plain number an engine may drop it.
  const nans = new Float32Array(Uint32Array.of(0x7fc00000, 0xffc00000, 0x7f800001, 0xff800001).buffer)

  test('becomes one quiet NaN with its sign', () => {
    expect([...encodeFloat16(nans)]).toEqual([0x7e00, 0xfe00, 0x7e00, 0xfe00])
    expect([...encodeBfloat16(nans)]).toEqual([0x7fc0, 0xffc0, 0x7fc0, 0xffc0])
    expect([...encodeFloat16(Float64Array.from(nans))]).toEqual([0x7e00, 0xfe00, 0x7e00, 0xfe00])
    expect([...encodeBfloat16(Float64Array.from(nans))]).toEqual([0x7fc0, 0xffc0, 0x7fc0, 0xffc0])
    expect(Array.from(nans, (x) => encodeFp8e4m3(x))).toEqual([0x7f, 0xff, 0x7f, 0xff])
    expect(Array.from(nans, (x) => encodeFp8e4m3(x, 'ieee'))).toEqual([0x7f, 0xff, 0x7f, 0xff])
    expect(Array.from(nans, (x) => encodeFp8e5m2(x))).toEqual([0x7f, 0xff, 0x7f, 0xff])
  })

  test('is +6 in e2m1 whatever its sign', () => {
    expect(Array.from(nans, encodeFp4e2m1)).toEqual([7, 7, 7, 7])
  })

  test('keeps sign and payload on the way from 16 bits to float32', () => {
    expect([...new Uint32Array(decodeFloat16(Uint16Array.of(0x7e01, 0xfe01, 0xfc00)).buffer)]).toEqual([0x7fc02000, 0xffc02000, 0xff800000])
    expect([...new Uint32Array(decodeBfloat16(Uint16Array.of(0x7fc1, 0xffc1)).buffer)]).toEqual([0x7fc10000, 0xffc10000])
  })
})

test(`bfloat16 of a Float32Array gives the bits of the general way (RANKMESH_TEST_SEED=${seed})`, () => {
  const next = randomWords(seed)
  const random = Uint32Array.from({ length: 100_000 }, next)
  const edges = [0x7f7f7fff, 0x7f7f8000, 0x7f800000, 0xff800000, 0x80000000, 0x00008000, 0x00018000, 1]
  const floats = new Float32Array(Uint32Array.of(...edges, ...random.subarray(0, 1000)).buffer)
  expect(encodeBfloat16(floats)).toEqual(encodeBfloat16(Float64Array.from(floats)))
  const many = new Float32Array(random.buffer)
  expect(encodeBfloat16(many)).toEqual(encodeBfloat16(Float64Array.from(many)))
  expect([...encodeBfloat16(new Float32Array([9, 1, 2, 9]).subarray(1, 3))]).toEqual([0x3f80, 0x4000])
})

describe('ue8m0', () => {
  test('every code decodes to its power of two and encodes back under every rounding', () => {
    for (let code = 0; code < 255; code++) {
      expect(decodeUe8m0(code)).toBe(2 ** (code - 127))
      for (const rounding of ['nearest', 'up', 'down'] as const) {
        expect(encodeUe8m0(decodeUe8m0(code), rounding)).toBe(code)
        expect(encodeUe8m0(-decodeUe8m0(code), rounding)).toBe(code)
      }
    }
    expect(decodeUe8m0(255)).toBeNaN()
  })

  test('between two powers of two: up, down, nearest by value with ties to the even code', () => {
    for (let code = 0; code < 254; code++) {
      const low = decodeUe8m0(code)
      const middle = low * 1.5
      expect(encodeUe8m0(nudge(low, 1), 'up')).toBe(code + 1)
      expect(encodeUe8m0(nudge(low, 1), 'nearest')).toBe(code)
      expect(encodeUe8m0(nudge(2 * low, -1), 'down')).toBe(code)
      expect(encodeUe8m0(nudge(2 * low, -1), 'nearest')).toBe(code + 1)
      expect(encodeUe8m0(middle, 'nearest')).toBe(code % 2 === 0 ? code : code + 1)
      expect(encodeUe8m0(nudge(middle, -1), 'nearest')).toBe(code)
      expect(encodeUe8m0(nudge(middle, 1), 'nearest')).toBe(code + 1)
    }
  })

  test('zero and tiny values give 0, overflow and infinity 254, NaN 255', () => {
    for (const rounding of ['nearest', 'up', 'down'] as const) {
      for (const x of [0, -0, Number.MIN_VALUE, 2 ** -1022, 2 ** -128, nudge(2 ** -127, -1)]) expect(encodeUe8m0(x, rounding)).toBe(0)
      for (const x of [nudge(2 ** 127, 1), 2 ** 128, Number.MAX_VALUE, Infinity, -Infinity]) expect(encodeUe8m0(x, rounding)).toBe(254)
      expect(encodeUe8m0(Number.NaN, rounding)).toBe(255)
    }
  })
})
