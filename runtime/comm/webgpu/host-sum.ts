// Sums on the host: float32 partials that a round brought are added in this thread, so that a device gets their sum instead of all of them.
import { floatsIn, sumFloats } from '../float-sum.ts'
import { type Cluster, emptySlices, type Slices } from './clusters.ts'
import type { Scope } from './scope.ts'

/** The sum of float32 partials of equal length as the only slice on a device. */
export function sumSlice(scope: Scope, cluster: Cluster, parts: readonly Uint8Array[]): Slices {
  const bytes = new Uint8Array(sumFloats(parts.map(floatsIn)).buffer)
  const slices = emptySlices(scope, cluster, 1, bytes.byteLength, 'float32')
  cluster.sink.record({ kind: 'upload', to: { ...slices.range, byteLength: bytes.byteLength }, bytes })
  return slices
}
