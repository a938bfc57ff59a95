// Where the ranks of a group that share a thread meet: one slot per collective, matched calls, deadlines, failures told to everybody.
import { CollectiveMismatchError, checkInteger, describe, RankFailedError, type RankmeshError, TimeoutError } from '../core/errors.ts'
import { announceAbort, isAbort } from './abort.ts'
import { CallRecord } from './call-record.ts'
import type { World, WorldGroup } from './world.ts'

/** Collectives of each rank that a message tells of; the event of an abort carries all that are kept. */
const TOLD = 8
/** The longest delay a timer takes. */
export const MAX_TIMEOUT_MS: number = 2 ** 31 - 1

/** @throws ERR_ARGUMENT for what is no deadline. */
export function timeoutOf(timeoutMs: unknown): void {
  checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS)
}

export interface MeetOptions {
  /** Milliseconds until ERR_TIMEOUT; the group's own where absent. The shortest of the ranks' counts. */
  timeoutMs?: number | undefined
  /** Ends this rank's part in the program while it waits for others; a collective that all ranks have joined runs to its end. */
  signal?: AbortSignal | undefined
}

/** What one rank brings to a collective: its operands, or the reason why its own arguments are bad. */
export type Offer<P> = { payload: P } | { refusal: unknown }

/** A rank's operands as `prepare` gives them; what it throws is the rank's refusal. */
export function offerOf<P>(prepare: () => P): Offer<P> {
  try {
    return { payload: prepare() }
  } catch (refusal) {
    return { refusal }
  }
}

interface Arrival {
  call: string
  payload: unknown
  resolve(value: unknown): void
  reject(error: unknown): void
  /** Stops listening to the rank's signal, where it has one. */
  detach: (() => void) | undefined
}

interface Slot {
  arrivals: (Arrival | undefined)[]
  count: number
  settled: number
  error?: RankmeshError
  deadline: number
  timer?: ReturnType<typeof setTimeout> | undefined
}

export class Rendezvous implements WorldGroup {
  readonly world: World
  /** The group's members by their ranks in the world. */
  readonly members: readonly number[]
  readonly #slots = new Map<number, Slot>()
  readonly #next: number[]
  readonly #records: readonly CallRecord[]
  readonly #left = new Set<number>()
  readonly #unwatch: (() => void)[] = []
  #failure: RankmeshError | null = null

  constructor(world: World, members: readonly number[]) {
    this.world = world
    this.members = members
    this.#next = members.map(() => 0)
    this.#records = members.map(() => new CallRecord())
    world.add(this)
  }

  /**
   * Joins the next collective as member `index`. When all members have joined with the same `call`, `complete` runs once with their
   * payloads in rank order and gives each its result.
   * @throws ERR_COLLECTIVE_MISMATCH on every member when calls differ, and on the others when one member's arguments were refused;
   * ERR_RANK_FAILED when a member has thrown or returned; ERR_TIMEOUT when one does not come; the signal's reason when it aborts; the
   * error that has ended the group.
   */
  meet<P, R>(
    index: number,
    call: string,
    offer: Offer<P>,
    complete: (payloads: P[]) => R[] | Promise<R[]>,
    options: MeetOptions = {},
  ): Promise<R> {
    const { signal, timeoutMs = this.world.timeoutMs } = options
    const me = this.members[index] as number
    if (signal?.aborted) {
      this.world.fail(me, signal.reason)
      return Promise.reject(signal.reason)
    }
    const end = this.#failure ?? this.#absence(index)
    if (end) return Promise.reject(end)
    const at = (this.#next[index] as number)++
    this.#records[index]?.note(call)
    const slot = this.#slot(at)
    const timing = options.timeoutMs === undefined ? offer : offerOf(() => timeoutOf(timeoutMs))
    const mine = 'refusal' in timing ? timing : offer
    if ('refusal' in mine) {
      if (!slot.error) this.#fail(at, slot, refused(me, call, mine.refusal))
      this.#settle(at, slot)
      return Promise.reject(mine.refusal)
    }
    if (slot.error) {
      this.#settle(at, slot)
      return Promise.reject(slot.error)
    }
    return new Promise<R>((resolve, reject) => {
      const detach = signal && this.#onAbort(signal, me, reject)
      slot.arrivals[index] = { call, payload: mine.payload, resolve: resolve as (value: unknown) => void, reject, detach }
      slot.count++
      const other = slot.arrivals.findIndex((a) => a !== undefined && a.call !== call)
      if (other >= 0) {
        this.#fail(at, slot, this.#mismatch(index, call, other, (slot.arrivals[other] as Arrival).call))
        return
      }
      if (slot.count === this.members.length) {
        this.#complete(at, slot, complete as (payloads: unknown[]) => unknown[] | Promise<unknown[]>)
        return
      }
      const gone = this.#firstGone(slot)
      if (gone >= 0) this.#fail(at, slot, this.#withoutMember(gone, call))
      else this.#setDeadline(at, slot, call, timeoutMs)
    })
  }

  /** What a rank waits for ends with its signal, and so does its part in the program; returns how to stop listening. */
  #onAbort(signal: AbortSignal, rank: number, reject: (reason: unknown) => void): () => void {
    const onAbort = (): void => {
      reject(signal.reason)
      this.world.fail(rank, signal.reason)
    }
    signal.addEventListener('abort', onAbort, { once: true })
    return () => signal.removeEventListener('abort', onAbort)
  }

  missing(rank: number, failed: boolean): void {
    const index = this.members.indexOf(rank)
    if (index >= 0) this.#failPending((slot, call) => (failed || !slot.arrivals[index] ? this.#withoutMember(index, call) : null))
  }

  /** Has `watch` learn how to end the group with an error; `watch` returns how to stop watching, for when the group ends. */
  watch(watch: (end: (error: RankmeshError) => void) => () => void): void {
    this.#unwatch.push(watch((error) => this.end(error)))
  }

  /** No collective of this group can complete any more: pending and later ones fail with `error`. */
  end(error: RankmeshError): void {
    this.#failure ??= error
    this.#failPending(() => error)
  }

  /** Member `index` takes part no more; the group ends with its last member. */
  leave(index: number): void {
    this.#left.add(index)
    this.#failPending((slot, call) => (slot.arrivals[index] ? null : this.#withoutMember(index, call)))
    if (this.#left.size === this.members.length) this.close()
  }

  close(): void {
    this.world.remove(this)
    for (const unwatch of this.#unwatch.splice(0)) unwatch()
  }

  /** The last collectives of each member, oldest first, as text. */
  history(): string {
    return this.members.map((rank, i) => `rank ${rank}: ${this.#records[i]?.calls(TOLD).join(', ') || 'none'}`).join('; ')
  }

  #slot(at: number): Slot {
    let slot = this.#slots.get(at)
    if (!slot) {
      slot = { arrivals: this.members.map(() => undefined), count: 0, settled: 0, deadline: Number.POSITIVE_INFINITY }
      this.#slots.set(at, slot)
    }
    return slot
  }

  async #complete(at: number, slot: Slot, complete: (payloads: unknown[]) => unknown[] | Promise<unknown[]>): Promise<void> {
    clearTimeout(slot.timer)
    this.#slots.delete(at)
    const arrivals = slot.arrivals as Arrival[]
    for (const { detach } of arrivals) detach?.()
    try {
      const outcome = complete(arrivals.map(({ payload }) => payload))
      const results = outcome instanceof Promise ? await outcome : outcome
      for (const [i, { resolve }] of arrivals.entries()) resolve(results[i])
    } catch (error) {
      for (const { reject } of arrivals) reject(error)
    }
  }

  #setDeadline(at: number, slot: Slot, call: string, timeoutMs: number): void {
    const deadline = performance.now() + timeoutMs
    if (deadline >= slot.deadline) return
    clearTimeout(slot.timer)
    slot.deadline = deadline
    slot.timer = setTimeout(() => this.#fail(at, slot, this.#timeout(at, slot, call, timeoutMs)), timeoutMs)
  }

  #failPending(why: (slot: Slot, call: string) => RankmeshError | null): void {
    for (const [at, slot] of this.#slots) {
      const waiting = slot.arrivals.find((a) => a !== undefined)
      const error = waiting && why(slot, waiting.call)
      if (error) this.#fail(at, slot, error)
    }
  }

  /** Fails the slot for those who have come; those who come later get the same error. */
  #fail(at: number, slot: Slot, error: RankmeshError): void {
    clearTimeout(slot.timer)
    slot.error = error
    if (isAbort(error)) announceAbort({ error, members: this.members, calls: this.#records.map((record) => record.calls()) })
    for (const arrival of slot.arrivals.splice(0)) {
      if (!arrival) continue
      arrival.detach?.()
      this.#settle(at, slot)
      arrival.reject(error)
    }
  }

  /** One more member knows how the slot ended; the last one takes it away. */
  #settle(at: number, slot: Slot): void {
    if (++slot.settled === this.members.length) this.#slots.delete(at)
  }

  #absence(index: number): RankFailedError | null {
    const rank = this.members[index] as number
    if (this.#left.has(index)) return new RankFailedError(`Rank ${rank} has closed its part of this group`, { rank })
    return this.world.absence(rank)
  }

  /** The member that left first of those that a slot lacks, which is why others may have left; or -1. */
  #firstGone(slot: Slot): number {
    for (const rank of this.world.gone) {
      const index = this.members.indexOf(rank)
      if (index >= 0 && !slot.arrivals[index]) return index
    }
    return [...this.#left].find((index) => !slot.arrivals[index]) ?? -1
  }

  #withoutMember(index: number, call: string): RankFailedError {
    const error = this.#absence(index) as RankFailedError
    const rank = this.members[index] as number
    return new RankFailedError(`${error.message}; ${call} cannot complete without it`, {
      rank,
      cause: 'cause' in error ? error.cause : error,
    })
  }

  #mismatch(index: number, call: string, other: number, otherCall: string): CollectiveMismatchError {
    const [a, b] = [this.members[other] as number, this.members[index] as number]
    return new CollectiveMismatchError(
      `Ranks called different collectives: rank ${a} called ${otherCall}, rank ${b} called ${call}; all ranks of a group must make the same calls in the same order`,
      { rank: b },
    )
  }

  #timeout(at: number, slot: Slot, call: string, timeoutMs: number): TimeoutError {
    const absent = this.members.filter((_, i) => slot.arrivals[i] === undefined)
    const [first] = absent
    return new TimeoutError(
      `Rank${absent.length > 1 ? 's' : ''} ${absent.join(', ')} did not arrive at #${at} ${call} within ${timeoutMs} ms. Last collectives: ${this.history()}`,
      first === undefined ? {} : { rank: first },
    )
  }
}

/** What the others hear when a rank's own arguments were refused. */
function refused(rank: number, call: string, refusal: unknown): CollectiveMismatchError {
  const why = refusal instanceof Error ? refusal.message : describe(refusal)
  return new CollectiveMismatchError(`Rank ${rank} could not take part in ${call}: ${why}`, { rank, cause: refusal })
}
