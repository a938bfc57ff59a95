// EngineComm: collectives among ranks of one thread on one engine. The frequent ones are commands on the ranks' queues, ordered and run like
// any other; what is not overridden here goes through host memory, as in StagedComm.
import { ArgumentError } from '../../core/errors.ts'
import type { Shape } from '../../core/shape.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { Device } from '../../device/device.ts'
import { EngineDevice } from '../../device/engine/device.ts'
import { LocalChannels } from '../channels.ts'
import type { AllReduceOptions, FusedNorm, GatherVOptions, ReduceOp, ScatterVOptions, TreeCut } from '../device-comm.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import type { Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { StagedComm } from '../staged/comm.ts'
import { StagedGroup, type Staging } from '../staged/group.ts'
import type { Common } from '../staged/member.ts'
import { EngineGroup } from './group.ts'
import type { Member } from './member.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { record } from './recording.ts'
import { allReduce, allReduceResidualBiasRMSNorm, allReduceTree, reduce, reduceScatter, reduceScatterV } from './reduce.ts'

export class EngineComm extends StagedComm {
  /** Whether ranks with these devices can be joined so: views of one engine, all in this thread. */
  static joins(host: GroupHost, devices: readonly unknown[]): boolean {
    return (
      host instanceof LocalHostComm &&
      devices.every((device) => device instanceof EngineDevice && device.memory === (devices[0] as EngineDevice).memory)
    )
  }

  static override async create(host: GroupHost, device: Device): Promise<EngineComm> {
    const complete = (devices: Device[]): Common[] => {
      const common = EngineComm.commonOf(host, devices)
      return devices.map(() => common)
    }
    return new EngineComm(host, device, await host.meet('createDeviceComm(engine)', { payload: device }, complete))
  }

  /** @throws ERR_ARGUMENT for two ranks with one view. */
  static override commonOf(host: GroupHost, devices: readonly Device[]): Common {
    if (new Set(devices).size < devices.length) {
      throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
    }
    const channels = new LocalChannels<Staging, StagedGroup>(
      host as LocalHostComm,
      (pair) =>
        new StagedGroup(
          pair.map((rank) => devices[rank] as Device),
          null,
        ),
    )
    return { group: new EngineGroup(devices as readonly EngineDevice[]), channels, traffic: { crossings: 0, bytes: 0 } }
  }

  override allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    return isOther(options) ? super.allReduce(x, options) : allReduce(this.#member, x, options)
  }

  override allReduceTree(x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions): Promise<Tensor> {
    return allReduceTree(this.#member, x, options)
  }

  override allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    return isOther(args) ? super.allReduceResidualBiasRMSNorm(args, options) : allReduceResidualBiasRMSNorm(this.#member, args, options)
  }

  override allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor> {
    return allGather(this.#member, x, options)
  }

  override allGatherV(x: Tensor, options?: GatherVOptions): Promise<Tensor>
  override allGatherV(x: readonly Tensor[], options?: GatherVOptions): Promise<Tensor[]>
  override allGatherV(x: Tensor | readonly Tensor[], options?: GatherVOptions): Promise<Tensor | Tensor[]> {
    return allGatherV(this.#member, x, options)
  }

  override gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null> {
    return gather(this.#member, x, options)
  }

  override reduce(x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor | null> {
    return reduce(this.#member, x, options)
  }

  override reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor> {
    return reduceScatter(this.#member, x, options)
  }

  override reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor> {
    return reduceScatterV(this.#member, x, options)
  }

  override broadcast(x: Tensor, { inPlace = false, ...options }: { src?: number; inPlace?: boolean } & MeetOptions = {}): Promise<Tensor> {
    return inPlace ? broadcastInto(this.#member, x, options) : broadcast(this.#member, x, options)
  }

  override get records(): boolean {
    return this.#member.group.devices.every(({ tapes }) => tapes)
  }

  override record(step: () => Promise<void>, options: MeetOptions = {}): Promise<Recording> {
    return this.records ? record(this.#member, step, options) : super.record(step)
  }

  override async split(options: { color: number | null; key?: number }): Promise<EngineComm | null> {
    this.member.checkOpen()
    const host = await this.member.host.split(options)
    return host && EngineComm.create(host, this.member.device)
  }

  override describe(): string {
    const { description } = this.member.device
    return `${this.size} rank${this.size === 1 ? '' : 's'} on ${description}: reductions on-device, shared out among the ranks' threads`
  }

  get #member(): Member {
    return this.member as Member
  }
}

/** A named algorithm that is not this one is refused as StagedComm does. */
function isOther(options: { algorithm?: unknown; tree?: unknown } | undefined): boolean {
  return options?.algorithm !== undefined && options.algorithm !== 'on-device' && !options.tree
}
