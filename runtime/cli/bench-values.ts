// Operands of the benchmarked collectives and what must come out: any rank can compute any rank's values from the seed alone.
import type { DType } from '../core/dtype.ts'

export type BenchOp = 'sum' | 'min' | 'max' | 'avg'

/** Relative error of one rounding to the dtype. */
const EPSILON: Partial<Record<DType, number>> = { float32: 2 ** -24, bfloat16: 2 ** -8, float16: 2 ** -11 }
/** Half of float16's smallest step. */
const TINY = 2 ** -25

/** Element i of a rank's operand: every dtype holds it exactly, sums of it round. The same seed always gives the same values. */
export function elementOf(seed: number, rank: number, i: number, dtype: DType): number {
  const bits = scramble(Math.imul(rank + 1, 0x9e3779b1) ^ scramble(i ^ seed))
  if (dtype === 'int32') return (bits % 2001) - 1000
  if (dtype === 'uint32') return bits % 2001
  const magnitude = (1 + ((bits >>> 1) & 127) / 128) * 2 ** (((bits >>> 8) % 7) - 3)
  return bits & 1 ? -magnitude : magnitude
}

export function valuesOf(seed: number, rank: number, count: number, dtype: DType): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => elementOf(seed, rank, i, dtype))
}

function scramble(word: number): number {
  let x = word >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

export interface Reference {
  /** In float64. */
  exact: Float64Array
  /** How far a float32 sum in any order, rounded to the dtype, may be from it. */
  bound: Float64Array
}

export interface ReferenceKey {
  seed: number
  ranks: number
  count: number
  dtype: DType
  op: BenchOp
}

/** The last reference, as the ranks of one thread all ask for the same. */
let last: { key: string; reference: Reference } | undefined

/** All ranks' operands combined elementwise. */
export function reducedOf(key: ReferenceKey): Reference {
  const text = JSON.stringify(key)
  if (last?.key !== text) last = { key: text, reference: reduce(key) }
  return last.reference
}

function reduce({ seed, ranks, count, dtype, op }: ReferenceKey): Reference {
  const exact = new Float64Array(count)
  const bound = new Float64Array(count)
  const epsilon = EPSILON[dtype]
  const divisor = op === 'avg' ? ranks : 1
  for (let i = 0; i < count; i++) {
    let value = elementOf(seed, 0, i, dtype)
    let magnitude = Math.abs(value)
    for (let rank = 1; rank < ranks; rank++) {
      const next = elementOf(seed, rank, i, dtype)
      value = op === 'min' ? Math.min(value, next) : op === 'max' ? Math.max(value, next) : value + next
      magnitude += Math.abs(next)
    }
    exact[i] = value / divisor
    if (epsilon !== undefined && (op === 'sum' || op === 'avg'))
      bound[i] = ((ranks + 4) * 2 ** -24 * magnitude) / divisor + 2 * epsilon * Math.abs(value / divisor) + TINY
  }
  return { exact, bound }
}

export interface FusedReference {
  residual: Reference
  normed: Reference
}

/** Ranks beyond the last stand for what all ranks have alike: the residual, the bias, the weight. */
export const RESIDUAL = 0
export const BIAS = 1
export const WEIGHT = 2

/** residual + sum + bias, and its RMSNorm over rows of `hidden`. */
export function fusedOf(key: ReferenceKey, hidden: number, eps: number): FusedReference {
  const { seed, ranks, count, dtype } = key
  const { exact: sum, bound } = reducedOf({ ...key, op: 'sum' })
  const epsilon = EPSILON[dtype] as number
  const residual = { exact: new Float64Array(count), bound: new Float64Array(count) }
  const normed = { exact: new Float64Array(count), bound: new Float64Array(count) }
  for (let row = 0; row < count; row += hidden) {
    let squares = 0
    let squaredBounds = 0
    for (let j = 0; j < hidden; j++) {
      const [before, bias] = [elementOf(seed, ranks + RESIDUAL, row + j, dtype), elementOf(seed, ranks + BIAS, j, dtype)]
      const value = before + (sum[row + j] as number) + bias
      const allowed = (bound[row + j] as number) + 2 ** -22 * (Math.abs(before) + Math.abs(bias)) + 2 * epsilon * Math.abs(value) + TINY
      residual.exact[row + j] = value
      residual.bound[row + j] = allowed
      squares += value * value
      squaredBounds += allowed * allowed
    }
    const norm = Math.sqrt(squares / hidden + eps)
    const normBound = Math.sqrt(squaredBounds / hidden)
    for (let j = 0; j < hidden; j++) {
      const weight = elementOf(seed, ranks + WEIGHT, j, dtype)
      const value = ((residual.exact[row + j] as number) / norm) * weight
      normed.exact[row + j] = value
      normed.bound[row + j] =
        (Math.abs(weight) * (residual.bound[row + j] as number)) / norm +
        Math.abs(value) * (normBound / norm + 2 * epsilon + 2 ** -18) +
        TINY
    }
  }
  return { residual, normed }
}

/** How many of `found` are not what the reference has from index `from` on. */
export function wrongOf(found: ArrayLike<number | bigint>, { exact, bound }: Reference, from = 0, count: number = exact.length): number {
  let wrong = Math.abs(found.length - count)
  for (let i = 0; i < Math.min(found.length, count); i++) {
    if (!(Math.abs(Number(found[i]) - (exact[from + i] as number)) <= (bound[from + i] as number))) wrong++
  }
  return wrong
}

/** How many of `found` are not `expected(i)`, exactly. */
export function unequalOf(found: ArrayLike<number | bigint>, count: number, expected: (i: number) => number): number {
  let wrong = Math.abs(found.length - count)
  for (let i = 0; i < Math.min(found.length, count); i++) if (Number(found[i]) !== expected(i)) wrong++
  return wrong
}
