// Channels: where a send and the receive that answers it find each other, one place for each ordered pair of ranks.
import type { RankmeshError } from '../../core/errors.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { underway } from '../abort.ts'
import type { GroupHost, LocalHostComm } from '../host.ts'
import { type MeetOptions, type Offer, offerOf, type Rendezvous, timeoutOf } from '../rendezvous.ts'
import { type Wire, waitFor } from '../wire.ts'
import { matched } from '../wire-match.ts'
import type { FarDevice } from './clusters.ts'
import { orEnd, type Traffic } from './crossing.ts'
import { WebGpuGroup } from './group.ts'
import type { Scope } from './scope.ts'

/** What becomes of a message: `payloads` of the sender and the receiver as far as they are here, `pair` their group (ranks 0 and 1 of it). */
export type Deliver<P, R> = (payloads: (P | undefined)[], scope: Scope, pair: WebGpuGroup) => Promise<R[]>

export interface Channels {
  /** The next message from `src` to `dst`, with this rank at its `end` (0 sends, 1 receives). @throws as Rendezvous.meet. */
  meet<P, R>(
    pair: readonly [src: number, dst: number],
    end: 0 | 1,
    call: string,
    offer: Offer<P>,
    deliver: Deliver<P, R>,
    options: MeetOptions,
  ): Promise<R>
  /** A rank sends and receives no more. */
  leave(rank: number): void
  /** Pending and later messages fail with `error`. */
  end(error: RankmeshError): void
}

interface LocalChannel {
  ranks: readonly [number, number]
  rendezvous: Rendezvous
  group: WebGpuGroup
}

/** Shared by the ranks of a group in one thread; a channel comes into being with its first message. */
export class LocalChannels implements Channels {
  readonly #host: LocalHostComm
  readonly #devices: readonly WebGpuDevice[]
  readonly #open = new Map<string, LocalChannel>()
  readonly #left = new Set<number>()
  #end: RankmeshError | null = null

  constructor(host: LocalHostComm, devices: readonly WebGpuDevice[]) {
    this.#host = host
    this.#devices = devices
  }

  meet<P, R>(
    pair: readonly [number, number],
    end: 0 | 1,
    call: string,
    offer: Offer<P>,
    deliver: Deliver<P, R>,
    options: MeetOptions,
  ): Promise<R> {
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

  #get(ranks: readonly [number, number]): LocalChannel {
    const key = ranks.join(' ')
    const known = this.#open.get(key)
    if (known) return known
    const devices = ranks.map((rank) => this.#devices[rank] as WebGpuDevice)
    const rendezvous = this.#host.channel(ranks)
    const channel = { ranks, rendezvous, group: new WebGpuGroup(devices, null) }
    this.#open.set(key, channel)
    for (const gpu of new Set(devices.map((device) => device.gpu))) rendezvous.watch((end) => gpu.onFailure(end))
    ranks.forEach((rank, i) => {
      if (this.#left.has(rank)) rendezvous.leave(i)
    })
    if (this.#end) rendezvous.end(this.#end)
    return channel
  }
}

/** One rank's channels over a wire: on the lane of a pair each message is a round that matches it and a round with its bytes. */
export class WireChannels implements Channels {
  readonly #host: GroupHost
  readonly #wire: Wire
  readonly #devices: readonly (WebGpuDevice | FarDevice)[]
  readonly #traffic: Traffic
  readonly #open = new Map<string, { group: WebGpuGroup; last: Promise<unknown> }>()

  constructor(host: GroupHost, wire: Wire, devices: readonly (WebGpuDevice | FarDevice)[], traffic: Traffic) {
    this.#host = host
    this.#wire = wire
    this.#devices = devices
    this.#traffic = traffic
  }

  meet<P, R>(
    pair: readonly [number, number],
    end: 0 | 1,
    call: string,
    offer: Offer<P>,
    deliver: Deliver<P, R>,
    options: MeetOptions,
  ): Promise<R> {
    const wire = this.#wire
    const { timeoutMs } = this.#host
    const lane = wire.pair(...pair)
    const key = pair.join(' ')
    const devices = pair.map((rank) => this.#devices[rank] as WebGpuDevice | FarDevice)
    const channel = this.#open.get(key) ?? {
      group: new WebGpuGroup(devices, { lane, timeoutMs, traffic: this.#traffic }),
      last: Promise.resolve(),
    }
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
