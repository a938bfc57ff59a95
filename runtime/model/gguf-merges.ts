// Merges of a byte-pair tokenizer that do what SentencePiece's scores say.
import { ModelFormatError } from '../core/errors.ts'
import { show } from './json.ts'

/** What stands for a space in pieces. */
export const SPACE = '\u2581'

/** Trainers make none longer than 16 unless they are told to; the work for a piece grows with its square. */
const MAX_PIECE = 256

/**
 * Every way to make one piece of two others, those of the best-scored piece first. Merging in this order is merging the best-scored neighbours
 * first, but for neighbours of equal score that overlap, as in `aaa` of `a` and `aa`: SentencePiece takes the left ones, merges the same in
 * every place. Throws ERR_MODEL_FORMAT on a piece of more than 256 characters.
 */
export function mergesOf(tokens: readonly string[], scores: ArrayLike<number>, isPiece: readonly boolean[]): [string, string][] {
  const ids = new Map<string, number>()
  tokens.forEach((token, id) => {
    if (isPiece[id]) ids.set(token, id)
  })
  const merges: { left: string; right: string; id: number }[] = []
  for (const [token, id] of ids) {
    if (token.length > MAX_PIECE)
      throw new ModelFormatError(`Expected pieces of at most ${MAX_PIECE} characters but received ${show(token)}`)
    for (let at = 1; at < token.length; at++) {
      if (isLowSurrogate(token.charCodeAt(at))) continue
      const left = token.slice(0, at)
      const right = token.slice(at)
      if (ids.has(left) && ids.has(right)) merges.push({ left, right, id })
    }
  }
  const score = ({ id }: { id: number }) => scores[id] as number
  return merges.sort((a, b) => score(b) - score(a) || a.id - b.id || b.left.length - a.left.length).map(({ left, right }) => [left, right])
}

function isLowSurrogate(code: number): boolean {
  return code >= 0xdc00 && code <= 0xdfff
}
