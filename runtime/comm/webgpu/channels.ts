// Channels: one meeting place for each ordered pair of ranks, where a send and the receive that answers it find each other.
import type { RankmeshError } from '../../core/errors.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import type { Rendezvous } from '../rendezvous.ts'
import { WebGpuGroup } from './group.ts'

/** The sender is member 0 of both, the receiver member 1. */
export interface Channel {
  rendezvous: Rendezvous
  group: WebGpuGroup
}

/** Shared by the ranks of a group; a channel comes into being with its first message. */
export class Channels {
  readonly #devices: readonly WebGpuDevice[]
  readonly #open = new Map<string, Channel & { ranks: readonly [number, number] }>()
  readonly #left = new Set<number>()
  #end: RankmeshError | null = null

  constructor(devices: readonly WebGpuDevice[]) {
    this.#devices = devices
  }

  /** The channel from `src` to `dst`; `make` gives the place where these two ranks meet. */
  get(src: number, dst: number, make: (ranks: readonly number[]) => Rendezvous): Channel {
    const key = `${src} ${dst}`
    const known = this.#open.get(key)
    if (known) return known
    const ranks = [src, dst] as const
    const devices = ranks.map((rank) => this.#devices[rank] as WebGpuDevice)
    const rendezvous = make(ranks)
    const channel = { ranks, rendezvous, group: new WebGpuGroup(devices) }
    this.#open.set(key, channel)
    for (const gpu of new Set(devices.map((device) => device.gpu))) rendezvous.watch((end) => gpu.onFailure(end))
    ranks.forEach((rank, i) => {
      if (this.#left.has(rank)) rendezvous.leave(i)
    })
    if (this.#end) rendezvous.end(this.#end)
    return channel
  }

  /** A rank sends and receives no more. */
  leave(rank: number): void {
    this.#left.add(rank)
    for (const { ranks, rendezvous } of this.#open.values()) {
      const index = ranks.indexOf(rank)
      if (index >= 0) rendezvous.leave(index)
    }
  }

  /** Pending and later messages fail with `error`. */
  end(error: RankmeshError): void {
    this.#end ??= error
    for (const { rendezvous } of this.#open.values()) rendezvous.end(error)
  }
}
