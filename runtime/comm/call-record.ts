// CallRecord: the last calls of a rank, for messages; the same call again only counts.

/** Calls that are kept. */
const KEPT = 256

export class CallRecord {
  readonly #calls: { at: number; call: string; times: number }[] = []
  #count = 0

  note(call: string): void {
    const last = this.#calls.at(-1)
    if (last?.call === call) {
      last.times++
      return
    }
    this.#calls.push({ at: this.#count++, call, times: 1 })
    if (this.#calls.length > KEPT) this.#calls.shift()
  }

  /** Oldest first, at most `most`: `#12 host.barrier()`, and how often where more than once. */
  calls(most: number = KEPT): string[] {
    return this.#calls.slice(-most).map(({ at, call, times }) => `#${at} ${call}${times > 1 ? ` ${times} times` : ''}`)
  }
}
