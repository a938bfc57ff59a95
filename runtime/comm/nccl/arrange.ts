// Bytes brought into the order that NCCL wants or leaves: parts along a dimension that is not the first, end to end.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import { type NcclGroup, type Results, shifted } from './group.ts'

/** Rows of a part that are copied one by one, at most, where no kernel knows elements of the size. */
const MOST_COPIES = 4096

/** Parts of rows: `outer` rows of `whole` bytes, of which the part has `bytes`, from `start` on. */
export interface Rows {
  outer: number
  whole: number
}

/** Whether `pack` can. Alike on all ranks for the same numbers, but for the place of the operand. */
export function packs(dtype: DType, { outer, whole }: Rows, cuts: readonly number[]): boolean {
  return typeFor(dtype, [whole, ...cuts]) !== null || outer * cuts.length <= MOST_COPIES
}

/** The parts of each row, `cuts` bytes each, as blocks end to end: of each part all rows. */
export function pack(
  group: NcclGroup,
  results: Results,
  rank: number,
  from: Place,
  dtype: DType,
  rows: Rows,
  cuts: readonly number[],
): Place {
  const { outer, whole } = rows
  if (outer === 1) return from
  const packed = results.scratch(rank, outer * whole)
  const kernel = typeFor(dtype, [whole, from.offset, ...cuts])
  let start = 0
  for (const bytes of cuts) {
    const source = shifted(from, start)
    const target = shifted(packed, outer * start)
    start += bytes
    if (bytes === 0) continue
    if (kernel) {
      const numbers = [outer, bytes / kernel.bytes, whole / kernel.bytes, 1, REDUCTION.sum, 1, kernel.type, kernel.type, 0]
      group.alone(rank, OP.reduce, numbers, [source, target], [1])
      continue
    }
    for (let row = 0; row < outer; row++) {
      group.alone(rank, OP.copy, [bytes], [shifted(source, row * whole), shifted(target, row * bytes)], [1])
    }
  }
  return packed
}

/** The elements by which a kernel moves bytes at such places: words, or where they are too long the halves that they are. */
function typeFor(dtype: DType, places: readonly number[]): { type: number; bytes: number } | null {
  if (places.every((at) => at % 4 === 0)) return { type: TYPE.u32, bytes: 4 }
  if (dtypeSize(dtype) !== 2 || dtype === 'float4_e2m1x2') return null
  return { type: dtype === 'bfloat16' ? TYPE.bf16 : TYPE.f16, bytes: 2 }
}
