// Bytes brought into the order that NCCL wants: parts along a dimension that is not the first, end to end.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { elementType } from '../../device/checks.ts'
import { OP, REDUCTION, TYPE } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import { type NcclGroup, type Results, shifted } from './group.ts'

/** `outer` rows of `whole` bytes. */
export interface Rows {
  outer: number
  whole: number
}

/** A kernel that moves elements of some bytes. */
interface Mover {
  type: number
  bytes: number
}

/**
 * The parts of each row, `cuts` bytes each, as blocks end to end: of each part all rows. With `summed`, numbers of this dtype that are to be added:
 * of those a NaN may get other bits, so that a kernel moves also what is no whole words.
 */
export function pack(
  group: NcclGroup,
  results: Results,
  { rank, from }: { rank: number; from: Place },
  { outer, whole }: Rows,
  cuts: readonly number[],
  summed?: DType,
): Place {
  if (outer === 1) return from
  const packed = results.scratch(rank, outer * whole)
  const mover = moverFor([whole, from.offset, ...cuts], summed)
  let start = 0
  for (const bytes of cuts) {
    const source = shifted(from, start)
    const target = shifted(packed, outer * start)
    start += bytes
    if (bytes === 0) continue
    if (mover) {
      const numbers = [outer, bytes / mover.bytes, whole / mover.bytes, 1, REDUCTION.sum, 1, mover.type, mover.type, 0]
      group.alone(rank, OP.reduce, numbers, [source, target], [1])
      continue
    }
    for (let row = 0; row < outer; row++) {
      group.alone(rank, OP.copy, [bytes], [shifted(source, row * whole), shifted(target, row * bytes)], [1])
    }
  }
  return packed
}

function moverFor(places: readonly number[], summed: DType | undefined): Mover | null {
  if (places.every((at) => at % 4 === 0)) return { type: TYPE.u32, bytes: 4 }
  return summed ? { type: TYPE[elementType(summed, 'x')], bytes: dtypeSize(summed) } : null
}
