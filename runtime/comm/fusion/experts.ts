// What a rank brings to the fused all-reduces of mixture-of-experts layers: its expert rows, checked for every kind of group alike.
import { ArgumentError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { expectDims, expectDType, expectShape, floatType } from '../../device/checks.ts'
import { checkHere, describeTensor } from '../checks.ts'
import type { HoldAs } from '../member.ts'
import { checkFinite, type MoeAllReduceFusion, type MoeFinalizeAllReduceFusion } from './moe.ts'
import { type PatternTraits, QUANT } from './patterns.ts'
import { describeRows, prepareRows, problemSize, type RankRows, type Ranks } from './rows.ts'

/** A rank's experts, beside its rows. */
export interface RankExperts<O> extends RankRows<O> {
  rows: O
  /** Rows there are. */
  count: number
  /** [k, tokens] where there is no index, else [tokens, k]. */
  scale: O | null
  /** int32 [tokens, k], or null: the k-th expert's row of token t is k * tokens + t. */
  index: O | null
  shared: O | null
  k: number
  routed: number
}

export function describeMoe(args: MoeAllReduceFusion): string {
  const { moeReductionScaleInput, moeReductionActiveExpertsTokenInput, moeReductionTokenInput } = args
  const own = [moeReductionScaleInput, moeReductionActiveExpertsTokenInput, moeReductionTokenInput].map(describeTensor).join(', ')
  return `moeAllReduceFusion(${own}, ${describeRows(args)})`
}

/** @throws ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE. */
export function prepareMoe<O>(ranks: Ranks, hold: HoldAs<O>, args: MoeAllReduceFusion): RankExperts<O> {
  const { moeReductionScaleInput: scale, moeReductionActiveExpertsTokenInput: rows, moeReductionTokenInput: shared } = args
  checkRows(ranks, { moeReductionActiveExpertsTokenInput: rows, moeReductionTokenInput: shared })
  checkHere(ranks.device, scale, 'moeReductionScaleInput')
  expectDType(scale, 'float32', 'moeReductionScaleInput')
  expectDims(scale, 2, 'moeReductionScaleInput')
  const [experts] = scale.shape as [number]
  const [tokens, hidden] = shared.shape as [number, number]
  expectShape(scale, [experts, tokens], 'moeReductionScaleInput')
  expectShape(rows, [experts * tokens, hidden], 'moeReductionActiveExpertsTokenInput')
  expectDType(rows, shared.dtype, 'moeReductionActiveExpertsTokenInput')
  const before = prepareEnd(ranks, hold, args, shared)
  const held = { rows: hold(rows, 'r'), scale: hold(scale, 'r'), shared: hold(shared, 'r') }
  return { ...before, ...held, index: null, count: rows.shape[0] as number, k: experts, routed: 1 }
}

export function describeFinalize(args: MoeFinalizeAllReduceFusion): string {
  const { expandedIdxToPermutedIdx: index, expertScaleFactor: scale, sharedExpertOutput: shared, routedScalingFactor = 1 } = args
  const own = [index, scale, shared].map(describeTensor).join(', ')
  return `moeFinalizeAllReduceFusion(${own}, routed ${routedScalingFactor}, ${describeRows(args)})`
}

/** @throws ERR_ARGUMENT, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE. */
export function prepareFinalize<O>(ranks: Ranks, hold: HoldAs<O>, args: MoeFinalizeAllReduceFusion): RankExperts<O> {
  const { input: rows, expandedIdxToPermutedIdx: index, expertScaleFactor: scale, sharedExpertOutput: shared, residualIn } = args
  const { routedScalingFactor = 1 } = args
  checkRows(ranks, { input: rows, residualIn })
  checkFinite('routedScalingFactor', routedScalingFactor)
  const [tokens, hidden] = residualIn.shape as [number, number]
  expectShape(rows, [rows.shape[0] as number, hidden], 'input')
  expectDType(rows, residualIn.dtype, 'input')
  checkHere(ranks.device, index, 'expandedIdxToPermutedIdx')
  expectDType(index, 'int32', 'expandedIdxToPermutedIdx')
  expectDims(index, 2, 'expandedIdxToPermutedIdx')
  const k = index.shape[1] as number
  if (k === 0) throw new ArgumentError('Expected at least one column in expandedIdxToPermutedIdx but received none')
  expectShape(index, [tokens, k], 'expandedIdxToPermutedIdx')
  if (scale !== undefined) {
    checkHere(ranks.device, scale, 'expertScaleFactor')
    floatType(scale.dtype, 'expertScaleFactor')
    expectShape(scale, [tokens, k], 'expertScaleFactor')
  }
  if (shared !== undefined) {
    checkHere(ranks.device, shared, 'sharedExpertOutput')
    expectShape(shared, [tokens, hidden], 'sharedExpertOutput')
    expectDType(shared, rows.dtype, 'sharedExpertOutput')
  }
  if (args.output !== undefined) throw new ArgumentError('This pattern writes no output; ask for residualOut or normOut')
  const before = prepareEnd(ranks, hold, args, residualIn)
  const held = { rows: hold(rows, 'r'), index: hold(index, 'r'), count: rows.shape[0] as number, k, routed: routedScalingFactor }
  return { ...before, ...held, scale: scale ? hold(scale, 'r') : null, shared: shared ? hold(shared, 'r') : null }
}

/** 2-dimensional float tensors on this rank's device. */
function checkRows({ device }: Ranks, tensors: Record<string, Tensor>): void {
  for (const [name, tensor] of Object.entries(tensors)) {
    checkHere(device, tensor, name)
    expectDims(tensor, 2, name)
    floatType(tensor.dtype, name)
  }
}

/** The part behind the sum: residual and norm always, FP4 where a scale factor is given, the plain sum where its place is. */
function prepareEnd<O>(ranks: Ranks, hold: HoldAs<O>, args: MoeAllReduceFusion | MoeFinalizeAllReduceFusion, like: Tensor): RankRows<O> {
  const traits: PatternTraits = { norm: true, normOut: true, quant: args.scaleFactor === undefined ? QUANT.none : QUANT.fp4 }
  const { output, ...others } = args
  const rows = prepareRows(ranks, hold, { ...others, useOneshot: 'auto' }, traits, like.shape, like.dtype)
  if (args.residualIn) expectDType(args.residualIn, like.dtype, 'residualIn')
  args.workspace?.checkFits(problemSize(ranks, like.shape, like.dtype))
  if (!output) return rows
  const { targets, plan } = prepareRows(ranks, hold, { output }, { norm: false, normOut: false, quant: 0 }, like.shape, like.dtype)
  const results = { ...rows.plan.results, ...plan.results }
  return { ...rows, plan: { ...rows.plan, results }, targets: { ...rows.targets, ...targets } }
}
