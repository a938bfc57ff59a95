// The compute operations of a WebGPU device: each checks its operands, then records its kernels.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError } from '../../core/errors.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import { expectDType, expectShape } from '../checks.ts'
import type { Attention, Product, RmsNorm, RopeAppend, SiluMul } from '../device.ts'
import {
  checkAdd,
  checkAttention,
  checkCast,
  checkCopy,
  checkEmbedding,
  checkMatmul,
  checkRmsNorm,
  checkRope,
  checkSiluMul,
  checkSoftmax,
  checkTopK,
} from '../operands.ts'
import type { WebGpuDevice } from './device.ts'
import { castRange, columnsOf, copyBytes, dispatch, f32, floatType, grid, operand, rangeOf, storageOf, withQuads } from './launch.ts'
import { writableStorage } from './pool.ts'
import type { Prelude } from './shaders.ts'

/** From how many tokens on a product is tiled, where the adapter suits that. */
const TILED_TOKENS = 5

export function embedding(
  device: WebGpuDevice,
  ids: Tensor,
  table: Tensor,
  { first = 0, dtype = 'float32', out }: { first?: number; dtype?: DType; out?: Tensor } = {},
): Tensor {
  const { tokens, n, rows, weight, element } = checkEmbedding(ids, table, first, out?.dtype ?? dtype)
  const y = result(device, [ids, table], out, [tokens, n], out?.dtype ?? dtype)
  if (y.size === 0) return y
  const scalar = n % 4 !== 0
  const { sink, gpu } = device
  const WG = gpu.tuning.flat
  withQuads(sink, [operand(gpu, table, 'r'), operand(gpu, y, 'w')], scalar, ([from, to]) => {
    const quads = scalar ? n : n / 4
    const variant = {
      name: 'embedding' as const,
      element: form(element, scalar),
      weight: scalar ? ('f32x1' as const) : weight,
      constants: { WG },
    }
    const groups = grid(Math.ceil((tokens * quads) / WG))
    dispatch(sink, variant, [rangeOf(gpu, ids), from!, to!], [tokens, quads, rows], groups, first)
  })
  return y
}

export function matmul(device: WebGpuDevice, x: Tensor, w: Tensor, options: Product = {}): Tensor {
  const { bias, out } = options
  const { tokens, k, outs, element, weight, shape, column } = checkMatmul(x, w, options)
  const y = result(device, bias ? [x, w, bias] : [x, w], out, shape, 'float32')
  if (tokens * outs === 0) return y
  const scalar = k % 4 !== 0
  const { sink, gpu } = device
  const { row, matvecLanes, tiled } = gpu.tuning
  withQuads(sink, [operand(gpu, x, 'r'), operand(gpu, w, 'r')], scalar, ([xs, ws]) => {
    const types = { element: form(element, scalar), weight: scalar ? ('f32x1' as const) : weight }
    const [to, pitch] = columnsOf(gpu, y, { tokens, outs, column })
    const operands = [xs!, ws!, bias ? rangeOf(gpu, bias) : xs!, to]
    const params = [tokens, outs, scalar ? k : k / 4, pitch]
    const HAS_BIAS = bias !== undefined
    if (!tiled) {
      const TOKENS = tokens === 1 ? 1 : tokens <= 4 ? 4 : 8
      dispatch(sink, { name: 'matmul', ...types, constants: { WG: 16, TOKENS, HAS_BIAS } }, operands, params, [
        Math.ceil(outs / 64),
        Math.ceil(tokens / TOKENS),
      ])
    } else if (tokens < TILED_TOKENS) {
      const constants = { WG: row, LANES_PER_ROW: matvecLanes, HAS_BIAS }
      dispatch(sink, { name: 'matvec', ...types, constants }, operands, params, [Math.ceil(outs / (row / matvecLanes)), tokens])
    } else {
      dispatch(sink, { name: 'matmul_tiled', ...types, constants: { HAS_BIAS } }, operands, params, [
        Math.ceil(outs / 64),
        Math.ceil(tokens / 64),
      ])
    }
  })
  return y
}

export function ropeAppend(device: WebGpuDevice, x: Tensor, options: RopeAppend): Tensor {
  const { table, keys, values, heads, kvHeads, dim, out } = options
  const { tokens, start, position } = checkRope(x, options)
  refusePosition(position)
  for (const cache of [keys, values]) writableStorage(device.gpu.pool, cache.storage)
  const y = result(device, [x, table], out, [tokens, heads * dim], 'float32')
  if (tokens === 0) return y
  const { sink, gpu } = device
  const WG = gpu.tuning.flat
  const operands = [x, table, y, keys, values].map((tensor) => rangeOf(gpu, tensor))
  const count = tokens * (heads + 2 * kvHeads) * (dim / 2)
  dispatch(sink, { name: 'rope', constants: { WG } }, operands, [tokens, heads, kvHeads, dim, start], grid(Math.ceil(count / WG)))
  return y
}

export function attention(device: WebGpuDevice, q: Tensor, options: Attention): Tensor {
  const { keys, values, heads, kvHeads, dim, window = 0, scale = 1 / Math.sqrt(dim), portable = false, out } = options
  const { tokens, start, position } = checkAttention(q, options, window, scale)
  refusePosition(position)
  const y = result(device, [q, keys, values], out, [tokens, heads * dim], 'float32')
  if (tokens === 0) return y
  const { sink, gpu } = device
  const operands = [operand(gpu, q, 'r'), operand(gpu, keys, 'r'), operand(gpu, values, 'r'), operand(gpu, y, 'w')] as const
  withQuads(sink, operands, false, (ranges) => {
    const params = [tokens, heads, kvHeads, dim / 4, start, window, f32(scale)]
    const variant = { name: portable ? 'attention_portable' : 'attention', constants: { WG: gpu.tuning.attention } } as const
    dispatch(sink, variant, ranges, params, grid(tokens * heads))
  })
  return y
}

/** Steps are not recorded here; see Communicator.records. */
function refusePosition(position: Tensor | undefined): void {
  if (position) throw new ArgumentError('A WebGPU device takes start as a number; a tensor is for devices whose steps can be recorded')
}

export function siluMul(device: WebGpuDevice, x: Tensor, { portable = false, out }: SiluMul = {}): Tensor {
  const { rows, n } = checkSiluMul(x)
  const y = result(device, [x], out, [rows, n], x.dtype)
  rowKernel(device, 'silu_mul', [x], y, n, (quads) => ({
    params: [rows, quads],
    flat: rows * quads,
    constants: { PORTABLE: portable },
  }))
  return y
}

export function rmsNorm(
  device: WebGpuDevice,
  x: Tensor,
  weight: Tensor,
  { eps = 1e-6, zeroCentered = false, portable = false, out }: RmsNorm = {},
): Tensor {
  const { rows, n } = checkRmsNorm(x, weight, eps)
  const y = result(device, [x, weight], out, x.shape, x.dtype)
  rowKernel(device, 'rms_norm', [x, weight], y, n, (quads) => ({
    params: [rows, quads, n, f32(eps)],
    rows,
    constants: { ZERO_CENTERED: zeroCentered, PORTABLE: portable },
  }))
  return y
}

export function add(device: WebGpuDevice, a: Tensor, b: Tensor, { out }: { out?: Tensor } = {}): Tensor {
  const element = checkAdd(a, b)
  const y = result(device, [a, b], out, a.shape, a.dtype)
  if (y.size === 0) return y
  const { sink, gpu } = device
  const WG = gpu.tuning.flat
  withQuads(sink, [operand(gpu, a, 'r'), operand(gpu, b, 'r'), operand(gpu, y, 'w')], false, (ranges) => {
    const quads = Math.ceil(a.size / 4)
    dispatch(sink, { name: 'add', element, constants: { WG } }, ranges, [quads], grid(Math.ceil(quads / WG)))
  })
  return y
}

export function softmax(device: WebGpuDevice, x: Tensor, { out }: { out?: Tensor } = {}): Tensor {
  const n = checkSoftmax(x)
  const y = result(device, [x], out, x.shape, 'float32')
  if (y.size === 0) return y
  const rows = x.size / n
  const { sink, gpu } = device
  dispatch(sink, { name: 'softmax', constants: { WG: gpu.tuning.row } }, [rangeOf(gpu, x), rangeOf(gpu, y)], [rows, n], grid(rows))
  return y
}

export function topK(device: WebGpuDevice, x: Tensor, k: number, outIndices?: Tensor): { values: Tensor; indices: Tensor } {
  const { rows, n } = checkTopK(x, k)
  const shape = [...x.shape.slice(0, -1), k]
  const indices = result(device, [x], outIndices, shape, 'uint32')
  const values = Tensor.empty(shape, { device })
  const { sink, gpu } = device
  if (rows > 0) {
    const ranges = [x, values, indices].map((tensor) => rangeOf(gpu, tensor))
    dispatch(sink, { name: 'top_k', constants: { WG: gpu.tuning.row } }, ranges, [rows, n, k], grid(rows))
  }
  return { values, indices }
}

export function cast(device: WebGpuDevice, x: Tensor, dtype: DType, { out }: { out?: Tensor } = {}): Tensor {
  const { from: weight, to: element } = checkCast(x, dtype)
  const y = result(device, [x], out, x.shape, dtype)
  if (y.size === 0) return y
  const { sink, gpu } = device
  withQuads(sink, [operand(gpu, x, 'r'), operand(gpu, y, 'w')], false, ([from, to]) => castRange(sink, from!, weight, to!, element, x.size))
  return y
}

export function copy(device: WebGpuDevice, from: Tensor, to: Tensor): void {
  checkCopy(from, to)
  const { sink, gpu } = device
  checkUsable(device, [from])
  writableStorage(gpu.pool, to.storage)
  copyBytes(sink, rangeOf(gpu, from), rangeOf(gpu, to), from.byteLength)
}

/** A kernel over rows of `n` elements, all operands of y's dtype: in its quad form, or in its scalar form where n is no multiple of four. */
function rowKernel(
  device: WebGpuDevice,
  name: 'silu_mul' | 'rms_norm',
  inputs: readonly Tensor[],
  y: Tensor,
  n: number,
  plan: (quads: number) => { params: number[]; flat?: number; rows?: number; constants?: Record<string, boolean> },
): void {
  const element = floatType(y.dtype, 'x')
  if (y.size === 0) return
  const scalar = n % 4 !== 0
  const { sink, gpu } = device
  const operands = [...inputs.map((tensor) => operand(gpu, tensor, 'r')), operand(gpu, y, 'w')]
  withQuads(sink, operands, scalar, (ranges) => {
    const { params, flat, rows, constants } = plan(scalar ? n : n / 4)
    const WG = flat === undefined ? gpu.tuning.row : gpu.tuning.flat
    const groups = grid(flat === undefined ? (rows as number) : Math.ceil(flat / WG))
    dispatch(sink, { name, element: form(element, scalar), constants: { WG, ...constants } }, ranges, params, groups)
  })
}

/** The scalar form of a float element type. */
export function form(element: 'f32' | 'bf16' | 'f16' | Prelude, scalar: boolean): Prelude {
  return scalar ? (`${element}x1` as Prelude) : element
}

/** `out` where it fits, else a new tensor. The last check of an operation: behind it nothing fails, so nothing is queued in vain. */
export function result(device: WebGpuDevice, operands: readonly Tensor[], out: Tensor | undefined, shape: Shape, dtype: DType): Tensor {
  checkUsable(device, operands)
  if (!out) return new Tensor(device, device.allocate(sizeOf(shape) * dtypeSize(dtype)), shape, dtype)
  expectShape(out, shape, 'out')
  expectDType(out, dtype, 'out')
  writableStorage(device.gpu.pool, out.storage)
  return out
}

/** @throws ERR_DEVICE for a tensor that was disposed or is elsewhere, and on a device that is no more. */
function checkUsable({ gpu }: WebGpuDevice, operands: readonly Tensor[]): void {
  if (gpu.failure) throw gpu.failure
  for (const tensor of operands) storageOf(gpu, tensor)
}
