// Member: one rank's part in a WebGPU group: how it joins a collective, holds its operands meanwhile and counts what it did.
import { ArgumentError, describe, RankFailedError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { WebGpuDevice } from '../../device/webgpu/device.ts'
import { type Operand, operand, storageOf } from '../../device/webgpu/launch.ts'
import type { GpuStorage } from '../../device/webgpu/pool.ts'
import type { LocalHostComm } from '../host.ts'
import { type MeetOptions, type Offer, offerOf } from '../rendezvous.ts'
import type { Channels } from './channels.ts'
import type { WebGpuGroup } from './group.ts'
import type { Scope } from './scope.ts'

/** Takes a rank's tensor as an operand; its memory stays as long as the collective needs it, whatever becomes of the tensor. */
export type Hold = (tensor: Tensor, use: Operand['use']) => Operand

/** What the ranks of a group share. */
export interface Common {
  group: WebGpuGroup
  channels: Channels
}

export class Member {
  readonly rank: number
  readonly size: number
  readonly host: LocalHostComm
  readonly group: WebGpuGroup
  readonly channels: Channels
  readonly device: WebGpuDevice
  readonly counts = { collectives: 0, fused: 0, bytes: 0 }
  #destroyed = false

  constructor(host: LocalHostComm, { group, channels }: Common) {
    this.host = host
    this.group = group
    this.channels = channels
    this.rank = host.rank
    this.size = host.size
    this.device = group.devices[host.rank] as WebGpuDevice
  }

  /**
   * Meets the other ranks and lets `action` run once for all. A rank whose own arguments are bad (`prepare` throws) joins to say so. The
   * operands' memory is held until the end, so that disposing a tensor meanwhile does no harm.
   */
  run<P, R>(
    call: string,
    prepare: (hold: Hold) => P,
    options: MeetOptions,
    action: (payloads: P[], scope: Scope) => Promise<R[]>,
  ): Promise<R> {
    return this.holding(prepare, (offer) =>
      this.host.meet(call, offer, (payloads) => this.group.run((scope) => action(payloads, scope)), options),
    )
  }

  /** Runs `body` with what `prepare` gives, or with its refusal, while the tensors it took are held. @throws ERR_ARGUMENT after `destroy`. */
  async holding<P, R>(prepare: (hold: Hold) => P, body: (offer: Offer<P>) => Promise<R>): Promise<R> {
    this.checkOpen()
    const storages: GpuStorage[] = []
    const hold: Hold = (tensor, use) => {
      const storage = storageOf(this.device.gpu, tensor)
      storage.retain()
      storages.push(storage)
      return operand(this.device.gpu, tensor, use)
    }
    try {
      return await body(offerOf(() => prepare(hold)))
    } finally {
      for (const storage of storages) storage.release()
    }
  }

  /** A group of one: the operand itself, once it is checked. */
  bypass(x: Tensor, check: () => void): Tensor {
    this.checkOpen()
    check()
    return x.share()
  }

  counted<R>(x: Tensor | null, result: R): R {
    this.counts.collectives++
    this.counts.bytes += x?.byteLength ?? 0
    return result
  }

  checkOpen(): void {
    if (this.#destroyed) throw new ArgumentError('This communicator was destroyed; split or create another one')
  }

  /** This rank takes part no more. Doing so twice is no error. */
  destroy(): void {
    if (this.#destroyed) return
    this.#destroyed = true
    this.channels.leave(this.rank)
    this.host.close()
  }

  /** Ends the group for all its ranks. */
  abort(reason: unknown): void {
    const rank = this.host.members[this.rank] as number
    const why = reason instanceof Error ? reason.message : describe(reason)
    const error = new RankFailedError(`Rank ${rank} aborted the group: ${why}`, { rank, cause: reason })
    this.host.end(error)
    this.channels.end(error)
  }
}

/** The payload of collectives with one operand. */
export function held(x: Tensor, check: () => void): (hold: Hold) => Operand {
  return (hold) => {
    check()
    return hold(x, 'r')
  }
}

export function operandsOf(payloads: readonly { x: Operand }[]): Operand[] {
  return payloads.map((p) => p.x)
}
