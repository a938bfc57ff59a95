// Where the ranks of a group that share a thread meet: one slot per collective, matched calls, deadlines, failures told to everybody.
import { CollectiveMismatchError, RankFailedError, type RankmeshError, TimeoutError } from '../core/errors.ts'

/** Collectives of each rank that are kept to tell about when something goes wrong. */
const HISTORY = 8

export interface MeetOptions {
  /** Milliseconds until ERR_TIMEOUT; the group's own where absent. */
  timeoutMs?: number | undefined
  signal?: AbortSignal | undefined
}

/** What one rank brings to a collective: its operands, or the reason why its own arguments are bad. */
export type Offer<P> = { payload: P } | { refusal: unknown }

interface Arrival {
  call: string
  offer: Offer<unknown>
  resolve(value: unknown): void
  reject(error: unknown): void
}

interface Slot {
  arrivals: (Arrival | undefined)[]
  count: number
  settled: number
  error?: RankmeshError
  timer?: ReturnType<typeof setTimeout> | undefined
}

/** Ranks of one program: who has failed or gone, and the groups that must hear of it. */
export class World {
  readonly size: number
  readonly timeoutMs: number
  readonly #gone = new Map<number, { error?: unknown }>()
  readonly #groups = new Set<Rendezvous>()

  constructor(size: number, timeoutMs: number) {
    this.size = size
    this.timeoutMs = timeoutMs
  }

  add(group: Rendezvous): void {
    this.#groups.add(group)
  }

  remove(group: Rendezvous): void {
    this.#groups.delete(group)
  }

  /** The rank threw: its peers' pending and later collectives fail with ERR_RANK_FAILED. */
  fail(rank: number, error: unknown): void {
    this.#leave(rank, { error })
  }

  /** The rank ended: collectives that still need it fail. */
  leave(rank: number): void {
    this.#leave(rank, {})
  }

  /** Why collectives with this rank cannot complete, or null. */
  absence(rank: number): RankFailedError | null {
    const gone = this.#gone.get(rank)
    if (!gone) return null
    if (!('error' in gone)) return new RankFailedError(`Rank ${rank} has returned and takes part in no more collectives`, { rank })
    const { error } = gone
    const what = error instanceof Error ? `${error.name}: ${error.message}` : String(error)
    return new RankFailedError(`Rank ${rank} failed: ${what}`, { rank, cause: error })
  }

  #leave(rank: number, how: { error?: unknown }): void {
    if (this.#gone.has(rank)) return
    this.#gone.set(rank, how)
    for (const group of this.#groups) group.missing(rank)
  }
}

export class Rendezvous {
  readonly world: World
  /** The group's members by their ranks in the world. */
  readonly members: readonly number[]
  readonly #slots = new Map<number, Slot>()
  readonly #next: number[]
  readonly #history: string[][]

  constructor(world: World, members: readonly number[]) {
    this.world = world
    this.members = members
    this.#next = members.map(() => 0)
    this.#history = members.map(() => [])
    world.add(this)
  }

  /**
   * Joins the next collective as member `index`. When all members have joined with the same `call`, `complete` runs once with their
   * payloads in rank order and gives each its result.
   * @throws ERR_COLLECTIVE_MISMATCH on every member when calls differ, or when one member's arguments were refused and others' were not;
   * ERR_RANK_FAILED when a member has thrown or returned; ERR_TIMEOUT when one does not come; the signal's reason when it aborts.
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
    const at = (this.#next[index] as number)++
    this.#note(index, at, call)
    const slot = this.#slot(at)
    if (slot.error) return Promise.reject(this.#settle(at, slot))
    return new Promise<R>((resolve, reject) => {
      const arrival: Arrival = { call, offer, resolve: resolve as (value: unknown) => void, reject }
      const onAbort = (): void => {
        reject(signal?.reason)
        this.world.fail(me, signal?.reason)
      }
      if (signal) {
        signal.addEventListener('abort', onAbort, { once: true })
        const done =
          <T>(then: (value: T) => void) =>
          (value: T): void => {
            signal.removeEventListener('abort', onAbort)
            then(value)
          }
        arrival.resolve = done(arrival.resolve)
        arrival.reject = done(arrival.reject)
      }
      slot.arrivals[index] = arrival
      slot.count++
      const other = slot.arrivals.findIndex((a) => a !== undefined && a.call !== call)
      if (other >= 0) {
        this.#fail(at, slot, this.#mismatch(index, call, other, (slot.arrivals[other] as Arrival).call))
        return
      }
      if (slot.count < this.members.length) {
        const gone = this.members.find((rank, i) => slot.arrivals[i] === undefined && this.world.absence(rank))
        if (gone !== undefined) this.#fail(at, slot, this.#absence(gone, call))
        else slot.timer ??= setTimeout(() => this.#fail(at, slot, this.#timeout(at, slot, call, timeoutMs)), timeoutMs)
        return
      }
      this.#complete(at, slot, complete as (payloads: unknown[]) => unknown[] | Promise<unknown[]>)
    })
  }

  /** A member has gone: every slot that still waits for it fails. */
  missing(rank: number): void {
    const index = this.members.indexOf(rank)
    if (index < 0) return
    for (const [at, slot] of this.#slots) {
      const waiting = slot.arrivals.find((a) => a !== undefined)
      if (waiting && slot.arrivals[index] === undefined) this.#fail(at, slot, this.#absence(rank, waiting.call))
    }
  }

  /** The last collectives of each member, oldest first, as text. */
  history(): string {
    return this.members.map((rank, i) => `rank ${rank}: ${this.#history[i]?.join(', ') || 'none'}`).join('; ')
  }

  close(): void {
    this.world.remove(this)
  }

  #slot(at: number): Slot {
    let slot = this.#slots.get(at)
    if (!slot) {
      slot = { arrivals: this.members.map(() => undefined), count: 0, settled: 0 }
      this.#slots.set(at, slot)
    }
    return slot
  }

  async #complete(at: number, slot: Slot, complete: (payloads: unknown[]) => unknown[] | Promise<unknown[]>): Promise<void> {
    clearTimeout(slot.timer)
    this.#slots.delete(at)
    const arrivals = slot.arrivals as Arrival[]
    const refused = arrivals.findIndex((a) => 'refusal' in a.offer)
    if (refused >= 0) {
      const { refusal } = (arrivals[refused] as Arrival).offer as { refusal: unknown }
      const why = refusal instanceof Error ? refusal.message : String(refusal)
      const rank = this.members[refused] as number
      const { call } = arrivals[refused] as Arrival
      for (const { offer, reject } of arrivals) {
        if ('refusal' in offer) reject(offer.refusal)
        else reject(new CollectiveMismatchError(`Rank ${rank} could not take part in ${call}: ${why}`, { rank, cause: refusal }))
      }
      return
    }
    try {
      const payloads = arrivals.map((a) => (a.offer as { payload: unknown }).payload)
      const outcome = complete(payloads)
      const results = outcome instanceof Promise ? await outcome : outcome
      for (const [i, arrival] of arrivals.entries()) arrival.resolve(results[i])
    } catch (error) {
      for (const { reject } of arrivals) reject(error)
    }
  }

  /** Fails the slot for those who have come; those who come later get the same error. */
  #fail(at: number, slot: Slot, error: RankmeshError): void {
    clearTimeout(slot.timer)
    slot.timer = undefined
    slot.error = error
    for (const arrival of slot.arrivals) {
      if (arrival) {
        this.#settle(at, slot)
        arrival.reject(error)
      }
    }
    slot.arrivals.fill(undefined)
  }

  #settle(at: number, slot: Slot): RankmeshError {
    if (++slot.settled === this.members.length) this.#slots.delete(at)
    return slot.error as RankmeshError
  }

  #note(index: number, at: number, call: string): void {
    const list = this.#history[index] as string[]
    list.push(`#${at} ${call}`)
    if (list.length > HISTORY) list.shift()
  }

  #mismatch(index: number, call: string, other: number, otherCall: string): CollectiveMismatchError {
    const [a, b] = [this.members[other] as number, this.members[index] as number]
    return new CollectiveMismatchError(
      `Ranks called different collectives: rank ${a} called ${otherCall}, rank ${b} called ${call}; all ranks of a group must make the same calls in the same order`,
      { rank: b },
    )
  }

  #absence(rank: number, call: string): RankFailedError {
    const error = this.world.absence(rank) as RankFailedError
    return new RankFailedError(`${error.message}; ${call} cannot complete without it`, { rank, cause: error.cause ?? error })
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
