// Doubt: what a rank's device may hold without sense once its group has failed: what its queue wrote behind a collective that was not seen to end.
import type { RankmeshError } from '../../core/errors.ts'
import type { Block } from '../../device/engine/memory.ts'
import type { Queue } from '../../device/engine/queue.ts'

export class Doubt {
  readonly #queue: Queue
  /** Of the collectives that were not seen to end well: commands that the queue had before the first and before the last; null: there is none. */
  #span: { first: number; last: number } | null = null
  /** Commands that the queue had when the program heard of the failure: what it does from then on is its own affair. */
  #heard: number | null = null

  constructor(queue: Queue) {
    this.#queue = queue
  }

  /** A collective is the queue's next command. */
  expect(): void {
    const { recorded } = this.#queue
    this.#span = { first: this.#span?.first ?? recorded, last: recorded }
  }

  /** The program has heard of the failure: from now on only what is in doubt tells of it. */
  heard(): void {
    this.#heard ??= this.#queue.recorded
  }

  /** A wait begins, for what the queue has now, to read a block or nothing. Gives what its end tells, by how the group fares then. */
  wait(read?: Block): (failure: RankmeshError | null) => RankmeshError | null {
    const { recorded } = this.#queue
    const isNews = this.#heard === null
    return (failure) => {
      if (!failure) {
        if (this.#span) this.#span = this.#span.last < recorded ? null : { ...this.#span, first: Math.max(this.#span.first, recorded) }
        return null
      }
      this.heard()
      return isNews || (read !== undefined && this.#holds(read)) ? failure : null
    }
  }

  #holds({ writer, written }: Block): boolean {
    if (!this.#span || writer !== this.#queue.progress) return false
    return written > this.#span.first && written <= (this.#heard as number)
  }
}
