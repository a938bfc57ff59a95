// StagedGroup: ranks on devices of any kind. What their collectives need passes through host memory; each device only reads and writes.
import type { DType } from '../../core/dtype.ts'
import type { Shape } from '../../core/shape.ts'
import type { Storage } from '../../core/storage.ts'
import { Tensor } from '../../core/tensor.ts'
import type { Device } from '../../device/device.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import { engineStorage } from '../../device/engine/memory.ts'
import { WebGpuDevice } from '../../device/webgpu/device.ts'
import { memoryOf, shareStorage } from '../checks.ts'
import { exchangeParts, type Link } from '../link.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Turns } from '../turns.ts'
import { type Cluster, clusterOf } from '../webgpu/clusters.ts'

/** A rank's device in another thread, process or machine, as this one knows it. */
export interface FarDevice {
  readonly adapter: string
}

/** Bytes of a rank's device; elsewhere `buffer` is null. */
export interface Source {
  readonly rank: number
  readonly buffer: Storage
  readonly offset: number
  readonly byteLength: number
}

export interface Operand extends Source {
  readonly dtype: DType
  readonly count: number
}

/** A tensor that a rank named as the place of its result. */
export interface Target {
  tensor: Tensor
  operand: Operand
}

/** The ranks of a group on one device, ascending; sites are ordered by their lowest rank. */
export interface Site {
  readonly ranks: readonly number[]
  readonly adapter: string
}

export class StagedGroup implements Turns<Staging> {
  readonly sites: readonly Site[]
  /** Ranks whose devices are here: all, or over a wire one. */
  readonly here: readonly number[]
  /** The one of them whose own operands are read where all have the same: of a CPU, where there is one. */
  readonly lead: number
  readonly #devices: readonly (Device | FarDevice)[]
  readonly #link: Link | null
  #last: Promise<unknown> = Promise.resolve()

  /** `devices` by rank of the group; over a link, member i of its lane is rank i. */
  constructor(devices: readonly (Device | FarDevice)[], link: Link | null) {
    this.#devices = devices
    this.#link = link
    this.sites = sitesOf(devices)
    this.here = devices.flatMap((device, rank) => (isHere(device) ? [rank] : []))
    this.lead = this.here.find((rank) => this.device(rank).kind === 'cpu') ?? (this.here[0] as number)
  }

  /** Whether other threads, processes or machines have a part in it. */
  get apart(): boolean {
    return this.#link !== null
  }

  run<R>(call: string, { timeoutMs }: MeetOptions, action: (staging: Staging) => Promise<R>): Promise<R> {
    const result = this.#last.then(() => Staging.run(this, this.#link, call, timeoutMs, action))
    this.#last = result.then(
      () => {},
      () => {},
    )
    return result
  }

  /** The device of a rank that is here. */
  device(rank: number): Device {
    return this.#devices[rank] as Device
  }

  /** The GPU of a site that is here, for kernels over all its ranks; null for a site of another kind. */
  cluster({ ranks }: Site): Cluster | null {
    const views = ranks.map((rank) => this.#devices[rank]).filter((device) => device instanceof WebGpuDevice)
    const [first] = views
    if (!first) return null
    return clusterOf(
      first.gpu,
      ranks,
      views.map(({ lane }) => lane),
    )
  }

  /** The device of a rank. */
  home(rank: number): Site {
    return this.sites.find(({ ranks }) => ranks.includes(rank)) as Site
  }
}

/** One collective on its way: what it reads, what it exchanges, and the results it hands out, given back if it fails. */
export class Staging {
  readonly #group: StagedGroup
  readonly #link: Link | null
  readonly #call: string
  readonly #timeoutMs: number | undefined
  readonly #results: Tensor[] = []

  private constructor(group: StagedGroup, link: Link | null, call: string, timeoutMs: number | undefined) {
    this.#group = group
    this.#link = link
    this.#call = call
    this.#timeoutMs = timeoutMs
  }

  static async run<R>(
    group: StagedGroup,
    link: Link | null,
    call: string,
    timeoutMs: number | undefined,
    action: (staging: Staging) => Promise<R>,
  ): Promise<R> {
    const staging = new Staging(group, link, call, timeoutMs)
    try {
      return await action(staging)
    } catch (error) {
      for (const tensor of staging.#results) tensor.dispose()
      throw error
    }
  }

  /** The bytes of all sources, in their order, wherever they are: until the next call of `all` or `share`. */
  async all(sources: readonly Source[]): Promise<Uint8Array[]> {
    return this.share(sources, await this.own(sources.filter(({ rank }) => this.#group.here.includes(rank))))
  }

  /**
   * The bytes of sources that are here; all devices are asked at the same time. Those of a CPU rank are where they lie: not to be written, nor
   * to be used after the collective.
   */
  async own(sources: readonly Source[]): Promise<Uint8Array[]> {
    const read = async ({ rank, buffer, offset, byteLength }: Source): Promise<Uint8Array> => {
      const device = this.#group.device(rank)
      if (byteLength === 0) return new Uint8Array(0)
      if (!(device instanceof EngineDevice)) return device.read(buffer, offset, byteLength)
      await device.sync()
      const { block } = engineStorage(device.memory, buffer)
      return block.bytes && block.idle ? block.bytes.subarray(offset, offset + byteLength) : device.read(buffer, offset, byteLength)
    }
    return settled(sources.map(read))
  }

  /** Every rank's bytes for every rank: `own` are those of the ranks that are here, in the order of `parts`, whose lengths all ranks know. */
  async share(parts: readonly { rank: number; byteLength: number }[], own: readonly Uint8Array[]): Promise<Uint8Array[]> {
    if (!this.#link || parts.every(({ byteLength }) => byteLength === 0)) return parts.map((_, i) => own[i] ?? new Uint8Array(0))
    const lane = parts.map(({ rank, byteLength }) => ({ member: rank, byteLength }))
    return exchangeParts(this.#link, this.#call, this.#timeoutMs, lane, own)
  }

  /** Overwrites an operand of a rank that is here. */
  write({ rank, buffer, offset }: Source, bytes: Uint8Array): void {
    if (bytes.byteLength > 0) this.#group.device(rank).write(buffer, offset, bytes)
  }

  /** As `write`, once for those that are the same memory. */
  writeEach(places: readonly Source[], bytes: Uint8Array): void {
    const here = places.filter(({ rank }) => this.#group.here.includes(rank))
    for (const [i, place] of here.entries()) {
      const before = here.slice(0, i)
      if (!before.some(({ buffer, offset }) => buffer === place.buffer && offset === place.offset)) this.write(place, bytes)
    }
  }

  /** A result that belongs to one rank: in memory of its own, or in some that was made for it. */
  result(rank: number, shape: Shape, dtype: DType, bytes: Uint8Array, storage: Storage | null = null): Tensor {
    const device = this.#group.device(rank)
    storage?.retain()
    const tensor = storage ? new Tensor(device, storage, shape, dtype) : Tensor.fromBytes(bytes, shape, dtype, device)
    this.#results.push(tensor)
    if (storage) {
      shareStorage(storage, false)
      device.write(storage, 0, bytes)
    }
    return tensor
  }

  /**
   * The result of all ranks: stored once on each device, read-only, in memory that `place` has for it there, or new; of a rank that brought a
   * target, there. By rank.
   */
  spread(
    shape: Shape,
    dtype: DType,
    bytes: Uint8Array,
    targets: readonly (Target | undefined)[] = [],
    place: (rank: number) => Storage | null = () => null,
  ): Tensor[] {
    const results: Tensor[] = []
    this.writeEach(
      targets.flatMap((target) => target?.operand ?? []),
      bytes,
    )
    for (const { ranks } of this.#group.sites) {
      let first: Tensor | null = null
      for (const rank of ranks.filter((own) => this.#group.here.includes(own))) {
        const target = targets[rank]
        if (target) {
          results[rank] = target.tensor
        } else if (first) {
          results[rank] = this.#handle(first, rank)
        } else {
          first = this.result(rank, shape, dtype, bytes, place(rank))
          results[rank] = first
        }
      }
      if (first) shareStorage(first.storage)
    }
    return results
  }

  /** Memory for each rank that is here, or one for all ranks of a device. By rank. */
  allocate(shape: Shape, dtype: DType, shared: boolean): Tensor[] {
    const results: Tensor[] = []
    for (const rank of this.#group.here) {
      const first = results[this.#group.home(rank).ranks[0] as number]
      if (shared && first) {
        results[rank] = this.#handle(first, rank)
        continue
      }
      const tensor = Tensor.empty(shape, { dtype, device: this.#group.device(rank) })
      this.#results.push(tensor)
      results[rank] = tensor
    }
    return results
  }

  /** A rank's own handle on a tensor of its device. */
  #handle({ storage, shape, dtype, byteOffset }: Tensor, rank: number): Tensor {
    storage.retain()
    const tensor = new Tensor(this.#group.device(rank), storage, shape, dtype, byteOffset)
    this.#results.push(tensor)
    return tensor
  }
}

/** As Promise.all, once all have ended: what they read stays in use till then. */
export async function settled<T>(work: readonly Promise<T>[]): Promise<T[]> {
  return (await Promise.allSettled(work)).map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason
    return outcome.value
  })
}

function isHere(device: Device | FarDevice): device is Device {
  return 'allocate' in device
}

function sitesOf(devices: readonly (Device | FarDevice)[]): Site[] {
  const sites = new Map<object, { ranks: number[]; adapter: string }>()
  for (const [rank, device] of devices.entries()) {
    const memory = isHere(device) ? memoryOf(device) : device
    const adapter = isHere(device) ? device.description : device.adapter
    const site = sites.get(memory)
    if (site) site.ranks.push(rank)
    else sites.set(memory, { ranks: [rank], adapter })
  }
  return [...sites.values()]
}
