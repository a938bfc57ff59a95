// Arithmetic of staged collectives: ranks' operands combined in the group's order with the rounding of the kernels, on the host.
import { type DType, decode, encode } from '../../core/dtype.ts'
import { mergesOf, NO_NODE, type Span, slotsOf } from '../../core/tree.ts'
import type { ReduceOp } from '../device-comm.ts'
import { floatsIn, sumFloats } from '../float-sum.ts'

/** Floats of any width as float32, integers as themselves. */
export type Numbers = Float32Array | Int32Array | Uint32Array

export function numbersIn(dtype: DType, bytes: Uint8Array): Numbers {
  return dtype === 'float32' ? floatsIn(bytes) : (decode(dtype, bytes) as Numbers)
}

/** Rounded to nearest even where the dtype is narrower than float32. */
export function bytesOf(dtype: DType, numbers: Numbers): Uint8Array {
  if (dtype !== 'float32') return encode(dtype, numbers)
  return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength)
}

/**
 * Partials as one, in their order, every step rounded to float32 and nothing else. Integers wrap; a NaN makes min and max NaN; avg is the sum,
 * for `averaged` to divide. One partial alone is its own total, not a copy.
 */
export function fold(parts: readonly Numbers[], op: ReduceOp): Numbers {
  const [first, ...others] = parts as [Numbers, ...Numbers[]]
  if (others.length === 0) return first
  if (first instanceof Float32Array && (op === 'sum' || op === 'avg')) return sumFloats(parts as readonly Float32Array[])
  const join = joinOf(op, first instanceof Float32Array)
  const result = first.slice()
  for (const part of others) for (let i = 0; i < result.length; i++) result[i] = join(result[i] as number, part[i] as number)
  return result
}

/** Storing what it gives rounds to float32, or wraps. */
function joinOf(op: ReduceOp, floats: boolean): (a: number, b: number) => number {
  if (op === 'prod') return floats ? (a, b) => a * b : Math.imul
  if (op === 'min') return (a, b) => (Number.isNaN(a) || (a < b && !Number.isNaN(b)) ? a : b)
  if (op === 'max') return (a, b) => (Number.isNaN(a) || (a > b && !Number.isNaN(b)) ? a : b)
  return (a, b) => a + b
}

/** The sum of all ranks' subtree sums, each operand `slotsOf(spans)` float32 sums of `count` elements, in the order of the tree. */
export function joined(operands: readonly Uint8Array[], count: number, spans: readonly Span[]): Float32Array {
  const slots = slotsOf(spans)
  const stack: Float32Array[] = []
  for (const [slot, joins] of mergesOf(spans, slots).entries()) {
    if (joins === NO_NODE) continue
    const at = (slot % slots) * count
    let sum = floatsIn(operands[Math.floor(slot / slots)] as Uint8Array).subarray(at, at + count)
    for (let i = 0; i < joins; i++) sum = sumFloats([stack.pop() as Float32Array, sum])
    stack.push(sum)
  }
  return stack[0] ?? new Float32Array(count)
}
