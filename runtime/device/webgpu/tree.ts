// Matrix products and sums in the order of one fixed binary tree over blocks of k; see core/tree.ts for the tree.
import { ArgumentError, ShapeError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { TreeProduct } from '../device.ts'
import { checkTree } from '../operands.ts'
import type { Range } from './commands.ts'
import type { WebGpuDevice } from './device.ts'
import { columnsOf, dispatch, grid, operand, rangeOf, type Sink, withQuads } from './launch.ts'
import { result } from './ops.ts'

const WORKGROUP = 16
/** Slots that the parameters of tree_sum have room for. */
export const MAX_SLOTS = 144

export function matmulTree(device: WebGpuDevice, x: Tensor, w: Tensor, options: TreeProduct): Tensor {
  const { block, first = 0, whole = false, bias, out } = options
  const { tokens, k, outs, element, weight, shape, column } = checkTree(x, w, options)
  const y = result(device, bias ? [x, w, bias] : [x, w], out, shape, 'float32')
  if (tokens * outs === 0) return y
  const { sink, gpu } = device
  withQuads(sink, [operand(gpu, x, 'r'), operand(gpu, w, 'r')], false, ([xs, ws]) => {
    const TOKENS = tokens === 1 ? 1 : 4
    const constants = { WG: WORKGROUP, TOKENS, HAS_BIAS: bias !== undefined, WHOLE: whole }
    const [to, pitch] = whole ? columnsOf(gpu, y, { tokens, outs, column }) : [rangeOf(gpu, y), outs]
    const operands = [xs!, ws!, bias ? rangeOf(gpu, bias) : xs!, to]
    const groups: [number, number] = [Math.ceil(outs / (4 * WORKGROUP)), Math.ceil(tokens / TOKENS)]
    dispatch(sink, { name: 'matmul_tree', element, weight, constants }, operands, [tokens, outs, k / 4, block / 4, pitch], groups, first)
  })
  return y
}

/**
 * y [count] = subtree sums joined: rank r's `slots` of them begin `r * pitch` bytes after `x`, one after the other; `merges` says how they are joined,
 * see core/tree.ts. float32.
 */
export function treeSum(sink: Sink, x: Range, pitch: number, y: Range, count: number, slots: number, merges: readonly number[]): void {
  if (merges.length > MAX_SLOTS) {
    throw new ArgumentError(
      `A cut into ${merges.length / slots} ranks of up to ${slots} subtrees is more than ${MAX_SLOTS} sums; cut at larger powers of two`,
    )
  }
  if (count % 4 !== 0) throw new ShapeError(`Expected a multiple of 4 elements for a sum by the tree but received ${count}`)
  const words = new Uint32Array(Math.ceil(merges.length / 4))
  for (const [slot, joins] of merges.entries()) words[slot >> 2] = (words[slot >> 2] as number) | (joins << ((slot & 3) * 8))
  const WG = sink.gpu.tuning.flat
  const params = [count / 4, pitch / 16, slots, merges.length, ...words]
  dispatch(sink, { name: 'tree_sum', constants: { WG } }, [x, y], params, grid(Math.ceil(count / 4 / WG)))
}
