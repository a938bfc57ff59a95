// The kernels of the WebGPU collectives: elementwise reduction of slices, and the fused reduction with residual, bias and RMSNorm.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { Variant } from '../../device/webgpu/kernel.ts'
import { castRange, dispatch, elementType, f32, floatType, grid, type Operand, type Sink, withQuads } from '../../device/webgpu/launch.ts'
import { form } from '../../device/webgpu/ops.ts'
import { REDUCE_OPS, type ReduceOp } from '../device-comm.ts'
import { type Cluster, emptySlices, type Slices, sliceAt } from './clusters.ts'
import type { Scope } from './scope.ts'

/** Partials up to which the fused kernel is built for their number. */
const UNROLLED = 8

/** y = op over slices of x, elementwise; avg divides by `divisor`. */
export function reduceSlices({ sink }: Cluster, x: Slices, y: Operand, op: ReduceOp, divisor: number): void {
  if (y.count === 0) return
  withQuads(sink, [y], false, ([range]) => {
    const { variant, params, groups } = reduction(sink, x, y.dtype, y.count, op, divisor)
    dispatch(sink, variant, [x.range, range!], params, groups)
  })
}

/** As `reduceSlices`, but each rank of the device gets its own part of `count` elements (a multiple of 4). */
export function scatterSlices(
  { sink, ranks }: Cluster,
  x: Slices,
  y: { range: Range; pitch: number; dtype: DType },
  count: number,
  op: ReduceOp,
  divisor: number,
): void {
  const { variant, params, groups } = reduction(sink, x, y.dtype, count, op, divisor)
  const quads = count / 4
  const [first, second = 0] = ranks as [number, number?]
  sink.gpu.recorder.push({
    kind: 'dispatch',
    kernel: sink.gpu.kernels.get(variant),
    operands: [x.range, y.range],
    params,
    own: first * quads,
    grid: groups,
    ranks: ranks.length,
    strides: [0, y.pitch],
    ownStep: ranks.length > 1 ? (second - first) * quads : 0,
  })
}

function reduction(
  { gpu }: Sink,
  x: Slices,
  result: DType,
  count: number,
  op: ReduceOp,
  divisor: number,
): { variant: Variant; params: number[]; groups: [number, number] } {
  const WG = gpu.tuning.flat
  const quads = Math.ceil(count / 4)
  const constants = { WG, OP: REDUCE_OPS.indexOf(op) }
  const variant: Variant = { name: 'all_reduce', element: elementType(result, 'the result'), weight: elementType(x.dtype, 'x'), constants }
  const params = [quads, x.pitch / (4 * dtypeSize(x.dtype)), x.count, divisor]
  return { variant, params, groups: grid(Math.ceil(quads / WG)) }
}

export interface NormOperands {
  residual: Operand
  weight: Operand
  bias: Operand | null
  out: Operand
}

export interface NormDims {
  rows: number
  n: number
  eps: number
  zeroCentered: boolean
  portable?: boolean
}

/** The fused kernel on one device: rows of `n` elements, `x` the partials side by side. */
export function fusedNorm(
  scope: Scope,
  cluster: Cluster,
  x: Slices,
  { residual, weight, bias, out }: NormOperands,
  { rows, n, eps, zeroCentered, portable = false }: NormDims,
): void {
  const { sink } = cluster
  const scalar = n % 4 !== 0
  const element = floatType(residual.dtype, 'residual')
  const partials = scalar && x.dtype !== 'float32' ? widen(scope, cluster, x, rows * n) : x
  const unit = scalar ? 4 : 4 * dtypeSize(partials.dtype)
  withQuads(sink, [residual, weight, bias ?? weight, out], scalar, ([r, w, b, y]) => {
    const WG = sink.gpu.tuning.row
    const variant = {
      name: 'all_reduce_rms_norm' as const,
      element: form(element, scalar),
      weight: scalar ? ('f32x1' as const) : floatType(partials.dtype, 'x'),
      constants: {
        WG,
        ZERO_CENTERED: zeroCentered,
        HAS_BIAS: bias !== null,
        PORTABLE: portable,
        RANKS: partials.count <= UNROLLED ? partials.count : 0,
      },
    }
    const params = [rows, scalar ? n : n / 4, n, f32(eps), partials.pitch / unit, partials.count]
    dispatch(sink, variant, [partials.range, r!, w!, b!, y!], params, grid(rows))
  })
}

/** 16-bit slices as float32 slices. */
function widen(scope: Scope, cluster: Cluster, x: Slices, count: number): Slices {
  const wide = emptySlices(scope, cluster, x.count, count * 4, 'float32')
  const type = floatType(x.dtype, 'x')
  for (let i = 0; i < x.count; i++) {
    castRange(cluster.sink, sliceAt(x, i, count * dtypeSize(x.dtype)), type, sliceAt(wide, i, count * 4), 'f32', count)
  }
  return wide
}
