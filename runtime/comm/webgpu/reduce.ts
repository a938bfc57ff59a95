// The WebGPU collectives that compute: allReduce, reduceScatter, reduce, and the reduction fused with residual, bias and RMSNorm.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { checkShape, resolveDim, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { checkAlgorithm, type ReductionCall, reductionCall } from '../algorithms.ts'
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
import type { AllReduceOptions, FusedNorm, ReduceOp, TreeCut } from '../device-comm.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { algorithmFor } from './choose.ts'
import { isHere, type Slices } from './clusters.ts'
import type { Target } from './group.ts'
import { fusedNorm, reduceSlices } from './kernels.ts'
import { type Hold, held, type Member, operandsOf } from './member.ts'
import { scatterParts } from './moves.ts'
import { type FusedOperands, shareResidual, twoShotAllReduce, twoShotFused } from './two-shot.ts'

export async function allReduce(
  member: Member,
  x: Tensor,
  { op = 'sum', out, algorithm, ...options }: AllReduceOptions = {},
): Promise<Tensor> {
  const callOf = (): ReductionCall => reductionCall(member, 'allReduce', x, Math.ceil(x.size / 4))
  const check = (): void => {
    checkReduced(member.device, x, op)
    checkAlgorithm(algorithm, callOf())
    if (out !== undefined) checkWritten(member.device, out, x, x.dtype, 'out')
  }
  if (member.size === 1 && out === undefined) return member.bypass(x, check)
  const wanted = algorithm ? `, ${algorithm}` : ''
  const call = `allReduce(${op}, ${describeTensor(x)}${out === undefined ? '' : ', out'}${wanted})`
  const prepare = (hold: Hold): { x: Operand; out: Target | undefined } => {
    check()
    return { x: hold(x, 'r'), out: out && { tensor: out, operand: hold(out, 'w') } }
  }
  const result = await member.run(call, prepare, options, async (payloads, scope) => {
    if (algorithmFor(member, callOf(), algorithm) === 'two-shot') return twoShotAllReduce(member, scope, payloads, x, op)
    const partials = await member.group.partials(scope, operandsOf(payloads), op)
    const targets = payloads.map((p) => p.out)
    return member.group.spread(scope, x.shape, x.dtype, targets, (cluster, i, y) => {
      reduceSlices(cluster, partials[i] as Slices, y, op, member.size)
    })
  })
  return member.counted(x, result)
}

export async function allReduceResidualBiasRMSNorm(member: Member, args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
  const given = args ?? ({} as FusedNorm)
  const { x, residual, weight, bias, eps = 1e-6, zeroCentered = false, tree, algorithm, out } = given
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${describeTree(tree)}${out ? ', out' : ''}${algorithm ? `, ${algorithm}` : ''}`
  const callOf = (): ReductionCall => reductionCall(member, 'allReduceResidualBiasRMSNorm', x, rowsOf(residual))
  const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${describeTensor(residual)}, ${flags})`
  const prepare = (hold: Hold): FusedOperands => {
    checkFused(member.device, given, eps)
    if (!tree) checkAlgorithm(algorithm, callOf())
    const held = { x: hold(x, 'r'), residual: hold(residual, 'rw'), weight: hold(weight, 'r'), bias: bias ? hold(bias, 'r') : null }
    const target = out && { tensor: out, operand: hold(out, 'w') }
    if (target) checkApart(held.residual.range, target.operand.range, 'residual and out')
    return { ...held, out: target }
  }
  const result = await member.run(call, prepare, options, async (payloads, scope) => {
    const n = residual.shape.at(-1) as number
    const dims = { rows: rowsOf(residual), n, eps, zeroCentered }
    if (!tree && algorithmFor(member, callOf(), algorithm) === 'two-shot') return twoShotFused(member, scope, payloads, residual, dims)
    const operands = operandsOf(payloads)
    const partials = tree ? await member.group.joined(scope, operands, tree) : await member.group.partials(scope, operands, 'sum')
    const targets = payloads.map((p) => p.out)
    return member.group.spread(scope, residual.shape, residual.dtype, targets, (cluster, i, y) => {
      if (residual.size === 0) return
      const lead = payloads[cluster.ranks[0] as number] as FusedOperands
      fusedNorm(scope, cluster, partials[i] as Slices, { ...lead, out: y }, dims)
      shareResidual(cluster, payloads)
    })
  })
  member.counts.fused++
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
  const result = await member.run(call, held(x, check), options, async (operands, scope) => {
    const partials = await member.group.partials(scope, operands, op)
    const cut = { shape: x.shape, dtype: x.dtype, dim, size: member.size }
    const part = x.shape.map((n, i) => (i === resolveDim(dim, x.shape.length) ? n / member.size : n))
    const results: Tensor[] = []
    for (const [i, cluster] of member.group.clusters.entries()) {
      const storages = cluster.gpu.pool.allocateSlices(cluster.ranks.length, sizeOf(part) * dtypeSize(x.dtype))
      for (const [k, rank] of cluster.ranks.entries()) {
        results[rank] = member.group.tensor(scope, rank, storages[k] as GpuStorage, part, x.dtype)
      }
      if (x.size > 0) scatterParts(scope, cluster, partials[i] as Slices, storages, cut, op)
    }
    return results
  })
  return member.counted(x, result)
}

/** As allReduce on rank dst, null on the others; partials travel to dst's device alone. */
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
  const result = await member.run<Operand, Tensor | null>(call, held(x, check), options, async (operands, scope) => {
    const cluster = member.group.home(dst)
    const [slices] = (await member.group.partials(scope, operands, op, [cluster])) as [Slices]
    if (!isHere(cluster)) return operands.map(() => null)
    const storage = cluster.gpu.pool.allocate(x.byteLength)
    const whole = member.group.tensor(scope, dst, storage, x.shape, x.dtype)
    const { buffer, offset, byteLength } = storage
    const y: Operand = { range: { buffer, offset, byteLength }, dtype: x.dtype, use: 'w', count: x.size, padded: true }
    reduceSlices(cluster, slices, y, op, member.size)
    return operands.map((_, rank) => (rank === dst ? whole : null))
  })
  return member.counted(x, result)
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
  const result = await member.run(call, held(x, check), options, async (operands, scope) => {
    const sums = await member.group.joined(scope, operands, tree)
    return member.group.spread(scope, shape, 'float32', [], (cluster, i, y) => reduceSlices(cluster, sums[i] as Slices, y, 'sum', 1))
  })
  return member.counted(x, result)
}

function rowsOf(residual: Tensor): number {
  const n = residual.shape.at(-1) ?? 0
  return n === 0 ? 0 : residual.size / n
}
