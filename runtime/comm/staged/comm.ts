// StagedComm: collectives among ranks on devices of any kind: all on the CPU, or on it and on GPUs. What ranks bring is read into host memory,
// combined there in the group's order, and written to each device that needs it; CUDA ranks that a transport joins read and write a part each. What
// each collective does is in the files beside this one.
import { type DType, dtypeSize } from '../../core/dtype.ts'
import { ArgumentError } from '../../core/errors.ts'
import { checkShape, type Shape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Device } from '../../device/device.ts'
import { WebGpuDevice } from '../../device/webgpu/device.ts'
import { STEP_BYTES } from '../algorithms.ts'
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
import type { GroupHost } from '../host.ts'
import { GroupMember } from '../member.ts'
import { type Recording, recordsNothing } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { debug } from '../webgpu/choose.ts'
import { commonOf } from './common.ts'
import { allGather2D, allToAll, scatter } from './deal.ts'
import { fusionEngine } from './fusion.ts'
import type { FarDevice, Operand, Staging } from './group.ts'
import type { JoinedSite } from './joined-site.ts'
import { type Entering, enter, type Joining, sitesOf } from './joining.ts'
import { type Common, type Member, operandOf } from './member.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { recv, send } from './point.ts'
import { allReduce, allReduceResidualBiasRMSNorm, allReduceTree, reduce, reduceScatter, reduceScatterV } from './reduce.ts'
import { allReduceResidualBiasRMSNormEx } from './reshard.ts'

export class StagedComm implements DeviceComm {
  readonly rank: number
  readonly size: number
  readonly deviceRank: number
  readonly deviceSize: number
  readonly member: Member
  readonly #fusion: FusionEngine<Staging, Operand>
  readonly #joining: Joining | null

  /** `common` as `commonOf` gives it. */
  constructor(host: GroupHost, device: Device, common: Common, joining: Joining | null = null) {
    this.#joining = joining
    this.member = new GroupMember(host, device, common, operandOf(host.rank))
    this.#fusion = fusionEngine(common.group)
    this.rank = host.rank
    this.size = host.size
    const { ranks } = common.group.home(host.rank)
    this.deviceRank = ranks.indexOf(host.rank)
    this.deviceSize = ranks.length
    if (host.rank === 0) debug(this.describe())
  }

  /** Every rank of `host` joins with its own view of its device. */
  static create(host: GroupHost, device: Device): Promise<StagedComm> {
    return StagedComm.joined(host, device, null)
  }

  /** As `create`; ranks of the sets in `joining` also get a transport of their own. */
  static async joined(host: GroupHost, device: Device, joining: Joining | null): Promise<StagedComm> {
    const entering: Entering<Device> = { device, end: joining !== null && (await enter(host, device, joining)) }
    const outline = ({ device: { description }, end }: Entering<Device>): Entering<FarDevice> => {
      return { device: { adapter: description }, end: end !== false }
    }
    const complete = (all: Entering<Device>[]): Common[] => {
      const devices = all.map((one) => one.device)
      const common = StagedComm.commonOf(host, devices, sitesOf(host, joining?.sets ?? [], all))
      return devices.map(() => common)
    }
    const common = await host.meet('createDeviceComm(hybrid)', { payload: entering }, complete, {}, outline)
    return new StagedComm(host, device, common, joining)
  }

  /** What the ranks that are here share, of a group with these devices by rank; over a wire those of other ranks are outlines. */
  static commonOf(host: GroupHost, devices: readonly (Device | FarDevice)[], joined: readonly JoinedSite[] = []): Common {
    if (new Set(devices).size < devices.length) {
      throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
    }
    return commonOf(host, devices, joined)
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
    return allReduceResidualBiasRMSNormEx(this.member, args as FusedNormEx<StagedComm>, options)
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
    const prepare = (): null => {
      checkShape(shape)
      dtypeSize(dtype) // throws for an unknown one
      return null
    }
    const call = `allocate(${describeShape(shape)} ${dtype}${shared ? ', shared' : ''})`
    return this.member.runApart(call, prepare, options, async (_, staging) => staging.allocate(shape, dtype, shared))
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

  async split(options: { color: number | null; key?: number }): Promise<StagedComm | null> {
    this.member.checkOpen()
    const host = await this.member.host.split(options)
    return host && (this.#joining ?? StagedComm).create(host, this.member.device)
  }

  /** There is one way through host memory: nothing to choose. */
  async tune(options: MeetOptions = {}): Promise<TuneReport> {
    await this.member.runApart(
      'tune()',
      () => null,
      options,
      async (all) => all,
    )
    const topology = this.member.group.sites.map(({ adapter, ranks }) => `${adapter}x${ranks.length}`).join('+')
    return { topology, bitsEqual: true, stepBytes: STEP_BYTES, smallMilliseconds: 0, largeMilliseconds: 0 }
  }

  describe(): string {
    const { group, host } = this.member
    const devices = group.sites.map(({ adapter, ranks }) => `${ranks.length} on ${adapter}`).join(', ')
    const joined = host.wire ? `, joined by ${host.wire.about}` : ''
    const joinedHere = group.joined.map(({ ranks }) => `, ranks ${ranks.join('+')} joined on their devices`).join('')
    return `${this.size} rank${this.size === 1 ? '' : 's'} (${devices}${joined}): reductions in host memory${joinedHere}`
  }

  stats(): CommStats {
    const { counts, traffic, device } = this.member
    const { submits, maps } = device instanceof WebGpuDevice ? device.stats : { submits: 0, maps: 0 }
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
    const error = this.member.abort(reason)
    for (const site of this.member.group.joined) site.end(error)
  }
}
