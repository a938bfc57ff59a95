// Ownership: which rows of a token buffer each rank normalises when partial sums of one group become inputs of another.
import { checkInteger, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape } from '../core/shape.ts'

/** Rows [offset + first, offset + last) of all tokens, which are rows [first, last) of the rank's inner group. May be none. */
export interface OwnedRows {
  /** Tokens of the inner groups before this rank's. */
  offset: number
  first: number
  last: number
}

/**
 * The rows that each rank owns: consecutive ranks form inner groups of `inner`, group g has `localTokenNums[g]` tokens, and its ranks take
 * equal slices of them, rounded up, the last ones less or none.
 * @throws ERR_SHAPE unless there is one number for each inner group, ERR_ARGUMENT for negative or fractional numbers.
 */
export function ownedRows(localTokenNums: readonly number[], inner: number): OwnedRows[] {
  checkInteger('inner', inner, 1)
  if (!Array.isArray(localTokenNums)) throw invalidArgument('localTokenNums', 'a list of numbers', localTokenNums)
  for (const tokens of localTokenNums) checkInteger('localTokenNums', tokens, 0)
  let offset = 0
  return localTokenNums.flatMap((tokens: number) => {
    const start = offset
    offset += tokens
    const slice = Math.ceil(tokens / inner)
    return Array.from({ length: inner }, (_, i) => {
      const first = Math.min(tokens, i * slice)
      return { offset: start, first, last: Math.min(tokens, first + slice) }
    })
  })
}

/** Ranks in the smaller of two groups of a group of `size`. @throws ERR_SHAPE where it cuts the others unevenly or the tokens do not fit. */
export function innerSize(size: number, size0: number, size1: number, localTokenNums: readonly number[]): number {
  const inner = Math.min(size0, size1)
  if (Math.max(size0, size1) !== size) {
    throw new ShapeError(`Expected group0 or group1 to be the whole group of ${size} ranks, but they have ${size0} and ${size1}`)
  }
  if (size % inner !== 0) throw new ShapeError(`Expected the ${size} ranks to be a multiple of the smaller group's ${inner}`)
  if (!Array.isArray(localTokenNums) || localTokenNums.length !== size / inner) {
    const given = Array.isArray(localTokenNums) ? formatShape(localTokenNums) : String(localTokenNums)
    throw new ShapeError(`Expected ${size / inner} numbers for localTokenNums, one for each ${inner} ranks, but received ${given}`)
  }
  return inner
}
