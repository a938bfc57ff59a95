// The end of the fused all-reduce on the host: residual, bias and RMSNorm of rows, in float32 and in one order, for every kind of device.
import type { DType } from '../../core/dtype.ts'
import { normScale } from '../../core/portable.ts'
import { bytesOf, type Numbers, numbersIn } from './numbers.ts'

export interface NormRows {
  /** Reduced over the ranks, as many as rows have elements. */
  sum: Float32Array
  /** Bytes of `dtype`, as weight and bias, [n] each. */
  residual: Uint8Array
  weight: Uint8Array
  bias: Uint8Array | null
  dtype: DType
  n: number
  eps: number
  zeroCentered: boolean
}

/**
 * s = residual + sum + bias, rounded to the dtype once; the result is s * rsqrt(mean(s^2) + eps) * weight of the rounded s. Every step is
 * rounded to float32, as core/portable.ts has it.
 */
export function normed({ sum, residual, weight, bias, dtype, n, eps, zeroCentered }: NormRows): { residual: Uint8Array; out: Uint8Array } {
  const before = numbersIn(dtype, residual)
  const gamma = Float32Array.from(numbersIn(dtype, weight), (w) => (zeroCentered ? w + 1 : w))
  const added = bias && numbersIn(dtype, bias)
  const total = new Float32Array(sum.length)
  for (let i = 0; i < total.length; i++) total[i] = (before[i] as number) + (sum[i] as number)
  if (added) for (let i = 0; i < total.length; i++) total[i] = (total[i] as number) + (added[i % n] as number)
  const stored = bytesOf(dtype, total)
  return { residual: stored, out: bytesOf(dtype, scaledRows(numbersIn(dtype, stored) as Float32Array, gamma, n, eps)) }
}

/** Rows of n elements, each divided by the root of its mean square and multiplied by gamma. */
export function scaledRows(rows: Float32Array, gamma: Numbers, n: number, eps: number): Float32Array {
  const out = new Float32Array(rows.length)
  for (let row = 0; row < rows.length; row += n) {
    const scale = normScale(rows.subarray(row, row + n), eps)
    for (let i = 0; i < n; i++) out[row + i] = Math.fround((rows[row + i] as number) * scale) * (gamma[i] as number)
  }
  return out
}
