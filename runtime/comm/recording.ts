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
