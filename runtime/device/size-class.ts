// The sizes in which devices' memory is made, so that what one use frees fits the next.
import { roundUp } from '../core/shape.ts'

/** Powers of two from `least` up to 1 MiB, then whole MiB: few classes, at most half wasted, and little on large ones. */
export function sizeClass(bytes: number, least: number): number {
  const mib = 2 ** 20
  return bytes >= mib ? roundUp(bytes, mib) : Math.max(least, 2 ** Math.ceil(Math.log2(bytes || 1)))
}
