// The collectives that deal parts out, as every kind of group is called: scatter from one rank, rows between all, blocks gathered in place at a
// pitch; see reduce.ts.
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, type Shape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkMoved, checkParts, checkWritten, describeTensor } from '../checks.ts'
import type { AllToAllOptions, Pitched } from '../device-comm.ts'
import type { HoldAs } from '../member.ts'
import { checkDealt, checkLayout, checkReceived, describeOpen, type Splits } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Act, Caller, Run, Timing } from './run.ts'

export type Scatter<M> = (member: M, x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions) => Promise<Tensor>

/** What rank src brings, to be cut into equal parts along dimension `at`. */
export interface DealCall<O> {
  operand: O
  shape: Shape
  src: number
  at: number
  options: MeetOptions
}

/** Rank r gets the r-th part of rank src's x along dim. The others' x is not looked at. */
export function scatterBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, unknown, S, DealCall<O>, Tensor, A>,
): Scatter<M> {
  type Brought = { operand: O; shape: Shape } | null
  return async (member, x, { src = 0, dim = 0, ...options } = {}) => {
    const { rank, size } = member
    const check = (): void => {
      checkInteger('src', src, 0, size - 1)
      if (rank !== src) return
      checkMoved(member.device, x as Tensor, dim)
      checkParts((x as Tensor).shape, dim, size)
    }
    if (size === 1) {
      check()
      return member.bypass(x as Tensor, check)
    }
    const prepare = (hold: HoldAs<O>): Brought => {
      check()
      return rank === src ? { operand: hold(x as Tensor, 'r'), shape: (x as Tensor).shape } : null
    }
    const result = await run<Brought, Tensor>(member, `scatter(src ${src}, dim ${dim})`, prepare, options, (payloads, scope) => {
      const { operand, shape } = payloads[src] as { operand: O; shape: Shape }
      return act(member, payloads, scope, { operand, shape, src, at: resolveDim(dim, shape.length), options })
    })
    return member.counted(rank === src ? x : null, result)
  }
}

export type AllToAll<M> = (member: M, x: Tensor, options?: AllToAllOptions) => Promise<Tensor>

/** What a rank deals out. */
export interface Dealt<O> extends Splits {
  operand: O
}

export interface AllToAllCall {
  x: Tensor
  options: MeetOptions
}

/** Rank s's rows, cut by its splits: the r-th cut goes to rank r, which gets its cuts in the order of their senders. */
export function allToAllBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, Dealt<O>, S, AllToAllCall, Tensor, A>,
): AllToAll<M> {
  return async (member, x, { splits, outputSplits, ...options } = {}) => {
    const check = (): Splits => checkDealt(member.device, x, member.size, { splits, outputSplits })
    if (member.size === 1) {
      const same = member.bypass(x, check)
      checkReceived([check()])
      return same
    }
    const prepare = (hold: HoldAs<O>): Dealt<O> => ({ ...check(), operand: hold(x, 'r') })
    const result = await run<Dealt<O>, Tensor>(member, `allToAll(${describeOpen(x, 0)})`, prepare, options, (payloads, scope) => {
      checkReceived(payloads)
      return act(member, payloads, scope, { x, options })
    })
    return member.counted(x, result)
  }
}

export type AllGather2D<M> = (member: M, buffer: Tensor, layout: Pitched & MeetOptions) => Promise<Tensor>

export interface Gather2DCall {
  buffer: Tensor
  layout: Pitched
  options: MeetOptions
}

/** Gives the buffer, which then holds every rank's block. */
export function allGather2DBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, Gather2DCall, null, A>,
): AllGather2D<M> {
  return async (member, buffer, given) => {
    const { pitch, stride, width, height, ...options } = given ?? ({} as Pitched)
    const layout = { pitch, stride, width, height }
    const call = `allGather2D(${describeTensor(buffer)}, pitch ${pitch}, stride ${stride}, ${height} x ${width})`
    const prepare = (hold: HoldAs<O>): O => {
      checkWritten(member.device, buffer, buffer, buffer?.dtype, 'buffer')
      checkLayout(layout, member.size, buffer)
      return hold(buffer, 'rw')
    }
    await run<O, null>(member, call, prepare, options, (operands, scope) => act(member, operands, scope, { buffer, layout, options }))
    return member.counted(buffer, buffer)
  }
}
