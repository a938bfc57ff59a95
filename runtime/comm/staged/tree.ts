// Sums in the order of the tree: subtrees that neighbours on one GPU hold are joined there as far as that goes, all others on the host.
import { nodesOf, type Span, slotsOf, subtreesOf } from '../../core/tree.ts'
import { MAX_SLOTS } from '../../device/webgpu/tree.ts'
import type { TreeCut } from '../device-comm.ts'
import { joinOnGpu } from './gpu-site.ts'
import type { Operand, StagedGroup, Staging } from './group.ts'
import { joined } from './numbers.ts'
import { settled } from './staging.ts'

/** Blocks of one rank or of several, and their subtree sums end to end. */
interface Part {
  span: Span
  read(): Promise<Uint8Array>
}

/** The sum of all ranks' subtrees, `count` elements each; a rank sends those that it holds, none where it holds no block. */
export async function joinedTree(
  group: StagedGroup,
  staging: Staging,
  operands: readonly Operand[],
  count: number,
  { spans }: TreeCut,
): Promise<Float32Array> {
  const held = operands.map((operand, rank) => ({ ...operand, byteLength: 4 * count * nodesOf(spans[rank] as Span).length }))
  if (group.apart || count === 0 || count % 4 !== 0) return joined(await staging.all(held), count, spans)
  const alone = (rank: number): Part => ({
    span: spans[rank] as Span,
    read: async () => (await staging.own([held[rank] as Operand]))[0] as Uint8Array,
  })
  const parts = neighbours(group).flatMap((ranks) => onGpu(group, operands, ranks, count, spans) ?? ranks.map(alone))
  const sums = await settled(parts.map((part) => part.read()))
  return joined(
    sums,
    count,
    parts.map(({ span }) => span),
  )
}

/** All ranks ascending, those together that follow one another on one device. */
function neighbours(group: StagedGroup): number[][] {
  const runs: number[][] = []
  for (const rank of group.here) {
    const last = runs.at(-1)
    if (last && group.home(last[0] as number) === group.home(rank)) last.push(rank)
    else runs.push([rank])
  }
  return runs
}

/** What neighbours hold as fewer subtrees; null where it is as few already, or they have no GPU to join it. */
function onGpu(
  group: StagedGroup,
  operands: readonly Operand[],
  ranks: readonly number[],
  count: number,
  spans: readonly Span[],
): Part | null {
  const slots = slotsOf(spans)
  if (ranks.length === 1 || ranks.length * slots > MAX_SLOTS) return null
  const own = ranks.map((rank) => spans[rank] as Span)
  const subtrees = subtreesOf(own, slots)
  const cluster = subtrees.length < own.flatMap(nodesOf).length ? group.cluster(group.home(ranks[0] as number)) : null
  if (!cluster) return null
  return {
    span: { start: (own[0] as Span).start, count: own.reduce((sum, span) => sum + span.count, 0) },
    read: () =>
      joinOnGpu(
        cluster,
        ranks.map((rank) => operands[rank] as Operand),
        { count, slots, subtrees },
      ),
  }
}
