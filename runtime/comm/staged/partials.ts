// Partials: what the ranks of each device, or of a joined site, bring to a sum, added up where they are; then one partial for all of them, added on
// the host in the group's order.
import { dtypeSize } from '../../core/dtype.ts'
import type { Span } from '../../core/tree.ts'
import { type AlgorithmName, wireType } from '../algorithms.ts'
import type { ReduceOp } from '../device-comm.ts'
import type { RankExperts } from '../fusion/experts.ts'
import { endToEnd } from '../link.ts'
import { partsOf } from '../webgpu/two-shot.ts'
import { expertRows } from './expert-rows.ts'
import { expertsOnGpu, sumOnGpu } from './gpu-site.ts'
import type { Operand, StagedGroup, Staging, Union } from './group.ts'
import type { JoinedSite } from './joined-site.ts'
import { bytesOf, fold, type Numbers, numbersIn } from './numbers.ts'
import { settled } from './staging.ts'

/** How a reduction goes, alike on all ranks. */
export interface Way {
  algorithm?: AlgorithmName | undefined
  /** Elements that are cut nowhere; see JoinedSite.cut. */
  unit?: number | undefined
  /** By rank: what it brings is all zeros, and is left where it is. */
  nothing?: readonly boolean[]
}

/**
 * All ranks' operands as one, or elements `span` of that: ranks ascending in each union, unions by their lowest rank; avg is their sum divided by
 * their number, in float32. Two-shot over a wire, each rank adds a part of them and gets the others' sums.
 */
export async function reduced(
  group: StagedGroup,
  staging: Staging,
  operands: readonly Operand[],
  op: ReduceOp,
  way: Way = {},
  span: Span = { start: 0, count: (operands[0] as Operand).count },
): Promise<Numbers> {
  const total =
    group.apart && way.algorithm === 'two-shot'
      ? (await twoShot(group, staging, brought(operands, way), op)).subarray(span.start, span.start + span.count)
      : inOrder(await partials(group, staging, operands, op, way), span, op)
  return op === 'avg' ? total.map((value) => value / operands.length) : total
}

/** A union's sum, elements `span` of it. */
type Partial = (span: Span) => Numbers

function inOrder(all: readonly Partial[], span: Span, op: ReduceOp): Numbers {
  return fold(
    all.map((partial) => partial(span)),
    op,
  )
}

/** Of ranks whose operand is all zeros no bytes are asked for. */
function brought(operands: readonly Operand[], { nothing }: Way): readonly Operand[] {
  return nothing?.includes(true) ? operands.map((operand, rank) => (nothing[rank] ? { ...operand, byteLength: 0 } : operand)) : operands
}

/** The sum of some ranks' operands, one after the other; of those that brought no bytes nothing is added. */
function added({ dtype }: Operand, all: readonly Uint8Array[], op: ReduceOp): Partial {
  const width = dtypeSize(dtype)
  const there = all.filter(({ byteLength }) => byteLength > 0)
  return ({ start, count }) => {
    if (there.length === 0) return numbersIn(dtype, new Uint8Array(count * width))
    return fold(
      there.map((bytes) => numbersIn(dtype, bytes.subarray(start * width, (start + count) * width))),
      op,
    )
  }
}

async function twoShot(group: StagedGroup, staging: Staging, operands: readonly Operand[], op: ReduceOp): Promise<Numbers> {
  const [first] = operands as [Operand]
  const parts = partsOf(first.count, operands.length, 1)
  const own = parts[group.here[0] as number] as Span
  const all = await staging.all(operands)
  const sums = group.unions.map((union) => added(first, of(union, all), op))
  const type = wireType(first.dtype, false)
  const width = dtypeSize(type)
  const finished = await staging.share(
    parts.map((part, rank) => ({ rank, byteLength: part.count * width })),
    [bytesOf(type, inOrder(sums, own, op))],
  )
  return numbersIn(type, endToEnd(finished))
}

/** By union. Several ranks of a GPU are added there, so that it is read once; of a joined site's sum each rank that is here reads its part. */
async function partials(group: StagedGroup, staging: Staging, operands: readonly Operand[], op: ReduceOp, way: Way): Promise<Partial[]> {
  const { algorithm, unit } = way
  const sources = brought(operands, way)
  const [first] = operands as [Operand]
  const { dtype, count } = first
  const cuts = group.unions.map(({ joined }) => (algorithm === undefined && joined?.adds(dtype, op) ? joined.cut(count, unit) : null))
  const sums = await settled(
    group.unions.map(async (union, i): Promise<Numbers | Uint8Array[]> => {
      const own = of(union, operands).filter(({ rank }) => group.here.includes(rank))
      if (cuts[i]) return own.length > 0 ? staging.sumParts(union.joined as JoinedSite, operands, cuts[i]) : []
      const adding = own.filter(({ rank }) => !way.nothing?.[rank])
      const cluster = adding.length > 1 && count > 0 && group.cluster(union)
      return cluster ? sumOnGpu(cluster, adding, op) : staging.own(own.map(({ rank }) => sources[rank] as Operand))
    }),
  )
  if (!group.apart) return sums.map((given, i) => partialOf(given, cuts[i] ?? null, first, op))
  const parts = group.unions.flatMap(({ ranks }, i) =>
    ranks.map((rank, k) => ({ rank, byteLength: cuts[i] ? 4 * (cuts[i][k] as Span).count : (sources[rank] as Operand).byteLength })),
  )
  const all = await staging.share(parts, (sums as Uint8Array[][]).flat())
  return group.unions.map(({ ranks }, i) => partialOf(all.splice(0, ranks.length), cuts[i] ?? null, first, op))
}

/** `given`: the sum; or bytes of the union's ranks, of all their operands or, cut, of their parts of the sum. */
function partialOf(given: Numbers | Uint8Array[], cut: readonly Span[] | null, first: Operand, op: ReduceOp): Partial {
  if (!Array.isArray(given)) return ({ start, count }) => given.subarray(start, start + count)
  if (!cut) return added(first, given, op)
  return ({ start, count }) => {
    const pieces = cut.map((part, i) => {
      const [from, end] = [Math.max(start, part.start), Math.min(start + count, part.start + part.count)]
      return (given[i] as Uint8Array).subarray(4 * (from - part.start), 4 * (Math.max(from, end) - part.start))
    })
    return numbersIn('float32', endToEnd(pieces.filter(({ byteLength }) => byteLength > 0)))
  }
}

/** All ranks' expert rows as one: each rank's joined and rounded to the dtype of the rows, then added as in `reduced`. */
export async function reducedExperts(
  group: StagedGroup,
  staging: Staging,
  payloads: readonly RankExperts<Operand>[],
): Promise<Float32Array> {
  const { tokens, hidden, dtype } = (payloads[0] as RankExperts<Operand>).plan.spec
  const count = tokens * hidden
  const joined = async (union: Union): Promise<Numbers[]> => {
    const own = union.ranks.filter((rank) => group.here.includes(rank)).map((rank) => payloads[rank] as RankExperts<Operand>)
    if (count === 0 || own.length === 0) return own.map(() => new Float32Array(0))
    const cluster = group.cluster(union)
    if (cluster) return [await expertsOnGpu(cluster, own, { count, hidden, dtype })]
    return (await settled(own.map((experts) => expertRows(staging, experts)))).map((rows) => numbersIn(dtype, rows))
  }
  const mine = await settled(group.unions.map(joined))
  const sum = (parts: readonly Numbers[]): Float32Array => fold(parts, 'sum') as Float32Array
  if (!group.apart) return sum(mine.map(sum))
  const all = await staging.share(
    payloads.map((_, rank) => ({ rank, byteLength: count * dtypeSize(dtype) })),
    mine.flat().map((numbers) => bytesOf(dtype, numbers)),
  )
  return sum(group.unions.map((union) => sum(of(union, all).map((bytes) => numbersIn(dtype, bytes)))))
}

function of<T>({ ranks }: Union, all: readonly T[]): T[] {
  return ranks.map((rank) => all[rank] as T)
}
