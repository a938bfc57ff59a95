// Channels: where a send and the receive that answers it find each other, one place for each ordered pair of ranks.
import type { RankmeshError } from '../core/errors.ts'
import { underway } from './abort.ts'
import type { GroupHost, LocalHostComm } from './host.ts'
import { type MeetOptions, type Offer, offerOf, type Rendezvous, timeoutOf } from './rendezvous.ts'
import { orEnd, type Turns } from './turns.ts'
import { type Lane, type Wire, waitFor } from './wire.ts'
import { matched } from './wire-match.ts'

/** The sender and the receiver, by rank of the whole group. */
export type Pair = readonly [src: number, dst: number]

/** What becomes of a message: `payloads` of the sender and the receiver as far as they are here, `pair` their group (ranks 0 and 1 of it). */
export type Deliver<P, R, S, G> = (payloads: (P | undefined)[], scope: S, pair: G) => Promise<R[]>

export interface Channels<S, G> {
  /** The next message from `src` to `dst`, with this rank at its `end` (0 sends, 1 receives). @throws as Rendezvous.meet. */
  meet<P, R>(pair: Pair, end: 0 | 1, call: string, offer: Offer<P>, deliver: Deliver<P, R, S, G>, options: MeetOptions): Promise<R>
  /** A rank sends and receives no more. */
  leave(rank: number): void
  /** Pending and later messages fail with `error`. */
  end(error: RankmeshError): void
}

interface LocalChannel<G> {
  ranks: Pair
  rendezvous: Rendezvous
  group: G
}

/** Shared by the ranks of a group in one thread; a channel comes into being with its first message. */
export class LocalChannels<S, G extends Turns<S>> implements Channels<S, G> {
  readonly #host: LocalHostComm
  readonly #groupOf: (pair: Pair, rendezvous: Rendezvous) => G
  readonly #open = new Map<string, LocalChannel<G>>()
  readonly #left = new Set<number>()
  #end: RankmeshError | null = null

  /** `groupOf` makes the group of a pair, and has its rendezvous hear of the failure of their devices. */
  constructor(host: LocalHostComm, groupOf: (pair: Pair, rendezvous: Rendezvous) => G) {
    this.#host = host
    this.#groupOf = groupOf
  }

  meet<P, R>(pair: Pair, end: 0 | 1, call: string, offer: Offer<P>, deliver: Deliver<P, R, S, G>, options: MeetOptions): Promise<R> {
    const { rendezvous, group } = this.#get(pair)
    const complete = (payloads: P[]): Promise<R[]> => group.run(call, options, (scope) => deliver(payloads, scope, group))
    return rendezvous.meet(end, call, offer, complete, options)
  }

  leave(rank: number): void {
    this.#left.add(rank)
    for (const { ranks, rendezvous } of this.#open.values()) {
      const index = ranks.indexOf(rank)
      if (index >= 0) rendezvous.leave(index)
    }
  }

  end(error: RankmeshError): void {
    this.#end ??= error
    for (const { rendezvous } of this.#open.values()) rendezvous.end(error)
  }

  #get(ranks: Pair): LocalChannel<G> {
    const key = ranks.join(' ')
    const known = this.#open.get(key)
    if (known) return known
    const rendezvous = this.#host.channel(ranks)
    const channel = { ranks, rendezvous, group: this.#groupOf(ranks, rendezvous) }
    this.#open.set(key, channel)
    ranks.forEach((rank, i) => {
      if (this.#left.has(rank)) rendezvous.leave(i)
    })
    if (this.#end) rendezvous.end(this.#end)
    return channel
  }
}

/** One rank's channels over a wire: on the lane of a pair each message is a round that matches it and a round with its bytes. */
export class WireChannels<S, G extends Turns<S>> implements Channels<S, G> {
  readonly #host: GroupHost
  readonly #wire: Wire
  readonly #groupOf: (pair: Pair, lane: Lane) => G
  readonly #open = new Map<string, { group: G; last: Promise<unknown> }>()

  /** `groupOf` makes the group of a pair that the lane joins. */
  constructor(host: GroupHost, wire: Wire, groupOf: (pair: Pair, lane: Lane) => G) {
    this.#host = host
    this.#wire = wire
    this.#groupOf = groupOf
  }

  meet<P, R>(pair: Pair, end: 0 | 1, call: string, offer: Offer<P>, deliver: Deliver<P, R, S, G>, options: MeetOptions): Promise<R> {
    const wire = this.#wire
    const { timeoutMs } = this.#host
    const lane = wire.pair(...pair)
    const key = pair.join(' ')
    const channel = this.#open.get(key) ?? { group: this.#groupOf(pair, lane), last: Promise.resolve() }
    this.#open.set(key, channel)
    const { group } = channel
    const members = pair.map((rank) => wire.members[rank] as number)
    const asked = 'refusal' in offerOf(() => timeoutOf(options.timeoutMs)) ? timeoutMs : (options.timeoutMs as number)
    const wait = waitFor(asked, call, options.signal)
    const turn = channel.last.then(async () => {
      const { payload } = await matched(wire, lane, call, offer, timeoutMs, options, () => undefined, members)
      const payloads = end === 0 ? [payload, undefined] : [undefined, payload]
      const results = await orEnd(
        this.#host,
        call,
        group.run(call, options, (scope) => deliver(payloads, scope, group)),
      )
      return results[end] as R
    })
    channel.last = turn.catch(() => {})
    return underway(wire, wait, () => turn)
  }

  /** Leaving the wire says it all. */
  leave(): void {}

  end(): void {}
}
