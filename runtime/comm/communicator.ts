// Communicator: what a program holds: the collectives of a group on its ranks' devices, and the group's HostComm.
import type { DType } from '../core/dtype.ts'
import { BackendUnavailableError, invalidArgument, RankFailedError } from '../core/errors.ts'
import type { Shape } from '../core/shape.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'
import type { CommStats, DeviceComm, FusedNorm, ReduceOp } from './device-comm.ts'
import { type HostComm, LocalHostComm } from './host.ts'
import type { MeetOptions } from './rendezvous.ts'
import { WebGpuComm } from './webgpu/comm.ts'

export type DeviceBackend = 'webgpu'

/** Makes this rank's DeviceComm; all ranks of `host` call it. @throws ERR_BACKEND_UNAVAILABLE for a backend that is not built. */
export async function createDeviceComm(backend: DeviceBackend, { host, device }: { host: HostComm; device: Device }): Promise<DeviceComm> {
  if (backend !== 'webgpu') throw new BackendUnavailableError(`Device backend '${backend}' is not built; this version has 'webgpu'`)
  if (!(host instanceof LocalHostComm))
    throw new BackendUnavailableError("The webgpu backend needs ranks of one thread: a 'local' HostComm")
  if (!(device instanceof WebGpuDevice)) throw invalidArgument('device', 'a WebGPU device', device)
  return WebGpuComm.create(host, device)
}

/**
 * One per rank and group. Every method is collective: all ranks of the group call it, in the same order, with matching arguments; see
 * DeviceComm for what each computes and for the errors. A group of one rank returns its operand: no copy, no wait.
 */
export class Communicator {
  readonly host: HostComm
  readonly #comm: DeviceComm
  readonly #device: Device

  constructor(host: HostComm, comm: DeviceComm, device: Device) {
    this.host = host
    this.#comm = comm
    this.#device = device
  }

  /** All ranks of `host` call this, each with its own device. */
  static async create(host: HostComm, device: Device): Promise<Communicator> {
    return new Communicator(host, await createDeviceComm('webgpu', { host, device }), device)
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
  allReduce(x: Tensor, options?: { op?: ReduceOp; out?: Tensor | undefined } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allReduce(x, options))
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

  /** Rank src's x (default 0) on every rank. */
  broadcast(x: Tensor, options?: { src?: number } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.broadcast(x, options))
  }

  /** Returns when all ranks have called it. */
  barrier(options?: MeetOptions): Promise<void> {
    return echoQuietly(this.#comm.barrier(options))
  }

  /** residual += sum over ranks of x, + bias; returns the RMSNorm of that. One kernel a device; see FusedNorm. */
  allReduceResidualBiasRMSNorm(args: FusedNorm, options?: MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allReduceResidualBiasRMSNorm(args, options))
  }

  /** Symmetric memory: slices of one buffer for the ranks of a device, or with `shared` one tensor that they all hold. */
  allocate(shape: Shape, options?: { dtype?: DType; shared?: boolean } & MeetOptions): Promise<Tensor> {
    return echoQuietly(this.#comm.allocate(shape, options))
  }

  /** Ranks of equal color form a group, ordered by key, then by rank. Without a color (null) a rank joins none and gets null. */
  async split(options: { color: number | null; key?: number }): Promise<Communicator | null> {
    const host = await this.host.split(options)
    return host && Communicator.create(host, this.#device)
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
