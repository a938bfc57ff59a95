// CudaComm: collectives among ranks on CUDA devices that can use each other's memory, in one thread, in threads or in processes of a machine. The
// frequent ones are kernels over that memory, one a rank, and need the host only to agree; what is not overridden here goes through host memory,
// as in StagedComm.
import { BackendUnavailableError, invalidArgument } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import type { AllReduceOptions, FusedNorm, GatherVOptions, ReduceOp, ScatterVOptions } from '../device-comm.ts'
import { allReduceFusion, type FusionEngine, moeAllReduceFusion, moeFinalizeAllReduceFusion } from '../fusion/calls.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from '../fusion/moe.ts'
import type { AllReduceFusion, FusionResult } from '../fusion/options.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import type { Recording } from '../recording.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { StagedComm } from '../staged/comm.ts'
import { fusionEngine } from '../staged/fusion.ts'
import { type FarDevice, type Operand, StagedGroup, type Staging } from '../staged/group.ts'
import type { Wire } from '../wire.ts'
import { cudaFusion } from './fusion.ts'
import { CudaGroup } from './group.ts'
import type { Member } from './member.ts'
import { PeerMemory } from './memory.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { MOST_BLOCKS, MOST_RANKS, type PeerRoom, roomFor } from './plan.ts'
import { type Reach, reachOf } from './reach.ts'
import { record, records } from './recording.ts'
import { adds, allReduce, allReduceResidualBiasRMSNorm, norms, reduce, reduceScatter, reduceScatterV } from './reduce.ts'
import { rowsFit } from './rows.ts'
import { Told } from './told.ts'

/** What the ranks of a group that are here share. */
interface CudaCommon {
  group: CudaGroup
  told: Told
  channels: LocalChannels<Staging, StagedGroup> | WireChannels<Staging, StagedGroup>
  traffic: { crossings: number; bytes: number }
}

/** A rank's device and memory. */
interface Entering {
  device: CudaDevice
  memory: PeerMemory
  exported: Uint8Array
  reach: Reach
}

/** As other ranks see it. */
interface Outline {
  adapter: string
  exported: Uint8Array
  reach: Reach
}

export class CudaComm extends StagedComm {
  readonly #told: Told
  readonly #fused: FusionEngine<Staging, Operand>

  /** Programs use `create`. */
  private constructor(host: GroupHost, { device, memory }: Entering, common: CudaCommon) {
    super(host, device, common)
    this.#told = common.told
    this.#fused = cudaFusion(common.group, fusionEngine(common.group))
    const { guard } = common.told
    device.guards.add(guard)
    let left = false
    const leave = (): void => {
      if (left) return
      left = true
      device.guards.delete(guard)
      const go = (): Promise<void> => memory.leave(host.rank, common.group.apart)
      device.sync().then(go, go)
    }
    host.watch(() => leave)
    unheld.register(this, leave)
  }

  /**
   * Why ranks with such devices cannot be joined so, or null: all can use each other's memory, and each is alone on its device or all are on one,
   * since sums are in the order of ranks.
   */
  static obstacle(reaches: readonly Reach[]): string | null {
    if (reaches.length > MOST_RANKS) return `${reaches.length} ranks are more than the kernels' ${MOST_RANKS}`
    const devices = new Set(reaches.map(({ uuid }) => uuid))
    if (devices.size > 1 && devices.size < reaches.length) return 'some ranks share a device and others do not'
    for (const { uuid, peers } of reaches) {
      const missing = [...devices].find((other) => !peers.includes(other))
      if (missing) return `device ${uuid} cannot use the memory of device ${missing}`
    }
    return null
  }

  /**
   * Every rank of `host` joins with its own view of its device. `room` is what the workspaces hold, alike on all ranks; larger calls go in pieces.
   * @throws ERR_BACKEND_UNAVAILABLE where the devices cannot use each other's memory, ERR_OUT_OF_MEMORY.
   */
  static override async create(host: GroupHost, device: Device, room: PeerRoom = roomFor(host.size)): Promise<CudaComm> {
    let memory: PeerMemory | undefined
    let entering: Entering | undefined
    if (device instanceof CudaDevice) await PeerMemory.sweep(device.engine)
    try {
      const enter = (): Entering => {
        if (!(device instanceof CudaDevice)) throw invalidArgument('device', 'a CUDA device', device)
        memory = new PeerMemory(device, room, host.size)
        return { device, memory, exported: memory.exported(), reach: reachOf(device) }
      }
      const offer = offered(enter)
      if ('payload' in offer) entering = offer.payload
      const outline = ({ device, exported, reach }: Entering): Outline => ({ adapter: device.description, exported, reach })
      const complete = (all: (Entering | Outline)[]): { common: CudaCommon; exported: Uint8Array[] }[] => {
        const joined = { common: commonOf(host, all, room), exported: all.map(({ exported }) => exported) }
        return all.map(() => joined)
      }
      const call = `createDeviceComm(cuda-ipc, ${room.dataBytes}, ${room.packetBytes})`
      const { common, exported } = (await host.meet(call, offer, complete as never, {}, outline as never)) as ReturnType<
        typeof complete
      >[number]
      const own = entering as Entering
      // Once all have imported all: nobody's kernel writes to memory of a rank that is not part of it.
      const why = own.memory.join(host.rank, exported)
      const whys = await host.allGather(why)
      const obstacle = whys.find((one) => one !== null)
      if (obstacle) throw new BackendUnavailableError(`These ranks cannot be joined by their devices' memory: ${obstacle}`)
      common.group.enter(host.rank, own.memory)
      common.told.add(own.memory)
      return new CudaComm(host, own, common)
    } catch (error) {
      memory?.abandon()
      throw error
    }
  }

  override allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    return adds(x, options?.op) && options?.algorithm !== 'on-device' ? allReduce(this.#member, x, options) : super.allReduce(x, options)
  }

  override allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    const known = args !== undefined && norms(args) && args.algorithm !== 'on-device'
    const n = known ? (args.x.shape.at(-1) ?? 0) : 0
    if (n === 0 || !rowsFit(this.#member.group, { n, size: args.x.byteLength / Math.max(1, args.x.size) || 4 })) {
      return super.allReduceResidualBiasRMSNorm(args, options)
    }
    return allReduceResidualBiasRMSNorm(this.#member, args, options)
  }

  override allReduceFusion(args: AllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return allReduceFusion(this.#member, this.#fused, args, options)
  }

  override moeAllReduceFusion(args: MoeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return moeAllReduceFusion(this.#member, this.#fused, args, options)
  }

  override moeFinalizeAllReduceFusion(args: MoeFinalizeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return moeFinalizeAllReduceFusion(this.#member, this.#fused, args, options)
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
    return adds(x, options?.op) ? reduce(this.#member, x, options) : super.reduce(x, options)
  }

  override reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor> {
    return adds(x, options?.op) ? reduceScatter(this.#member, x, options) : super.reduceScatter(x, options)
  }

  override reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor> {
    return adds(x, options?.op) ? reduceScatterV(this.#member, x, options) : super.reduceScatterV(x, options)
  }

  override broadcast(x: Tensor, { inPlace = false, ...options }: { src?: number; inPlace?: boolean } & MeetOptions = {}): Promise<Tensor> {
    return inPlace ? broadcastInto(this.#member, x, options) : broadcast(this.#member, x, options)
  }

  override get records(): boolean {
    return records(this.#member)
  }

  override record(step: () => Promise<void>, options: MeetOptions = {}): Promise<Recording> {
    return this.records ? record(this.#member, step, options) : super.record(step)
  }

  override async split(options: { color: number | null; key?: number }): Promise<StagedComm | null> {
    this.member.checkOpen()
    const host = await this.member.host.split(options)
    return host && CudaComm.create(host, this.member.device, this.#member.group.plan)
  }

  override describe(): string {
    const { group, host } = this.member // also called while this is made
    const devices = group.sites.map(({ adapter, ranks }) => `${ranks.length} on ${adapter}`).join(', ')
    const joined = host.wire ? `, joined by ${host.wire.about}` : ''
    return `${this.size} rank${this.size === 1 ? '' : 's'} (${devices}${joined}): reductions by kernels over the devices' memory`
  }

  override destroy(): void {
    super.destroy()
    this.#member.group.cuda(this.rank).guards.delete(this.#told.guard)
  }

  override abort(reason: unknown): void {
    super.abort(reason)
    this.#told.alarm()
  }

  get #member(): Member {
    return this.member as unknown as Member
  }
}

/** A group that a program has let go of without a word leaves as well. */
const unheld = new FinalizationRegistry<() => void>((leave) => leave())

function offered<P>(make: () => P): { payload: P } | { refusal: unknown } {
  try {
    return { payload: make() }
  } catch (refusal) {
    return { refusal }
  }
}

function commonOf(host: GroupHost, all: readonly (Entering | Outline)[], room: PeerRoom): CudaCommon {
  const reaches = all.map(({ reach }) => reach)
  const why = CudaComm.obstacle(reaches)
  if (why !== null) throw new BackendUnavailableError(`These ranks cannot be joined by their devices' memory: ${why}`)
  const sharing = Math.max(...reaches.map(({ uuid }) => reaches.filter((other) => other.uuid === uuid).length))
  const blocks = Math.floor(Math.min(...reaches.map(({ multiprocessors }) => multiprocessors)) / sharing)
  const plan = { ...room, ranks: host.size, blocks: Math.max(1, Math.min(MOST_BLOCKS, blocks)) }
  const devices = all.map((one): Device | FarDevice => ('device' in one ? one.device : { adapter: one.adapter }))
  const told = new Told(host)
  const { timeoutMs, wire } = host
  const traffic = { crossings: 0, bytes: 0 }
  const link = wire && { lane: wire.data, timeoutMs, traffic }
  const group = new CudaGroup(devices, link, { plan, timeoutMs, failure: () => told.look() })
  return { group, told, channels: channelsOf(host, devices, traffic), traffic }
}

/** How two ranks reach each other, through host memory. */
function channelsOf(host: GroupHost, devices: readonly (Device | FarDevice)[], traffic: CudaCommon['traffic']): CudaCommon['channels'] {
  const of = (pair: readonly number[]): (Device | FarDevice)[] => pair.map((rank) => devices[rank] as Device | FarDevice)
  if (host instanceof LocalHostComm) return new LocalChannels<Staging, StagedGroup>(host, (pair) => new StagedGroup(of(pair), null))
  const { timeoutMs } = host
  return new WireChannels<Staging, StagedGroup>(
    host,
    host.wire as Wire,
    (pair, lane) => new StagedGroup(of(pair), { lane, timeoutMs, traffic }),
  )
}
