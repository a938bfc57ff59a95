// The arguments of the fused all-reduces that end a mixture-of-experts layer.
import { invalidArgument } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { FusionNorm, FusionOutputs } from './options.ts'
import type { AllReduceFusionWorkspace } from './workspace.ts'

export type { FusionResult } from './options.ts'

interface MoeCommon extends FusionNorm, FusionOutputs {
  workspace?: AllReduceFusionWorkspace | undefined
}

/** T tokens, E experts of this rank. FP4 codes are written where `scaleFactor` is given, the plain sum where `output` is. */
export interface MoeAllReduceFusion extends MoeCommon {
  /** float32 [E, T]: what each expert's row counts for. */
  moeReductionScaleInput: Tensor
  /** [E * T, H]; row e * T + t is expert e's for token t. */
  moeReductionActiveExpertsTokenInput: Tensor
  /** [T, H]: added once on this rank, unscaled: the shared expert. */
  moeReductionTokenInput: Tensor
}

/** T tokens, K experts each. T and H are the residual's; `output` is not written. */
export interface MoeFinalizeAllReduceFusion extends MoeCommon {
  /** [any, H]: expert rows in the experts' own order. */
  input: Tensor
  residualIn: Tensor
  /** int32 [T, K]: the row of `input`; -1 where the expert is not this rank's. */
  expandedIdxToPermutedIdx: Tensor
  /** [T, K], of a float dtype; 1 where absent. */
  expertScaleFactor?: Tensor | undefined
  /** [T, H]: added once on this rank, not scaled. */
  sharedExpertOutput?: Tensor | undefined
  /** Multiplies the sum of the experts' rows. Defaults to 1. */
  routedScalingFactor?: number | undefined
}

/** @throws ERR_ARGUMENT unless `value` is a finite number. */
export function checkFinite(name: string, value: unknown): void {
  if (!Number.isFinite(value)) throw invalidArgument(name, 'a finite number', value)
}
