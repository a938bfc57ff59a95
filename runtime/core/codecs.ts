// Exact conversion between JavaScript numbers and the bits of the narrow float formats: float16, bfloat16, fp8, fp4 and ue8m0.

/** What fp8 does with a value too large for it: the largest finite value, or what the format has for it (infinity, else NaN). */
export type Fp8Overflow = 'saturate' | 'ieee'

/** Direction in which a scale is rounded to a power of two. */
export type Ue8m0Rounding = 'nearest' | 'up' | 'down'

/** A sign bit, an exponent field with a bias, a mantissa; subnormals below the smallest exponent. */
interface Format {
  readonly signShift: number
  readonly mantissaBits: number
  readonly bias: number
  /** Code of the largest finite magnitude. */
  readonly maxCode: number
}

const FLOAT16: Format = { signShift: 15, mantissaBits: 10, bias: 15, maxCode: 0x7bff }
const BFLOAT16: Format = { signShift: 15, mantissaBits: 7, bias: 127, maxCode: 0x7f7f }
const E4M3FN: Format = { signShift: 7, mantissaBits: 3, bias: 7, maxCode: 0x7e }
const E5M2: Format = { signShift: 7, mantissaBits: 2, bias: 15, maxCode: 0x7b }
const E2M1: Format = { signShift: 3, mantissaBits: 1, bias: 1, maxCode: 7 }

// The bits of one float64; WebGPU hosts are little-endian, so word 1 holds sign and exponent.
const float64 = new Float64Array(1)
const words = new Uint32Array(float64.buffer)

/** 2 ** n without the rounding that engines may allow themselves in `**`; n in [-1022, 1023]. */
function exp2(n: number): number {
  words[0] = 0
  words[1] = (n + 1023) << 20
  return float64[0] as number
}

function signBit(x: number): number {
  float64[0] = x
  return (words[1] as number) >>> 31
}

/** floor(log2(|x|)) for a normal float64; -1023 for zero and subnormals, 1024 for infinity and NaN. */
function exponentOf(x: number): number {
  float64[0] = x
  return (((words[1] as number) >>> 20) & 0x7ff) - 1023
}

/**
 * Code of |x| in `format`, rounded to nearest even; a code past `maxCode` means overflow. `x` is not NaN.
 * Scaling by a power of two is exact, so the one rounding is the addition of 2 ** 52, where neighbouring float64 are 1 apart.
 * A mantissa that rounds up to the next power of two carries into the exponent field by itself.
 */
function roundMagnitude(x: number, { mantissaBits, bias }: Format): number {
  const exponent = Math.min(Math.max(exponentOf(x), 1 - bias), bias + 1)
  const mantissa = Math.abs(x) * exp2(mantissaBits - exponent) + 2 ** 52 - 2 ** 52
  return (exponent + bias - 1) * (1 << mantissaBits) + mantissa
}

function encode(x: number, format: Format, overflowCode: number, nanCode: number): number {
  const sign = signBit(x) << format.signShift
  if (Number.isNaN(x)) return sign | nanCode
  const code = roundMagnitude(x, format)
  return sign | (code > format.maxCode ? overflowCode : code)
}

/** The value of a code, taking every exponent field as finite. */
function decodeFinite(code: number, { signShift, mantissaBits, bias }: Format): number {
  const exponent = (code & ((1 << signShift) - 1)) >>> mantissaBits
  const fraction = code & ((1 << mantissaBits) - 1)
  const mantissa = exponent === 0 ? fraction : fraction + (1 << mantissaBits)
  const magnitude = mantissa * exp2(Math.max(exponent, 1) - bias - mantissaBits)
  return (code >>> signShift) & 1 ? -magnitude : magnitude
}

/** Numbers to float16: nearest even; |x| >= 65520 gives infinity; NaN gives 0x7e00 with the sign of `x`; -0 is kept. */
export function encodeFloat16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const out = new Uint16Array(values.length)
  for (let i = 0; i < out.length; i++) out[i] = encode(values[i] as number, FLOAT16, 0x7c00, 0x7e00)
  return out
}

let float16Table: Uint32Array | undefined

/** float32 bits of every float16; infinity and NaN keep sign and payload. */
function buildFloat16Table(): Uint32Array {
  const table = new Uint32Array(65536)
  const finite = new Float32Array(table.buffer)
  for (let code = 0; code < table.length; code++) {
    if ((code & 0x7c00) === 0x7c00) table[code] = ((code & 0x8000) << 16) | 0x7f800000 | ((code & 0x3ff) << 13)
    else finite[code] = decodeFinite(code, FLOAT16)
  }
  return table
}

/** float16 to float32, exact. Copied as integers, so that NaN keeps its sign and payload. */
export function decodeFloat16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  float16Table ??= buildFloat16Table()
  const out = new Uint32Array(bits.length)
  for (let i = 0; i < out.length; i++) out[i] = float16Table[bits[i] as number] as number
  return new Float32Array(out.buffer)
}

/**
 * Numbers to bfloat16: nearest even; |x| >= 2 ** 128 - 2 ** 119 gives infinity; NaN gives 0x7fc0 with the sign of `x`; -0 is kept.
 * A Float32Array takes a faster way to the same bits.
 */
export function encodeBfloat16(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const out = new Uint16Array(values.length)
  if (values instanceof Float32Array) {
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
    for (let i = 0; i < out.length; i++) {
      const word = bits[i] as number
      const nan = (word & 0x7fffffff) > 0x7f800000
      out[i] = nan ? ((word >>> 16) & 0x8000) | 0x7fc0 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
    }
  } else {
    for (let i = 0; i < out.length; i++) out[i] = encode(values[i] as number, BFLOAT16, 0x7f80, 0x7fc0)
  }
  return out
}

/** bfloat16 to float32, exact: the bits are the upper half. */
export function decodeBfloat16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length)
  for (let i = 0; i < out.length; i++) out[i] = (bits[i] as number) << 16
  return new Float32Array(out.buffer)
}

/**
 * A number to the 8 bits of e4m3fn: nearest even, -0 kept, NaN gives 0x7f with the sign of `x`.
 * The format has no infinity: |x| > 464 and infinity give +-448 (0x7e) under 'saturate', NaN (0x7f) with the sign under 'ieee'.
 */
export function encodeFp8e4m3(x: number, overflow: Fp8Overflow = 'saturate'): number {
  return encode(x, E4M3FN, overflow === 'saturate' ? 0x7e : 0x7f, 0x7f)
}

/** The value of an e4m3fn code; 0x7f and 0xff are NaN. */
export function decodeFp8e4m3(bits: number): number {
  return (bits & 0x7f) === 0x7f ? Number.NaN : decodeFinite(bits, E4M3FN)
}

/**
 * A number to the 8 bits of e5m2: nearest even, -0 kept, NaN gives 0x7f with the sign of `x`.
 * |x| >= 61440 and infinity give +-57344 (0x7b) under 'saturate', infinity (0x7c) under 'ieee'.
 */
export function encodeFp8e5m2(x: number, overflow: Fp8Overflow = 'saturate'): number {
  return encode(x, E5M2, overflow === 'saturate' ? 0x7b : 0x7c, 0x7f)
}

/** The value of an e5m2 code; 0x7c is infinity, 0x7d to 0x7f are NaN, with either sign. */
export function decodeFp8e5m2(bits: number): number {
  const magnitude = bits & 0x7f
  if (magnitude > 0x7c) return Number.NaN
  if (magnitude === 0x7c) return bits & 0x80 ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY
  return decodeFinite(bits, E5M2)
}

/** A number to the 4 bits of e2m1 (+-0, 0.5, 1, 1.5, 2, 3, 4, 6): nearest even, saturating at +-6, -0 kept; NaN gives +6, as in CUDA. */
export function encodeFp4e2m1(x: number): number {
  return Number.isNaN(x) ? E2M1.maxCode : encode(x, E2M1, E2M1.maxCode, E2M1.maxCode)
}

/** The value of the low 4 bits of an e2m1 code; every code is finite. */
export function decodeFp4e2m1(bits: number): number {
  return decodeFinite(bits, E2M1)
}

/**
 * |x| to the 8 bits of ue8m0, an exponent alone: code c is 2 ** (c - 127), 255 is NaN. The sign is ignored.
 * 'nearest' takes the nearest power of two by value (halfway, at 1.5 times a power of two, the even code); 'up' and 'down' the next one.
 * Zero and anything up to 2 ** -127 give 0; above 2 ** 127, infinity included, 254; NaN gives 255.
 */
export function encodeUe8m0(x: number, rounding: Ue8m0Rounding): number {
  if (Number.isNaN(x)) return 255
  const exponent = exponentOf(x)
  if (exponent < -127) return 0
  if (exponent >= 127) return 254
  const code = exponent + 127
  const mantissa = Math.abs(x) * exp2(-exponent)
  if (rounding === 'down') return code
  if (rounding === 'up') return mantissa > 1 ? code + 1 : code
  return mantissa > 1.5 || (mantissa === 1.5 && code % 2 === 1) ? code + 1 : code
}

/** The value of a ue8m0 code, exact in float64 and float32; 255 is NaN. */
export function decodeUe8m0(bits: number): number {
  return (bits & 0xff) === 255 ? Number.NaN : exp2((bits & 0xff) - 127)
}
