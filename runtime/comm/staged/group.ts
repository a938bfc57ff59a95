// StagedGroup: ranks on devices of any kind. What their collectives need passes through host memory; each device only reads and writes.
import type { DType } from '../../core/dtype.ts'
import type { Storage } from '../../core/storage.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Span } from '../../core/tree.ts'
import type { Device } from '../../device/device.ts'
import { WebGpuDevice } from '../../device/webgpu/device.ts'
import { memoryOf } from '../checks.ts'
import type { Link } from '../link.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Turns } from '../turns.ts'
import { type Cluster, clusterOf } from '../webgpu/clusters.ts'
import type { JoinedSite } from './joined-site.ts'
import { Staging } from './staging.ts'

export { Staging } from './staging.ts'

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

/** Ranks whose operands are added before others are added to them, ascending: of a joined site, or of one device. */
export interface Union {
  readonly ranks: readonly number[]
  readonly joined: JoinedSite | null
}

export class StagedGroup implements Turns<Staging> {
  readonly sites: readonly Site[]
  /** Sites of several devices, or several ranks of one, that a transport joins. */
  readonly joined: readonly JoinedSite[]
  /** The order of sums: by their lowest rank. */
  readonly unions: readonly Union[]
  /** Ranks whose devices are here: all, or over a wire one. */
  readonly here: readonly number[]
  /** The one of them whose own operands are read where all have the same: of a CPU, where there is one. */
  readonly lead: number
  readonly #devices: readonly (Device | FarDevice)[]
  readonly #link: Link | null
  #last: Promise<unknown> = Promise.resolve()

  /** `devices` by rank of the group; over a link, member i of its lane is rank i. */
  constructor(devices: readonly (Device | FarDevice)[], link: Link | null, joined: readonly JoinedSite[] = []) {
    this.#devices = devices
    this.#link = link
    this.joined = joined
    this.sites = sitesOf(devices)
    this.unions = unionsOf(this.sites, joined)
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

  /**
   * Of a result of so many elements that are cut at multiples of `unit`, those that must be known here: all, or over a wire the part of a rank
   * whose site brings the parts together.
   */
  part(count: number, unit?: number): Span {
    const [rank] = this.here as [number]
    const site = this.apart ? this.joined.find(({ ranks }) => ranks.includes(rank)) : undefined
    return site?.cut(count, unit)?.[site.ranks.indexOf(rank)] ?? { start: 0, count }
  }

  /** The GPU of a site that is here, for kernels over all its ranks; null for a site of another kind. */
  cluster({ ranks }: Pick<Site, 'ranks'>): Cluster | null {
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

function unionsOf(sites: readonly Site[], joined: readonly JoinedSite[]): Union[] {
  const others = sites.map(({ ranks }) => ranks.filter((rank) => !joined.some((site) => site.ranks.includes(rank))))
  const unions = [...joined.map((site) => ({ ranks: site.ranks, joined: site })), ...others.map((ranks) => ({ ranks, joined: null }))]
  return unions.filter(({ ranks }) => ranks.length > 0).sort((a, b) => (a.ranks[0] as number) - (b.ranks[0] as number))
}
