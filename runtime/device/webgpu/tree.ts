// Matrix products and sums in the order of one fixed binary tree over blocks of k; see core/tree.ts for the tree.
import { ArgumentError, checkInteger, ShapeError } from '../../core/errors.ts'
import { formatShape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { mergesOf, nodesOf, type Span, slotsOf } from '../../core/tree.ts'
import type { TreeProduct } from '../device.ts'
import { expectDims, expectDType, expectShape } from './checks.ts'
import type { Range } from './commands.ts'
import type { WebGpuDevice } from './device.ts'
import { dispatch, floatType, grid, operand, rangeOf, type Sink, withQuads } from './launch.ts'
import { result } from './ops.ts'

const WORKGROUP = 16
/** Slots that the parameters of tree_sum have room for. */
const MAX_SLOTS = 144
const MAX_BLOCKS = 2 ** 16

export function matmulTree(device: WebGpuDevice, x: Tensor, w: Tensor, options: TreeProduct): Tensor {
  const { block, first = 0, whole = false, bias, out } = options
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
  if (bias) {
    if (!whole)
      throw new ArgumentError('A bias belongs to the whole sum: give it where whole is true, or add it after the ranks have added')
    expectDType(bias, 'float32', 'bias')
    expectShape(bias, [outs], 'bias')
  }
  const types = { element: floatType(x.dtype, 'x'), weight: floatType(w.dtype, 'w') }
  const nodes = whole ? 1 : nodesOf({ start: first, count }).length
  if (out && !whole && out.size < nodes * tokens * outs) {
    throw new ShapeError(
      `Expected at least ${nodes * tokens * outs} elements for out (${nodes} subtrees) but received ${formatShape(out.shape)}`,
    )
  }
  const shape = whole ? [tokens, outs] : (out?.shape ?? [nodes, tokens, outs])
  const y = result(device, bias ? [x, w, bias] : [x, w], out, shape, 'float32')
  if (y.size === 0) return y
  const { sink, gpu } = device
  withQuads(sink, [operand(gpu, x, 'r'), operand(gpu, w, 'r')], false, ([xs, ws]) => {
    const TOKENS = tokens === 1 ? 1 : 4
    const constants = { WG: WORKGROUP, TOKENS, HAS_BIAS: bias !== undefined, WHOLE: whole }
    const operands = [xs!, ws!, bias ? rangeOf(gpu, bias) : xs!, rangeOf(gpu, y)]
    const groups: [number, number] = [Math.ceil(outs / (4 * WORKGROUP)), Math.ceil(tokens / TOKENS)]
    dispatch(sink, { name: 'matmul_tree', ...types, constants }, operands, [tokens, outs, k / 4, block / 4], groups, first)
  })
  return y
}

/** y [count] = the sum of all ranks' subtree sums: rank r's begin `r * pitch` bytes after `x`, one after the other. float32. */
export function treeSum(sink: Sink, x: Range, pitch: number, y: Range, count: number, spans: readonly Span[]): void {
  const nodes = slotsOf(spans)
  const merges = mergesOf(spans, nodes)
  if (merges.length > MAX_SLOTS) {
    throw new ArgumentError(
      `A cut into ${spans.length} ranks of up to ${nodes} subtrees is more than ${MAX_SLOTS} sums; cut at larger powers of two`,
    )
  }
  if (count % 4 !== 0) throw new ShapeError(`Expected a multiple of 4 elements for a sum by the tree but received ${count}`)
  const words = new Uint32Array(Math.ceil(merges.length / 4))
  for (const [slot, joins] of merges.entries()) words[slot >> 2] = (words[slot >> 2] as number) | (joins << ((slot & 3) * 8))
  const WG = sink.gpu.tuning.flat
  const params = [count / 4, pitch / 16, nodes, merges.length, ...words]
  dispatch(sink, { name: 'tree_sum', constants: { WG } }, [x, y], params, grid(Math.ceil(count / 4 / WG)))
}
