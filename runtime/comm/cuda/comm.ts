// CudaComm: collectives among ranks on CUDA devices, in one thread, in threads or in processes. The frequent ones are kernels, one a rank, over memory
// that all have: that of the devices, where they reach each other's, in one machine or by NVLink in several, else pinned memory of the machine.
// They need the host only to agree; what is not overridden here goes through host memory, as in StagedComm.
import { BackendUnavailableError, invalidArgument } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import type { Guard } from '../../device/engine/device.ts'
import { LocalChannels, WireChannels } from '../channels.ts'
import type {
  AllReduceOptions,
  AllToAllOptions,
  FusedNorm,
  GatherVOptions,
  Pitched,
  ReduceOp,
  ScatterVOptions,
  TuneReport,
} from '../device-comm.ts'
import { allReduceFusion, type FusionEngine, moeAllReduceFusion, moeFinalizeAllReduceFusion } from '../fusion/calls.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from '../fusion/moe.ts'
import type { AllReduceFusion, FusionResult } from '../fusion/options.ts'
import { type GroupHost, LocalHostComm } from '../host.ts'
import type { Recording } from '../recording.ts'
import { type MeetOptions, offerOf } from '../rendezvous.ts'
import { StagedComm } from '../staged/comm.ts'
import { fusionEngine } from '../staged/fusion.ts'
import { type FarDevice, type Operand, StagedGroup, type Staging } from '../staged/group.ts'
import { inOrderOfCalls } from '../turns.ts'
import { debug } from '../webgpu/choose.ts'
import type { Wire } from '../wire.ts'
import { allGather2D, allToAll, scatter } from './deal.ts'
import { Doubt } from './doubt.ts'
import { cudaFusion } from './fusion.ts'
import { CudaGroup } from './group.ts'
import type { Member } from './member.ts'
import { type Exported, PeerMemory } from './memory.ts'
import { allGather, allGatherV, broadcast, broadcastInto, gather } from './move.ts'
import { boundsOf, MOST_BLOCKS, type PeerPlan, type PeerRoom, roomFor } from './plan.ts'
import { HOMES, type Home, homeOf, noMulticast, type Reach, reachOf } from './reach.ts'
import { record, records } from './recording.ts'
import { allReduce, allReduceResidualBiasRMSNorm, norms, reduce, reduceScatter, reduceScatterV } from './reduce.ts'
import { rowsFit } from './rows.ts'
import { Told } from './told.ts'
import { tune } from './tune.ts'

/** What the ranks of a group that are here share. */
interface CudaCommon {
  group: CudaGroup
  told: Told
  channels: LocalChannels<Staging, StagedGroup> | WireChannels<Staging, StagedGroup>
  traffic: { crossings: number; bytes: number }
  /** Whether the ranks are of one machine, whose pinned memory joins them where NVLink does not. */
  pins: boolean
}

/** A rank's device. */
interface Entering {
  device: CudaDevice
  reach: Reach
}

/** As other ranks see it. */
interface Outline {
  adapter: string
  reach: Reach
}

/** Alike on all ranks. */
export interface CudaOptions {
  /** What the workspaces hold; larger calls go in pieces. */
  room?: PeerRoom
  /** Where the workspaces lie, rather than where it suits the devices. */
  memory?: Home | undefined
}

export class CudaComm extends StagedComm {
  readonly #told: Told
  readonly #guard: Guard
  readonly #options: CudaOptions
  readonly #fused: FusionEngine<Staging, Operand>

  /** Programs use `create`. */
  private constructor(host: GroupHost, device: CudaDevice, memory: PeerMemory, doubt: Doubt, common: CudaCommon, options: CudaOptions) {
    super(host, device, common)
    this.#told = common.told
    this.#options = options
    this.#fused = cudaFusion(common.group, fusionEngine(common.group))
    common.told.add(memory)
    const guard = common.told.guard(doubt)
    this.#guard = guard
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

  /** Why ranks with such devices cannot be joined so, or null: see homeOf. */
  static obstacle(reaches: readonly Reach[]): string | null {
    const found = homeOf(reaches)
    return 'why' in found ? found.why : null
  }

  /**
   * Every rank of `host` joins with its own view of its device.
   * @throws ERR_BACKEND_UNAVAILABLE where the devices have no memory in common, ERR_OUT_OF_MEMORY.
   */
  static override async create(host: GroupHost, device: Device, options: CudaOptions = {}): Promise<CudaComm> {
    const { room, memory } = options
    if (device instanceof CudaDevice) await PeerMemory.sweep(device.engine)
    const offer = offerOf((): Entering => {
      if (!(device instanceof CudaDevice)) throw invalidArgument('device', 'a CUDA device', device)
      if (memory !== undefined && !HOMES.includes(memory)) throw invalidArgument('memory', HOMES.join(' or '), memory)
      return { device, reach: reachOf(device) }
    })
    const outline = ({ device, reach }: Entering): Outline => ({ adapter: device.description, reach })
    const complete = (all: (Entering | Outline)[]): CudaCommon[] => {
      const common = commonOf(host, all, options)
      return all.map(() => common)
    }
    const given = [room?.dataBytes, room?.packetBytes, memory].map((one) => one ?? 'default')
    const call = `createDeviceComm(cuda-ipc, ${given.join(', ')})`
    const common = await host.meet<Entering, CudaCommon>(call, offer, complete as never, {}, outline as never)
    const { plan } = common.group
    const own = await joined(host, device as CudaDevice, plan).catch((error: unknown) => {
      if (!(error instanceof BackendUnavailableError && plan.fabric && common.pins && memory === undefined)) throw error
      debug(`${error.message}; pinned memory is tried`)
    })
    if (!own) return CudaComm.create(host, device, { ...options, memory: 'pinned' })
    const doubt = new Doubt((device as CudaDevice).queue)
    common.group.enter(host.rank, own, doubt)
    return new CudaComm(host, device as CudaDevice, own, doubt, common, options)
  }

  override allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    return options?.algorithm === 'on-device' ? super.allReduce(x, options) : allReduce(this.#member, x, options)
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
    return this.#inOrder((engine) => allReduceFusion(this.#member, engine, args, options))
  }

  override moeAllReduceFusion(args: MoeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return this.#inOrder((engine) => moeAllReduceFusion(this.#member, engine, args, options))
  }

  override moeFinalizeAllReduceFusion(args: MoeFinalizeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return this.#inOrder((engine) => moeFinalizeAllReduceFusion(this.#member, engine, args, options))
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
    return allGather2D(this.#member, buffer, layout)
  }

  override scatter(x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions): Promise<Tensor> {
    return scatter(this.#member, x, options)
  }

  override allToAll(x: Tensor, options?: AllToAllOptions): Promise<Tensor> {
    return allToAll(this.#member, x, options)
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

  override tune(options?: MeetOptions): Promise<TuneReport> {
    return tune(this.#member, this, options)
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
    return host && CudaComm.create(host, this.member.device, this.#options)
  }

  override describe(): string {
    const { group, host } = this.member // also called while this is made
    const devices = group.sites.map(({ adapter, ranks }) => `${ranks.length} on ${adapter}`).join(', ')
    const joined = host.wire ? `, joined by ${host.wire.about}` : ''
    const where = (group as CudaGroup).plan.home === 'device' ? "the devices' memory" : 'pinned memory'
    const { multicast, refused } = (group as CudaGroup).memoryOf(this.rank)
    const how = multicast ? ', stores to all at once by multicast' : refused === null ? '' : `, without multicast (${refused})`
    return `${this.size} rank${this.size === 1 ? '' : 's'} (${devices}${joined}): reductions by kernels over ${where}${how}`
  }

  override destroy(): void {
    super.destroy()
    this.#member.group.cuda(this.rank).guards.delete(this.#guard)
  }

  override abort(reason: unknown): void {
    super.abort(reason)
    this.#told.alarm()
    this.#member.group.heard(this.rank)
  }

  /** Over a wire, kernels of fused patterns go to the device behind those of the calls that this rank made before. */
  #inOrder<R>(call: (engine: FusionEngine<Staging, Operand>) => Promise<R>): Promise<R> {
    const { host, device } = this.#member
    return host.wire ? inOrderOfCalls(device, (before) => call(behind(before, this.#fused))) : call(this.#fused)
  }

  get #member(): Member {
    return this.member as unknown as Member
  }
}

function behind(before: Promise<void> | undefined, { sum, experts }: FusionEngine<Staging, Operand>): FusionEngine<Staging, Operand> {
  return {
    async sum(...given) {
      await before
      return sum(...given)
    },
    async experts(...given) {
      await before
      return experts(...given)
    },
  }
}

/** A group that a program has let go of without a word leaves as well. */
const unheld = new FinalizationRegistry<() => void>((leave) => leave())

/** A rank's memory, once all have all others': with a multicast, where the plan has it and no rank's driver refuses it. */
async function joined(host: GroupHost, device: CudaDevice, plan: PeerPlan): Promise<PeerMemory> {
  const first = await joinedBy(host, device, plan)
  const own = plan.multicast && typeof first === 'string' ? await joinedBy(host, device, { ...plan, multicast: false }) : first
  if (typeof own === 'string') throw new BackendUnavailableError(`These ranks cannot be joined by memory that all have: ${own}`)
  if (typeof first === 'string') own.refused = first
  return own
}

/** Nobody's kernel writes to memory of a rank that is not part of it. Why that cannot be, alike on all ranks, where a driver refuses something. */
async function joinedBy(host: GroupHost, device: CudaDevice, plan: PeerPlan): Promise<PeerMemory | string> {
  let own: PeerMemory | undefined
  const offer = offerOf((): { exported: Exported | null; why: string | null } => {
    try {
      own = new PeerMemory(device, plan)
      return { exported: own.exported(host.rank), why: null }
    } catch (error) {
      if (!plan.multicast && !(error instanceof BackendUnavailableError)) throw error
      return { exported: null, why: error instanceof Error ? error.message : String(error) } // for all ranks to hear
    }
  })
  try {
    const all = await host.meet(
      `createDeviceComm(cuda-ipc), workspaces${plan.multicast ? ' with a multicast' : ''}`,
      offer,
      (all) => all.map(() => all),
      {},
      (one) => one,
    )
    const refusal = all.find(({ why }) => why !== null)?.why ?? null
    const joins = (): string | null => (own as PeerMemory).join(host.rank, all.map(({ exported }) => exported) as Exported[])
    const find = async (why: string | null): Promise<string | null> => (await host.allGather(why)).find((one) => one !== null) ?? null
    const obstacle = (await find(refusal ?? joins())) ?? (plan.multicast ? await find((own as PeerMemory).bind(host.rank)) : null)
    if (obstacle === null) return own as PeerMemory
    own?.abandon()
    return obstacle
  } catch (error) {
    own?.abandon()
    throw error
  }
}

function commonOf(host: GroupHost, all: readonly (Entering | Outline)[], { room, memory }: CudaOptions): CudaCommon {
  const reaches = all.map(({ reach }) => reach)
  const found = homeOf(reaches, memory)
  if ('why' in found) throw new BackendUnavailableError(`These ranks cannot be joined by memory that all have: ${found.why}`)
  const { home, fabric } = found
  const sharing = Math.max(...reaches.map(({ uuid }) => reaches.filter((other) => other.uuid === uuid).length))
  const blocks = Math.floor(Math.min(...reaches.map(({ multiprocessors }) => multiprocessors)) / sharing)
  const bounds = boundsOf(home, host.size)
  const plan: PeerPlan = {
    ...(room ?? roomFor(home, host.size)),
    ranks: host.size,
    home,
    fabric,
    multicast: home === 'device' && noMulticast(reaches) === null,
    bounds,
    blocks: Math.max(1, Math.min(MOST_BLOCKS[home], blocks)),
  }
  const devices = all.map((one): Device | FarDevice => ('device' in one ? one.device : { adapter: one.adapter }))
  const told = new Told(host)
  const { timeoutMs, wire } = host
  const traffic = { crossings: 0, bytes: 0 }
  const link = wire && { lane: wire.data, timeoutMs, traffic }
  const group = new CudaGroup(devices, link, { plan, timeoutMs, failure: () => told.look() })
  const pins = new Set(reaches.map(({ machine }) => machine)).size === 1
  return { group, told, channels: channelsOf(host, devices, traffic), traffic, pins }
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
