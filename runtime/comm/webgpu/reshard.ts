// allReduceResidualBiasRMSNormEx on WebGPU: rows summed over one group by their owners, normalised, and handed to another group.
import { dtypeSize } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import { copyBytes, type Operand } from '../../device/webgpu/launch.ts'
import { checkApart, describeShape, describeTensor } from '../checks.ts'
import type { FusedNormEx } from '../device-comm.ts'
import { innerSize, type OwnedRows, ownedRows } from '../ownership.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { checkGroups, checkReshard, type NamedGroups, type Subgroup } from '../reshard-checks.ts'
import { type Extent, elsewhere, isHere, slicesOf } from './clusters.ts'
import { fusedNorm } from './kernels.ts'
import { land, type Piece, partOf, sameRange } from './land.ts'
import type { Hold, Member } from './member.ts'
import type { Scope } from './scope.ts'

interface Operands extends NamedGroups {
  hidden: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
}

/** Gives hidden. */
export async function allReduceResidualBiasRMSNormEx(
  member: Member,
  args: FusedNormEx<Subgroup>,
  options: MeetOptions = {},
): Promise<Tensor> {
  const given = args ?? ({} as FusedNormEx<Subgroup>)
  const { hidden, residual, weight, bias, eps = 1e-6, zeroCentered = false, localTokenNums } = given
  const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}`
  const tokens = describeShape(localTokenNums)
  const sizes = [given.group0, given.group1].map((group) => group?.members?.length ?? member.size)
  const call = `allReduceResidualBiasRMSNormEx(${describeTensor(hidden)}, groups of ${sizes.join(' and ')}, tokens ${tokens}, ${flags})`
  const prepare = (hold: Hold): Operands => {
    const groups = checkReshard(member, given, eps)
    const held = { hidden: hold(hidden, 'rw'), residual: hold(residual, 'rw'), weight: hold(weight, 'r') }
    checkApart(held.hidden.range, held.residual.range, 'hidden and residual')
    return { ...held, bias: bias ? hold(bias, 'r') : null, ...groups }
  }
  await member.run<Operands, null>(call, prepare, options, async (payloads, scope) => {
    checkGroups(payloads)
    const n = hidden.shape.at(-1) as number
    if (n === 0) return payloads.map(() => null)
    const inner = innerSize(member.size, ...(sizes as [number, number]), localTokenNums)
    const normed = await normOwned(member, scope, payloads, ownedRows(localTokenNums, inner), { n, eps, zeroCentered })
    await handOut(member, scope, payloads, normed)
    return payloads.map(() => null)
  })
  member.counts.fused++
  return member.counted(hidden, hidden)
}

/** Finished rows, and where in every hidden they belong. */
interface Normed {
  owner: number
  range: Extent
  start: number
}

/** Brings the partial rows to their owners' devices and norms them there; residual rows are updated in place. */
async function normOwned(
  { group }: Member,
  scope: Scope,
  payloads: readonly Operands[],
  owned: readonly OwnedRows[],
  dims: { n: number; eps: number; zeroCentered: boolean },
): Promise<Normed[]> {
  const [{ hidden }] = payloads as [Operands]
  const unit = dims.n * dtypeSize(hidden.dtype)
  const work = owned
    .map(({ offset, first, last }, owner) => ({ owner, start: (offset + first) * unit, local: first * unit, rows: last - first }))
    .filter(({ rows }) => rows > 0)
  const pieces = work.flatMap(({ owner, start, rows }) =>
    (payloads[owner] as Operands).group0.map((rank): Piece => {
      const range = partOf((payloads[rank] as Operands).hidden.range, start, rows * unit)
      return { site: group.home(rank), range, to: group.home(owner) }
    }),
  )
  const landed = await land(scope, pieces)
  return work.map(({ owner, start, local, rows }) => {
    const cluster = group.home(owner)
    const { group0, residual, weight, bias } = payloads[owner] as Operands
    const partials = landed.splice(0, group0.length)
    if (!isHere(cluster)) return { owner, range: elsewhere(rows * unit), start }
    const slices = slicesOf(scope, cluster, partials as Range[], hidden.dtype)
    const { buffer, offset } = scope.scratch(cluster.gpu.pool.allocate(rows * unit))
    const range = { buffer, offset, byteLength: rows * unit }
    const count = rows * dims.n
    const own: Operand = { ...residual, range: partOf(residual.range, local, rows * unit), count, padded: false }
    const out: Operand = { range, dtype: hidden.dtype, use: 'w', count, padded: true }
    fusedNorm(scope, cluster, slices, { residual: own, weight, bias, out }, { ...dims, rows })
    return { owner, range, start }
  })
}

/** Writes the finished rows into the hidden of every member of their owner's group1; all partial rows have been read by then. */
async function handOut({ group }: Member, scope: Scope, payloads: readonly Operands[], normed: readonly Normed[]): Promise<void> {
  const pieces = normed.flatMap(({ owner, range, start }) =>
    (payloads[owner] as Operands).group1.map((rank) => {
      const place = partOf((payloads[rank] as Operands).hidden.range, start, range.byteLength)
      return { site: group.home(owner), range, to: group.home(rank), place }
    }),
  )
  const landed = await land(scope, pieces)
  for (const [i, { to, place }] of pieces.entries()) {
    const from = landed[i]
    if (from && isHere(to) && !sameRange(from, place)) copyBytes(to.sink, from, place, place.byteLength)
  }
}
