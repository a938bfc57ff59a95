// What operations demand of their operands: shapes, element types, and the numbers that go with them.
import { type BlockDType, type DType, isBlockDType } from '../core/dtype.ts'
import { checkInteger, DTypeError, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape, type Shape, sameShape } from '../core/shape.ts'
import type { Tensor } from '../core/tensor.ts'

export function checkHeads(heads: number, kvHeads: number, dim: number): void {
  checkInteger('heads', heads, 1)
  checkInteger('kvHeads', kvHeads, 1)
  if (heads % kvHeads !== 0) throw invalidArgument('heads', `a multiple of kvHeads (${kvHeads})`, heads)
  if (!Number.isInteger(dim) || dim < 2 || dim % 2 !== 0) throw invalidArgument('dim', 'an even integer of at least 2', dim)
}

export function checkCache(keys: Tensor, values: Tensor, kvHeads: number, dim: number, start: number, tokens: number): void {
  expectDims(keys, 2, 'keys')
  const capacity = keys.shape[0] as number
  expectShape(keys, [capacity, kvHeads * dim], 'keys')
  expectShape(values, [capacity, kvHeads * dim], 'values')
  if (start + tokens > capacity) {
    throw new ShapeError(`Expected a cache of at least ${start + tokens} rows but received ${capacity}; make it longer or end the sequence`)
  }
}

export function checkEps(eps: number): void {
  if (!(eps >= 0 && Number.isFinite(eps))) throw invalidArgument('eps', 'a finite number of at least 0', eps)
}

export function lastDim(x: Tensor, name: string): number {
  const n = x.shape.at(-1)
  if (n === undefined) throw new ShapeError(`Expected at least one dimension for ${name} but received a scalar`)
  return n
}

export function expectDims(tensor: Tensor, dims: number, name: string): void {
  if (tensor.shape.length !== dims)
    throw new ShapeError(`Expected ${dims} dimensions for ${name} but received ${formatShape(tensor.shape)}`)
}

export function expectShape(tensor: Tensor, shape: Shape, name: string): void {
  if (!sameShape(tensor.shape, shape)) {
    throw new ShapeError(`Expected shape ${formatShape(shape)} for ${name} but received ${formatShape(tensor.shape)}`)
  }
}

export function expectDType(tensor: Tensor, dtype: DType, name: string): void {
  if (tensor.dtype !== dtype) throw new DTypeError(`Expected ${dtype} for ${name} but received ${tensor.dtype}; cast it first`)
}

/** Element types that are floats in both roles. */
export type FloatType = 'f32' | 'bf16' | 'f16'

const FLOATS: Partial<Record<DType, FloatType>> = { float32: 'f32', bfloat16: 'bf16', float16: 'f16' }
const INTEGERS: Partial<Record<DType, 'i32' | 'u32'>> = { int32: 'i32', uint32: 'u32' }

/** A float dtype as kernels call it; others throw ERR_DTYPE. */
export function floatType(dtype: DType, what: string): FloatType {
  const type = FLOATS[dtype]
  if (!type) throw new DTypeError(`Expected float32, bfloat16 or float16 for ${what} but received ${dtype}; cast it first`)
  return type
}

/** What weights may be stored as. */
export type WeightType = FloatType | BlockDType

export function weightType(dtype: DType, what: string): WeightType {
  return isBlockDType(dtype) ? dtype : floatType(dtype, what)
}

export function elementType(dtype: DType, what: string): FloatType | 'i32' | 'u32' {
  const type = FLOATS[dtype] ?? INTEGERS[dtype]
  if (!type) throw new DTypeError(`Expected float32, bfloat16, float16, int32 or uint32 for ${what} but received ${dtype}; cast it first`)
  return type
}
