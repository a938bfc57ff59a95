// The staged collectives that compute: allReduce, reduce, reduceScatter, and the reduction fused with residual, bias and RMSNorm.
import { checkInteger } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { nodesOf, type Span } from '../../core/tree.ts'
import { checkAlgorithm, reductionCall } from '../algorithms.ts'
import {
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
import { checkCut, isEven } from '../part-checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Operand, Staging, Target } from './group.ts'
import { type Hold, held, type Member } from './member.ts'
import { normed } from './norm.ts'
import { bytesOf, joined } from './numbers.ts'
import { reduced } from './partials.ts'
import { slab } from './pieces.ts'

export async function allReduce(
  member: Member,
  x: Tensor,
  { op = 'sum', out, algorithm, ...options }: AllReduceOptions = {},
): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkAlgorithm(algorithm, reductionCall(member, 'allReduce', x, Math.ceil(x.size / 4)))
    if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
  }
  if (member.size === 1 && out === undefined) return member.bypass(x, check)
  const wanted = algorithm ? `, ${algorithm}` : ''
  const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'}${wanted})`
  const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
    check()
    return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
  }
  const result = await member.run(call, prepare, options, async (payloads, staging) => {
    const operands = payloads.map((p) => p.x)
    return staging.spread(
      x.shape,
      x.dtype,
      bytesOf(x.dtype, await reduced(member.group, staging, operands, op, algorithm)),
      payloads.map((p) => p.out),
    )
  })
  return member.counted(x, result)
}

/** As allReduce on rank dst, null on the others. */
export async function reduce(
  member: Member,
  x: Tensor,
  { dst = 0, op = 'sum', ...options }: { dst?: number; op?: ReduceOp } & MeetOptions = {},
): Promise<Tensor | null> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkInteger('dst', dst, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduce(${op}, ${describeTensor(x)}, dst ${dst})`
  const result = await member.run<Operand, Tensor | null>(call, held(x, check), options, async (operands, staging) => {
    const total = await reduced(member.group, staging, operands, op)
    if (!member.group.here.includes(dst)) return operands.map(() => null)
    const whole = staging.result(dst, x.shape, x.dtype, bytesOf(x.dtype, total))
    return operands.map((_, rank) => (rank === dst ? whole : null))
  })
  return member.counted(x, result)
}

export async function reduceScatter(
  member: Member,
  x: Tensor,
  { dim = -1, op = 'sum', ...options }: { dim?: number; op?: ReduceOp } & MeetOptions = {},
): Promise<Tensor> {
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkParts(x.shape, dim, member.size)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatter(${op}, ${describeTensor(x)}, dim ${dim})`
  const lengths = (): number[] => {
    const length = x.shape[resolveDim(dim, x.shape.length)] as number
    return Array<number>(member.size).fill(length / member.size)
  }
  return scattered(member, x, call, check, { dim, op, options, lengths })
}

/** The reduction over ranks, of which rank r gets sizes[r] along dim. Equal sizes, and none, are those of reduceScatter. */
export async function reduceScatterV(
  member: Member,
  x: Tensor,
  { dim = -1, sizes, op = 'sum', ...options }: ScatterVOptions = {},
): Promise<Tensor> {
  if (sizes === undefined || isEven(sizes, member.size, x, dim)) return reduceScatter(member, x, { dim, op, ...options })
  const check = (): void => checkCut(member.device, x, op, dim, sizes, member.size)
  if (member.size === 1) return member.bypass(x, check)
  const call = `reduceScatterV(${op}, ${describeTensor(x)}, dim ${dim}, sizes ${describeShape(sizes)})`
  return scattered(member, x, call, check, { dim, op, options, lengths: () => sizes })
}

/** See DeviceComm.allReduceTree. */
export async function allReduceTree(
  member: Member,
  x: Tensor,
  { tree, shape, ...options }: { tree: TreeCut; shape: Shape } & MeetOptions,
): Promise<Tensor> {
  const check = (): void => {
    checkHere(member.device, x, 'x')
    checkShape(shape)
    checkTree(x, sizeOf(shape), tree)
  }
  const call = `allReduceTree(${describeTensor(x)}, ${describeShape(shape)}${describeTree(tree)})`
  const result = await member.run(call, held(x, check), options, async (operands, staging) => {
    return staging.spread(shape, 'float32', bytesOf('float32', await joinedTree(staging, operands, sizeOf(shape), tree)))
  })
  return member.counted(x, result)
}

interface FusedOperands {
  x: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
  out: Target | undefined
}

export async function allReduceResidualBiasRMSNorm(member: Member, args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
  const given = args ?? ({} as FusedNorm)
  const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, tree, algorithm, out } = given
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${describeTree(tree)}${out ? ', out' : ''}${algorithm ? `, ${algorithm}` : ''}`
  const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
  const prepare = (hold: Hold): FusedOperands => {
    checkFused(member.device, given, eps)
    if (!tree) checkAlgorithm(algorithm, reductionCall(member, 'allReduceResidualBiasRMSNorm', x, rowsOf(residual)))
    const own = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
    const target = out && { tensor: out, operand: hold(out, 'w') }
    if (target) checkApart(own.residual, target.operand, 'residual and out')
    return { ...own, out: target }
  }
  const result = await member.run(call, prepare, options, async (payloads, staging) => {
    const { dtype } = residual
    const lead = payloads[member.group.lead] as FusedOperands
    const operands = payloads.map((p) => p.x)
    const [sum, [before, gamma, added = null]] = await Promise.all([
      tree
        ? joinedTree(staging, operands, residual.size, tree)
        : (reduced(member.group, staging, operands, 'sum', algorithm) as Promise<Float32Array>),
      staging.own([lead.residual, lead.weight, ...(lead.bias ? [lead.bias] : [])]) as Promise<[Uint8Array, Uint8Array, Uint8Array?]>,
    ])
    const n = residual.shape.at(-1) as number
    const rows = normed({ sum, residual: before, weight: gamma, bias: added, dtype, n, eps, zeroCentered })
    staging.writeEach(
      payloads.map((p) => p.residual),
      rows.residual,
    )
    return staging.spread(
      residual.shape,
      dtype,
      rows.out,
      payloads.map((p) => p.out),
    )
  })
  member.counts.fused++
  return member.counted(x, result)
}

/** The sum in the order of the tree, of which each rank sends the subtrees it holds: none where it holds no block. */
async function joinedTree(staging: Staging, operands: readonly Operand[], count: number, { spans }: TreeCut): Promise<Float32Array> {
  const held = operands.map((operand, rank) => ({ ...operand, byteLength: 4 * count * nodesOf(spans[rank] as Span).length }))
  return joined(await staging.all(held), count, spans)
}

/** The reduction, cut along dim into the ranks' parts. */
async function scattered(
  member: Member,
  x: Tensor,
  call: string,
  check: () => void,
  { dim, op, options, lengths }: { dim: number; op: ReduceOp; options: MeetOptions; lengths: () => readonly number[] },
): Promise<Tensor> {
  const result = await member.run(call, held(x, check), options, async (operands, staging) => {
    const bytes = bytesOf(x.dtype, await reduced(member.group, staging, operands, op))
    const at = resolveDim(dim, x.shape.length)
    const results: Tensor[] = []
    let start = 0
    for (const [rank, length] of lengths().entries()) {
      const part = slab(bytes, x.shape, x.dtype, { dim: at, start, length })
      if (member.group.here.includes(rank)) results[rank] = staging.result(rank, part.shape, x.dtype, part.bytes())
      start += length
    }
    return results
  })
  return member.counted(x, result)
}

function rowsOf(residual: Tensor): number {
  return residual.size / Math.max(1, residual.shape.at(-1) as number)
}
