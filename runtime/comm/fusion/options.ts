// The arguments of the fused all-reduces and the checks that need no device: every problem is found before one error tells them all.
import { ArgumentError, describe, ShapeError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { type AllReduceFusionPattern, type PatternTraits, QUANT } from './patterns.ts'
import { FP4_BLOCK, isScaleLayout, type QuantizationSFLayout } from './scale-layout.ts'
import type { AllReduceFusionWorkspace } from './workspace.ts'

/** Where results go; what is absent is taken from the workspace, or allocated. T tokens of H elements of the residual's dtype. */
export interface FusionOutputs {
  /** [T, H]: the sum alone. */
  output?: Tensor | undefined
  /** [T, H]: residual + sum. May be residualIn. */
  residualOut?: Tensor | undefined
  /** [T, H]: its norm. */
  normOut?: Tensor | undefined
  /** float8_e4m3fn [T, H] or float4_e2m1x2 [T, H / 2]. */
  quantOut?: Tensor | undefined
  /** FP4: uint8, in the order of layoutCode. FP8 by group: int32, packed. FP8 by token: float32 [T, 1]. */
  scaleOut?: Tensor | undefined
}

export type FusionResultName = keyof FusionOutputs
export const RESULT_NAMES: readonly FusionResultName[] = ['output', 'residualOut', 'normOut', 'quantOut', 'scaleOut']

/** What a call has written; undefined for what its pattern does not write. Shared by the ranks of a device, read-only unless given. */
export type FusionResult = { [Name in FusionResultName]: Tensor | undefined }

/** What the norm and the quantisers need. */
export interface FusionNorm {
  /** [T, H], equal on all ranks. */
  residualIn?: Tensor | undefined
  /** [H], of the residual's dtype. */
  rmsGamma?: Tensor | undefined
  /** Inside the square root; defaults to 1e-6. */
  rmsEps?: number | undefined
  /** Added to gamma; 1 for models that store gamma - 1. Defaults to 0. */
  weightBias?: number | undefined
  /** FP8: values are scaleFactor times their codes. FP4: values are code * scale / scaleFactor. In [2^-100, 2^100]. */
  scaleFactor?: number | undefined
  /** Order of the FP4 scales; defaults to SWIZZLED_128x4. */
  layoutCode?: QuantizationSFLayout | undefined
}

export interface AllReduceFusion extends FusionNorm, FusionOutputs {
  /** This rank's partial sum, [T, H]: float32, bfloat16 or float16. */
  input: Tensor
  pattern: AllReduceFusionPattern
  workspace?: AllReduceFusionWorkspace | undefined
  /**
   * Between devices: true exchanges whole partials, false has each device sum a part and gather the others' (not with `fp32Acc: false`),
   * 'auto' takes what moves fewer bytes. On one device, and in the bits, the choice changes nothing.
   */
  useOneshot?: 'auto' | boolean | undefined
  /** False rounds every partial sum to the dtype. Defaults to true. */
  fp32Acc?: boolean | undefined
  /** Consecutive elements that share an FP8 scale; divides H. Patterns 8 and 9. */
  blockQuantGroupSize?: number | undefined
  /** [H]: the sum is normed with this gamma, and rounded, before the residual joins it. */
  preNormGamma?: Tensor | undefined
}

const LIMIT = 2 ** 100

function isNumber(value: unknown, least: number, most: number): boolean {
  return typeof value === 'number' && value >= least && value <= most
}

/** What is wrong with the numbers of a call, as sentences; `shape` is that of its rows. */
export function scalarProblems(args: Omit<AllReduceFusion, 'input' | 'pattern'>, { norm, quant }: PatternTraits, hidden: number): string[] {
  const { rmsEps = 1e-6, weightBias = 0, scaleFactor, layoutCode = 0, useOneshot = 'auto', fp32Acc = true, blockQuantGroupSize } = args
  const wrong: string[] = []
  const expect = (ok: boolean, name: string, expected: string, given: unknown): void => {
    if (!ok) wrong.push(`expected ${expected} for ${name} but received ${describe(given)}`)
  }
  if (norm) {
    expect(isNumber(rmsEps, 0, Number.MAX_VALUE), 'rmsEps', 'a finite number of at least 0', rmsEps)
    expect(Number.isFinite(weightBias), 'weightBias', 'a finite number', weightBias)
    expect(args.residualIn !== undefined, 'residualIn', 'a Tensor', args.residualIn)
    expect(args.rmsGamma !== undefined, 'rmsGamma', 'a Tensor', args.rmsGamma)
  }
  if (quant === QUANT.fp8 || quant === QUANT.fp4) {
    expect(isNumber(scaleFactor, 1 / LIMIT, LIMIT), 'scaleFactor', 'a number in [2^-100, 2^100]', scaleFactor)
  }
  if (quant === QUANT.fp4) {
    expect(isScaleLayout(layoutCode), 'layoutCode', 'one of QuantizationSFLayout', layoutCode)
  }
  if (quant === QUANT.fp8Groups) {
    const fits = Number.isInteger(blockQuantGroupSize) && isNumber(blockQuantGroupSize, 1, hidden)
    expect(fits && hidden % (blockQuantGroupSize as number) === 0, 'blockQuantGroupSize', `a divisor of ${hidden}`, blockQuantGroupSize)
  }
  expect(useOneshot === 'auto' || typeof useOneshot === 'boolean', 'useOneshot', "'auto', true or false", useOneshot)
  expect(typeof fp32Acc === 'boolean', 'fp32Acc', 'true or false', fp32Acc)
  return wrong
}

/** @throws ERR_SHAPE unless `hidden` suits the kernel: whole quads, and whole blocks for FP4. */
export function checkHidden(hidden: number, quant: PatternTraits['quant']): void {
  const unit = quant === QUANT.fp4 ? FP4_BLOCK : 4
  if (hidden % unit !== 0) throw new ShapeError(`Expected a hidden size that is a multiple of ${unit} but received ${hidden}; pad the rows`)
}

/** @throws ERR_ARGUMENT with all problems in one message. */
export function throwProblems(what: string, problems: readonly string[]): void {
  if (problems.length > 0) throw new ArgumentError(`${what}: ${problems.join('; ')}`)
}
