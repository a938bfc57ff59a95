// Sums of float32 on the host, in one order whoever adds: by the native addon where it is built, else by a loop.
import { platform } from '#platform'

/** Bytes as float32 elements; copied only where they do not begin at a multiple of four. */
export function floatsIn(bytes: Uint8Array): Float32Array {
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice()
  return new Float32Array(buffer, byteOffset, byteLength / 4)
}

/**
 * Elements added in the order of the parts as the kernels add them: rounded after every step. A device may take subnormal numbers for zero;
 * this does not.
 */
export function sumFloats(parts: readonly Float32Array[]): Float32Array<ArrayBuffer> {
  const [first, ...others] = parts as [Float32Array, ...Float32Array[]]
  const sum = new Float32Array(first.length)
  const addon = platform.addon()
  if (addon && others.length > 0) addon.sumFloat32(parts, sum)
  else {
    sum.set(first)
    for (const part of others) for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (part[i] as number)
  }
  return sum
}
