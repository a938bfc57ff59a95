// Member: one rank's part in a group of devices: how it joins a collective, holds its operands meanwhile and counts what it did.
import { ArgumentError, describe, RankFailedError } from '../core/errors.ts'
import type { Storage } from '../core/storage.ts'
import type { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { Channels } from './channels.ts'
import type { GroupHost } from './host.ts'
import { type MeetOptions, type Offer, offerOf } from './rendezvous.ts'
import { orEnd, type Traffic, type Turns } from './turns.ts'

/** `r` read, `w` written, `rw` both. */
export type Use = 'r' | 'w' | 'rw'

/** Takes a rank's tensor as an operand; its memory stays as long as the collective needs it, whatever becomes of the tensor. */
export type HoldAs<O> = (tensor: Tensor, use: Use) => O

/** What the ranks of a group that are here share. */
export interface Shared<S, G> {
  group: G
  channels: Channels<S, G>
  traffic: Traffic
}

/** `G` are a group's devices `D`, `S` what a collective has on its way among them, `O` how it sees an operand. */
export class GroupMember<D extends Device, G extends Turns<S>, S, O> {
  readonly rank: number
  readonly size: number
  readonly host: GroupHost
  readonly group: G
  readonly channels: Channels<S, G>
  readonly device: D
  readonly counts = { collectives: 0, fused: 0, bytes: 0 }
  /** Steps that it has begun to record. */
  recordings = 0
  readonly traffic: Traffic
  readonly #operand: HoldAs<O>
  #destroyed = false
  /** Calls that this rank has joined and that have not ended. */
  #pending = 0

  constructor(host: GroupHost, device: D, { group, channels, traffic }: Shared<S, G>, operand: HoldAs<O>) {
    this.host = host
    this.device = device
    this.group = group
    this.channels = channels
    this.traffic = traffic
    this.#operand = operand
    this.rank = host.rank
    this.size = host.size
  }

  /**
   * Meets the other ranks and lets `action` run once for all; over a wire once on each rank, with an outline of the other ranks' operands:
   * see GroupHost.meet and Turns.run. A rank whose own arguments are bad (`prepare` throws) joins to say so. The operands' memory is
   * held until the end, so that disposing a tensor meanwhile does no harm.
   */
  run<P, R>(
    call: string,
    prepare: (hold: HoldAs<O>) => P,
    options: MeetOptions,
    action: (payloads: P[], scope: S) => Promise<R[]>,
  ): Promise<R> {
    return this.#meet(call, prepare, options, action, (work) => orEnd(this.host, call, work))
  }

  /** As `run`, where nothing is exchanged: over a wire an action that fails does so on its own rank alone. */
  runApart<P, R>(
    call: string,
    prepare: (hold: HoldAs<O>) => P,
    options: MeetOptions,
    action: (payloads: P[], scope: S) => Promise<R[]>,
  ): Promise<R> {
    return this.#meet(call, prepare, options, action, (work) => work)
  }

  #meet<P, R>(
    call: string,
    prepare: (hold: HoldAs<O>) => P,
    options: MeetOptions,
    action: (payloads: P[], scope: S) => Promise<R[]>,
    guarded: (work: Promise<R[]>) => Promise<R[]>,
  ): Promise<R> {
    const complete = (payloads: P[]): Promise<R[]> => guarded(this.group.run(call, options, (scope) => action(payloads, scope)))
    return this.holding(prepare, (offer) => this.host.meet(call, offer, complete, options, outline))
  }

  /** Runs `body` with what `prepare` gives, or with its refusal, while the tensors it took are held. @throws ERR_ARGUMENT after `destroy`. */
  async holding<P, R>(prepare: (hold: HoldAs<O>) => P, body: (offer: Offer<P>) => Promise<R>): Promise<R> {
    this.checkOpen()
    const storages: Storage[] = []
    const hold: HoldAs<O> = (tensor, use) => {
      const operand = this.#operand(tensor, use)
      tensor.storage.retain()
      storages.push(tensor.storage)
      return operand
    }
    this.#pending++
    try {
      return await body(offerOf(() => prepare(hold)))
    } catch (error) {
      throw this.device.failure ?? error // others tell of a lost device as of a failed rank, or of one that could not take part
    } finally {
      for (const storage of storages) storage.release()
      this.#pending--
      this.#leave()
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
    this.#leave()
  }

  /** Over a wire the others still need this rank for what it has joined. */
  #leave(): void {
    if (!this.#destroyed || (this.host.wire && this.#pending > 0)) return
    this.channels.leave(this.rank)
    this.host.close()
  }

  /** Ends the group for all its ranks; gives the error that they see. */
  abort(reason: unknown): RankFailedError {
    const rank = this.host.members[this.rank] as number
    const why = reason instanceof Error ? reason.message : describe(reason)
    const error = new RankFailedError(`Rank ${rank} aborted the group: ${why}`, { rank, cause: reason })
    this.host.end(error)
    this.channels.end(error)
    return error
  }
}

/** What the others see of a rank's operands over a wire: numbers and texts as they are, of what belongs to its device nothing. */
export function outline(value: unknown): unknown {
  if (typeof value === 'function') return null
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(outline)
  if (Object.getPrototypeOf(value) !== Object.prototype) return null
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, outline(part)]))
}
