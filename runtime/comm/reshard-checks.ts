// What the fused norm between two layouts demands of its operands and of the two groups.
import { ArgumentError, CollectiveMismatchError, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape } from '../core/shape.ts'
import { checkEps, expectDType, expectShape, floatType } from '../device/checks.ts'
import type { Device } from '../device/device.ts'
import { checkHere, checkWritable, checkWritten } from './checks.ts'
import type { FusedNormEx } from './device-comm.ts'
import type { GroupHost } from './host.ts'
import { innerSize, type OwnedRows, ownedRows } from './ownership.ts'

/** A group split off another, by its members' ranks in the world. */
export interface Subgroup {
  readonly members: readonly number[]
}

/** A rank's two groups, by ranks of the whole one. */
export interface NamedGroups {
  group0: readonly number[]
  group1: readonly number[]
}

/** The groups of a call whose operands this rank may bring. @throws what is wrong with them. */
export function checkReshard(
  member: { readonly host: GroupHost; readonly device: Device; readonly rank: number; readonly size: number },
  given: FusedNormEx<Subgroup>,
  eps: number,
): NamedGroups {
  const { rank, size } = member
  const [group0, group1] = [ranksOf(member, given.group0, 'group0'), ranksOf(member, given.group1, 'group1')]
  const inner = innerSize(size, group0.length, group1.length, given.localTokenNums)
  checkOperands(member, given, eps, ownedRows(given.localTokenNums, inner))
  const own = group0.length === inner ? group0 : group1
  const first = rank - (rank % inner)
  if (!own.every((peer, i) => peer === first + i)) {
    throw new ArgumentError(`Expected the smaller group of rank ${rank} to be ranks ${first} to ${first + inner - 1} in this order`)
  }
  return { group0, group1 }
}

/** The members of a group all name that group. */
export function checkGroups(payloads: readonly NamedGroups[]): void {
  for (const name of ['group0', 'group1'] as const) {
    for (const [rank, { [name]: own }] of payloads.entries()) {
      const other = own.find((peer) => String(payloads[peer]?.[name]) !== String(own))
      if (other !== undefined)
        throw new CollectiveMismatchError(`Ranks ${rank} and ${other} name different groups as ${name}`, { rank: other })
    }
  }
}

/** A subgroup's members as ranks of the whole group. */
function ranksOf({ host, rank }: { readonly host: GroupHost; readonly rank: number }, group: Subgroup | null, name: string): number[] {
  if (group === null) return host.members.map((_, i) => i)
  if (!Array.isArray(group?.members)) throw invalidArgument(name, 'a communicator split off this one, or null for this one,', group)
  const ranks = group.members.map((member: number) => host.members.indexOf(member))
  if (ranks.includes(-1) || !ranks.includes(rank))
    throw new ArgumentError(`Expected ${name} to be split off this group and to have this rank`)
  return ranks
}

function checkOperands(
  { device, rank }: { readonly device: Device; readonly rank: number },
  { hidden, residual, weight, bias, localTokenNums }: FusedNormEx<Subgroup>,
  eps: number,
  owned: readonly OwnedRows[],
): void {
  checkHere(device, hidden, 'hidden')
  floatType(hidden.dtype, 'hidden')
  const n = hidden.shape.at(-1)
  if (n === undefined) throw new ShapeError('Expected [tokens, n] for hidden but received a scalar')
  const total = localTokenNums.reduce((a, b) => a + b, 0)
  expectShape(hidden, [total, n], 'hidden')
  checkWritten(device, hidden, hidden, hidden.dtype, 'hidden')
  checkHere(device, residual, 'residual')
  expectDType(residual, hidden.dtype, 'residual')
  checkWritable(device, residual)
  const { last } = owned[rank] as OwnedRows
  if (residual.shape.length !== 2 || residual.shape[1] !== n || (residual.shape[0] as number) < last) {
    throw new ShapeError(`Expected [at least ${last}, ${n}] for residual but received ${formatShape(residual.shape)}`)
  }
  for (const [name, tensor] of Object.entries({ weight, ...(bias && { bias }) })) {
    checkHere(device, tensor, name)
    expectShape(tensor, [n], name)
    expectDType(tensor, hidden.dtype, name)
  }
  checkEps(eps)
}
