// The fused all-reduces through host memory: one partial a device crosses to the host, which computes what the pattern writes once for all devices.
import type { Tensor } from '../../core/tensor.ts'
import { memoryOf } from '../checks.ts'
import type { FusionEngine } from '../fusion/calls.ts'
import { type FusionResult, type FusionResultName, RESULT_NAMES } from '../fusion/options.ts'
import { QUANT } from '../fusion/patterns.ts'
import { bytesOfResult, emptyResult, largestSpecs, type RankPlaces, type ResultSpec } from '../fusion/results.ts'
import type { RankRows, RowsPlan } from '../fusion/rows.ts'
import { FP4_BLOCK, fp4ScaleBytes, fp4ScaleOffset } from '../fusion/scale-layout.ts'
import { type FusedBytes, fusedRows, roundedSum } from './fused-rows.ts'
import type { Operand, StagedGroup, Staging } from './group.ts'
import { bytesOf } from './numbers.ts'
import { reduced, reducedExperts } from './partials.ts'

export function fusionEngine(group: StagedGroup): FusionEngine<Staging, Operand> {
  return {
    async sum(staging, payloads, { fp32Acc, useOneshot = 'auto' }) {
      const algorithm = useOneshot === 'auto' ? undefined : useOneshot ? 'one-shot' : 'two-shot'
      const operands = payloads.map(({ x }) => x)
      const [{ x, plan }] = payloads as [(typeof payloads)[number]]
      const sum =
        fp32Acc === false
          ? staging.all(operands).then((parts) => roundedSum(parts, x.dtype, plan.spec.dtype))
          : (reduced(group, staging, operands, 'sum', { algorithm }) as Promise<Float32Array>)
      return finishRows(group, staging, payloads, sum)
    },
    experts: (staging, payloads) => finishRows(group, staging, payloads, reducedExperts(group, staging, payloads)),
  }
}

/** Computes what the pattern writes, from the sum and the operands of one rank for all, and hands out the results. */
async function finishRows(
  group: StagedGroup,
  staging: Staging,
  payloads: readonly RankRows<Operand>[],
  pending: Promise<Float32Array>,
): Promise<FusionResult[]> {
  const { plan, residualIn, gamma, preGamma } = payloads[group.lead] as RankRows<Operand>
  const { traits, spec, results, shape } = plan
  const [sum, own] = await Promise.all([pending, staging.own([residualIn, gamma, preGamma].filter((operand) => operand !== null))])
  const [residual, weight, before = null] = own as [Uint8Array, Uint8Array, Uint8Array?]
  const written = traits.norm ? fusedRows({ sum, residual, gamma: weight, preGamma: before, dtype: spec.dtype }, shape) : {}
  const bytes: FusedBytes = results.output ? { ...written, output: bytesOf(spec.dtype, sum) } : written
  const found = payloads.map(emptyResult)
  for (const name of RESULT_NAMES) {
    const result = results[name]
    if (!result) continue
    for (const [rank, tensor] of (await spread(group, staging, payloads, name, result, bytes[name] as Uint8Array)).entries()) {
      if (tensor) (found[rank] as FusionResult)[name] = tensor
    }
  }
  return found
}

/** By rank: its own tensor where it brought one, else memory of the first rank's workspace, or new, that the ranks of a device share. */
async function spread(
  group: StagedGroup,
  staging: Staging,
  payloads: readonly RankRows<Operand>[],
  name: FusionResultName,
  { shape, dtype }: ResultSpec,
  bytes: Uint8Array,
): Promise<Tensor[]> {
  const targets = payloads.map((ranks) => ranks.targets[name])
  const { plan } = payloads[0] as RankRows<Operand>
  if (name === 'scaleOut' && targets[group.lead] && hasPadding(plan)) return spreadScales(group, staging, targets, plan, bytes)
  return staging.spread(shape, { dtype, bytes }, targets, (rank) => {
    const { workspace } = payloads[rank] as RankPlaces<Operand>
    if (!workspace || bytes.byteLength === 0) return null
    const device = group.device(rank)
    const largest = largestSpecs(workspace, plan.traits, plan.spec)[name]
    const capacity = largest ? bytesOfResult(largest) : bytes.byteLength
    return workspace.result(memoryOf(device), `${name} ${dtype}`, bytes.byteLength, capacity, (size) => device.allocate(size))
  })
}

/** Whether tiles of FP4 scales have rows for tokens that are none. */
function hasPadding({ shape: { quant, layout, rows, n } }: RowsPlan): boolean {
  return quant === QUANT.fp4 && fp4ScaleBytes(layout, rows, n / FP4_BLOCK) > rows * 4 * Math.ceil(n / FP4_BLOCK / 4)
}

/** Into the ranks' own places, in which what belongs to no token stays as it was. */
async function spreadScales(
  group: StagedGroup,
  staging: Staging,
  targets: readonly RankPlaces<Operand>['targets'][FusionResultName][],
  { shape: { rows, n, layout } }: RowsPlan,
  bytes: Uint8Array,
): Promise<Tensor[]> {
  const columns = n / FP4_BLOCK
  const results: Tensor[] = []
  for (const rank of group.here) {
    const { tensor, operand } = targets[rank] as NonNullable<(typeof targets)[number]>
    const [before] = await staging.own([operand])
    const after = (before as Uint8Array).slice()
    for (let row = 0; row < rows; row++) {
      for (let k = 0; k < columns; k += 4) {
        const at = fp4ScaleOffset(layout, row, k, columns)
        after.set(bytes.subarray(at, at + 4), at)
      }
    }
    staging.write(operand, after)
    results[rank] = tensor
  }
  return results
}
