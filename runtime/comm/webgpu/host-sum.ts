// Sums on the host: float32 partials that a round brought are added in this thread, so that a device gets their sum instead of all of them.
import { platform } from '#platform'
import { type Cluster, emptySlices, type Slices } from './clusters.ts'
import type { Scope } from './scope.ts'

/** The sum of float32 partials of equal length as the only slice on a device. */
export function sumSlice(scope: Scope, cluster: Cluster, parts: readonly Uint8Array[]): Slices {
  const bytes = sumFloats(parts)
  const slices = emptySlices(scope, cluster, 1, bytes.byteLength, 'float32')
  cluster.sink.record({ kind: 'upload', to: { ...slices.range, byteLength: bytes.byteLength }, bytes })
  return slices
}

/**
 * Float32 elements added in the order of the parts as the kernels add them: rounded after every step. A device may take subnormal numbers for
 * zero; this does not.
 */
export function sumFloats(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const numbers = parts.map((part) => {
    const { buffer, byteOffset, byteLength } = part.byteOffset % 4 === 0 ? part : part.slice()
    return new Float32Array(buffer, byteOffset, byteLength / 4)
  })
  const [first, ...others] = numbers as [Float32Array, ...Float32Array[]]
  const sum = new Float32Array(first.length)
  const addon = platform.addon()
  if (addon) addon.sumFloat32(numbers, sum)
  else {
    sum.set(first)
    for (const part of others) for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (part[i] as number)
  }
  return new Uint8Array(sum.buffer)
}
