// The fused all-reduces as collectives: what a rank calls, checks and brings, whatever its kind of group then computes with.
import type { Tensor } from '../../core/tensor.ts'
import { describeTensor } from '../checks.ts'
import type { GroupMember } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { describeFinalize, describeMoe, prepareFinalize, prepareMoe, type RankExperts } from './experts.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from './moe.ts'
import type { AllReduceFusion, FusionResult } from './options.ts'
import { describeRows, prepareSum, type RankRows, type Ranks } from './rows.ts'

/** A rank's part in its group. `S` is what a collective has on its way, `O` how the group sees an operand. */
type Member<S, O> = Ranks & Pick<GroupMember<Ranks['device'], never, S, O>, 'run' | 'counts' | 'counted'>

/** How a kind of group computes a fused all-reduce for the ranks that are here; results by rank. */
export interface FusionEngine<S, O> {
  sum(scope: S, payloads: readonly (RankRows<O> & { x: O })[], args: AllReduceFusion): Promise<FusionResult[]>
  experts(scope: S, payloads: readonly RankExperts<O>[]): Promise<FusionResult[]>
}

export async function allReduceFusion<S, O>(
  member: Member<S, O>,
  engine: FusionEngine<S, O>,
  args: AllReduceFusion,
  options: MeetOptions = {},
): Promise<FusionResult> {
  const given = args ?? ({} as AllReduceFusion)
  const call = `allReduceFusion(${given.pattern}, ${describeTensor(given.input)}, ${describeRows(given)})`
  const result = await member.run(
    call,
    (hold) => prepareSum(member, hold, given),
    options,
    (payloads, scope) => engine.sum(scope, payloads, given),
  )
  return counted(member, given.input, result)
}

export async function moeAllReduceFusion<S, O>(
  member: Member<S, O>,
  engine: FusionEngine<S, O>,
  args: MoeAllReduceFusion,
  options: MeetOptions = {},
): Promise<FusionResult> {
  const given = args ?? ({} as MoeAllReduceFusion)
  const result = await member.run(
    describeMoe(given),
    (hold) => prepareMoe(member, hold, given),
    options,
    (payloads, scope) => engine.experts(scope, payloads),
  )
  return counted(member, given.moeReductionTokenInput, result)
}

export async function moeFinalizeAllReduceFusion<S, O>(
  member: Member<S, O>,
  engine: FusionEngine<S, O>,
  args: MoeFinalizeAllReduceFusion,
  options: MeetOptions = {},
): Promise<FusionResult> {
  const given = args ?? ({} as MoeFinalizeAllReduceFusion)
  const result = await member.run(
    describeFinalize(given),
    (hold) => prepareFinalize(member, hold, given),
    options,
    (payloads, scope) => engine.experts(scope, payloads),
  )
  return counted(member, given.residualIn, result)
}

function counted<S, O>(member: Member<S, O>, input: Tensor, result: FusionResult): FusionResult {
  member.counts.fused++
  return member.counted(input, result)
}
