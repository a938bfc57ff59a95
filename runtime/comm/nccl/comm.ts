// NcclComm: collectives among ranks on CUDA devices, each on one of its own, by NCCL: in one thread, in threads, in processes, on several machines.
// What NCCL does not have, or does otherwise than is promised, goes through host memory, as in StagedComm.
import { platform } from '#platform'
import type { Nccl, NcclCommunicator, NcclError } from '../../core/addon.ts'
import type { DType } from '../../core/dtype.ts'
import { ArgumentError, BackendUnavailableError, invalidArgument, type RankmeshError } from '../../core/errors.ts'
import type { Shape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import type {
  AllReduceOptions,
  AllToAllOptions,
  FusedNorm,
  GatherVOptions,
  Pitched,
  ReduceOp,
  ScatterVOptions,
  TreeCut,
} from '../device-comm.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import { type MeetOptions, offerOf } from '../rendezvous.ts'
import { StagedComm } from '../staged/comm.ts'
import { type FarDevice, StagedGroup, type Staging } from '../staged/group.ts'
import type { Common } from '../staged/member.ts'
import type { Wire } from '../wire.ts'
import { carries } from './calls.ts'
import { allGather2D, allToAll, gathers2D, recv, scatter, send } from './deal.ts'
import { NcclGroup } from './group.ts'
import type { Member } from './member.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { allReduce, allReduceResidualBiasRMSNorm, allReduceTree, reduce, reduceScatter, reduceScatterV } from './reduce.ts'

/** The release that splits communicators; older ones join a new group. */
const SPLITS = 21801
/** The release that lets ranks share a device, where NCCL_MULTI_RANK_GPU_ENABLE says so. */
const SHARES = 23003

/** What ranks must know of each other to be joined by NCCL; data. */
export interface NcclReach {
  /** The device's own number. */
  uuid: string
  /** Of the library, as NCCL numbers its releases; or why there is none. */
  version: number | string
}

export function ncclReachOf(device: CudaDevice): NcclReach {
  const { uuid } = device.engine
  const addon = platform.addon()
  const { available, detail } = addon?.features().nccl ?? { available: false, detail: 'the native addon is not there' }
  return { uuid, version: available && addon?.nccl ? addon.nccl.version() : detail }
}

/** What a rank brings, and what the others see of it. */
interface Entering extends NcclReach {
  device: Device | FarDevice
  /** Of rank 0, where the group is no part of another one. */
  id: Uint8Array | null
}

export class NcclComm extends StagedComm {
  #destroyed = false

  /** Programs use `create`. */
  private constructor(host: GroupHost, device: CudaDevice, common: Common) {
    super(host, device, common)
    device.guards.add(this.#member.group.guard)
  }

  /** Why ranks with such devices cannot be joined so, by rank; or null. */
  static obstacle(reaches: readonly NcclReach[]): string | null {
    const [first] = reaches as [NcclReach]
    for (const [rank, { uuid, version }] of reaches.entries()) {
      if (typeof version === 'string') return `rank ${rank} has no NCCL: ${version}`
      if (version !== first.version) return `rank ${rank} has NCCL ${version} and rank 0 has ${first.version}; install the same on all`
      const other = reaches.findIndex((reach) => reach.uuid === uuid)
      if (other < rank && !(version >= SHARES && platform.env('NCCL_MULTI_RANK_GPU_ENABLE') === '1')) {
        return `ranks ${other} and ${rank} share the device ${uuid}, and NCCL wants one for each`
      }
    }
    return null
  }

  /** Every rank of `host` joins with its own device. @throws ERR_BACKEND_UNAVAILABLE with what is missing. */
  static override async create(host: GroupHost, device: Device): Promise<NcclComm> {
    const unique = (): Uint8Array | null => (host.rank === 0 ? (platform.addon()?.nccl?.uniqueId() ?? null) : null)
    return NcclComm.#enter(host, device, 'createDeviceComm(nccl)', unique, (group, id, engine) =>
      group.nccl.createCommunicator(
        { engine, rank: host.rank, size: host.size, id: id as Uint8Array, timeoutMs: host.timeoutMs },
        (error) => {
          group.fail(error)
        },
      ),
    )
  }

  static async #enter(
    host: GroupHost,
    device: Device,
    call: string,
    unique: () => Uint8Array | null,
    join: (group: NcclGroup, id: Uint8Array | null, engine: CudaDevice['engine']) => NcclCommunicator,
  ): Promise<NcclComm> {
    const offer = offerOf((): Entering => {
      if (!(device instanceof CudaDevice)) throw invalidArgument('device', 'a CUDA device', device)
      const reach = ncclReachOf(device)
      return { ...reach, device, id: typeof reach.version === 'number' ? unique() : null }
    })
    const outline = (entering: Entering): Entering => ({ ...entering, device: { adapter: (entering.device as Device).description } })
    const complete = (all: Entering[]): { common: Common; id: Uint8Array | null }[] => {
      const joined = { common: commonOf(host, all), id: (all[0] as Entering).id }
      return all.map(() => joined)
    }
    const { common, id } = await host.meet(call, offer, complete, {}, outline)
    const group = common.group as NcclGroup
    const native = join(group, id, (device as CudaDevice).engine)
    group.natives[host.rank] = native
    const stop = group.watch()
    try {
      await native.joined
    } catch (error) {
      throw group.fail(error as NcclError)
    } finally {
      stop()
    }
    return new NcclComm(host, device as CudaDevice, common)
  }

  override allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    const carried = carries(this.#version, x?.dtype, options?.op) && options?.algorithm === undefined
    return carried ? allReduce(this.#member, x, options) : super.allReduce(x, options)
  }

  override allReduceTree(x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions): Promise<Tensor> {
    return allReduceTree(this.#member, x, options)
  }

  override allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    const carried = args?.algorithm === undefined && (args?.tree || carries(this.#version, args?.x?.dtype))
    return carried ? allReduceResidualBiasRMSNorm(this.#member, args, options) : super.allReduceResidualBiasRMSNorm(args, options)
  }

  override allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor> {
    return allGather(this.#member, x, options)
  }

  override allGatherV(x: Tensor, options?: GatherVOptions): Promise<Tensor>
  override allGatherV(x: readonly Tensor[], options?: GatherVOptions): Promise<Tensor[]>
  override allGatherV(x: Tensor | readonly Tensor[], options?: GatherVOptions): Promise<Tensor | Tensor[]> {
    return allGatherV(this.#member, x, options)
  }

  override allGather2D(buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor> {
    return layout && gathers2D(layout, this.size) ? allGather2D(this.#member, buffer, layout) : super.allGather2D(buffer, layout)
  }

  override gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null> {
    return gather(this.#member, x, options)
  }

  override reduce(x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor | null> {
    return carries(this.#version, x?.dtype, options?.op) ? reduce(this.#member, x, options) : super.reduce(x, options)
  }

  override reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor> {
    return carries(this.#version, x?.dtype, options?.op) ? reduceScatter(this.#member, x, options) : super.reduceScatter(x, options)
  }

  override reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor> {
    return carries(this.#version, x?.dtype, options?.op) ? reduceScatterV(this.#member, x, options) : super.reduceScatterV(x, options)
  }

  override scatter(x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions): Promise<Tensor> {
    return scatter(this.#member, x, options)
  }

  override allToAll(x: Tensor, options?: AllToAllOptions): Promise<Tensor> {
    return allToAll(this.#member, x, options)
  }

  override broadcast(x: Tensor, { inPlace = false, ...options }: { src?: number; inPlace?: boolean } & MeetOptions = {}): Promise<Tensor> {
    return inPlace ? broadcastInto(this.#member, x, options) : broadcast(this.#member, x, options)
  }

  /** Over a wire through host memory: a message is in no order with collectives, of which a stream has one. */
  override send(x: Tensor, options?: { dst?: number } & MeetOptions): Promise<void> {
    return this.#member.host.wire ? super.send(x, options) : send(this.#member, x, options)
  }

  override recv(shape: Shape, dtype: DType, options?: { src?: number } & MeetOptions): Promise<Tensor> {
    return this.#member.host.wire ? super.recv(shape, dtype, options) : recv(this.#member, shape, dtype, options)
  }

  override async split(options: { color: number | null; key?: number }): Promise<NcclComm | null> {
    const { member } = this
    const { group } = this.#member
    member.checkOpen()
    const host = await member.host.split(options)
    if (group.version < SPLITS) return host && NcclComm.create(host, member.device)
    const color = host && Math.min(...host.members.map((rank) => member.host.members.indexOf(rank)))
    const part = { color, rank: host?.rank ?? 0, size: host?.size ?? 1 }
    const call = 'split of NCCL'
    // In the group's turn: nothing else is asked of its communicators meanwhile.
    const joint = await member.run<Part, Joint>(
      call,
      () => part,
      {},
      (parts) => splitAll(group, parts, member.host.timeoutMs),
    )
    if (!host) return null
    return NcclComm.#enter(
      host,
      member.device,
      'createDeviceComm(nccl, split)',
      () => null,
      (child) => {
        joint.group = child
        return joint.native as NcclCommunicator
      },
    )
  }

  /** Also of one that is being made. */
  override describe(): string {
    const { group, host } = this.member as unknown as Member
    const devices = group.sites.map(({ adapter, ranks }) => `${ranks.length} on ${adapter}`).join(', ')
    const joined = host.wire ? `, joined by ${host.wire.about}` : ''
    return `${this.size} rank${this.size === 1 ? '' : 's'} (${devices}${joined}): NCCL ${versionText(group.version)}`
  }

  override destroy(): void {
    super.destroy()
    if (this.#destroyed) return
    this.#destroyed = true
    const { group, host } = this.#member
    group.cuda(this.rank).guards.delete(group.guard)
    group.natives[this.rank]?.close(host.timeoutMs)
  }

  override abort(reason: unknown): void {
    this.#member.group.end(this.member.abort(reason))
  }

  get #member(): Member {
    return this.member as unknown as Member
  }

  get #version(): number {
    return this.#member.group.version
  }
}

/** A rank's place in a part of a group. */
interface Part {
  color: number | null
  rank: number
  size: number
}

/** A communicator that was split off, and the group that it is for, once that is there. */
interface Joint {
  native: NcclCommunicator
  group: NcclGroup | null
}

/** By rank, of those that are here. */
async function splitAll(group: NcclGroup, parts: readonly Part[], timeoutMs: number): Promise<Joint[]> {
  const joints: Joint[] = []
  for (const rank of group.here) {
    const onFailure = (error: NcclError): void => {
      joints[rank]?.group?.fail(error)
    }
    const native = (group.natives[rank] as NcclCommunicator).split({ ...(parts[rank] as Part), timeoutMs }, onFailure)
    joints[rank] = { native, group: null }
  }
  const stop = group.watch()
  try {
    await Promise.all(joints.map(({ native }) => native.joined))
  } catch (error) {
    for (const { native } of joints.filter(Boolean)) native.abort('the split has failed')
    throw group.fail(error as NcclError)
  } finally {
    stop()
  }
  for (const rank of group.here) if ((parts[rank] as Part).color === null) joints[rank]?.native.close(timeoutMs)
  return joints
}

/** What the ranks that are here share. */
function commonOf(host: GroupHost, all: readonly Entering[]): Common {
  const devices = all.map(({ device }) => device)
  if (new Set(devices).size < devices.length) {
    throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
  }
  const why = NcclComm.obstacle(all)
  if (why !== null) throw new BackendUnavailableError(`These ranks cannot be joined by NCCL: ${why}`)
  const { timeoutMs, wire } = host
  const traffic = { crossings: 0, bytes: 0 }
  const link = wire && { lane: wire.data, timeoutMs, traffic }
  const channels = channelsOf(host, devices, traffic)
  const onEnd = (error: RankmeshError): void => {
    host.end(error)
    channels.end(error)
  }
  const nccl = platform.addon()?.nccl as Nccl
  const group = new NcclGroup(devices, link, { nccl, version: (all[0] as Entering).version as number, host, onEnd })
  return { group, channels, traffic }
}

/** How two ranks reach each other. */
function channelsOf(host: GroupHost, devices: readonly (Device | FarDevice)[], traffic: Common['traffic']): Common['channels'] {
  const of = (pair: readonly number[]): (Device | FarDevice)[] => pair.map((rank) => devices[rank] as Device | FarDevice)
  if (host instanceof LocalHostComm) return new LocalChannels<Staging, StagedGroup>(host, (pair) => new StagedGroup(of(pair), null))
  const { timeoutMs } = host
  return new WireChannels<Staging, StagedGroup>(
    host,
    host.wire as Wire,
    (pair, lane) => new StagedGroup(of(pair), { lane, timeoutMs, traffic }),
  )
}

function versionText(version: number): string {
  const scale = version < 10000 ? 1000 : 10000
  return `${Math.floor(version / scale)}.${Math.floor((version % scale) / 100)}.${version % 100}`
}
