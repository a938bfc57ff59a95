// The collectives that move operands, as every kind of group is called; see reduce.ts.
import { checkInteger } from '../../core/errors.ts'
import { resolveDim } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkHere, checkMoved, checkWritten, describeShape, describeTensor } from '../checks.ts'
import type { GatherVOptions } from '../device-comm.ts'
import type { HoldAs } from '../member.ts'
import { checkGathered, describeOpen, lengthAt } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type Act, type Caller, held, type Run, type Timing } from './run.ts'

export type AllGather<M> = (member: M, x: Tensor, options?: { dim?: number } & MeetOptions) => Promise<Tensor>

/** Operands alike in shape, to be concatenated along dimension `at`. */
export interface GatherCall {
  x: Tensor
  at: number
  options: MeetOptions
}

export function allGatherBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, GatherCall, Tensor, A>,
): AllGather<M> {
  return async (member, x, { dim = -1, ...options } = {}) => {
    const check = (): void => checkMoved(member.device, x, dim)
    if (member.size === 1) return member.bypass(x, check)
    const call = `allGather(${describeTensor(x)}, dim ${dim})`
    const result = await run<O, Tensor>(member, call, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { x, at: resolveDim(dim, x.shape.length), options }),
    )
    return member.counted(x, result)
  }
}

export type Gather<M> = (member: M, x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions) => Promise<Tensor | null>

export function gatherBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, GatherCall & { dst: number }, Tensor | null, A>,
): Gather<M> {
  return async (member, x, { dst = 0, dim = -1, ...options } = {}) => {
    const check = (): void => {
      checkMoved(member.device, x, dim)
      checkInteger('dst', dst, 0, member.size - 1)
    }
    if (member.size === 1) return member.bypass(x, check)
    const call = `gather(${describeTensor(x)}, dst ${dst}, dim ${dim})`
    const result = await run<O, Tensor | null>(member, call, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { x, at: resolveDim(dim, x.shape.length), dst, options }),
    )
    return member.counted(x, result)
  }
}

export type AllGatherV<M> = (member: M, x: Tensor | readonly Tensor[], options?: GatherVOptions) => Promise<Tensor | Tensor[]>

/** A rank's operand, and its length along the dimension in which it may differ from the others'. */
export interface PartOf<O> {
  operand: O
  length: number
}

/** Operands of one shape, as parts along dimension `at`. */
export function alike<O>(operands: readonly O[], { shape }: Tensor, at: number): PartOf<O>[] {
  return operands.map((operand) => ({ operand, length: shape[at] as number }))
}

export interface GatherVCall {
  list: readonly Tensor[]
  dim: number
  options: MeetOptions
}

/** All ranks' x concatenated along dim, where its length may differ between ranks; of a list, each of its tensors. */
export function allGatherVBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, PartOf<O>[], S, GatherVCall, Tensor[], A>,
): AllGatherV<M> {
  return async (member, x, { dim = 0, sizes, ...options } = {}) => {
    const list = (Array.isArray(x) ? x : [x]) as readonly Tensor[]
    const check = (): void => checkGathered(member.device, list, dim, { rank: member.rank, size: member.size, sizes })
    if (member.size === 1) {
      member.checkOpen()
      check()
      const same = list.map((tensor) => tensor.share())
      return Array.isArray(x) ? same : (same[0] as Tensor)
    }
    const call = `allGatherV(${list.map((tensor) => describeOpen(tensor, dim)).join('; ')}, dim ${dim}, sizes ${sizes === undefined ? 'of the operands' : describeShape(sizes)})`
    const prepare = (hold: HoldAs<O>): PartOf<O>[] => {
      check()
      return list.map((tensor) => ({ operand: hold(tensor, 'r'), length: lengthAt(tensor.shape, dim) }))
    }
    const results = await run<PartOf<O>[], Tensor[]>(member, call, prepare, options, (payloads, scope) =>
      act(member, payloads, scope, { list, dim, options }),
    )
    for (const tensor of list.slice(1)) member.counts.bytes += tensor.byteLength
    return member.counted(list[0] as Tensor, Array.isArray(x) ? results : (results[0] as Tensor))
  }
}

export type Broadcast<M> = (member: M, x: Tensor, options?: { src?: number } & MeetOptions) => Promise<Tensor>

export interface BroadcastCall {
  x: Tensor
  src: number
  options: MeetOptions
}

export function broadcastBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, BroadcastCall, Tensor, A>,
): Broadcast<M> {
  return async (member, x, { src = 0, ...options } = {}) => {
    const check = (): void => {
      checkHere(member.device, x, 'x')
      checkInteger('src', src, 0, member.size - 1)
    }
    if (member.size === 1) return member.bypass(x, check)
    const result = await run<O, Tensor>(member, `broadcast(${describeTensor(x)}, src ${src})`, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { x, src, options }),
    )
    return member.counted(member.rank === src ? x : null, result)
  }
}

/** Rank src's x in every rank's own x; gives that x. */
export function broadcastIntoBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, BroadcastCall, null, A>,
): Broadcast<M> {
  return async (member, x, { src = 0, ...options } = {}) => {
    const check = (): void => {
      checkWritten(member.device, x, x, x.dtype, 'x')
      checkInteger('src', src, 0, member.size - 1)
    }
    const call = `broadcast(${describeTensor(x)}, src ${src}, in place)`
    const prepare = (hold: HoldAs<O>): O => {
      check()
      return hold(x, 'rw')
    }
    await run<O, null>(member, call, prepare, options, (operands, scope) => act(member, operands, scope, { x, src, options }))
    return member.counted(member.rank === src ? x : null, x)
  }
}
