// Partials: what the ranks of each device bring to a sum, added up where they are; then one partial a device, added on the host in the group's order.
import { dtypeSize } from '../../core/dtype.ts'
import type { Span } from '../../core/tree.ts'
import { type AlgorithmName, wireType } from '../algorithms.ts'
import type { ReduceOp } from '../device-comm.ts'
import type { RankExperts } from '../fusion/experts.ts'
import { partsOf } from '../webgpu/two-shot.ts'
import { expertRows } from './expert-rows.ts'
import { expertsOnGpu, sumOnGpu } from './gpu-site.ts'
import { type Operand, type Site, type StagedGroup, type Staging, settled } from './group.ts'
import { bytesOf, fold, type Numbers, numbersIn } from './numbers.ts'

/**
 * All ranks' operands as one: ranks ascending on each device, devices by their lowest rank; avg is their sum divided by their number, in float32.
 * Two-shot over a wire, each rank adds a part of them and gets the others' sums.
 */
export async function reduced(
  group: StagedGroup,
  staging: Staging,
  operands: readonly Operand[],
  op: ReduceOp,
  algorithm?: AlgorithmName,
): Promise<Numbers> {
  const divided = (total: Numbers): Numbers => (op === 'avg' ? total.map((value) => value / operands.length) : total)
  if (group.apart && algorithm === 'two-shot') return divided(await twoShot(group, staging, operands, op))
  return divided(fold(await partials(group, staging, operands, op), op))
}

async function twoShot({ here }: StagedGroup, staging: Staging, operands: readonly Operand[], op: ReduceOp): Promise<Numbers> {
  const [{ dtype, count }] = operands as [Operand]
  const parts = partsOf(count, operands.length, 1)
  const own = parts[here[0] as number] as Span
  const size = dtypeSize(dtype)
  const slices = (await staging.all(operands)).map((bytes) =>
    numbersIn(dtype, bytes.subarray(own.start * size, (own.start + own.count) * size)),
  )
  const type = wireType(dtype, false)
  const width = dtypeSize(type)
  const finished = await staging.share(
    parts.map((part, rank) => ({ rank, byteLength: part.count * width })),
    [bytesOf(type, fold(slices, op))],
  )
  const total = new Uint8Array(count * width)
  for (const [rank, { start }] of parts.entries()) total.set(finished[rank] as Uint8Array, start * width)
  return numbersIn(type, total)
}

/** By site. Several ranks of a GPU are added there, so that it is read once. */
async function partials(group: StagedGroup, staging: Staging, operands: readonly Operand[], op: ReduceOp): Promise<Numbers[]> {
  const [{ dtype, count }] = operands as [Operand]
  if (group.apart) return (await staging.all(operands)).map((bytes) => numbersIn(dtype, bytes))
  return settled(
    group.sites.map(async (site) => {
      const own = of(site, operands)
      const cluster = own.length > 1 && count > 0 && group.cluster(site)
      if (cluster) return sumOnGpu(cluster, own, op)
      const parts = await staging.own(own)
      return fold(
        parts.map((bytes) => numbersIn(dtype, bytes)),
        op,
      )
    }),
  )
}

/** All ranks' expert rows as one: each rank's joined and rounded to the dtype of the rows, then added as in `reduced`. */
export async function reducedExperts(
  group: StagedGroup,
  staging: Staging,
  payloads: readonly RankExperts<Operand>[],
): Promise<Float32Array> {
  const { tokens, hidden, dtype } = (payloads[0] as RankExperts<Operand>).plan.spec
  const count = tokens * hidden
  const joined = async (site: Site): Promise<Numbers> => {
    const own = of(site, payloads)
    if (count === 0) return new Float32Array(0)
    const cluster = group.cluster(site)
    if (cluster) return expertsOnGpu(cluster, own, { count, hidden, dtype })
    const parts = await settled(own.map((experts) => expertRows(staging, experts)))
    return fold(
      parts.map((rows) => numbersIn(dtype, rows)),
      'sum',
    )
  }
  const mine = await settled(group.sites.filter(({ ranks }) => group.here.includes(ranks[0] as number)).map(joined))
  if (!group.apart) return fold(mine, 'sum') as Float32Array
  const parts = payloads.map((_, rank) => ({ rank, byteLength: count * dtypeSize(dtype) }))
  const all = await staging.share(
    parts,
    mine.map((numbers) => bytesOf(dtype, numbers)),
  )
  return fold(
    all.map((bytes) => numbersIn(dtype, bytes)),
    'sum',
  ) as Float32Array
}

function of<T>({ ranks }: Site, all: readonly T[]): T[] {
  return ranks.map((rank) => all[rank] as T)
}
