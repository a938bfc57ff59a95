// Text of a growing list of tokens, piece by piece: whatever later tokens could still change is held back until they are known.
import { cleanUp, heldFrom } from './clean-up.ts'
import type { Tokenizer } from './tokenizer.ts'

export interface StreamOptions {
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean
}

/** A window that holds more tokens than this is shortened even while the text at its end is unfinished. */
const MAX_WINDOW = 16
/** Tokens kept then: more than one character can be spread over. */
const KEPT = 8

/** The pieces of `push` and the last one of `flush`, put together, are `tokenizer.decode` of all ids. The cost of a token does not grow with the text. */
export class StreamDetokenizer {
  readonly #tokenizer: Tokenizer
  readonly #skipSpecialTokens: boolean
  /** The last tokens: at least one whose text is out already, since decoding treats the first of a list differently, and all unfinished ones. */
  #window: number[] = []
  /** Characters of the window's text that are out already. */
  #out = 0
  /** Text decoded but not yet cleaned up, where that could reach over its end. */
  #held = ''

  constructor(tokenizer: Tokenizer, options: StreamOptions = {}) {
    this.#tokenizer = tokenizer
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true
  }

  /** The text that is final with this token; often more or less than the token's own. */
  push(id: number): string {
    if (!this.#tokenizer.isShown(id, this.#skipSpecialTokens)) return ''
    this.#window.push(id)
    const text = this.#decode(this.#window)
    // An incomplete character is one U+FFFD at the end; all that stands before it stays. A byte order mark that gets complete may vanish,
    // and leave at the end what is out already.
    const final = Math.max(this.#out, text.endsWith('\ufffd') ? text.length - 1 : text.length)
    const piece = text.slice(this.#out, final)
    this.#out = final
    if (final === text.length) this.#restart()
    else if (this.#window.length > MAX_WINDOW) this.#shorten(text)
    return this.#clean(piece)
  }

  /** The rest, once no token follows. The object is then as new. */
  flush(): string {
    const rest = this.#held + this.#decode(this.#window).slice(this.#out)
    this.#window = []
    this.#out = 0
    this.#held = ''
    return this.#tokenizer.cleanUpSpaces ? cleanUp(rest) : rest
  }

  #decode(ids: readonly number[]): string {
    return this.#tokenizer.decode(ids, { skipSpecialTokens: false, cleanUpSpaces: false })
  }

  /** All text is out: keeps just the last tokens that have any. */
  #restart(): void {
    for (let from = this.#window.length - 1; from > 0; from--) {
      const context = this.#window.slice(from)
      const text = this.#decode(context)
      if (text === '') continue
      this.#window = context
      this.#out = text.length
      return
    }
  }

  /** Drops tokens off the front where the two sides, decoded apart, give what they give together; else waits for a later chance. */
  #shorten(text: string): void {
    const front = this.#decode(this.#window.slice(0, -KEPT))
    const back = this.#window.slice(-KEPT)
    if (front + this.#decode(back) !== text) return
    this.#window = back
    this.#out -= front.length
  }

  #clean(piece: string): string {
    if (!this.#tokenizer.cleanUpSpaces) return piece
    const text = this.#held + piece
    const cut = heldFrom(text)
    this.#held = text.slice(cut)
    return cleanUp(text.slice(0, cut))
  }
}
