// The quantisers of the fused all-reduces in float32 arithmetic, one Math.fround for each operation, from the normed rows as stored.
import { decodeFp8e4m3, encodeFp4e2m1, encodeFp8e4m3 } from '../../runtime/core/codecs.ts'

const f = Math.fround
const SIXTH = f(1 / 6)
const LEAST_ROW_SCALE = f(f(1 / 512) / 448)
const LEAST_GROUP_SCALE = f(1e-10)

/** The sign of a NaN is that of the value it came from. */
function negative(x: number, bits: number): boolean {
  return Number.isNaN(x) ? bits >>> 31 === 1 : Object.is(x, -0) || x < 0
}

/** The e4m3 code of `value`, which came from `x`: magnitude of the one, sign of the other. */
function fp8(value: number, x: number, bits: number): number {
  const code = encodeFp8e4m3(Math.abs(value)) & 0x7f
  return negative(x, bits) ? code | 0x80 : code
}

function fp4(value: number, x: number): number {
  if (Number.isNaN(x)) return 7
  const code = encodeFp4e2m1(Math.abs(value)) & 7
  return negative(x, 0) ? code | 8 : code
}

/** The largest magnitude; NaN counts as 0. */
function peak(values: ArrayLike<number>, start: number, count: number): number {
  let most = 0
  for (let i = start; i < start + count; i++) {
    const magnitude = Math.abs(values[i] as number)
    if (magnitude > most) most = magnitude
  }
  return most
}

function wordsOf(n: Float32Array): Uint32Array {
  return new Uint32Array(n.buffer, n.byteOffset, n.length)
}

export function staticFp8(n: Float32Array, scaleFactor: number): Uint8Array {
  const inverse = f(1 / f(scaleFactor))
  const bits = wordsOf(n)
  return Uint8Array.from(n, (x, i) => fp8(f(x * inverse), x, bits[i]!))
}

/** Codes and scales of rows of `hidden`. */
export function rowFp8(n: Float32Array, hidden: number): { codes: Uint8Array; scales: Float32Array } {
  const bits = wordsOf(n)
  const scales = Float32Array.from({ length: n.length / hidden }, (_, t) => {
    return Math.max(f(peak(n, t * hidden, hidden) / 448), LEAST_ROW_SCALE)
  })
  const codes = Uint8Array.from(n, (x, i) => fp8(f(x / scales[Math.floor(i / hidden)]!), x, bits[i]!))
  return { codes, scales }
}

/** Codes, and one biased exponent a group, row-major. */
export function groupFp8(n: Float32Array, group: number): { codes: Uint8Array; exponents: Uint8Array } {
  const bits = wordsOf(n)
  const word = new Uint32Array(1)
  const value = new Float32Array(word.buffer)
  const exponents = Uint8Array.from({ length: n.length / group }, (_, j) => {
    value[0] = Math.max(f(peak(n, j * group, group) / 448), LEAST_GROUP_SCALE)
    return (word[0]! >>> 23) + ((word[0]! & 0x7fffff) === 0 ? 0 : 1)
  })
  const codes = Uint8Array.from(n, (x, i) => {
    const exponent = exponents[Math.floor(i / group)]!
    return fp8(f(x / (exponent === 255 ? Number.POSITIVE_INFINITY : 2 ** (exponent - 127))), x, bits[i]!)
  })
  return { codes, exponents }
}

/** Packed codes, low nibble first, and one e4m3 scale a block of 16, row-major. */
export function blockFp4(n: Float32Array, scaleFactor: number): { codes: Uint8Array; scales: Uint8Array } {
  const factor = f(scaleFactor)
  const scales = Uint8Array.from({ length: n.length / 16 }, (_, k) => encodeFp8e4m3(f(factor * f(peak(n, k * 16, 16) * SIXTH))))
  const code = (i: number): number => {
    const scale = decodeFp8e4m3(scales[i >> 4]!)
    const multiplier = scale === 0 ? 0 : f(factor / scale)
    return fp4(f(n[i]! * multiplier), n[i]!)
  }
  const codes = Uint8Array.from({ length: n.length / 2 }, (_, i) => code(2 * i) | (code(2 * i + 1) << 4))
  return { codes, scales }
}
