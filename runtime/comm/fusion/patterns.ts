// The all-reduce patterns: what is fused behind the sum, by number, and what each of them writes.

/** What follows the sum over ranks. The numbers are those of FlashInfer's patterns. */
export const AllReduceFusionPattern = {
  kAllReduce: 0,
  kARResidualRMSNorm: 1,
  kARResidualRMSNormFP8Quant: 2,
  kARResidualRMSNormFP4Quant: 3,
  kARResidualRMSNormOutFP8Quant: 4,
  kARResidualRMSNormOutFP4Quant: 5,
  kMoEReductionARResidualRMSNorm: 6,
  kMoEFinalizeARResidualRMSNorm: 7,
  kARResidualRMSNormPerTokenGroupFP8PackedQuant: 8,
  kARResidualRMSNormOutPerTokenGroupFP8PackedQuant: 9,
  kARResidualRMSNormDynamicFP8Quant: 10,
  kARResidualRMSNormOutDynamicFP8Quant: 11,
} as const
export type AllReduceFusionPattern = (typeof AllReduceFusionPattern)[keyof typeof AllReduceFusionPattern]

/** How the values are quantised; the numbers are those of the kernel. */
export const QUANT = { none: 0, fp8: 1, fp4: 2, fp8Groups: 3, fp8Rows: 4 } as const
export type Quant = (typeof QUANT)[keyof typeof QUANT]

export interface PatternTraits {
  /** False for the sum alone. */
  norm: boolean
  /** Whether the normed rows are written. */
  normOut: boolean
  quant: Quant
}

const TRAITS: Readonly<Record<number, PatternTraits>> = {
  0: { norm: false, normOut: false, quant: QUANT.none },
  1: { norm: true, normOut: true, quant: QUANT.none },
  2: { norm: true, normOut: false, quant: QUANT.fp8 },
  3: { norm: true, normOut: false, quant: QUANT.fp4 },
  4: { norm: true, normOut: true, quant: QUANT.fp8 },
  5: { norm: true, normOut: true, quant: QUANT.fp4 },
  8: { norm: true, normOut: false, quant: QUANT.fp8Groups },
  9: { norm: true, normOut: true, quant: QUANT.fp8Groups },
  10: { norm: true, normOut: false, quant: QUANT.fp8Rows },
  11: { norm: true, normOut: true, quant: QUANT.fp8Rows },
}

/** Of a pattern of `allReduceFusion`; undefined for 6 and 7, which have methods of their own, and for what is no pattern. */
export function traitsOf(pattern: unknown): PatternTraits | undefined {
  return typeof pattern === 'number' && Object.hasOwn(TRAITS, pattern) ? TRAITS[pattern] : undefined
}
