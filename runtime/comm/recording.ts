// Recording: a step of a program, taken down while it runs once, to be run again at the cost of one collective.
import { ArgumentError } from '../core/errors.ts'
import type { MeetOptions } from './rendezvous.ts'

export interface Recording extends Disposable {
  /**
   * Runs the step again: the same operations on the same memory. Collective, in step with all other collectives. Results that were made within the
   * step are made anew in the same place. `timeoutMs` is for the ranks' meeting; the run itself may take as long as the longest of the step's calls.
   * @throws as a collective does; ERR_ARGUMENT after `dispose`.
   */
  launch(options?: MeetOptions): Promise<void>
  /** Gives back the memory that is the step's own. */
  dispose(): void
}

/** What a group throws that does not record. */
export function recordsNothing(): ArgumentError {
  return new ArgumentError(
    "This group does not record steps: its ranks are neither of one thread on one device with the addon, nor on CUDA devices that use each other's memory or that NCCL 2.11.4 or later joins; run the step each time",
  )
}

/** What a rank has done; see GroupMember. */
interface Counts {
  collectives: number
  fused: number
  bytes: number
}

/** One rank's part in a recording: what one run adds to the rank's counts, each launch adds again, and none comes behind `dispose`. */
export class RankRecording implements Recording {
  readonly #counts: Counts
  /** What one run adds. */
  readonly #run: Counts
  readonly #launch: (check: () => void, options: MeetOptions) => Promise<unknown>
  readonly #release: () => void
  #disposed = false

  /** `counts` of the rank, and as they were before the step; `launch` calls `check` when the ranks meet. */
  constructor(counts: Counts, before: Counts, launch: (check: () => void, options: MeetOptions) => Promise<unknown>, release: () => void) {
    this.#counts = counts
    this.#run = {
      collectives: counts.collectives - before.collectives,
      fused: counts.fused - before.fused,
      bytes: counts.bytes - before.bytes,
    }
    this.#launch = launch
    this.#release = release
  }

  async launch(options: MeetOptions = {}): Promise<void> {
    const check = (): void => {
      if (this.#disposed) throw new ArgumentError('This recording was disposed of; record the step again')
    }
    await this.#launch(check, options)
    for (const name of Object.keys(this.#run) as (keyof Counts)[]) this.#counts[name] += this.#run[name]
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    this.#release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
