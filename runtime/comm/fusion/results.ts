// What each pattern of the fused all-reduces writes, and of which shape; and whose memory it goes to.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { FusionResult, FusionResultName } from './options.ts'
import { type PatternTraits, QUANT } from './patterns.ts'
import { FP4_BLOCK, fp4ScaleBytes, packedScales, QuantizationSFLayout } from './scale-layout.ts'
import type { AllReduceFusionWorkspace } from './workspace.ts'

export interface ResultSpec {
  shape: Shape
  dtype: DType
}
export type ResultSpecs = Partial<Record<FusionResultName, ResultSpec>>

export interface RowsSpec {
  tokens: number
  hidden: number
  dtype: DType
  layout: QuantizationSFLayout
  group: number
}

/** What a pattern writes for rows of this kind. */
export function resultSpecs({ norm, normOut, quant }: PatternTraits, { tokens, hidden, dtype, layout, group }: RowsSpec): ResultSpecs {
  const rows = { shape: [tokens, hidden], dtype }
  if (!norm) return { output: rows }
  const specs: ResultSpecs = { residualOut: rows }
  if (normOut) specs.normOut = rows
  if (quant === QUANT.fp4) {
    const columns = hidden / FP4_BLOCK
    const linear = layout === QuantizationSFLayout.LINEAR
    specs.quantOut = { shape: [tokens, hidden / 2], dtype: 'float4_e2m1x2' }
    specs.scaleOut = { shape: linear ? [tokens, columns] : [fp4ScaleBytes(layout, tokens, columns)], dtype: 'uint8' }
  } else if (quant !== QUANT.none) {
    specs.quantOut = { shape: [tokens, hidden], dtype: 'float8_e4m3fn' }
    if (quant === QUANT.fp8Rows) specs.scaleOut = { shape: [tokens, 1], dtype: 'float32' }
    if (quant === QUANT.fp8Groups) specs.scaleOut = { shape: [packedScales(tokens, hidden / group).length], dtype: 'int32' }
  }
  return specs
}

/** As `resultSpecs`, for the most tokens of a workspace. */
export function largestSpecs({ metadata }: AllReduceFusionWorkspace, traits: PatternTraits, spec: RowsSpec): ResultSpecs {
  const tokens = Math.floor((metadata.maxTokenNum * metadata.hiddenDim) / spec.hidden)
  return resultSpecs(traits, { ...spec, tokens })
}

/** A tensor that a rank named as the place of a result. */
export interface ResultTarget<O> {
  tensor: Tensor
  operand: O
}

/** What a rank brought: its own places for results, and its workspace. `O` is how its kind of group sees an operand. */
export interface RankPlaces<O> {
  targets: Partial<Record<FusionResultName, ResultTarget<O>>>
  workspace: AllReduceFusionWorkspace | undefined
}

export function emptyResult(): FusionResult {
  return { output: undefined, residualOut: undefined, normOut: undefined, quantOut: undefined, scaleOut: undefined }
}

export function bytesOfResult({ shape, dtype }: ResultSpec): number {
  return sizeOf(shape) * dtypeSize(dtype)
}
