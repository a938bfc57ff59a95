// What each operation demands of its operands, on every kind of device alike, and the sizes that follow from them.
import type { DType } from '../core/dtype.ts'
import { ArgumentError, checkInteger, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape, type Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import { nodesOf } from '../core/tree.ts'
import {
  checkCache,
  checkEps,
  checkHeads,
  elementType,
  expectDims,
  expectDType,
  expectShape,
  type FloatType,
  floatType,
  lastDim,
  type WeightType,
  weightType,
} from './checks.ts'
import type { Activations, Attention, Product, RopeAppend, TreeProduct } from './device.ts'

/** Widest attention head. */
const MAX_HEAD = 256
const MAX_BLOCKS = 2 ** 16

export interface ProductSizes {
  tokens: number
  k: number
  outs: number
  element: FloatType
  weight: WeightType
  /** Of the result. */
  shape: Shape
  /** Elements of the result's rows that lie before the product. */
  column: number
}

export function checkEmbedding(
  ids: Tensor,
  table: Tensor,
  first: number,
  dtype: DType,
): { tokens: number; n: number; rows: number; weight: WeightType; element: FloatType } {
  expectDType(ids, 'uint32', 'ids')
  expectDims(ids, 1, 'ids')
  expectDims(table, 2, 'table')
  checkInteger('first', first, 0, 2 ** 32 - 1)
  const weight = weightType(table.dtype, 'table')
  const element = floatType(dtype, 'the embedding')
  const [rows, n] = table.shape as [number, number]
  return { tokens: ids.size, n, rows, weight, element }
}

export function checkMatmul(x: Tensor, w: Tensor, { bias, out, column, activations }: Product): ProductSizes {
  expectDims(x, 2, 'x')
  expectDims(w, 2, 'w')
  const [tokens, k] = x.shape as [number, number]
  const [outs, wk] = w.shape as [number, number]
  if (k !== wk)
    throw new ShapeError(`Expected x [tokens, k] and w [outs, k] but received ${formatShape(x.shape)} and ${formatShape(w.shape)}`)
  checkBias(bias, outs)
  checkActivations(activations)
  const element = floatType(x.dtype, 'x')
  const weight = weightType(w.dtype, 'w')
  if (k === 0) throw new ShapeError('Expected at least one column in x and w but received 0')
  return { tokens, k, outs, element, weight, ...placeOf(out, [tokens, outs], column) }
}

/** @throws ERR_ARGUMENT */
export function checkActivations(given: Activations | undefined): void {
  if (given !== undefined && given !== 'bfloat16' && given !== 'int8') throw invalidArgument('activations', "'bfloat16' or 'int8'", given)
}

export function checkTree(x: Tensor, w: Tensor, options: TreeProduct): ProductSizes {
  const { block, first = 0, whole = false, bias, out, column } = options
  expectDims(x, 2, 'x')
  expectDims(w, 2, 'w')
  const [tokens, k] = x.shape as [number, number]
  const outs = w.shape[0] as number
  expectShape(w, [outs, k], 'w')
  checkInteger('block', block, 4)
  checkInteger('first', first, 0, MAX_BLOCKS - 1)
  if (block % 4 !== 0) throw new ArgumentError(`Expected block to be a multiple of 4 but received ${block}`)
  if (k === 0 || k % 4 !== 0) throw new ShapeError(`Expected x [tokens, k] with k a multiple of 4 but received ${formatShape(x.shape)}`)
  const count = Math.ceil(k / block)
  if (first + count > MAX_BLOCKS)
    throw new ShapeError(`Expected at most ${MAX_BLOCKS} blocks but block ${first} and ${count} more were given`)
  if (bias && !whole)
    throw new ArgumentError('A bias belongs to the whole sum: give it where whole is true, or add it after the ranks have added')
  checkBias(bias, outs)
  const [element, weight] = [floatType(x.dtype, 'x'), weightType(w.dtype, 'w')]
  const nodes = whole ? 1 : nodesOf({ start: first, count }).length
  if (out && !whole && out.size < nodes * tokens * outs) {
    throw new ShapeError(
      `Expected at least ${nodes * tokens * outs} elements for out (${nodes} subtrees) but received ${formatShape(out.shape)}`,
    )
  }
  if (column !== undefined && !whole) throw new ArgumentError('A column is for whole sums: subtrees lie one after the other')
  const place = whole ? placeOf(out, [tokens, outs], column) : { shape: out?.shape ?? [nodes, tokens, outs], column: 0 }
  return { tokens, k, outs, element, weight, ...place }
}

/** Where the first token is: a position that is known, or one that is read later; and how many positions there are for it and those behind it. */
export interface Start {
  start: number
  position: Tensor | undefined
  limit: number
}

/** A known start reaches `tokens` further, any other as far as there is room. */
function startOf(start: number | Tensor, tokens: number, room: number): Start {
  if (!(start instanceof Tensor)) {
    checkInteger('start', start, 0)
    return { start, position: undefined, limit: start + tokens }
  }
  expectDType(start, 'uint32', 'start')
  if (start.size !== 1) throw new ShapeError(`Expected one position for start but received ${formatShape(start.shape)}`)
  return { start: 0, position: start, limit: room }
}

/** The number of tokens, and where they are. */
export function checkRope(x: Tensor, { table, keys, values, heads, kvHeads, dim, start: given }: RopeAppend): { tokens: number } & Start {
  expectDims(x, 2, 'x')
  const tokens = x.shape[0] as number
  expectShape(x, [tokens, (heads + 2 * kvHeads) * dim], 'x (heads + 2 * kvHeads wide)')
  checkHeads(heads, kvHeads, dim)
  const at = startOf(given, tokens, Math.min(keys.shape[0] ?? 0, table.shape[0] ?? 0))
  const { start } = at
  checkCache(keys, values, kvHeads, dim, start, tokens)
  if (table.shape.length !== 3 || (table.shape[0] as number) < start + tokens || table.shape[1] !== dim / 2 || table.shape[2] !== 2) {
    throw new ShapeError(`Expected a table of [at least ${start + tokens}, ${dim / 2}, 2] but received ${formatShape(table.shape)}`)
  }
  for (const [name, tensor] of Object.entries({ x, table, keys, values })) expectDType(tensor, 'float32', name)
  return { tokens, ...at }
}

/** The number of tokens, and where they are. */
export function checkAttention(q: Tensor, options: Attention, window: number, scale: number): { tokens: number } & Start {
  const { keys, values, heads, kvHeads, dim } = options
  checkHeads(heads, kvHeads, dim)
  if (dim % 4 !== 0 || dim > MAX_HEAD)
    throw new ShapeError(`Expected a head size that is a multiple of 4 up to ${MAX_HEAD} but received ${dim}`)
  checkInteger('window', window, 0, 2 ** 32 - 1)
  if (!Number.isFinite(scale)) throw invalidArgument('scale', 'a finite number', scale)
  expectDims(q, 2, 'q')
  const tokens = q.shape[0] as number
  expectShape(q, [tokens, heads * dim], 'q')
  const at = startOf(options.start, tokens, keys.shape[0] ?? 0)
  checkCache(keys, values, kvHeads, dim, at.start, tokens)
  for (const [name, tensor] of Object.entries({ q, keys, values })) expectDType(tensor, 'float32', name)
  return { tokens, ...at }
}

export function checkSiluMul(x: Tensor): { rows: number; n: number; element: FloatType } {
  expectDims(x, 2, 'x')
  const [rows, both] = x.shape as [number, number]
  if (both % 2 !== 0) throw new ShapeError(`Expected x [rows, 2n], gate beside up, but received ${formatShape(x.shape)}`)
  return { rows, n: both / 2, element: floatType(x.dtype, 'x') }
}

export function checkRmsNorm(x: Tensor, weight: Tensor, eps: number): { rows: number; n: number; element: FloatType } {
  const n = lastDim(x, 'x')
  expectShape(weight, [n], 'weight')
  expectDType(weight, x.dtype, 'weight')
  checkEps(eps)
  return { rows: n === 0 ? 0 : x.size / n, n, element: floatType(x.dtype, 'x') }
}

export function checkAdd(a: Tensor, b: Tensor): FloatType | 'i32' | 'u32' {
  expectShape(b, a.shape, 'b')
  expectDType(b, a.dtype, 'b')
  return elementType(a.dtype, 'a')
}

/** Elements of a row. */
export function checkSoftmax(x: Tensor): number {
  expectDType(x, 'float32', 'x')
  return lastDim(x, 'x')
}

export function checkTopK(x: Tensor, k: number): { rows: number; n: number } {
  expectDType(x, 'float32', 'x')
  const n = lastDim(x, 'x')
  if (n === 0) throw new ShapeError(`Expected at least one value in each row of x but received ${formatShape(x.shape)}`)
  checkInteger('k', k, 1, n)
  return { rows: x.size / n, n }
}

export function checkCast(x: Tensor, dtype: DType): { from: FloatType; to: FloatType } {
  return { from: floatType(x.dtype, 'x'), to: floatType(dtype, 'the result of cast') }
}

export function checkCopy(from: Tensor, to: Tensor): void {
  expectDType(to, from.dtype, 'to')
  if (from.size !== to.size) throw new ShapeError(`Expected ${from.size} elements for to but received ${formatShape(to.shape)}`)
}

/** Where a product of shape [tokens, outs] goes: all of `out`, or columns of a wider one. */
function placeOf(out: Tensor | undefined, [tokens, outs]: readonly [number, number], column?: number): { shape: Shape; column: number } {
  if (column === undefined) return { shape: [tokens, outs], column: 0 }
  if (!out) throw new ArgumentError('A column is one of `out`: give that too')
  expectDims(out, 2, 'out')
  const width = out.shape[1] as number
  checkInteger('column', column, 0)
  if (column + outs > width) throw new ShapeError(`Expected ${outs} columns of out from column ${column} on but it has ${width}`)
  return { shape: [tokens, width], column }
}

function checkBias(bias: Tensor | undefined, outs: number): void {
  if (!bias) return
  expectDType(bias, 'float32', 'bias')
  expectShape(bias, [outs], 'bias')
}
