// Shapes: lists of non-negative integers, row-major, and the little arithmetic on them that every floor needs.
import { ShapeError } from './errors.ts'

export type Shape = readonly number[]

export function checkShape(shape: Shape): void {
  if (!Array.isArray(shape) || !shape.every((n) => Number.isSafeInteger(n) && n >= 0)) {
    throw new ShapeError(`Expected a list of non-negative integers for shape but received [${String(shape)}]`)
  }
  if (!Number.isSafeInteger(sizeOf(shape)))
    throw new ShapeError(`Shape ${formatShape(shape)} holds more elements than can be counted exactly`)
}

/** Number of elements; 1 for the empty shape. */
export function sizeOf(shape: Shape): number {
  let size = 1
  for (const n of shape) size *= n
  return size
}

export function formatShape(shape: Shape): string {
  return `[${shape.join(', ')}]`
}

export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

/** A dimension given from the front or, when negative, from the back. */
export function resolveDim(dim: number, rank: number): number {
  const at = dim < 0 ? dim + rank : dim
  if (!Number.isInteger(dim) || at < 0 || at >= rank) {
    throw new ShapeError(`Expected dim in [${-rank}, ${rank - 1}] for a tensor of ${rank} dimensions but received ${dim}`)
  }
  return at
}

/** `shape` cut at `dim`: elements before it multiplied, its own length, elements after it multiplied. */
export function splitAt(shape: Shape, dim: number): { outer: number; length: number; inner: number } {
  return { outer: sizeOf(shape.slice(0, dim)), length: shape[dim] as number, inner: sizeOf(shape.slice(dim + 1)) }
}

export function roundUp(n: number, multiple: number): number {
  return Math.ceil(n / multiple) * multiple
}
