// SharedLane: rounds of bytes among ranks that share memory. Each member has two slots, taken in turn, and a word that counts its rounds.
import { ALARMED, ARRIVED, type LaneWords } from '../../core/addon.ts'
import type { Lane, Wait } from '../wire.ts'
import { HEADER, type LaneLayout, LENGTH, LINE, SIGNATURE } from './layout.ts'
import type { Waiter } from './waiter.ts'

/** How long a round may hold the thread before it waits beside the event loop. */
const BLOCK_MICROSECONDS = 2000
/** How often a rank that waits looks whether the others are alive. */
const LOOK_MS = 100

/** What a lane asks of its group. */
export interface LaneGroup {
  readonly words: Int32Array
  readonly waiter: Waiter
  /** Something has ended this group, one it was split off, or this rank's part. */
  readonly ended: boolean
  /** @throws what ended the group, or why `missing` (members of the lane that have not come) cannot come any more. */
  check(missing: readonly number[]): void
  /** The error of a wait that ran out of time; ends the group. */
  timeout(missing: readonly number[], wait: Wait): Error
  /** Ends the group because this rank's signal has aborted. */
  abort(wait: Wait): void
  /** The error of members that do different things in one round. */
  mismatch(): Error
}

export interface LaneOptions {
  /** Indices of the lane's members in the group. */
  members: readonly number[]
  rank: number
  /** Rounds give copies, which hold for ever, instead of views of the slots. */
  copies: boolean
}

/**
 * Round e of a member: its bytes and their length go to slot e mod 2, then its epoch word becomes e; it ends when all words have reached e.
 * A slot is written again two rounds later, which nobody begins before all have begun the round between, done with what they read here.
 * What is longer than a slot goes in several rounds: the first tells all lengths, so everybody counts the same number.
 */
export class SharedLane implements Lane {
  readonly rank: number
  readonly size: number
  readonly words: LaneWords
  readonly #group: LaneGroup
  readonly #members: readonly number[]
  readonly #copies: boolean
  readonly #slotBytes: number
  /** By member, its two slots. */
  readonly slots: readonly (readonly [Uint8Array, Uint8Array])[]
  /** The last round this member has posted; reducers count on in it. */
  readonly counter: Int32Array = new Int32Array(1)
  #alarm: number
  #last: Promise<unknown> | null = null
  /** Rounds that have been called and have not ended. */
  #turns = 0

  constructor(group: LaneGroup, { at, slots, slotBytes }: LaneLayout, { members, rank, copies }: LaneOptions) {
    this.#group = group
    this.#members = members
    this.#copies = copies
    this.#slotBytes = slotBytes
    this.rank = rank
    this.size = members.length
    const { words } = group
    this.words = { words, at, members: this.size, me: rank, alarm: HEADER.alarm }
    const slot = (i: number): Uint8Array => new Uint8Array(words.buffer, words.byteOffset + slots + i * slotBytes, slotBytes)
    this.slots = members.map((_, m) => [slot(2 * m), slot(2 * m + 1)] as const)
    this.#alarm = Atomics.load(words, HEADER.alarm)
  }

  exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> {
    return this.inTurn(() => this.#exchange(bytes, wait))
  }

  /** No round is under way. */
  get idle(): boolean {
    return this.#turns === 0
  }

  /** Runs `round` once the rounds before it have ended. */
  inTurn<R>(round: () => Promise<R>): Promise<R> {
    this.#turns++
    const over = (): void => void this.#turns--
    const result = this.#turns > 1 && this.#last ? this.#last.then(round) : round()
    result.then(over, over)
    this.#last = result.catch(() => {})
    return result
  }

  async #exchange(bytes: Uint8Array, wait: Wait): Promise<readonly Uint8Array[]> {
    const epoch = this.next()
    const { words, at } = this.words
    const parity = epoch & 1
    const own = at + this.rank * LINE + parity
    words[own + SIGNATURE] = 0
    words[own + LENGTH] = bytes.byteLength
    this.#fill(bytes, 0, parity)
    this.#group.waiter.post(this.words, epoch)
    if (!this.arrived(epoch)) await this.arrive(epoch, wait)
    this.checkSignatures(parity, 0)
    const lengths = this.#members.map((_, m) => words[at + m * LINE + LENGTH + parity] as number)
    const most = Math.max(...lengths)
    const first = lengths.map((length, m) => this.slot(m, epoch).subarray(0, Math.min(length, this.#slotBytes)))
    if (most <= this.#slotBytes) return this.#copies ? first.map((view) => view.slice()) : first
    const whole = lengths.map((length) => new Uint8Array(length))
    first.forEach((view, m) => void (whole[m] as Uint8Array).set(view))
    for (let done = this.#slotBytes; done < most; done += this.#slotBytes) {
      const round = this.next()
      this.#fill(bytes, done, round & 1)
      this.#group.waiter.post(this.words, round)
      if (!this.arrived(round)) await this.arrive(round, wait)
      for (const [m, length] of lengths.entries()) {
        const part = Math.min(length - done, this.#slotBytes)
        if (part > 0) (whole[m] as Uint8Array).set(this.slot(m, round).subarray(0, part), done)
      }
    }
    return whole
  }

  /** What member m writes in a round. */
  slot(m: number, epoch: number): Uint8Array {
    const [even, odd] = this.slots[m] as readonly [Uint8Array, Uint8Array]
    return epoch & 1 ? odd : even
  }

  /** @throws what has ended the group. */
  check(): void {
    if (this.#group.ended) this.#group.check([])
  }

  /** The number of this member's next round. @throws what has ended the group. */
  next(): number {
    this.check()
    const epoch = ((this.counter[0] as number) + 1) | 0
    this.counter[0] = epoch
    return epoch
  }

  /** The alarm as this lane last heard it; another value means news. */
  get alarm(): number {
    return this.#alarm
  }

  /** @throws ERR_COLLECTIVE_MISMATCH where a member is in a round of another kind. */
  checkSignatures(parity: number, signature: number): void {
    const { words, at } = this.words
    for (let m = 0; m < this.size; m++) if (words[at + m * LINE + SIGNATURE + parity] !== signature) throw this.#group.mismatch()
  }

  /** Whether all members have come to this round, after a short look. */
  arrived(epoch: number): boolean {
    return this.#group.waiter.wait(this.words, epoch, this.#alarm, BLOCK_MICROSECONDS) === ARRIVED
  }

  /** Waits until all members have come to this round. @throws as Lane.exchange. */
  async arrive(epoch: number, wait: Wait): Promise<void> {
    const { signal } = wait
    const onAbort = (): void => this.#group.abort(wait)
    if (signal?.aborted) onAbort()
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      for (;;) {
        const left = wait.deadline - performance.now()
        const result = await this.#group.waiter.waitAsync(this.words, epoch, this.#alarm, Math.max(0, Math.min(left, LOOK_MS)))
        if (result === ARRIVED) return
        if (signal?.aborted) throw signal.reason
        if (result === ALARMED) this.#alarm = Atomics.load(this.words.words, HEADER.alarm)
        const missing = this.#missing(epoch)
        if (missing.length === 0) return
        this.#group.check(missing)
        if (performance.now() >= wait.deadline) throw this.#group.timeout(missing, wait)
      }
    } finally {
      signal?.removeEventListener('abort', onAbort)
    }
  }

  #missing(epoch: number): number[] {
    const { words, at } = this.words
    return this.#members.filter((_, m) => ((Atomics.load(words, at + m * LINE) - epoch) | 0) < 0)
  }

  #fill(bytes: Uint8Array, from: number, parity: number): void {
    const part = bytes.subarray(from, from + this.#slotBytes)
    if (part.byteLength > 0) this.slot(this.rank, parity).set(part)
  }
}
