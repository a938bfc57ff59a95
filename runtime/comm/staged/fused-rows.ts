// The rows behind the sum of a fused all-reduce on the host: residual, norms, and the quantisers' codes and scales, with the bits of the kernels.
// The loops that take the time are here and in norm.ts.
import { decodeFp8e4m3, encodeFp4e2m1, encodeFp8e4m3 } from '../../core/codecs.ts'
import type { DType } from '../../core/dtype.ts'
import type { FusionResultName } from '../fusion/options.ts'
import { QUANT } from '../fusion/patterns.ts'
import type { RowsShape } from '../fusion/rows.ts'
import { FP4_BLOCK, fp4ScaleBytes, fp4ScaleOffset, packedScaleOffset, packedScales } from '../fusion/scale-layout.ts'
import { scaledRows } from './norm.ts'
import { bytesOf, numbersIn } from './numbers.ts'

const { fround } = Math
const INFINITY_BITS = 0x7f800000
const SIXTH = fround(1 / 6)
const LEAST_ROW_SCALE = fround(fround(1 / 512) / 448)
const LEAST_GROUP_SCALE = fround(1e-10)

export interface FusedInputs {
  /** Reduced over the ranks, as many as rows have elements. */
  sum: Float32Array
  /** Bytes of `dtype`. */
  residual: Uint8Array
  gamma: Uint8Array
  preGamma: Uint8Array | null
  dtype: DType
}

export type FusedBytes = Partial<Record<FusionResultName, Uint8Array>>

/** What the pattern writes, `output` and what nobody asked for aside. Steps and rounding are those of shaders/all_reduce_fusion.wgsl. */
export function fusedRows({ sum, residual, gamma, preGamma, dtype }: FusedInputs, shape: RowsShape): FusedBytes {
  const { n, eps, weightBias } = shape
  const added = preGamma ? rounded(dtype, scaledRows(sum, floats(dtype, preGamma), n, eps)) : sum
  const total = floats(dtype, residual).map((before, i) => before + (added[i] as number))
  const residualOut = bytesOf(dtype, total)
  const bias = fround(weightBias)
  const weight = floats(dtype, gamma)
  const normOut = bytesOf(dtype, scaledRows(floats(dtype, residualOut), bias === 0 ? weight : weight.map((w) => w + bias), n, eps))
  return { residualOut, normOut, ...quantised(floats(dtype, normOut), shape) }
}

/** All ranks' partials added in rank order, every sum rounded to `dtype`. */
export function roundedSum(parts: readonly Uint8Array[], xType: DType, dtype: DType): Float32Array {
  const [first, ...others] = parts.map((bytes) => floats(xType, bytes)) as [Float32Array, ...Float32Array[]]
  let sum = rounded(dtype, first)
  for (const part of others) {
    const before = sum
    sum = rounded(
      dtype,
      part.map((value, i) => (before[i] as number) + value),
    )
  }
  return sum
}

function floats(dtype: DType, bytes: Uint8Array): Float32Array {
  return numbersIn(dtype, bytes) as Float32Array
}

function rounded(dtype: DType, values: Float32Array): Float32Array {
  return floats(dtype, bytesOf(dtype, values))
}

function quantised(y: Float32Array, shape: RowsShape): FusedBytes {
  switch (shape.quant) {
    case QUANT.fp8:
      return { quantOut: fixedFp8(y, shape.factor) }
    case QUANT.fp4:
      return blockFp4(y, shape)
    case QUANT.fp8Groups:
      return groupFp8(y, shape)
    case QUANT.fp8Rows:
      return rowFp8(y, shape)
    default:
      return {}
  }
}

function fixedFp8(y: Float32Array, factor: number): Uint8Array {
  const inverse = fround(1 / fround(factor))
  const bits = bitsOf(y)
  const codes = new Uint8Array(y.length)
  for (let i = 0; i < codes.length; i++) codes[i] = fp8(product(y[i] as number, inverse), bits[i] as number)
  return codes
}

function rowFp8(y: Float32Array, { rows, n }: RowsShape): FusedBytes {
  const bits = bitsOf(y)
  const scales = new Float32Array(rows)
  const codes = new Uint8Array(y.length)
  for (let row = 0; row < rows; row++) {
    const scale = Math.max(fround(peak(bits, row * n, n) / 448), LEAST_ROW_SCALE)
    scales[row] = scale
    for (let i = row * n; i < (row + 1) * n; i++) codes[i] = fp8(fround((y[i] as number) / scale), bits[i] as number)
  }
  return { quantOut: codes, scaleOut: bytesOf('float32', scales) }
}

function groupFp8(y: Float32Array, { rows, n, group }: RowsShape): FusedBytes {
  const bits = bitsOf(y)
  const packed = packedScales(rows, n / group)
  const scales = new Uint8Array(packed.length * 4)
  const codes = new Uint8Array(y.length)
  const value = new Float32Array(1)
  const word = bitsOf(value)
  for (let row = 0; row < rows; row++) {
    for (let j = 0; j < n / group; j++) {
      const start = row * n + j * group
      value[0] = Math.max(peak(bits, start, group) / 448, LEAST_GROUP_SCALE)
      const exponent = ((word[0] as number) + 0x7fffff) >>> 23
      scales[packedScaleOffset(packed, row, j)] = exponent
      // Of an infinite scale: 0, which makes infinity NaN and everything finite 0.
      const inverse = exponent === 255 ? 0 : 2 ** (127 - exponent)
      for (let i = start; i < start + group; i++) codes[i] = fp8(fround((y[i] as number) * inverse), bits[i] as number)
    }
  }
  return { quantOut: codes, scaleOut: scales }
}

function blockFp4(y: Float32Array, { rows, n, factor, layout }: RowsShape): FusedBytes {
  const bits = bitsOf(y)
  const wide = fround(factor)
  const columns = n / FP4_BLOCK
  const scales = new Uint8Array(fp4ScaleBytes(layout, rows, columns))
  const codes = new Uint8Array(y.length / 2)
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < columns; k++) {
      const start = row * n + k * FP4_BLOCK
      const scale = encodeFp8e4m3(fround(wide * fround(peak(bits, start, FP4_BLOCK) * SIXTH)))
      scales[fp4ScaleOffset(layout, row, k, columns)] = scale
      const multiplier = scale === 0 ? 0 : fround(wide / decodeFp8e4m3(scale))
      for (let i = start; i < start + FP4_BLOCK; i += 2) {
        const low = fp4(product(y[i] as number, multiplier), bits[i] as number)
        codes[i / 2] = low | (fp4(product(y[i + 1] as number, multiplier), bits[i + 1] as number) << 4)
      }
    }
  }
  return { quantOut: codes, scaleOut: scales }
}

function bitsOf({ buffer, byteOffset, length }: Float32Array): Uint32Array {
  return new Uint32Array(buffer, byteOffset, length)
}

/** Infinity stays what it is, whatever it is multiplied by. */
function product(value: number, factor: number): number {
  return Math.abs(value) === Number.POSITIVE_INFINITY ? value : fround(value * factor)
}

/** The largest magnitude; NaN counts as 0. */
function peak(bits: Uint32Array, start: number, count: number): number {
  let most = 0
  for (let i = start; i < start + count; i++) {
    const magnitude = (bits[i] as number) & 0x7fffffff
    if (magnitude > most && magnitude <= INFINITY_BITS) most = magnitude
  }
  word[0] = most
  return float[0] as number
}

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

/** The code of |value|, with the sign of the number whose bits those are. */
function fp8(value: number, bits: number): number {
  return (encodeFp8e4m3(Math.abs(value)) & 0x7f) | ((bits >>> 24) & 0x80)
}

/** As `fp8`; NaN gives +6. */
function fp4(value: number, bits: number): number {
  if (Number.isNaN(value)) return 7
  return (encodeFp4e2m1(Math.abs(value)) & 7) | ((bits >>> 28) & 8)
}
