// Wire: how ranks that do not share a thread reach each other: lanes on which they exchange bytes in rounds, and word of who has failed.
import type { RankmeshError } from '../core/errors.ts'

/** How long a rank waits for the others in one round. */
export interface Wait {
  /** performance.now() at which the wait ends with ERR_TIMEOUT. */
  deadline: number
  /** The same as a length, for messages. */
  timeoutMs: number
  /** Ends the wait with the signal's reason; as the rank leaves the round undone, its peers hear that it failed. */
  signal?: AbortSignal | undefined
  /** The call that waits, for messages: `allReduce(sum, [2, 4] float32)`. */
  call: string
}

/** Ordered rounds among some ranks. The n-th `exchange` of each member is the same round; members need not await one before the next. */
export interface Lane {
  /** This rank's index among the lane's members. */
  readonly rank: number
  readonly size: number
  /**
   * Every member's bytes, by member; their lengths may differ and be zero. `bytes` may be reused once the promise has settled; what it
   * gives holds until this member's next round of the lane, and may lie over shared memory.
   * @throws ERR_RANK_FAILED, ERR_TIMEOUT, the signal's reason; the wire is of no more use after any of them.
   */
  exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]>
}

/** Elements that can be combined on the way. */
export type WireArray = Int32Array | Uint32Array | BigInt64Array | BigUint64Array | Float32Array | Float64Array
export type WireOp = 'sum' | 'min' | 'max'

export interface Wire {
  readonly backend: 'thread' | 'shm' | 'gloo' | 'hybrid'
  /** How it travels, in words: `shared memory, native waits`. */
  readonly about: string
  readonly rank: number
  readonly size: number
  readonly isSameProcess: boolean
  /** By rank of this group: its rank in the world, for messages. */
  readonly members: readonly number[]
  /** Calls are matched here. */
  readonly control: Lane
  /** Tensors' bytes travel here. */
  readonly data: Lane
  /** The lane of messages from rank `src` to rank `dst` (its members 0 and 1), one of which is this rank. */
  pair(src: number, dst: number): Lane
  /**
   * Combines `array` over ranks, ranks ascending, in place, where the wire can do so faster than by an exchange; absent where it cannot.
   * All ranks bring the same kind and length, and the same `call`. Undefined where it is done already, for the sake of a microsecond;
   * `wait` is asked only where it is not.
   */
  reduce?(array: WireArray, op: WireOp, call: string, wait: () => Wait): Promise<void> | undefined
  /** One zeroed block for each rank, the caller's own, in memory that `reduce` need not copy; collective. Absent where there is none. */
  allocate?(byteLength: number, wait: Wait): Promise<Uint8Array>
  /** A wire for some members, by rank of this wire, in the new order; called by just those, all with the same `name`. */
  split(ranks: readonly number[], name: string, wait: Wait): Promise<Wire>
  /** What ended the group, once something has. */
  readonly failure: RankmeshError | null
  /** Calls `listener` once when something ends the group while this rank waits for something else; returns how to stop that. */
  watch(listener: (failure: RankmeshError) => void): () => void
  /** Writes a call into this rank's record of its last ones. */
  note(call: string): void
  /** The last calls of each rank, as far as this one can see them. */
  history(): string
  /** By rank, the last calls that are known here, oldest first. */
  record(): readonly (readonly string[])[]
  /** Ends the group: what any rank waits for or starts later throws an error of this code and message that names `rank` (in the world). */
  fail(failure: { code: 'ERR_RANK_FAILED' | 'ERR_TIMEOUT'; message: string; rank: number }): void
  /** This rank takes part no more: rounds it has joined still complete, for those it has not the others get ERR_RANK_FAILED. */
  leave(): void
  /** Gives back what the wire holds on this rank; leaves first. */
  close(): void
}

/** Milliseconds from now as a Wait. */
export function waitFor(timeoutMs: number, call: string, signal?: AbortSignal): Wait {
  return { deadline: performance.now() + timeoutMs, timeoutMs, signal, call }
}
