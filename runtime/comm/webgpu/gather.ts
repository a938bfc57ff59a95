// The WebGPU collectives that move equal operands: allGather, gather, broadcast, in place or to memory of its own.
import { dtypeSize } from '../../core/dtype.ts'
import { checkInteger } from '../../core/errors.ts'
import { resolveDim, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { copyBytes, type Operand, rangeOf } from '../../device/webgpu/launch.ts'
import { checkHere, checkMoved, checkWritten, describeTensor } from '../checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { isHere, type Slices, upload } from './clusters.ts'
import { land, sameRange } from './land.ts'
import { held, type Member } from './member.ts'
import { interleave } from './moves.ts'

export async function allGather(member: Member, x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => checkMoved(member.device, x, dim)
  if (member.size === 1) return member.bypass(x, check)
  const result = await member.run(`allGather(${describeTensor(x)}, dim ${dim})`, held(x, check), options, async (operands, scope) => {
    const slices = await member.group.side(scope, operands)
    return member.group.spread(scope, widened(x.shape, dim, member.size), x.dtype, [], (cluster, i, y) => {
      interleave(cluster, slices[i] as Slices, y.range, x.shape, dim)
    })
  })
  return member.counted(x, result)
}

export async function gather(
  member: Member,
  x: Tensor,
  { dst = 0, dim = -1, ...options }: { dst?: number; dim?: number } & MeetOptions = {},
): Promise<Tensor | null> {
  const check = (): void => {
    checkMoved(member.device, x, dim)
    checkInteger('dst', dst, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const call = `gather(${describeTensor(x)}, dst ${dst}, dim ${dim})`
  const result = await member.run<Operand, Tensor | null>(call, held(x, check), options, async (operands, scope) => {
    const cluster = member.group.home(dst)
    const [slices] = (await member.group.side(scope, operands, [cluster])) as [Slices]
    if (!isHere(cluster)) return operands.map(() => null)
    const shape = widened(x.shape, dim, member.size)
    const storage = cluster.gpu.pool.allocate(sizeOf(shape) * dtypeSize(x.dtype))
    const whole = member.group.tensor(scope, dst, storage, shape, x.dtype)
    interleave(cluster, slices, rangeOf(cluster.gpu, whole), x.shape, dim)
    return operands.map((_, rank) => (rank === dst ? whole : null))
  })
  return member.counted(x, result)
}

export async function broadcast(member: Member, x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions = {}): Promise<Tensor> {
  const check = (): void => {
    checkHere(member.device, x, 'x')
    checkInteger('src', src, 0, member.size - 1)
  }
  if (member.size === 1) return member.bypass(x, check)
  const result = await member.run(`broadcast(${describeTensor(x)}, src ${src})`, held(x, check), options, async (operands, scope) => {
    const home = member.group.home(src)
    const { range } = operands[src] as Operand
    const [bytes] = member.group.sites.length > 1 && x.size > 0 ? await scope.crossing.read([{ site: home, range }]) : []
    return member.group.spread(scope, x.shape, x.dtype, [], (cluster, _, y) => {
      if (cluster === home) copyBytes(cluster.sink, range, y.range, range.byteLength)
      else if (bytes) upload(scope, cluster, y.range, bytes)
    })
  })
  return member.counted(member.rank === src ? x : null, result)
}

/** Rank src's x in every rank's own x; gives that x. */
export async function broadcastInto(member: Member, x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions): Promise<Tensor> {
  const check = (): void => {
    checkWritten(member.device, x, x, x.dtype, 'x')
    checkInteger('src', src, 0, member.size - 1)
  }
  const call = `broadcast(${describeTensor(x)}, src ${src}, in place)`
  const prepare = (hold: (tensor: Tensor, use: 'rw') => Operand): Operand => {
    check()
    return hold(x, 'rw')
  }
  await member.run<Operand, null>(call, prepare, options, async (operands, scope) => {
    if (x.size === 0) return operands.map(() => null)
    const { group } = member
    const { range } = operands[src] as Operand
    const landed = await land(
      scope,
      group.sites.map((to) => ({ site: group.home(src), range, to })),
    )
    for (const [i, site] of group.sites.entries()) {
      if (!isHere(site)) continue
      const from = landed[i] as typeof range
      for (const rank of site.ranks) {
        const to = (operands[rank] as Operand).range
        if (!sameRange(from, to)) copyBytes(site.sink, from, to, from.byteLength)
      }
    }
    return operands.map(() => null)
  })
  return member.counted(member.rank === src ? x : null, x)
}

/** The shape of all ranks' tensors concatenated along dim. */
function widened(shape: Shape, dim: number, ranks: number): number[] {
  const at = resolveDim(dim, shape.length)
  return shape.map((n, i) => (i === at ? n * ranks : n))
}
