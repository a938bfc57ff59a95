// Places: where ranks find memory that they share, and how they wait for its words; one for threads, one for processes.
import type { Addon } from '../../core/addon.ts'
import type { Wait } from '../wire.ts'
import type { Waiter } from './waiter.ts'

/** How more memory is shared: for groups split off, and for arrays. */
export interface SharedPlace {
  readonly backend: 'thread' | 'shm'
  readonly about: string
  readonly isSameProcess: boolean
  readonly waiter: Waiter
  /** For sums; null where they are done here. */
  readonly addon: Addon | null
  /**
   * Zeroed memory under a name that the ranks have agreed on, made by the one that leads; whoever waits for it calls `look` now and then.
   * @throws ERR_TIMEOUT, ERR_OUT_OF_MEMORY, ERR_BACKEND_UNAVAILABLE, the signal's reason, what `look` throws.
   */
  memory(name: string, byteLength: number, lead: boolean, wait: Wait, look: () => void): Promise<PlacedMemory>
}

export interface PlacedMemory {
  readonly words: Int32Array
  /** Ends the group, as nobody else may lead it: called when somebody does. */
  onRival(listener: () => void): void
  /** Marks the caller as `rank`, for as long as its thread or process lives; false where somebody else has done so. */
  claim(rank: number): boolean
  /** False once the thread or process of this rank is gone for sure. */
  alive(rank: number): boolean
  /** All have it: nobody else will ask for it. */
  done(): void
  close(): void
}
