// allReduceFusion: the sum over ranks with residual, RMSNorm and quantisation, one kernel on each device.
import type { DType } from '../../core/dtype.ts'
import { ArgumentError, BackendUnavailableError, invalidArgument } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { expectDims, expectDType, expectShape } from '../../device/checks.ts'
import { floatType, type Operand } from '../../device/webgpu/launch.ts'
import { writableStorage } from '../../device/webgpu/pool.ts'
import { checkApart, checkHere, describeTensor } from '../checks.ts'
import type { DeviceComm } from '../device-comm.ts'
import {
  type AllReduceFusion,
  checkHidden,
  type FusionNorm,
  type FusionOutputs,
  type FusionResult,
  RESULT_NAMES,
  scalarProblems,
  throwProblems,
} from '../fusion/options.ts'
import { type PatternTraits, traitsOf } from '../fusion/patterns.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { algorithmFor, checkAlgorithm, reductionCall } from './choose.ts'
import type { Slices } from './clusters.ts'
import { WebGpuComm } from './comm.ts'
import { type FusedShape, fusedRows } from './fusion-kernels.ts'
import { type RankPlaces, type ResultSpecs, type RowsSpec, resultSpecs, spreadResults } from './fusion-results.ts'
import type { AllReduceFusionWorkspace } from './fusion-workspace.ts'
import { reduceSlices } from './kernels.ts'
import { type Hold, type Member, operandsOf } from './member.ts'
import type { Scope } from './scope.ts'
import { twoShotSums } from './two-shot.ts'

/** What a rank brings for the rows behind the sum. */
export interface RankRows extends RankPlaces {
  plan: RowsPlan
  residualIn: Operand | null
  gamma: Operand | null
  preGamma: Operand | null
}

/** What is computed, alike on all ranks. */
export interface RowsPlan {
  traits: PatternTraits
  spec: RowsSpec
  results: ResultSpecs
  shape: FusedShape
}

/** Arguments of the part behind the sum; the dtype is the residual's. */
export type RowsArgs = FusionNorm & FusionOutputs & Omit<AllReduceFusion, 'input' | 'pattern'>

/** This rank's part in the group of a communicator. @throws ERR_BACKEND_UNAVAILABLE for a backend without fusion. */
export function memberOf(comm: DeviceComm): Member {
  if (!(comm instanceof WebGpuComm)) {
    throw new BackendUnavailableError(
      'Fused all-reduce patterns run on groups of WebGPU devices alone; with a CPU device use allReduce or allReduceResidualBiasRMSNorm',
    )
  }
  return comm.member
}

export async function allReduceFusion(comm: DeviceComm, args: AllReduceFusion, options: MeetOptions = {}): Promise<FusionResult> {
  const member = memberOf(comm)
  const given = args ?? ({} as AllReduceFusion)
  const { input, pattern, useOneshot } = given
  const prepare = (hold: Hold): RankRows & { x: Operand } => {
    const traits = traitsOf(pattern)
    if (!traits) throw invalidArgument('pattern', '0 to 5 or 8 to 11 (6 and 7 have methods of their own)', pattern)
    checkHere(member.device, input, 'input')
    expectDims(input, 2, 'input')
    floatType(input.dtype, 'input')
    const several = member.group.sites.length > 1
    if (useOneshot === false && several) {
      if (given.fp32Acc === false) {
        throw new ArgumentError(
          'fp32Acc: false rounds the sum after every rank, which two-shot cannot between devices; leave useOneshot open',
        )
      }
      checkAlgorithm('two-shot', reductionCall(member, 'allReduce', input, Math.ceil(input.size / 4)))
    }
    const rows = prepareRows(member, hold, given, traits, input.shape, given.residualIn?.dtype ?? input.dtype)
    given.workspace?.checkFits(sizeOf(member, input.shape, input.dtype))
    return { ...rows, x: hold(input, 'r') }
  }
  const call = `allReduceFusion(${pattern}, ${describeTensor(input)}, ${describeRows(given)})`
  const results = member.run(call, prepare, options, async (payloads, scope) => {
    const operands = operandsOf(payloads)
    const { group } = member
    if (given.fp32Acc === false) return finishRows(member, scope, payloads, await group.side(scope, operands))
    const wanted =
      useOneshot === 'auto' || useOneshot === undefined || group.sites.length === 1 ? undefined : useOneshot ? 'one-shot' : 'two-shot'
    const algorithm = algorithmFor(member, reductionCall(member, 'allReduce', input, Math.ceil(input.size / 4)), wanted)
    const partials = algorithm === 'two-shot' ? await twoShotSums(member, scope, operands) : await group.partials(scope, operands, 'sum')
    return finishRows(member, scope, payloads, partials)
  })
  return counted(member, input, await results)
}

export function counted(member: Member, input: Tensor, result: FusionResult): FusionResult {
  member.counts.fused++
  return member.counted(input, result)
}

export function sizeOf(
  member: Member,
  [tokens = 0, hidden = 0]: readonly number[],
  dtype: DType,
): Parameters<AllReduceFusionWorkspace['checkFits']>[0] {
  return { tpSize: member.size, numTokens: tokens, hiddenDim: hidden, dtype }
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
export function prepareRows(
  member: Member,
  hold: Hold,
  args: RowsArgs,
  traits: PatternTraits,
  [tokens = 0, hidden = 0]: readonly number[],
  dtype: DType,
): RankRows {
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
  const { device } = member
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
  const targets: RankRows['targets'] = {}
  for (const name of RESULT_NAMES) {
    const tensor = args[name]
    const wanted = results[name]
    if (!tensor || !wanted) continue
    checkHere(device, tensor, name)
    expectShape(tensor, wanted.shape, name)
    expectDType(tensor, wanted.dtype, name)
    writableStorage(device.gpu.pool, tensor.storage)
    const held = hold(tensor, name === 'scaleOut' ? 'rw' : 'w')
    for (const other of RESULT_NAMES) {
      const before = targets[other]
      if (before) checkApart(before.operand.range, held.range, `${other} and ${name}`)
    }
    targets[name] = { tensor, operand: held }
  }
  const shape: FusedShape = {
    ...{ rows: tokens, n: hidden, eps: rmsEps, weightBias, quant: traits.quant, layout: spec.layout },
    ...{ factor: scaleFactor, group: blockQuantGroupSize, roundSums: !fp32Acc },
  }
  return {
    plan: { traits, spec, results, shape },
    residualIn: traits.norm ? hold(residualIn as Tensor, 'r') : null,
    gamma: traits.norm ? hold(rmsGamma as Tensor, 'r') : null,
    preGamma: preNormGamma ? hold(preNormGamma, 'r') : null,
    targets,
    workspace: args.workspace,
  }
}

/** Runs the kernel on each device over its partials and hands out the results. `sum` asks for the plain sum beside the norm. */
export function finishRows(member: Member, scope: Scope, payloads: readonly RankRows[], partials: readonly Slices[]): FusionResult[] {
  const { traits, spec, results, shape } = (payloads[0] as RankRows).plan
  const most = ({ metadata }: AllReduceFusionWorkspace): ResultSpecs => {
    const tokens = Math.floor((metadata.maxTokenNum * metadata.hiddenDim) / spec.hidden)
    return resultSpecs(traits, { ...spec, tokens })
  }
  return spreadResults(scope, member.group, payloads, results, most, (cluster, i, places) => {
    if (spec.tokens === 0 || spec.hidden === 0) return
    const x = partials[i] as Slices
    const { residualIn, gamma, preGamma } = payloads[cluster.ranks[0] as number] as RankRows
    const { output, residualOut = null, normOut = null, quantOut = null, scaleOut = null } = places
    if (output && !shape.roundSums) reduceSlices(cluster, x, output, 'sum', 1)
    else if (output) fusedRows(cluster.sink, x, { ...NOTHING, normOut: output }, { ...shape, quant: 0 })
    if (traits.norm) fusedRows(cluster.sink, x, { residualIn, gamma, preGamma, residualOut, normOut, quantOut, scaleOut }, shape)
  })
}

const NOTHING = { residualIn: null, gamma: null, preGamma: null, residualOut: null, quantOut: null, scaleOut: null }
