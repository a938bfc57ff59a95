// Pieces of row-major bytes on the host: cut along a dimension, and joined along one.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, splitAt } from '../../core/shape.ts'

/** Elements [start, start + length) along `dim` of a tensor's bytes; they are copied when asked for. */
export function slab(
  whole: Uint8Array,
  shape: Shape,
  dtype: DType,
  { dim, start, length }: { dim: number; start: number; length: number },
): { shape: number[]; bytes: () => Uint8Array } {
  const { outer, length: all, inner } = splitAt(shape, dim)
  const unit = inner * dtypeSize(dtype)
  const bytes = (): Uint8Array => {
    if (outer === 1) return whole.subarray(start * unit, (start + length) * unit)
    const part = new Uint8Array(outer * length * unit)
    for (let row = 0; row < outer; row++) {
      const from = (row * all + start) * unit
      part.set(whole.subarray(from, from + length * unit), row * length * unit)
    }
    return part
  }
  return { shape: shape.map((n, i) => (i === dim ? length : n)), bytes }
}

/** Parts that have `lengths` along `dim` and are else alike (`shape` is that of any), one behind the other along it. */
export function concatenated(
  parts: readonly Uint8Array[],
  lengths: readonly number[],
  shape: Shape,
  dtype: DType,
  dim: number,
): { shape: number[]; bytes: Uint8Array } {
  const total = lengths.reduce((a, b) => a + b, 0)
  const { outer, inner } = splitAt(shape, dim)
  const unit = inner * dtypeSize(dtype)
  const bytes = new Uint8Array(outer * total * unit)
  let start = 0
  for (const [i, part] of parts.entries()) {
    const width = (lengths[i] as number) * unit
    for (let row = 0; row < outer; row++) bytes.set(part.subarray(row * width, (row + 1) * width), row * total * unit + start)
    start += width
  }
  return { shape: shape.map((n, i) => (i === dim ? total : n)), bytes }
}
