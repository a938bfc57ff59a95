// The collectives that compute, as every kind of group is called: what is checked, what the ranks' calls are compared by, what is held meanwhile, what
// is counted. How the operands become results is the group's own: `act`.
import { checkInteger, invalidArgument } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { type AlgorithmName, checkAlgorithm, reductionCall } from '../algorithms.ts'
import {
  type Bytes,
  checkApart,
  checkFused,
  checkHere,
  checkParts,
  checkReduced,
  checkTree,
  checkWritten,
  describeShape,
  describeTensor,
  describeTree,
} from '../checks.ts'
import type { AllReduceOptions, FusedNorm, ReduceOp, ScatterVOptions, TreeCut } from '../device-comm.ts'
import type { HoldAs } from '../member.ts'
import { checkCut, isEven } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type Act, type Caller, held, type Run, type TargetOf, type Timing } from './run.ts'

export type AllReduce<M> = (member: M, x: Tensor, options?: AllReduceOptions) => Promise<Tensor>

export interface Summand<O> {
  x: O
  /** x is all zeros; see Contribution. */
  nothing: boolean
  out: TargetOf<O> | undefined
}

export interface AllReduceCall {
  x: Tensor
  op: ReduceOp
  algorithm: AlgorithmName | undefined
  options: MeetOptions
}

export function allReduceBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, Summand<O>, S, AllReduceCall, Tensor, A>,
): AllReduce<M> {
  return async (member, x, { op = 'sum', out, algorithm, contribution = true, ...options } = {}) => {
    const check = (): void => {
      checkReduced(member.device, x, op)
      checkContribution(contribution, op)
      checkAlgorithm(algorithm, reductionCall(member, 'allReduce', x, Math.ceil(x.size / 4)))
      if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
    }
    if (member.size === 1 && out === undefined) return member.bypass(x, check)
    const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'}${algorithm ? `, ${algorithm}` : ''})`
    const prepare = (hold: HoldAs<O>): Summand<O> => {
      check()
      return { x: hold(x, 'r'), nothing: !contribution, out: out && { tensor: out, operand: hold(out, 'w') } }
    }
    const result = await run<Summand<O>, Tensor>(member, call, prepare, options, (payloads, scope) =>
      act(member, payloads, scope, { x, op, algorithm, options }),
    )
    return member.counted(x, result)
  }
}

function checkContribution(contribution: boolean, op: ReduceOp): void {
  if (typeof contribution !== 'boolean') throw invalidArgument('contribution', 'true or false', contribution)
  if (!contribution && op !== 'sum' && op !== 'avg') throw invalidArgument('contribution', `true, as for every ${op}`, contribution)
}

export type Reduce<M> = (member: M, x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions) => Promise<Tensor | null>

export interface ReduceCall {
  x: Tensor
  op: ReduceOp
  dst: number
  options: MeetOptions
}

/** As allReduce on rank dst, null on the others. */
export function reduceBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, ReduceCall, Tensor | null, A>,
): Reduce<M> {
  return async (member, x, { dst = 0, op = 'sum', ...options } = {}) => {
    const check = (): void => {
      checkReduced(member.device, x, op)
      checkInteger('dst', dst, 0, member.size - 1)
    }
    if (member.size === 1) return member.bypass(x, check)
    const call = `reduce(${op}, ${describeTensor(x)}, dst ${dst})`
    const result = await run<O, Tensor | null>(member, call, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { x, op, dst, options }),
    )
    return member.counted(x, result)
  }
}

export type ReduceScatter<M> = (member: M, x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions) => Promise<Tensor>

/** Rank r gets lengths[r] along dimension `at` of the reduction. */
export interface ScatterCall {
  x: Tensor
  op: ReduceOp
  at: number
  lengths: readonly number[]
  options: MeetOptions
}

export function reduceScatterBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, ScatterCall, Tensor, A>,
): ReduceScatter<M> {
  return async (member, x, { dim = -1, op = 'sum', ...options } = {}) => {
    const check = (): void => {
      checkReduced(member.device, x, op)
      checkParts(x.shape, dim, member.size)
    }
    if (member.size === 1) return member.bypass(x, check)
    const call = `reduceScatter(${op}, ${describeTensor(x)}, dim ${dim})`
    const result = await run<O, Tensor>(member, call, held(x, check), options, (operands, scope) => {
      const at = resolveDim(dim, x.shape.length)
      const lengths = Array<number>(member.size).fill((x.shape[at] as number) / member.size)
      return act(member, operands, scope, { x, op, at, lengths, options })
    })
    return member.counted(x, result)
  }
}

export type ReduceScatterV<M> = (member: M, x: Tensor, options?: ScatterVOptions) => Promise<Tensor>

/** The reduction over ranks, of which rank r gets sizes[r] along dim. Equal sizes, and none, are those of `even`. */
export function reduceScatterVBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  even: ReduceScatter<M>,
  act: Act<M, O, S, ScatterCall, Tensor, A>,
): ReduceScatterV<M> {
  return async (member, x, { dim = -1, sizes, op = 'sum', ...options } = {}) => {
    if (sizes === undefined || isEven(sizes, member.size, x, dim)) return even(member, x, { dim, op, ...options })
    const check = (): void => checkCut(member.device, x, op, dim, sizes, member.size)
    if (member.size === 1) return member.bypass(x, check)
    const call = `reduceScatterV(${op}, ${describeTensor(x)}, dim ${dim}, sizes ${describeShape(sizes)})`
    const result = await run<O, Tensor>(member, call, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { x, op, at: resolveDim(dim, x.shape.length), lengths: sizes, options }),
    )
    return member.counted(x, result)
  }
}

export type AllReduceTree<M> = (member: M, x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions) => Promise<Tensor>

export interface TreeCall {
  tree: TreeCut
  shape: Shape
  options: MeetOptions
}

/** See DeviceComm.allReduceTree. */
export function allReduceTreeBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  act: Act<M, O, S, TreeCall, Tensor, A>,
): AllReduceTree<M> {
  return async (member, x, { tree, shape, ...options }) => {
    const check = (): void => {
      checkHere(member.device, x, 'x')
      checkShape(shape)
      checkTree(x, sizeOf(shape), tree)
    }
    const call = `allReduceTree(${describeTensor(x)}, ${describeShape(shape)}${describeTree(tree)})`
    const result = await run<O, Tensor>(member, call, held(x, check), options, (operands, scope) =>
      act(member, operands, scope, { tree, shape, options }),
    )
    return member.counted(x, result)
  }
}

export type Norm<M> = (member: M, args: FusedNorm, options?: MeetOptions) => Promise<Tensor>

export interface NormOperands<O> {
  x: O
  /** x is all zeros; see Contribution. */
  nothing: boolean
  residual: O
  weight: O
  bias: O | null
  out: TargetOf<O> | undefined
}

export interface NormCall {
  x: Tensor
  residual: Tensor
  /** Rows of the residual, and elements of each. */
  rows: number
  n: number
  eps: number
  zeroCentered: boolean
  portable: boolean
  tree: TreeCut | undefined
  algorithm: AlgorithmName | undefined
  options: MeetOptions
}

/** The reduction fused with residual, bias and RMSNorm; `bytesOf` says where an operand lies. */
export function normBy<M extends Caller, O, S, A extends Timing>(
  run: Run<M, O, S, A>,
  bytesOf: (operand: O) => Bytes,
  act: Act<M, NormOperands<O>, S, NormCall, Tensor, A>,
): Norm<M> {
  return async (member, args, options = {}) => {
    const given = args ?? ({} as FusedNorm)
    const {
      x,
      residual,
      weight,
      bias,
      eps = 1e-6,
      zeroCentered = false,
      tree,
      portable = tree !== undefined,
      algorithm,
      contribution = true,
      out,
    } = given
    const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${describeTree(tree)}${portable && !tree ? ', portable' : ''}${out ? ', out' : ''}${algorithm ? `, ${algorithm}` : ''}`
    const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
    const prepare = (hold: HoldAs<O>): NormOperands<O> => {
      checkFused(member.device, given, eps)
      checkContribution(contribution, 'sum')
      if (!tree) checkAlgorithm(algorithm, reductionCall(member, 'allReduceResidualBiasRMSNorm', x, rowsOf(residual)))
      const own = {
        x: hold(x, 'r'),
        nothing: !contribution,
        residual: hold(residual, 'rw'),
        weight: hold(weight, 'r'),
        bias: bias ? hold(bias, 'r') : null,
      }
      const target = out && { tensor: out, operand: hold(out, 'w') }
      if (target) checkApart(bytesOf(own.residual), bytesOf(target.operand), 'residual and out')
      return { ...own, out: target }
    }
    const result = await run<NormOperands<O>, Tensor>(member, call, prepare, options, (payloads, scope) => {
      const n = residual.shape.at(-1) as number
      return act(member, payloads, scope, { x, residual, rows: rowsOf(residual), n, eps, zeroCentered, portable, tree, algorithm, options })
    })
    member.counts.fused++
    return member.counted(x, result)
  }
}

function rowsOf(residual: Tensor): number {
  const n = residual.shape.at(-1) ?? 0
  return n === 0 ? 0 : residual.size / n
}
