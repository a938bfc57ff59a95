// The fused all-reduces of mixture-of-experts layers: a rank's expert rows joined into its partial, then the same kernel as allReduceFusion.
import { dtypeSize } from '../../core/dtype.ts'
import { ArgumentError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { expectDims, expectDType, expectShape } from '../../device/checks.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { castRange, floatType, type Operand, withQuads, withScratch } from '../../device/webgpu/launch.ts'
import { checkHere, describeTensor } from '../checks.ts'
import type { DeviceComm } from '../device-comm.ts'
import { checkFinite, type FusionResult, type MoeAllReduceFusion, type MoeFinalizeAllReduceFusion } from '../fusion/moe.ts'
import { type PatternTraits, QUANT } from '../fusion/patterns.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { elsewhere, emptySlices, sliceAt } from './clusters.ts'
import { counted, describeRows, finishRows, memberOf, prepareRows, type RankRows, sizeOf } from './fusion.ts'
import { combineExperts, type ExpertRows } from './fusion-kernels.ts'
import type { Hold, Member } from './member.ts'

/** A rank's experts, beside its rows. */
interface RankExperts extends RankRows {
  rows: Operand
  count: number
  scale: Operand | null
  index: Operand | null
  shared: Operand | null
  k: number
  routed: number
}

export async function moeAllReduceFusion(comm: DeviceComm, args: MoeAllReduceFusion, options: MeetOptions = {}): Promise<FusionResult> {
  const member = memberOf(comm)
  const given = args ?? ({} as MoeAllReduceFusion)
  const { moeReductionScaleInput: scale, moeReductionActiveExpertsTokenInput: rows, moeReductionTokenInput: shared } = given
  const prepare = (hold: Hold): RankExperts => {
    checkRows(member, { moeReductionActiveExpertsTokenInput: rows, moeReductionTokenInput: shared })
    checkHere(member.device, scale, 'moeReductionScaleInput')
    expectDType(scale, 'float32', 'moeReductionScaleInput')
    expectDims(scale, 2, 'moeReductionScaleInput')
    const [experts] = scale.shape as [number]
    const [tokens, hidden] = shared.shape as [number, number]
    expectShape(scale, [experts, tokens], 'moeReductionScaleInput')
    expectShape(rows, [experts * tokens, hidden], 'moeReductionActiveExpertsTokenInput')
    expectDType(rows, shared.dtype, 'moeReductionActiveExpertsTokenInput')
    const before = prepareMoe(member, hold, given, shared)
    const held = { rows: hold(rows, 'r'), scale: hold(scale, 'r'), shared: hold(shared, 'r') }
    return { ...before, ...held, index: null, count: rows.shape[0] as number, k: experts, routed: 1 }
  }
  const call = `moeAllReduceFusion(${describeTensor(scale)}, ${describeTensor(rows)}, ${describeTensor(shared)}, ${describeRows(given)})`
  return runExperts(member, call, prepare, options, shared)
}

export async function moeFinalizeAllReduceFusion(
  comm: DeviceComm,
  args: MoeFinalizeAllReduceFusion,
  options: MeetOptions = {},
): Promise<FusionResult> {
  const member = memberOf(comm)
  const given = args ?? ({} as MoeFinalizeAllReduceFusion)
  const { input: rows, expandedIdxToPermutedIdx: index, expertScaleFactor: scale, sharedExpertOutput: shared, residualIn } = given
  const { routedScalingFactor = 1 } = given
  const prepare = (hold: Hold): RankExperts => {
    checkRows(member, { input: rows, residualIn })
    checkFinite('routedScalingFactor', routedScalingFactor)
    const [tokens, hidden] = residualIn.shape as [number, number]
    expectShape(rows, [rows.shape[0] as number, hidden], 'input')
    expectDType(rows, residualIn.dtype, 'input')
    checkHere(member.device, index, 'expandedIdxToPermutedIdx')
    expectDType(index, 'int32', 'expandedIdxToPermutedIdx')
    expectDims(index, 2, 'expandedIdxToPermutedIdx')
    const k = index.shape[1] as number
    if (k === 0) throw new ArgumentError('Expected at least one column in expandedIdxToPermutedIdx but received none')
    expectShape(index, [tokens, k], 'expandedIdxToPermutedIdx')
    if (scale !== undefined) {
      checkHere(member.device, scale, 'expertScaleFactor')
      floatType(scale.dtype, 'expertScaleFactor')
      expectShape(scale, [tokens, k], 'expertScaleFactor')
    }
    if (shared !== undefined) {
      checkHere(member.device, shared, 'sharedExpertOutput')
      expectShape(shared, [tokens, hidden], 'sharedExpertOutput')
      expectDType(shared, rows.dtype, 'sharedExpertOutput')
    }
    if (given.output !== undefined) throw new ArgumentError('This pattern writes no output; ask for residualOut or normOut')
    const before = prepareMoe(member, hold, given, residualIn)
    const held = { rows: hold(rows, 'r'), index: hold(index, 'r'), count: rows.shape[0] as number, k, routed: routedScalingFactor }
    return { ...before, ...held, scale: scale ? hold(scale, 'r') : null, shared: shared ? hold(shared, 'r') : null }
  }
  const own = [index, scale, shared].map(describeTensor).join(', ')
  const call = `moeFinalizeAllReduceFusion(${own}, routed ${routedScalingFactor}, ${describeRows(given)})`
  return runExperts(member, call, prepare, options, residualIn)
}

/** 2-dimensional float tensors on this rank's device. */
function checkRows(member: Member, tensors: Record<string, Tensor>): void {
  for (const [name, tensor] of Object.entries(tensors)) {
    checkHere(member.device, tensor, name)
    expectDims(tensor, 2, name)
    floatType(tensor.dtype, name)
  }
}

/** The part behind the sum: residual and norm always, FP4 where a scale factor is given, the plain sum where its place is. */
function prepareMoe(member: Member, hold: Hold, args: MoeAllReduceFusion | MoeFinalizeAllReduceFusion, like: Tensor): RankRows {
  const traits: PatternTraits = { norm: true, normOut: true, quant: args.scaleFactor === undefined ? QUANT.none : QUANT.fp4 }
  const { output, ...others } = args
  const rows = prepareRows(member, hold, { ...others, useOneshot: 'auto' }, traits, like.shape, like.dtype)
  if (args.residualIn) expectDType(args.residualIn, like.dtype, 'residualIn')
  args.workspace?.checkFits(sizeOf(member, like.shape, like.dtype))
  if (!output) return rows
  const { targets, plan } = prepareRows(member, hold, { output }, { norm: false, normOut: false, quant: 0 }, like.shape, like.dtype)
  const results = { ...rows.plan.results, ...plan.results }
  return { ...rows, plan: { ...rows.plan, results }, targets: { ...rows.targets, ...targets } }
}

async function runExperts(
  member: Member,
  call: string,
  prepare: (hold: Hold) => RankExperts,
  options: MeetOptions,
  like: Tensor,
): Promise<FusionResult> {
  const result = await member.run(call, prepare, options, async (payloads, scope) => {
    const { tokens, hidden, dtype } = (payloads[0] as RankExperts).plan.spec
    const count = tokens * hidden
    const bytes = count * dtypeSize(dtype)
    const operands = payloads.map((): Operand => ({ range: elsewhere(bytes) as Range, dtype, use: 'r', count, padded: true }))
    for (const cluster of member.group.clusters) {
      const slices = emptySlices(scope, cluster, cluster.ranks.length, bytes, dtype)
      for (const [i, rank] of cluster.ranks.entries()) {
        const y: Operand = { range: sliceAt(slices, i, bytes), dtype, use: 'w', count, padded: true }
        if (count > 0) combine(cluster.sink, payloads[rank] as RankExperts, y, hidden)
        operands[rank] = { ...y, use: 'r' }
      }
    }
    return finishRows(member, scope, payloads, await member.group.partials(scope, operands, 'sum'))
  })
  return counted(member, like, result)
}

/** Joins a rank's experts; scales of 16 bits are widened first. */
function combine(sink: Parameters<typeof combineExperts>[0], experts: RankExperts, y: Operand, n: number): void {
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
