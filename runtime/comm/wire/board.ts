// Board: what the ranks of a group tell each other beside their rounds: who is there, what ended the group, each rank's last calls.
import {
  ArgumentError,
  CollectiveMismatchError,
  type ErrorCode,
  RankFailedError,
  type RankmeshError,
  TimeoutError,
} from '../../core/errors.ts'
import {
  ABSENT,
  CALL_TEXT,
  CALL_WORDS,
  FAILURE_TEXT,
  FAILURE_WORDS,
  HEADER,
  HERE,
  HISTORY,
  LEFT,
  LINE,
  recordAt,
  stateAt,
} from './layout.ts'

/** Longer than a failure takes to be written. */
const WRITING_MS = 50

/** Calls of each rank that a message tells of. */
const TOLD = 4

export interface Failure {
  code: ErrorCode
  message: string
  rank: number
}

const CODES: readonly ErrorCode[] = ['ERR_RANK_FAILED', 'ERR_TIMEOUT', 'ERR_ARGUMENT', 'ERR_COLLECTIVE_MISMATCH']
const CLASSES = [RankFailedError, TimeoutError, ArgumentError, CollectiveMismatchError] as const

export class Board {
  readonly #words: Int32Array
  readonly #bytes: Uint8Array
  readonly #size: number
  #noted = ''

  constructor(words: Int32Array, size: number) {
    this.#words = words
    this.#bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength)
    this.#size = size
  }

  /** Enters as `rank`; false where somebody has. */
  enter(rank: number): boolean {
    return Atomics.compareExchange(this.#words, stateAt(rank), ABSENT, HERE) === ABSENT
  }

  leave(rank: number): void {
    Atomics.store(this.#words, stateAt(rank), LEFT)
  }

  state(rank: number): number {
    return Atomics.load(this.#words, stateAt(rank))
  }

  /** Ends the group, unless it has ended already; whoever ends it rings the alarm then. */
  fail({ code, message, rank }: Failure): boolean {
    const words = this.#words
    const at = HEADER.failure
    if (Atomics.compareExchange(words, at, 0, 1) !== 0) return false
    words[at + 1] = Math.max(0, CODES.indexOf(code))
    words[at + 2] = rank
    words[at + 3] = this.#write(at + FAILURE_TEXT, (FAILURE_WORDS - FAILURE_TEXT) * 4, message)
    Atomics.store(words, at, 2)
    return true
  }

  /** What ended the group, as an error of its own for each who asks. */
  failure(): RankmeshError | null {
    const words = this.#words
    const at = HEADER.failure
    if (Atomics.load(words, at) === 0) return null
    // Somebody may be writing it just now, or have died over it.
    for (const end = performance.now() + WRITING_MS; Atomics.load(words, at) === 1; ) {
      if (performance.now() > end) return new RankFailedError('A rank of the group failed, and died before it could say which and why')
    }
    const Failed = CLASSES[words[at + 1] as number] ?? RankFailedError
    return new Failed(this.#read(at + FAILURE_TEXT, words[at + 3] as number), { rank: words[at + 2] as number })
  }

  /** A call of `rank`, which is the caller. */
  note(rank: number, call: string): void {
    const words = this.#words
    const record = recordAt(this.#size, rank)
    const count = words[record] as number
    const last = record + LINE + (((count - 1) | 0) & (HISTORY - 1)) * CALL_WORDS
    if (call === this.#noted) {
      words[last + 1] = (words[last + 1] as number) + 1
      return
    }
    this.#noted = call
    const at = record + LINE + (count & (HISTORY - 1)) * CALL_WORDS
    words[at] = count
    words[at + 1] = 1
    words[at + 2] = this.#write(at + CALL_TEXT, (CALL_WORDS - CALL_TEXT) * 4, call)
    Atomics.store(words, record, (count + 1) | 0)
  }

  /** The last calls of `rank`, oldest first, at most `most`: `#12 host.barrier()`, and how often where more than once. */
  calls(rank: number, most: number = HISTORY): string[] {
    const words = this.#words
    const record = recordAt(this.#size, rank)
    const count = Atomics.load(words, record)
    const told: string[] = []
    for (let i = Math.max(0, count - Math.min(most, HISTORY)); i < count; i++) {
      const at = record + LINE + (i & (HISTORY - 1)) * CALL_WORDS
      const times = words[at + 1] as number
      told.push(`#${i} ${this.#read(at + CALL_TEXT, words[at + 2] as number)}${times > 1 ? ` ${times} times` : ''}`)
    }
    return told
  }

  /** The last few calls of every rank, for messages. */
  history(members: readonly number[]): string {
    return members.map((name, rank) => `rank ${name}: ${this.calls(rank, TOLD).join(', ') || 'none'}`).join('; ')
  }

  #write(at: number, most: number, text: string): number {
    const bytes = new TextEncoder().encode(text).subarray(0, most)
    this.#bytes.set(bytes, at * 4)
    return bytes.byteLength
  }

  #read(at: number, length: number): string {
    const most = Math.min(Math.max(0, length), FAILURE_WORDS * 4)
    return new TextDecoder().decode(this.#bytes.slice(at * 4, at * 4 + most))
  }
}
