// The kernels of the fused all-reduces: partials to residual, norm and codes in one dispatch, and the experts' rows to a partial.
import { dtypeSize } from '../../core/dtype.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { Variant } from '../../device/webgpu/kernel.ts'
import {
  castRange,
  copyBytes,
  copyRuns,
  dispatch,
  f32,
  floatType,
  grid,
  type Operand,
  type Sink,
  withQuads,
  withScratch,
} from '../../device/webgpu/launch.ts'
import type { RankExperts } from '../fusion/experts.ts'
import { QUANT } from '../fusion/patterns.ts'
import type { RowsShape } from '../fusion/rows.ts'
import { FP4_BLOCK, QuantizationSFLayout } from '../fusion/scale-layout.ts'
import type { Slices } from './clusters.ts'

/** Partials up to which the kernel is built for their number. */
const UNROLLED = 8
/** Bytes between the places that stand for operands a variant does not have. */
const UNUSED = 256

/** What the kernel reads and writes; null for what a call does not have. */
export interface FusedOperands {
  residualIn: Operand | null
  gamma: Operand | null
  preGamma: Operand | null
  residualOut: Operand | null
  normOut: Operand | null
  quantOut: Operand | null
  scaleOut: Operand | null
}

/** The fused kernel on one device, `x` the partials side by side; without a gamma it writes the sum alone, to normOut. */
export function fusedRows(sink: Sink, x: Slices, operands: FusedOperands, shape: RowsShape): void {
  const { rows, n, quant, layout } = shape
  const { scaleOut } = operands
  const columns = n / FP4_BLOCK
  if (quant === QUANT.fp4 && layout === QuantizationSFLayout.LINEAR && columns % 4 !== 0 && scaleOut) {
    // Rows of scales that are not whole words: written a word-aligned row each, then moved together.
    const padded = 4 * Math.ceil(columns / 4)
    withScratch(sink.gpu, rows * padded, (range) => {
      const wide: Operand = { range, dtype: 'uint8', use: 'w', count: rows * padded, padded: true }
      runFused(sink, x, { ...operands, scaleOut: wide }, shape)
      const runs = { a: 1, b: rows, width: columns, srcA: 0, srcB: padded, dstA: columns, dstB: columns }
      copyRuns(sink, range, scaleOut.range, runs)
    })
    return
  }
  runFused(sink, x, operands, shape)
}

function runFused(sink: Sink, x: Slices, operands: FusedOperands, shape: RowsShape): void {
  const { residualIn, gamma, preGamma, residualOut, normOut, quantOut, scaleOut } = operands
  const inPlace = residualIn !== null && residualOut !== null && samePlace(residualIn.range, residualOut.range)
  const slots = [inPlace ? null : residualIn, gamma, preGamma, residualOut, normOut, quantOut, scaleOut]
  const used = slots.filter((slot): slot is Operand => slot !== null)
  const element = floatType((residualOut ?? normOut)?.dtype ?? x.dtype, 'the rows')
  const { rows, n, factor, quant } = shape
  const variant: Variant = {
    name: 'all_reduce_fusion',
    element,
    weight: floatType(x.dtype, 'the partials'),
    constants: {
      WG: sink.gpu.tuning.row,
      RANKS: x.count <= UNROLLED ? x.count : 0,
      SUM_ONLY: gamma === null,
      ROUND_SUMS: shape.roundSums,
      IN_PLACE: inPlace,
      PRE_NORM: preGamma !== null,
      NORM_OUT: normOut !== null,
      QUANT: quant,
      LAYOUT: quant === QUANT.fp4 ? shape.layout : 0,
    },
  }
  const multiplier = quant === QUANT.fp8 ? Math.fround(1 / Math.fround(factor)) : Math.fround(factor)
  const params = [
    ...[8, 9, 10, 11, 12, 13, 14, 15].map((digit) => f32(multiplier / digit)),
    ...[rows, n / 4, n, f32(shape.eps), x.pitch / (4 * dtypeSize(x.dtype)), x.count],
    ...[f32(shape.weightBias), f32(multiplier), shape.group],
  ]
  withScratch(sink.gpu, UNUSED * slots.length, (spare) => {
    withQuads(sink, used, false, (ranges) => {
      const bound = slots.map((slot, i) =>
        slot ? ranges[used.indexOf(slot)]! : { buffer: spare.buffer, offset: spare.offset + i * UNUSED, byteLength: UNUSED },
      )
      // What is read and unused must not share a buffer with what is written and unused.
      for (const i of [0, 1, 2]) if (!slots[i]) bound[i] = x.range
      dispatch(sink, variant, [x.range, ...bound], params, grid(rows))
    })
  })
}

function samePlace(a: Range, b: Range): boolean {
  return a.buffer === b.buffer && a.offset === b.offset
}

interface ExpertRows {
  /** Expert rows, [count, n]. */
  rows: Operand
  count: number
  /** float32; dense [k, tokens], else [tokens, k]. */
  scale: Range | null
  /** int32 [tokens, k], or null: the k-th expert's row of token t is k * tokens + t. */
  index: Range | null
  shared: Operand | null
  k: number
  routed: number
}

/** y [tokens, n] = the tokens' expert rows, weighted and summed, + shared. */
function combineExperts(sink: Sink, { rows, count, scale, index, shared, k, routed }: ExpertRows, y: Operand, n: number): void {
  const tokens = y.count / n
  const WG = sink.gpu.tuning.flat
  const constants = { WG, DENSE: index === null, HAS_SCALE: scale !== null, HAS_SHARED: shared !== null }
  const variant: Variant = { name: 'moe_combine', element: floatType(y.dtype, 'the experts'), constants }
  const reads = shared ? [rows, shared] : [rows]
  withQuads(sink, [...reads, y], false, (ranges) => {
    const from = ranges[0]!
    const operands = [from, scale ?? from, index ?? from, shared ? ranges[1]! : from, ranges.at(-1)!]
    const params = [tokens, n / 4, k, count, f32(routed)]
    dispatch(sink, variant, operands, params, grid(Math.ceil((tokens * n) / 4 / WG)))
  })
}

type JoinedRows = Pick<RankExperts<Operand>, 'rows' | 'count' | 'scale' | 'index' | 'shared' | 'k' | 'routed'>

/** Joins a rank's experts; scales of 16 bits are widened first. */
export function joinExperts(sink: Sink, experts: JoinedRows, y: Operand, n: number): void {
  const { scale, index } = experts
  const run = (range: ExpertRows['scale']): void => combineExperts(sink, { ...experts, scale: range, index: index?.range ?? null }, y, n)
  if (!scale || scale.dtype === 'float32') {
    run(scale?.range ?? null)
    return
  }
  const type = floatType(scale.dtype, 'expertScaleFactor')
  withScratch(sink.gpu, Math.ceil(scale.count / 4) * 16, (wide) => {
    withQuads(sink, [scale], false, ([from]) => castRange(sink, from!, type, wide, 'f32', scale.count))
    run(wide)
  })
}

/** The lead rank's memory to the others', where they have their own. */
export function mirror(sink: Sink, from: Range, others: readonly Range[]): void {
  for (const to of others) if (!samePlace(from, to)) copyBytes(sink, from, to, from.byteLength)
}
