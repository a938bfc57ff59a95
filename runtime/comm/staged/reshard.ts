// allReduceResidualBiasRMSNormEx through host memory: rows summed over one group by their owners, normalised, and handed to another group.
import { dtypeSize } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import { checkApart, describeShape, describeTensor } from '../checks.ts'
import type { FusedNormEx } from '../device-comm.ts'
import { innerSize, ownedRows } from '../ownership.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { checkGroups, checkReshard, type NamedGroups, type Subgroup } from '../reshard-checks.ts'
import type { Operand, Source, Staging } from './group.ts'
import type { Hold, Member } from './member.ts'
import { normed } from './norm.ts'
import { fold, numbersIn } from './numbers.ts'

interface Operands extends NamedGroups {
  hidden: Operand
  residual: Operand
  weight: Operand
  bias: Operand | null
}

/** Rows of one owner: where they begin in every hidden and in the owner's residual, in bytes. */
interface Work {
  owner: number
  start: number
  local: number
  byteLength: number
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
  const sizes = [given.group0, given.group1].map((group) => group?.members?.length ?? member.size) as [number, number]
  const call = `allReduceResidualBiasRMSNormEx(${describeTensor(hidden)}, groups of ${sizes.join(' and ')}, tokens ${tokens}, ${flags})`
  const prepare = (hold: Hold): Operands => {
    const groups = checkReshard(member, given, eps)
    const own = { hidden: hold(hidden, 'rw'), residual: hold(residual, 'rw'), weight: hold(weight, 'r') }
    checkApart(own.hidden, own.residual, 'hidden and residual')
    return { ...own, bias: bias ? hold(bias, 'r') : null, ...groups }
  }
  await member.run<Operands, null>(call, prepare, options, async (payloads, staging) => {
    checkGroups(payloads)
    const n = hidden.shape.at(-1) as number
    const unit = n * dtypeSize(hidden.dtype)
    const owned = ownedRows(localTokenNums, innerSize(member.size, ...sizes, localTokenNums))
    const work = owned
      .map(({ offset, first, last }, owner) => {
        return { owner, start: (offset + first) * unit, local: first * unit, byteLength: (last - first) * unit }
      })
      .filter(({ byteLength }) => byteLength > 0)
    const finished = await normOwned(member, staging, payloads, work, { n, eps, zeroCentered })
    for (const [i, { owner, start, byteLength }] of work.entries()) {
      const members = (payloads[owner] as Operands).group1
      const places = members.map((rank) => part((payloads[rank] as Operands).hidden, start, byteLength))
      staging.writeEach(places, finished[i] as Uint8Array)
    }
    return payloads.map(() => null)
  })
  member.counts.fused++
  return member.counted(hidden, hidden)
}

/** Brings the partial rows to their owners, which update their residual rows; gives the normed rows of all owners to everybody. */
async function normOwned(
  { group }: Member,
  staging: Staging,
  payloads: readonly Operands[],
  work: readonly Work[],
  dims: { n: number; eps: number; zeroCentered: boolean },
): Promise<Uint8Array[]> {
  const senders = work.map(({ owner }) => (payloads[owner] as Operands).group0)
  const pieces = work.flatMap(({ start, byteLength }, i) =>
    (senders[i] as number[]).map((rank) => part((payloads[rank] as Operands).hidden, start, byteLength)),
  )
  const partials = await staging.all(pieces)
  const own: Uint8Array[] = []
  for (const [i, { owner, local, byteLength }] of work.entries()) {
    const ranks = senders[i] as number[]
    const parts = partials.splice(0, ranks.length)
    if (!group.here.includes(owner)) continue
    const { hidden, residual, weight, bias } = payloads[owner] as Operands
    const rows = part(residual, local, byteLength)
    const [before, gamma, added = null] = await staging.own([rows, weight, ...(bias ? [bias] : [])])
    const { dtype } = hidden
    const sum = fold(
      parts.map((bytes) => numbersIn(dtype, bytes)),
      'sum',
    ) as Float32Array
    const done = normed({ sum, residual: before as Uint8Array, weight: gamma as Uint8Array, bias: added, dtype, ...dims })
    staging.write(rows, done.residual)
    own.push(done.out)
  }
  return staging.share(
    work.map(({ owner, byteLength }) => ({ rank: owner, byteLength })),
    own,
  )
}

/** `byteLength` bytes of an operand, from `start` on. */
function part(operand: Operand, start: number, byteLength: number): Source {
  return { ...operand, offset: operand.offset + start, byteLength }
}
