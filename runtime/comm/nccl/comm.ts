// NcclComm: collectives among ranks on CUDA devices, each on one of its own, by NCCL: in one thread, in threads, in processes, on several machines.
// What NCCL does not have, or does otherwise than is promised, goes through host memory, as in StagedComm.
import { platform } from '#platform'
import type { NcclCommunicator, NcclError } from '../../core/addon.ts'
import type { DType } from '../../core/dtype.ts'
import { DeviceError, invalidArgument } from '../../core/errors.ts'
import type { Shape } from '../../core/shape.ts'
import type { Storage } from '../../core/storage.ts'
import type { Tensor } from '../../core/tensor.ts'
import { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { engineStorage } from '../../device/engine/memory.ts'
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
import type { GroupHost } from '../host.ts'
import type { Recording } from '../recording.ts'
import { type MeetOptions, offerOf } from '../rendezvous.ts'
import { StagedComm } from '../staged/comm.ts'
import type { Common } from '../staged/member.ts'
import { carries } from './calls.ts'
import { allGather2D, allToAll, gathers2D, recv, scatter, send } from './deal.ts'
import type { NcclGroup } from './group.ts'
import { commonOf, type Entering, type Joint, ncclReachOf, obstacle, type Part, splitAll, versionText } from './join.ts'
import type { Member } from './member.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { record, records } from './recording.ts'
import { allReduce, allReduceResidualBiasRMSNorm, allReduceTree, reduce, reduceScatter, reduceScatterV } from './reduce.ts'

export { type NcclReach, ncclReachOf } from './join.ts'

/** The release that splits communicators; older ones join a new group. */
const SPLITS = 21801
/** The release that is told of memory. */
const REGISTERS = 21901
/** What a communicator that nobody has any more leaves. */
const unheld = new FinalizationRegistry<() => void>((leave) => leave())

export class NcclComm extends StagedComm {
  /** Memory that NCCL knows beforehand, kept as long as it does, and how NCCL calls that. */
  readonly #registered = new Map<Storage, number>()
  readonly #leave: () => void
  #destroyed = false

  /** Programs use `create`. */
  private constructor(host: GroupHost, device: CudaDevice, common: Common) {
    super(host, device, common)
    const { guard, natives } = this.#member.group
    device.guards.add(guard)
    this.#leave = (): void => {
      device.guards.delete(guard)
      natives[host.rank]?.close(host.timeoutMs)
    }
    unheld.register(this, this.#leave, this)
  }

  /** Why ranks with such devices cannot be joined so, by rank; or null. */
  static readonly obstacle: typeof obstacle = obstacle

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

  /** NCCL then knows the memory, where it has ways that gain by that; kept till `deregister` or `destroy`. */
  override async register(tensor: Tensor, options?: MeetOptions): Promise<void> {
    await super.register(tensor, options)
    const { storage } = tensor
    if (this.#version < REGISTERS || this.#registered.has(storage)) return
    const { group } = this.#member
    const { block } = engineStorage(group.cuda(this.rank).memory, storage)
    try {
      this.#registered.set(storage, (group.natives[this.rank] as NcclCommunicator).register(block.id, false))
    } catch (error) {
      throw group.look() ?? new DeviceError(`NCCL did not take the memory: ${(error as Error).message}`, { cause: error })
    }
    storage.retain()
  }

  override async deregister(tensor: Tensor, options?: MeetOptions): Promise<void> {
    await super.deregister(tensor, options)
    const { storage } = tensor
    const registration = this.#registered.get(storage)
    if (registration === undefined) return
    this.#registered.delete(storage)
    storage.release()
    if (!this.#member.group.look()) this.#member.group.natives[this.rank]?.deregister(registration)
  }

  override get records(): boolean {
    return records(this.#member)
  }

  override record(step: () => Promise<void>, options: MeetOptions = {}): Promise<Recording> {
    return this.records ? record(this.#member, step, options) : super.record(step)
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
    unheld.unregister(this)
    for (const storage of this.#registered.keys()) storage.release()
    this.#registered.clear()
    this.#leave()
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
