// WebGpuComm: collectives among ranks on WebGPU devices. Ranks of one thread on one device reduce in its memory; devices exchange one partial
// each, through host memory or over the wire that joins their threads, and the same kernels finish on each of them. What each collective does
// is in the files beside this one.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError, RankFailedError } from '../../core/errors.ts'
import { checkShape, type Shape, sizeOf } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { type Operand, operand } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import { checkHere, describeShape, describeTensor } from '../checks.ts'
import type {
  AllReduceOptions,
  AllToAllOptions,
  CommStats,
  DeviceComm,
  FusedNorm,
  FusedNormEx,
  GatherVOptions,
  Pitched,
  ReduceOp,
  ScatterVOptions,
  TreeCut,
  TuneReport,
} from '../device-comm.ts'
import { allReduceFusion, type FusionEngine, moeAllReduceFusion, moeFinalizeAllReduceFusion } from '../fusion/calls.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from '../fusion/moe.ts'
import type { AllReduceFusion, FusionResult } from '../fusion/options.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import { GroupMember } from '../member.ts'
import { type Recording, recordsNothing } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Wire } from '../wire.ts'
import { debug, describeGroup } from './choose.ts'
import type { FarDevice } from './clusters.ts'
import { fusionEngine } from './fusion.ts'
import { WebGpuGroup } from './group.ts'
import type { Common, Member } from './member.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { allGather2D } from './pitched.ts'
import { recv, send } from './point.ts'
import { allReduce, allReduceResidualBiasRMSNorm, allReduceTree, reduce, reduceScatter, reduceScatterV } from './reduce.ts'
import { allReduceResidualBiasRMSNormEx } from './reshard.ts'
import { allToAll, scatter } from './scatter.ts'
import type { Scope } from './scope.ts'
import { tune } from './tune.ts'

export class WebGpuComm implements DeviceComm {
  readonly rank: number
  readonly size: number
  readonly deviceRank: number
  readonly deviceSize: number
  /** What operations built beside this class need. */
  readonly member: Member
  readonly #fusion: FusionEngine<Scope, Operand>

  /** `common` as `commonOf` gives it. */
  constructor(host: GroupHost, device: WebGpuDevice, common: Common) {
    this.member = new GroupMember(host, device, common, (tensor, use) => operand(device.gpu, tensor, use))
    this.#fusion = fusionEngine(this.member)
    this.rank = host.rank
    this.size = host.size
    const { ranks } = common.group.home(host.rank)
    this.deviceRank = ranks.indexOf(host.rank)
    this.deviceSize = ranks.length
    if (host.rank === 0) debug(describeGroup(common.group, host.wire))
  }

  /** Every rank of `host` joins with its own view of its device. A device that is lost ends the group. */
  static async create(host: GroupHost, device: WebGpuDevice): Promise<WebGpuComm> {
    const outline = ({ gpu }: WebGpuDevice): FarDevice => ({ adapter: gpu.info.adapter })
    const complete = (devices: WebGpuDevice[]): Common[] => {
      const common = WebGpuComm.commonOf(host, devices)
      return devices.map(() => common)
    }
    return new WebGpuComm(host, device, await host.meet('createDeviceComm(webgpu)', { payload: device }, complete, {}, outline))
  }

  /** What the ranks that are here share, of a group with these devices by rank; over a wire those of other ranks are outlines. */
  static commonOf(host: GroupHost, devices: readonly (WebGpuDevice | FarDevice)[]): Common {
    if (new Set(devices).size < devices.length) {
      throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
    }
    return host instanceof LocalHostComm ? withinThread(host, devices as readonly WebGpuDevice[]) : overWire(host, devices)
  }

  /** The group's members by their ranks in the world. */
  get members(): readonly number[] {
    return this.member.host.members
  }

  allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    return allReduce(this.member, x, options)
  }

  allReduceTree(x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions): Promise<Tensor> {
    return allReduceTree(this.member, x, options)
  }

  allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    return allReduceResidualBiasRMSNorm(this.member, args, options)
  }

  allReduceResidualBiasRMSNormEx(args: FusedNormEx<DeviceComm>, options?: MeetOptions): Promise<Tensor> {
    return allReduceResidualBiasRMSNormEx(this.member, args as FusedNormEx<WebGpuComm>, options)
  }

  allReduceFusion(args: AllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return allReduceFusion(this.member, this.#fusion, args, options)
  }

  moeAllReduceFusion(args: MoeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return moeAllReduceFusion(this.member, this.#fusion, args, options)
  }

  moeFinalizeAllReduceFusion(args: MoeFinalizeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return moeFinalizeAllReduceFusion(this.member, this.#fusion, args, options)
  }

  allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor> {
    return allGather(this.member, x, options)
  }

  allGatherV(x: Tensor, options?: GatherVOptions): Promise<Tensor>
  allGatherV(x: readonly Tensor[], options?: GatherVOptions): Promise<Tensor[]>
  allGatherV(x: Tensor | readonly Tensor[], options?: GatherVOptions): Promise<Tensor | Tensor[]> {
    return allGatherV(this.member, x, options)
  }

  allGather2D(buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor> {
    return allGather2D(this.member, buffer, layout)
  }

  gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null> {
    return gather(this.member, x, options)
  }

  reduce(x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor | null> {
    return reduce(this.member, x, options)
  }

  reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor> {
    return reduceScatter(this.member, x, options)
  }

  reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor> {
    return reduceScatterV(this.member, x, options)
  }

  scatter(x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions): Promise<Tensor> {
    return scatter(this.member, x, options)
  }

  allToAll(x: Tensor, options?: AllToAllOptions): Promise<Tensor> {
    return allToAll(this.member, x, options)
  }

  broadcast(x: Tensor, { inPlace = false, ...options }: { src?: number; inPlace?: boolean } & MeetOptions = {}): Promise<Tensor> {
    return inPlace ? broadcastInto(this.member, x, options) : broadcast(this.member, x, options)
  }

  send(x: Tensor, options?: { dst?: number } & MeetOptions): Promise<void> {
    return send(this.member, x, options)
  }

  recv(shape: Shape, dtype: DType, options?: { src?: number } & MeetOptions): Promise<Tensor> {
    return recv(this.member, shape, dtype, options)
  }

  async barrier(options: MeetOptions = {}): Promise<void> {
    const nothing = async (all: null[]): Promise<null[]> => all
    await this.member.runApart('barrier()', () => null, options, nothing)
  }

  async allocate(
    shape: Shape,
    { dtype = 'float32', shared = false, ...options }: { dtype?: DType; shared?: boolean } & MeetOptions = {},
  ): Promise<Tensor> {
    const prepare = (): number => {
      checkShape(shape)
      return sizeOf(shape) * dtypeSize(dtype)
    }
    const { group } = this.member
    const call = `allocate(${describeShape(shape)} ${dtype}${shared ? ', shared' : ''})`
    return this.member.runApart(call, prepare, options, async ([bytes = 0], scope) => {
      const results: Tensor[] = []
      for (const { gpu, ranks } of group.clusters) {
        const storages = gpu.pool.allocateSlices(shared ? 1 : ranks.length, bytes)
        for (const [k, rank] of ranks.entries()) {
          const storage = storages[shared ? 0 : k] as GpuStorage
          if (shared && k > 0) storage.retain()
          results[rank] = group.tensor(scope, rank, storage, shape, dtype)
        }
      }
      return results
    })
  }

  register(tensor: Tensor, options?: MeetOptions): Promise<void> {
    return this.#vouch('register', tensor, options)
  }

  deregister(tensor: Tensor, options?: MeetOptions): Promise<void> {
    return this.#vouch('deregister', tensor, options)
  }

  get records(): boolean {
    return false
  }

  async record(_step: () => Promise<void>, _options?: MeetOptions): Promise<Recording> {
    throw recordsNothing()
  }

  async split(options: { color: number | null; key?: number }): Promise<WebGpuComm | null> {
    this.member.checkOpen()
    const host = await this.member.host.split(options)
    return host && WebGpuComm.create(host, this.member.device)
  }

  tune(options?: MeetOptions): Promise<TuneReport> {
    return tune(this.member, this, options)
  }

  describe(): string {
    return describeGroup(this.member.group, this.member.host.wire)
  }

  stats(): CommStats {
    const { counts, traffic, device } = this.member
    const { submits, maps } = device.stats
    return { ...counts, crossings: traffic.crossings, hostBytes: traffic.bytes, submits, maps }
  }

  /** All ranks learn whether each one's tensor is usable. */
  async #vouch(name: string, tensor: Tensor, options: MeetOptions = {}): Promise<void> {
    const check = (): null => {
      checkHere(this.member.device, tensor, 'tensor')
      return null
    }
    await this.member.runApart(`${name}(${describeTensor(tensor)})`, check, options, async (all) => all)
  }

  destroy(): void {
    this.member.destroy()
  }

  abort(reason: unknown): void {
    this.member.abort(reason)
  }
}

function withinThread(host: LocalHostComm, devices: readonly WebGpuDevice[]): Common {
  const group = new WebGpuGroup(devices, null)
  for (const { gpu } of group.clusters) host.watch((end) => gpu.onFailure(end))
  const channels = new LocalChannels<Scope, WebGpuGroup>(host, (pair, rendezvous) => {
    const two = pair.map((rank) => devices[rank] as WebGpuDevice)
    for (const gpu of new Set(two.map((device) => device.gpu))) rendezvous.watch((end) => gpu.onFailure(end))
    return new WebGpuGroup(two, null)
  })
  return { group, channels, traffic: { crossings: 0, bytes: 0 } }
}

/** Of all `devices` the one of this rank is here. */
function overWire(host: GroupHost, devices: readonly (WebGpuDevice | FarDevice)[]): Common {
  const wire = host.wire as Wire
  const traffic = { crossings: 0, bytes: 0 }
  const { timeoutMs } = host
  const group = new WebGpuGroup(devices, { lane: wire.data, timeoutMs, traffic })
  const rank = host.members[host.rank] as number
  for (const { gpu } of group.clusters) {
    host.watch((end) => gpu.onFailure((error) => end(new RankFailedError(`Rank ${rank} failed: ${error.message}`, { rank, cause: error }))))
  }
  const channels = new WireChannels<Scope, WebGpuGroup>(host, wire, (pair, lane) => {
    const two = pair.map((index) => devices[index] as WebGpuDevice | FarDevice)
    return new WebGpuGroup(two, { lane, timeoutMs, traffic })
  })
  return { group, channels, traffic }
}
