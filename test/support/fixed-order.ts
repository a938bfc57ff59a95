// The order in which a group adds, computed exactly: ranks ascending inside a device, devices by their lowest rank, every step in float32.
import { type DType, encode, type TensorData } from '../../runtime/core/dtype.ts'
import type { ReduceOp } from './reference-ops.ts'

/** `place[r]` is the device of rank r. */
export function clustersOf(place: readonly number[]): number[][] {
  const clusters = new Map<number, number[]>()
  place.forEach((device, rank) => {
    clusters.set(device, [...(clusters.get(device) ?? []), rank])
  })
  return [...clusters.values()]
}

type Join = (a: number, b: number) => number

function joinOf(op: ReduceOp, dtype: DType): Join {
  const narrow: Join = dtype === 'int32' ? (a) => a | 0 : dtype === 'uint32' ? (a) => a >>> 0 : (a) => Math.fround(a)
  const whole = dtype === 'int32' || dtype === 'uint32'
  if (op === 'prod') return whole ? (a, b) => narrow(Math.imul(a, b), 0) : (a, b) => narrow(a * b, 0)
  if (op === 'min') return Math.min
  if (op === 'max') return Math.max
  return (a, b) => narrow(a + b, 0)
}

/** Every rank's values combined in the group's order, not yet rounded to 16 bits; `avg` divided in float32. */
export function fixedOrder(inputs: readonly TensorData[], place: readonly number[], op: ReduceOp, dtype: DType): Float64Array {
  const join = joinOf(op, dtype)
  const fold = (parts: readonly ArrayLike<number>[]): Float64Array => {
    const out = Float64Array.from(parts[0]!)
    for (const part of parts.slice(1)) for (let i = 0; i < out.length; i++) out[i] = join(out[i]!, part[i]!)
    return out
  }
  const numbers = inputs as readonly ArrayLike<number>[]
  const out = fold(clustersOf(place).map((ranks) => fold(ranks.map((rank) => numbers[rank]!))))
  if (op === 'avg') for (let i = 0; i < out.length; i++) out[i] = Math.fround(out[i]! / inputs.length)
  return out
}

/** As `fixedOrder`, rounded once to the dtype: the bytes that every rank must hold. */
export function fixedOrderBytes(inputs: readonly TensorData[], place: readonly number[], op: ReduceOp, dtype: DType): Uint8Array {
  return encode(dtype, fixedOrder(inputs, place, op, dtype))
}
