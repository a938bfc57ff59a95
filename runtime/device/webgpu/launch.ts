// From tensors to a recorded dispatch: ranges, grids, aliases, rows of odd length. What all operations of the device share.
import { type BlockDType, blockLength, type DType, dtypeSize, isBlockDType } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import { floatType } from '../checks.ts'
import type { Command, Range } from './commands.ts'
import { span } from './encoder.ts'
import type { Gpu } from './gpu.ts'
import type { Variant } from './kernel.ts'
import { type GpuStorage, gpuStorage } from './pool.ts'
import type { Prelude, WeightPrelude } from './shaders.ts'

export { elementType, type FloatType, floatType } from '../checks.ts'

/** Who records: a rank's lane, or the stream that serves all ranks of a device. */
export interface Sink {
  readonly gpu: Gpu
  record(command: Command): void
}

export function laneSink(gpu: Gpu, lane: number): Sink {
  return { gpu, record: (command) => gpu.recorder.record(lane, command) }
}

export function storageOf(gpu: Gpu, tensor: Tensor): GpuStorage {
  return gpuStorage(gpu.pool, tensor.storage)
}

/** Where a tensor's bytes are. */
export function rangeOf(gpu: Gpu, tensor: Tensor): Range {
  const storage = storageOf(gpu, tensor)
  return { buffer: storage.buffer, offset: storage.offset + tensor.byteOffset, byteLength: tensor.byteLength }
}

/** `outs` elements of each of y's rows, from `column` on: where they are, and how many elements apart rows begin. float32. */
export function columnsOf(
  gpu: Gpu,
  y: Tensor,
  { tokens, outs, column }: { tokens: number; outs: number; column: number },
): [Range, number] {
  const range = rangeOf(gpu, y)
  const pitch = y.shape.at(-1) as number
  return [{ ...range, offset: range.offset + 4 * column, byteLength: 4 * ((tokens - 1) * pitch + outs) }, pitch]
}

/** Memory for the span of `use`: what it held is free once the work recorded meanwhile is submitted. */
export function withScratch<T>(gpu: Gpu, byteLength: number, use: (range: Range) => T): T {
  const storage = gpu.pool.allocate(byteLength)
  try {
    return use({ buffer: storage.buffer, offset: storage.offset, byteLength })
  } finally {
    storage.release()
  }
}

/** Floats as the parameter words that hold their bits. */
const floatBits = new Float32Array(1)
const wordBits = new Uint32Array(floatBits.buffer)
export function f32(value: number): number {
  floatBits[0] = value
  return wordBits[0] as number
}

/** Workgroups for `count` pieces of work, folded into two dimensions where one is not enough. */
export function grid(count: number): [number, number] {
  const x = Math.min(count, 65_535)
  return [x, Math.ceil(count / x)]
}

/**
 * Records one dispatch. WebGPU forbids a buffer to be read and written by one dispatch, even in different places, and to be written through
 * two bindings that overlap: such an operand is replaced by a copy.
 */
export function dispatch(
  sink: Sink,
  variant: Variant,
  operands: readonly Range[],
  params: readonly number[],
  groups: readonly [number, number],
  own = 0,
): void {
  const kernel = sink.gpu.kernels.get(variant)
  const clash = operands.findIndex((_, i) => clashes(operands, kernel.access, i))
  if (clash < 0) {
    sink.record({ kind: 'dispatch', kernel, operands, params, own, grid: groups })
    return
  }
  const given = operands[clash] as Range
  const shift = given.offset & 3
  withScratch(sink.gpu, given.byteLength + shift, (to) => {
    sink.record({ kind: 'copy', from: { ...given, offset: given.offset - shift, byteLength: given.byteLength + shift }, to })
    const moved = { buffer: to.buffer, offset: to.offset + shift, byteLength: given.byteLength }
    dispatch(sink, variant, operands.with(clash, moved), params, groups, own)
    if (kernel.access[clash] === 'w') copyBytes(sink, moved, given, given.byteLength)
  })
}

/** True if operand `at` may not be bound as it is, beside the written ones (of these: the ones before it). */
function clashes(operands: readonly Range[], access: string, at: number): boolean {
  const own = operands[at] as Range
  const isRead = access[at] === 'r'
  return operands.some((other, i) => {
    if (i === at || access[i] !== 'w' || other.buffer !== own.buffer) return false
    if (isRead) return true
    const [a, b] = [span(own), span(other)]
    return i < at && a.offset < b.offset + b.size && b.offset < a.offset + a.size
  })
}

/** A grid of byte runs: dst[b][a] = src[a][b], `width` bytes each, at the given strides. */
export interface Runs {
  a: number
  b: number
  width: number
  srcA: number
  srcB: number
  dstA: number
  dstB: number
}

/** Copies byte runs of any alignment; runs of dst ascend and do not overlap. */
export function copyRuns(sink: Sink, from: Range, to: Range, runs: Runs): void {
  const { a, b, width, srcA, srcB, dstA, dstB } = runs
  if (a === 0 || b === 0 || width === 0) return
  const region = (b - 1) * dstB + (a - 1) * dstA + width
  const numbers = [from.offset, to.offset, width, srcA, srcB, dstA, dstB]
  const unit = [16, 4].find((bytes) => numbers.every((n) => n % bytes === 0)) ?? 1
  const constants = { WG: sink.gpu.tuning.flat, MANY_A: a > 1, MANY_B: b > 1 }
  const variant: Variant =
    unit === 1 ? { name: 'copy_bytes', constants } : { name: 'copy', element: unit === 16 ? 'u32' : 'u32x1', constants }
  const count = unit === 1 ? Math.ceil((region + (to.offset & 3)) / 4) : region / unit
  const params = [a, b, width / unit, srcA / unit, srcB / unit, dstA / unit, dstB / unit]
  dispatch(sink, variant, [from, { ...to, byteLength: region }], params, grid(Math.ceil(count / constants.WG)))
}

/** Copies `byteLength` bytes; whole words by the device's own copy, others by the kernel. */
export function copyBytes(sink: Sink, from: Range, to: Range, byteLength: number): void {
  if (byteLength === 0) return
  const whole = from.offset % 4 === 0 && to.offset % 4 === 0 && byteLength % 4 === 0
  if (whole && from.buffer !== to.buffer) sink.record({ kind: 'copy', from: { ...from, byteLength }, to: { ...to, byteLength } })
  else copyRuns(sink, from, to, { a: 1, b: 1, width: byteLength, srcA: 0, srcB: 0, dstA: byteLength, dstB: byteLength })
}

/** Converts `count` elements between float types; the last quad's tail of `to` is overwritten too. */
export function castRange(sink: Sink, from: Range, fromType: WeightPrelude, to: Range, toType: Prelude, count: number): void {
  const quads = Math.ceil(count / 4)
  const workgroup = sink.gpu.tuning.flat
  const variant: Variant = { name: 'cast', element: toType, weight: fromType, constants: { WG: workgroup } }
  dispatch(sink, variant, [from, to], [quads], grid(Math.ceil(quads / workgroup)))
}

/** One operand of a kernel that works on quads. */
export interface Operand {
  range: Range
  dtype: DType
  /** `r` read, `w` written, `rw` both. */
  use: 'r' | 'w' | 'rw'
  /** Elements of the range. */
  count: number
  /** Written ranges whose last quad may spill past their end into bytes nobody owns. */
  padded: boolean
}

/**
 * Runs `body` with ranges that a quad kernel can use. With `scalar`, rows are no multiple of four elements long: then 16-bit operands are
 * widened to float32 words, the kernel's `x1` form runs on them, and results are packed again. Without, operands that are not aligned to a
 * quad, or results whose last quad would spill into a neighbour, go through a copy.
 */
export function withQuads(sink: Sink, operands: readonly Operand[], scalar: boolean, body: (ranges: Range[]) => void): void {
  const scratch: GpuStorage[] = []
  const take = (byteLength: number): Range => {
    const storage = sink.gpu.pool.allocate(byteLength)
    scratch.push(storage)
    return { buffer: storage.buffer, offset: storage.offset, byteLength }
  }
  const after: (() => void)[] = []
  const ranges = operands.map(({ range, dtype, use, count, padded }) => {
    const size = dtypeSize(dtype)
    const unit = isBlockDType(dtype) ? blockUnit(dtype) : scalar && size === 4 ? 4 : 4 * size
    let target = range
    if (range.offset % unit !== 0 || (use !== 'r' && !padded && (count * size) % unit !== 0)) {
      const packed = take(count * size)
      if (use !== 'w') copyBytes(sink, range, packed, count * size)
      if (use !== 'r') after.unshift(() => copyBytes(sink, packed, range, count * size))
      target = packed
    }
    if (scalar && size !== 4) {
      const type = floatType(dtype, 'a row operand')
      const packed = target
      const wide = take(count * 4)
      if (use !== 'w') castRange(sink, packed, type, wide, 'f32', count)
      if (use !== 'r') after.unshift(() => castRange(sink, wide, 'f32', packed, type, count))
      target = wide
    }
    return target
  })
  try {
    body(ranges)
    for (const step of after) step()
  } finally {
    for (const storage of scratch) storage.release()
  }
}

/** Bytes at whose multiples blocks begin, as prelude/blocks.wgsl reads them. */
function blockUnit(dtype: BlockDType): number {
  return (dtypeSize(dtype) * blockLength(dtype)) % 4 === 0 ? 4 : 2
}

/** An operand for a whole tensor. */
export function operand(gpu: Gpu, tensor: Tensor, use: Operand['use']): Operand {
  const storage = storageOf(gpu, tensor)
  const padded = tensor.byteOffset + tensor.byteLength === storage.byteLength
  return { range: rangeOf(gpu, tensor), dtype: tensor.dtype, use, count: tensor.size, padded }
}
