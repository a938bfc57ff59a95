// Communicator: what a program holds: the collectives of a group on its ranks' devices, and the group's HostComm.
import type { DType } from '../core/dtype.ts'
import { ArgumentError, invalidArgument, RankFailedError } from '../core/errors.ts'
import type { Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import { commFor } from './choice.ts'
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
} from './device-comm.ts'
import {
  type CommunicatingModel,
  combineRows,
  type DispatchedExperts,
  type DispatchedLogits,
  type DispatchOptions,
  dispatchRows,
  prepareModules,
} from './expert.ts'
import type { MoeAllReduceFusion, MoeFinalizeAllReduceFusion } from './fusion/moe.ts'
import type { AllReduceFusion, FusionResult } from './fusion/options.ts'
import type { HostComm } from './host.ts'
import type { Recording } from './recording.ts'
import type { MeetOptions } from './rendezvous.ts'

export { createDeviceComm, type DeviceBackend } from './choice.ts'

export interface GroupOptions {
  /** The group's ranks hold different experts and different tokens: dispatch and combine then move tokens. Alike on all ranks. */
  expertParallel?: boolean
}

/**
 * One per rank and group. Every method is collective: all ranks of the group call it, in the same order, with matching arguments; see
 * DeviceComm for what each computes and for the errors. A group of one rank returns its operand: no copy, no wait.
 */
export class Communicator {
  readonly host: HostComm
  readonly #comm: DeviceComm
  readonly #device: Device
  /** The group shares experts out: dispatch and combine move tokens. */
  readonly expertParallel: boolean
  #destroyed = false

  constructor(host: HostComm, comm: DeviceComm, device: Device, { expertParallel = false }: GroupOptions = {}) {
    this.host = host
    this.#comm = comm
    this.#device = device
    this.expertParallel = expertParallel
  }

  /** All ranks of `host` call this, each with its own device. */
  static async create(host: HostComm, device: Device, options?: GroupOptions): Promise<Communicator> {
    return new Communicator(host, await commFor(host, device), device, options)
  }

  get rank(): number {
    return this.#comm.rank
  }

  get size(): number {
    return this.#comm.size
  }

  /** This rank's index among the group's ranks on its device; whoever has 0 loads what they share. */
  get deviceRank(): number {
    return this.#comm.deviceRank
  }

  /** How many ranks of the group are on this rank's device. */
  get deviceSize(): number {
    return this.#comm.deviceSize
  }

  /** x on every rank, combined elementwise: sum, prod, min, max or avg. [...] → [...], any shape. */
  allReduce(x: Tensor, options?: AllReduceOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allReduce(x, options))
  }

  /** The sum of all ranks' subtree sums (device.matmulTree) in the order of the tree: x [subtrees, ...shape] → shape. */
  allReduceTree(x: Tensor, options: { tree: TreeCut; shape: Shape } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allReduceTree(x, options))
  }

  /** All ranks' x concatenated along dim (default: the last). */
  allGather(x: Tensor, options?: { dim?: number } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allGather(x, options))
  }

  /** The sum of all ranks' x, cut along dim (default: the last): rank r gets the r-th part. */
  reduceScatter(x: Tensor, options?: { dim?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.reduceScatter(x, options))
  }

  /** As allGather on rank dst (default 0), null on the others. */
  gather(x: Tensor, options?: { dst?: number; dim?: number } & MeetOptions): Promise<Tensor | null> {
    return echoQuietly(this.#comm.gather(x, options))
  }

  /** Rank src's x (default 0) on every rank; with `inPlace`, written into each rank's x, which is the result. */
  broadcast(x: Tensor, options?: { src?: number; inPlace?: boolean } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.broadcast(x, options))
  }

  /** As allReduce on rank dst (default 0), null on the others. */
  reduce(x: Tensor, options?: { dst?: number; op?: ReduceOp } & MeetOptions): Promise<Tensor | null> {
    return echoQuietly(this.#comm.reduce(x, options))
  }

  /** All ranks' x concatenated along dim (default: the first), of lengths that may differ; of a list, each of its tensors. */
  allGatherV(x: Tensor, options?: GatherVOptions): Promise<Tensor>
  allGatherV(x: readonly Tensor[], options?: GatherVOptions): Promise<Tensor[]>
  allGatherV(x: Tensor | readonly Tensor[], options?: GatherVOptions): Promise<Tensor | Tensor[]> {
    return echoQuietly<Tensor | Tensor[]>(this.#comm.allGatherV(x as Tensor, options))
  }

  /** As reduceScatter, of which rank r gets sizes[r] along dim (default: the last). */
  reduceScatterV(x: Tensor, options?: ScatterVOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.reduceScatterV(x, options))
  }

  /** The r-th part of rank src's x (default 0) along dim (default: the first); the others give null. */
  scatter(x: Tensor | null, options?: { src?: number; dim?: number } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.scatter(x, options))
  }

  /** Cuts of x along its rows, the r-th for rank r; what this rank got, in the order of the senders. */
  allToAll(x: Tensor, options?: AllToAllOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allToAll(x, options))
  }

  /** Every rank's block in every rank's buffer, in place, at any pitch; see Pitched. Returns the buffer. */
  allGather2D(buffer: Tensor, layout: Pitched & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allGather2D(buffer, layout))
  }

  /** To rank dst (default: the next). Not collective: the n-th send of a pair meets its n-th recv. Resolves once it is received. */
  send(x: Tensor, options?: { dst?: number } & MeetOptions): Promise<void> {
    return echoQuietly(this.#comm.send(x, options))
  }

  /** From rank src (default: the previous one) into new memory; shape and dtype must be those that are sent. */
  recv(shape: Shape, dtype: DType, options?: { src?: number } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.recv(shape, dtype, options))
  }

  /** Returns when all ranks have called it. */
  barrier(options?: MeetOptions): Promise<void> {
    return echoQuietly(this.#comm.barrier(options))
  }

  /** residual += sum over ranks of x, + bias; returns the RMSNorm of that. One kernel a device; see FusedNorm. */
  allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allReduceResidualBiasRMSNorm(args, options))
  }

  /** The fused norm with the sum over group0 and the result to group1, both split off this group or null for it; see FusedNormEx. */
  allReduceResidualBiasRMSNormEx(args: FusedNormEx<Communicator>, options?: MeetOptions): Promise<Tensor> {
    const comms = { group0: args?.group0 ? args.group0.#comm : null, group1: args?.group1 ? args.group1.#comm : null }
    return echoQuietly(this.#comm.allReduceResidualBiasRMSNormEx({ ...args, ...comms }, options))
  }

  /** Hidden states and router logits of all ranks' tokens, for experts that are shared out; without expert parallelism as given. */
  async dispatchRouterLogits(hidden: Tensor, logits: Tensor, options?: DispatchOptions): Promise<DispatchedLogits> {
    const { rows, ...rest } = await dispatchRows(this.#comm, this.host, this.expertParallel, [hidden, logits], options)
    return { hidden: rows[0] as Tensor, logits: rows[1] as Tensor, ...rest }
  }

  /** As dispatchRouterLogits, for tokens whose experts are chosen already. */
  async dispatch(hidden: Tensor, weights: Tensor, ids: Tensor, options?: DispatchOptions): Promise<DispatchedExperts> {
    const { rows, ...rest } = await dispatchRows(this.#comm, this.host, this.expertParallel, [hidden, weights, ids], options)
    return { hidden: rows[0] as Tensor, weights: rows[1] as Tensor, ids: rows[2] as Tensor, ...rest }
  }

  /** The sum of all ranks' experts for this rank's tokens, with the sizes that dispatch gave; without expert parallelism as given. */
  async combine(hidden: Tensor, options: { sizes?: readonly number[] | undefined } & MeetOptions = {}): Promise<Tensor> {
    return combineRows(this.#comm, this.expertParallel, hidden, options)
  }

  /**
   * Whether steps of this group can be recorded: its ranks are of one thread, on one device whose engine is native, or on CUDA devices that use
   * each other's memory or are joined by NCCL (2.11.4 or later), each rank of a thread on one of its own.
   */
  get records(): boolean {
    return this.#comm.records
  }

  /**
   * Runs `step` on every rank and takes down what it does on the device, its collectives included: launching the recording does that again, at the
   * cost of one collective. A decode step is the use: what changes from token to token lies in tensors, which are written before each launch.
   * Host data that the step writes is the same each time; reading a result within it is refused. Memory that is allocated and freed within is the
   * recording's. @throws ERR_ARGUMENT where `records` is false, within another recording, and where the step waits for the device.
   */
  record(step: () => Promise<void>, options?: MeetOptions): Promise<Recording> {
    return echoQuietly(this.#comm.record(step, options))
  }

  /** Calls `prepareCommunication(this)` on each module of the model that has it; gives their number. What these do may be collective. */
  prepareCommunicationBufferForModel(model: CommunicatingModel<Communicator>): Promise<number> {
    return prepareModules(this, model)
  }

  /** Checks on every rank that a tensor can be an operand. Any tensor of the device is one, so nothing is kept; see deregister. */
  register(tensor: Tensor, options?: MeetOptions): Promise<void> {
    return echoQuietly(this.#comm.register(tensor, options))
  }

  /** The counterpart of register for programs that pair them; checks as register does. */
  deregister(tensor: Tensor, options?: MeetOptions): Promise<void> {
    return echoQuietly(this.#comm.deregister(tensor, options))
  }

  /** Gives back what `allocate` gave: the same as tensor.dispose(). Not collective. */
  free(tensor: Tensor): void {
    if (!(tensor instanceof Tensor)) throw invalidArgument('tensor', 'a Tensor', tensor)
    tensor.dispose()
  }

  /** Whether this communicator can do something that not every kind can. @throws ERR_ARGUMENT for an unknown name. */
  query(attribute: 'hasAllGather2D'): boolean {
    if (attribute !== 'hasAllGather2D') throw invalidArgument('attribute', "'hasAllGather2D'", attribute)
    return true
  }

  /** The sum over ranks, then what the pattern adds: residual, RMSNorm, FP8 or FP4 codes. One kernel a device; see AllReduceFusion. */
  allReduceFusion(args: AllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return echoQuietly(this.#comm.allReduceFusion(args, options))
  }

  /** Joins this rank's expert rows and the shared expert's, then as allReduceFusion: residual, norm, FP4 where asked for. */
  moeAllReduceFusion(args: MoeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return echoQuietly(this.#comm.moeAllReduceFusion(args, options))
  }

  /** As moeAllReduceFusion, from rows in the experts' own order and an index of them. */
  moeFinalizeAllReduceFusion(args: MoeFinalizeAllReduceFusion, options?: MeetOptions): Promise<FusionResult> {
    return echoQuietly(this.#comm.moeFinalizeAllReduceFusion(args, options))
  }

  /** Symmetric memory: slices of one buffer for the ranks of a device, or with `shared` one tensor that they all hold. */
  allocate(shape: Shape, options?: { dtype?: DType; shared?: boolean } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allocate(shape, options))
  }

  /** Ranks of equal color form a group, ordered by key, then by rank. Without a color (null) a rank joins none and gets null. */
  async split({ expertParallel = false, ...options }: { color: number | null; key?: number } & GroupOptions): Promise<Communicator | null> {
    if (this.#destroyed) throw new ArgumentError('This communicator was destroyed; split another one')
    const host = await this.host.split(options)
    return host && Communicator.create(host, this.#device, { expertParallel })
  }

  /**
   * Not collective: this rank takes part no more, neither here nor in `host`. Its later collectives throw ERR_ARGUMENT, what its peers
   * still call fails with ERR_RANK_FAILED. Tensors stay with those who hold them.
   */
  destroy(): void {
    this.#destroyed = true
    this.#comm.destroy()
  }

  /** Not collective: ends the group. Pending and later collectives of all its ranks reject with ERR_RANK_FAILED, which names this rank. */
  abort(reason: unknown): void {
    this.#comm.abort(reason)
  }

  /** Measures this group's devices so that reductions over several of them take the better algorithm; see TuneReport. */
  tune(options?: MeetOptions): Promise<TuneReport> {
    return echoQuietly(this.#comm.tune(options))
  }

  /** One line: the group's ranks, their devices, and which algorithms its reductions take. */
  describe(): string {
    return this.#comm.describe()
  }

  stats(): CommStats {
    return this.#comm.stats()
  }
}

/**
 * A rank may have several collectives under way when a peer fails. All of them reject, but it awaits only the first: the others are an
 * echo of what that one and `launch` tell, and as unhandled rejections they would end the process.
 */
function echoQuietly<T>(work: Promise<T>): Promise<T> {
  const told = new Promise<T>((resolve, reject) => {
    work.then(resolve, (error) => {
      if (error instanceof RankFailedError) told.catch(() => {})
      reject(error)
    })
  })
  return told
}
