// The commands of all-reduces with a norm: the words of their rows, and their pieces.
import type { AlgorithmName } from '../algorithms.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Source } from '../staged/group.ts'
import type { CudaGroup, Part } from './group.ts'
import { piecesOf, rowBytes, WAY, wayOf } from './plan.ts'

/** Rows of n elements of a type, `size` bytes each. */
export interface Rows {
  rows: number
  n: number
  type: number
  size: number
}

export interface NormWords {
  eps: number
  weightBias: number
  quant?: number
  layout?: number
  factor?: number
  group?: number
  /** Scales of tiles that belong to no block become zeros. */
  pad?: boolean
  bias?: boolean
  /** Whether the normed rows are wanted, and the sum. */
  out: boolean
  sum?: boolean
  /** Whether there is a norm before the residual, which takes no two-shot. */
  pre?: boolean
  /** Each sum of two partials is rounded. */
  rounded?: boolean
}

export function normNumbers({
  eps,
  weightBias,
  quant = 0,
  layout = 0,
  factor = 1,
  group = 1,
  pad = false,
  bias = false,
  out,
  sum = false,
  pre = false,
  rounded = false,
}: NormWords): number[] {
  return [eps, weightBias, quant, layout, factor, group, Number(pad), ...[bias, out, sum, pre, rounded].map(Number)]
}

/** Whether a row fits in the workspaces. */
export function rowsFit({ plan }: CudaGroup, { n, size }: Pick<Rows, 'n' | 'size'>): boolean {
  return rowBytes(n, size) <= plan.dataBytes
}

/** What the ranks but the i-th read and write. */
export function othersOf(
  all: readonly { inPlace: readonly Source[]; own: readonly Source[]; written: readonly Source[] }[],
  i: number,
): Source[] {
  return all.flatMap(({ inPlace, own, written }, other) => (other === i ? [] : [...inPlace, ...own, ...written]))
}

/**
 * Records such a command for the ranks that are here, in pieces of rows; the parts' numbers are those from normNumbers on. `whole`: where the sum
 * is made, all of it must be.
 */
export function recordRows(
  group: CudaGroup,
  op: number,
  { rows, n, type, size }: Rows,
  { algorithm, whole = false, options }: { algorithm?: AlgorithmName | undefined; whole?: boolean; options: MeetOptions },
  parts: readonly Part[],
): void {
  const { plan } = group
  const bytes = rowBytes(n, size)
  const way = wayOf(plan, rows * bytes, algorithm, whole)
  for (const { first, count } of piecesOf(rows, bytes, way === WAY.packets ? plan.packetBytes : plan.dataBytes)) {
    const blocks = Math.min(plan.blocks, count)
    const now = parts.map((part): Part => ({ ...part, numbers: [count, first, rows, n, type, ...part.numbers] }))
    group.together(op, { way, blocks }, options, now)
  }
}
