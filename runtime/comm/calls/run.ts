// What every collective of tensors is made of: how a kind of group runs a call that all ranks make alike, and what its rank is asked for meanwhile.
import type { Tensor } from '../../core/tensor.ts'
import type { Device } from '../../device/device.ts'
import type { HoldAs } from '../member.ts'
import type { MeetOptions } from '../rendezvous.ts'

/** A group's results by rank: there when the action returns, for groups that only record, or `later`. */
export type Timing = 'now' | 'later'
export type Made<R, A extends Timing> = A extends 'now' ? R[] : Promise<R[]>

/** As GroupMember.run: `M` are the group's members, `O` how it sees operands, `S` what it has on its way among ranks. */
export type Run<M, O, S, A extends Timing> = <P, R>(
  member: M,
  call: string,
  prepare: (hold: HoldAs<O>) => P,
  options: MeetOptions,
  act: (payloads: P[], scope: S) => Made<R, A>,
) => Promise<R>

/** How a kind of group carries a call out, once for all ranks that are here: `payloads` of all, `given` what all have given alike. */
export type Act<M, P, S, G, R, A extends Timing> = (member: M, payloads: P[], scope: S, given: G) => Made<R, A>

/** What calls ask of a GroupMember. */
export interface Caller {
  readonly rank: number
  readonly size: number
  readonly device: Device
  readonly group: { sites: readonly { ranks: readonly number[] }[] }
  readonly counts: { collectives: number; fused: number; bytes: number }
  checkOpen(): void
  bypass(x: Tensor, check: () => void): Tensor
  counted<R>(x: Tensor | null, result: R): R
}

/** A tensor that receives a result, and how the group sees it. */
export interface TargetOf<O> {
  tensor: Tensor
  operand: O
}

/** The payload of collectives with one operand. */
export function held<O>(x: Tensor, check: () => void): (hold: HoldAs<O>) => O {
  return (hold) => {
    check()
    return hold(x, 'r')
  }
}
