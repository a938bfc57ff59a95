// The rows behind the sum of a fused all-reduce: everything about them is checked here, for every kind of group, before anything is queued.
import type { DType } from '../../core/dtype.ts'
import { ArgumentError, invalidArgument } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { expectDims, expectDType, expectShape, floatType } from '../../device/checks.ts'
import type { Device } from '../../device/device.ts'
import { checkAlgorithm, reductionCall } from '../algorithms.ts'
import { checkApart, checkHere, checkWritable, describeTensor } from '../checks.ts'
import type { HoldAs } from '../member.ts'
import {
  type AllReduceFusion,
  checkHidden,
  type FusionNorm,
  type FusionOutputs,
  RESULT_NAMES,
  scalarProblems,
  throwProblems,
} from './options.ts'
import { type PatternTraits, type Quant, traitsOf } from './patterns.ts'
import { type RankPlaces, type ResultSpecs, type RowsSpec, resultSpecs } from './results.ts'
import type { QuantizationSFLayout } from './scale-layout.ts'
import type { FusionProblemSize } from './workspace.ts'

/** Of a rank's part in its group, what the checks need. */
export interface Ranks {
  readonly device: Device
  readonly size: number
  readonly group: { readonly sites: readonly { readonly ranks: readonly number[] }[] }
}

/** What a rank brings for the rows behind the sum. `O` is how its kind of group sees an operand. */
export interface RankRows<O> extends RankPlaces<O> {
  plan: RowsPlan
  residualIn: O | null
  gamma: O | null
  preGamma: O | null
}

/** What is computed, alike on all ranks. */
export interface RowsPlan {
  traits: PatternTraits
  spec: RowsSpec
  results: ResultSpecs
  shape: RowsShape
}

export interface RowsShape {
  rows: number
  n: number
  eps: number
  weightBias: number
  quant: Quant
  layout: QuantizationSFLayout
  factor: number
  group: number
  /** Round every partial sum. */
  roundSums: boolean
}

/** Arguments of the part behind the sum; the dtype is the residual's. */
export type RowsArgs = FusionNorm & FusionOutputs & Omit<AllReduceFusion, 'input' | 'pattern'>

/** A rank's part in allReduceFusion. @throws ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE. */
export function prepareSum<O>(ranks: Ranks, hold: HoldAs<O>, args: AllReduceFusion): RankRows<O> & { x: O } {
  const { input, pattern, useOneshot } = args
  const traits = traitsOf(pattern)
  if (!traits) throw invalidArgument('pattern', '0 to 5 or 8 to 11 (6 and 7 have methods of their own)', pattern)
  checkHere(ranks.device, input, 'input')
  expectDims(input, 2, 'input')
  floatType(input.dtype, 'input')
  if (useOneshot === false && ranks.group.sites.length > 1) {
    if (args.fp32Acc === false) {
      throw new ArgumentError(
        'fp32Acc: false rounds the sum after every rank, which two-shot cannot between devices; leave useOneshot open',
      )
    }
    checkAlgorithm('two-shot', reductionCall(ranks, 'allReduce', input, Math.ceil(input.size / 4)))
  }
  const rows = prepareRows(ranks, hold, args, traits, input.shape, args.residualIn?.dtype ?? input.dtype)
  args.workspace?.checkFits(problemSize(ranks, input.shape, input.dtype))
  return { ...rows, x: hold(input, 'r') }
}

export function problemSize({ size }: Ranks, [tokens = 0, hidden = 0]: readonly number[], dtype: DType): FusionProblemSize {
  return { tpSize: size, numTokens: tokens, hiddenDim: hidden, dtype }
}

/** The rows' arguments as text, for comparison with the other ranks'. */
export function describeRows(args: RowsArgs): string {
  const { residualIn, rmsEps = 1e-6, weightBias = 0, scaleFactor, layoutCode = 0, fp32Acc = true, blockQuantGroupSize, useOneshot } = args
  const numbers = { eps: rmsEps, weightBias, scaleFactor, layout: layoutCode, fp32Acc, group: blockQuantGroupSize, useOneshot }
  const told = Object.entries(numbers).map(([name, value]) => `${name} ${String(value)}`)
  const present = [...RESULT_NAMES, 'preNormGamma' as const, 'workspace' as const].filter((name) => args[name] !== undefined)
  return [`residual ${describeTensor(residualIn)}`, ...told, ...present].join(', ')
}

/** Checks everything about the rows, then holds their operands. @throws ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE. */
export function prepareRows<O>(
  { device }: Ranks,
  hold: HoldAs<O>,
  args: RowsArgs,
  traits: PatternTraits,
  [tokens = 0, hidden = 0]: readonly number[],
  dtype: DType,
): RankRows<O> {
  const problems = scalarProblems(args, traits, hidden)
  const { layoutCode = 0, blockQuantGroupSize = hidden, rmsEps = 1e-6, weightBias = 0, scaleFactor = 1, fp32Acc = true } = args
  const spec = { tokens, hidden, dtype, layout: layoutCode, group: blockQuantGroupSize }
  const results = problems.length === 0 ? resultSpecs(traits, spec) : {}
  if (problems.length === 0) {
    for (const name of RESULT_NAMES) if (args[name] !== undefined && !results[name]) problems.push(`this pattern writes no ${name}`)
  }
  if (args.preNormGamma !== undefined && !traits.norm) problems.push('preNormGamma needs a pattern with a norm')
  throwProblems('Bad arguments of the fused all-reduce', problems)
  checkHidden(hidden, traits.quant)
  const { residualIn, rmsGamma, preNormGamma } = args
  if (traits.norm) {
    floatType(dtype, 'residualIn')
    checkHere(device, residualIn as Tensor, 'residualIn')
    expectShape(residualIn as Tensor, [tokens, hidden], 'residualIn')
    for (const [name, tensor] of Object.entries({ rmsGamma, preNormGamma })) {
      if (tensor === undefined) continue
      checkHere(device, tensor, name)
      expectShape(tensor, [hidden], name)
      expectDType(tensor, dtype, name)
    }
  }
  const shape: RowsShape = {
    ...{ rows: tokens, n: hidden, eps: rmsEps, weightBias, quant: traits.quant, layout: spec.layout },
    ...{ factor: scaleFactor, group: blockQuantGroupSize, roundSums: !fp32Acc },
  }
  return {
    plan: { traits, spec, results, shape },
    targets: holdTargets(device, hold, args, results),
    residualIn: traits.norm ? hold(residualIn as Tensor, 'r') : null,
    gamma: traits.norm ? hold(rmsGamma as Tensor, 'r') : null,
    preGamma: preNormGamma ? hold(preNormGamma, 'r') : null,
    workspace: args.workspace,
  }
}

/** The places that a rank named for its results, no two of which may overlap. */
function holdTargets<O>(device: Device, hold: HoldAs<O>, args: FusionOutputs, results: ResultSpecs): RankPlaces<O>['targets'] {
  const targets: RankPlaces<O>['targets'] = {}
  for (const name of RESULT_NAMES) {
    const tensor = args[name]
    const wanted = results[name]
    if (!tensor || !wanted) continue
    checkHere(device, tensor, name)
    expectShape(tensor, wanted.shape, name)
    expectDType(tensor, wanted.dtype, name)
    checkWritable(device, tensor)
    for (const other of RESULT_NAMES) {
      const before = targets[other]
      if (before) checkApart(memoryOf(before.tensor), memoryOf(tensor), `${other} and ${name}`)
    }
    targets[name] = { tensor, operand: hold(tensor, name === 'scaleOut' ? 'rw' : 'w') }
  }
  return targets
}

function memoryOf({ storage, byteOffset, byteLength }: Tensor): { buffer: object; offset: number; byteLength: number } {
  return { buffer: storage, offset: byteOffset, byteLength }
}
