// JoinedSite: ranks of a staged group whose CUDA devices a transport of their own joins. They add up on their devices, each reads its part of the
// sum, or brings its part of a result, and the transport does the rest. Which transport that is, only those know who make the group.
import type { DType } from '../../core/dtype.ts'
import { RankFailedError, RankmeshError } from '../../core/errors.ts'
import { Tensor } from '../../core/tensor.ts'
import type { Span } from '../../core/tree.ts'
import type { EngineDevice, Guard } from '../../device/engine/device.ts'
import { isAbort } from '../abort.ts'
import type { DeviceComm, ReduceOp } from '../device-comm.ts'
import type { GroupHost } from '../host.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { partsOf } from '../webgpu/two-shot.ts'
import type { Operand } from './group.ts'

/**
 * Least elements of a rank's part. Of less, every rank's partial crosses to the host as it is: two more steps on the devices cost more than the
 * bytes that they save. An estimate: 16 KiB of float32 take a microsecond or two to cross, a step on a device takes more.
 */
export const PART_ELEMENTS: number = 4096
/** Where parts are cut, if nowhere else: at whole packets of the kernels, whatever the type. */
export const PART_UNIT = 64

/** How a rank takes part in the transport: by a view of its device, so that what it does there waits for no other group's kernels. */
export interface End {
  comm: DeviceComm
  view: EngineDevice
  /** The rank's own device. */
  device: EngineDevice
}

export class JoinedSite {
  /** Ascending; the transport's rank i is ranks[i]. */
  readonly ranks: readonly number[]
  readonly #host: GroupHost
  /** Of the ranks that are here. */
  readonly #ends: ReadonlyMap<number, End>
  /** Whatever waits for a rank's device also hears of what ends the transport, or the whole group. */
  readonly #guards: ReadonlyMap<EngineDevice, Guard>
  #failure: RankmeshError | null = null
  #ended = false

  /** `host` is that of the whole group. */
  constructor(host: GroupHost, ranks: readonly number[], ends: ReadonlyMap<number, End>) {
    this.#host = host
    this.ranks = ranks
    this.#ends = ends
    this.#guards = new Map([...ends.values()].map(({ device, view }) => [device, this.#guardOf(view)]))
    for (const [device, guard] of this.#guards) device.guards.add(guard)
  }

  /**
   * The part that each rank has of so many elements, cut at multiples of `unit`; null where parts would be too small, or some rank's empty. A pure
   * function of what all ranks know.
   */
  cut(count: number, unit: number = PART_UNIT): Span[] | null {
    const ranks = this.ranks.length
    if (count < ranks * PART_ELEMENTS || count < ranks * unit) return null
    const spans = partsOf(count, ranks, unit)
    return spans.some((span) => span.count === 0) ? null : spans
  }

  /** Whether such a reduction is the transport's: all transports add floats in the order of ranks, or as NCCL does. */
  adds(dtype: DType, op: ReduceOp): boolean {
    return (op === 'sum' || op === 'avg') && (dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16')
  }

  /** By rank that is here, the bytes of its part of the site's sum: float32, rounded nowhere. `operands` by rank of the group. */
  sum(operands: readonly Operand[], spans: readonly Span[], options: MeetOptions): Promise<Uint8Array[]> {
    const sizes = spans.map(({ count }) => count)
    return this.#each(async ({ comm, view }, rank) => {
      const { buffer, offset, dtype, count } = operands[rank] as Operand
      buffer.retain()
      using x = new Tensor(view, buffer, [count], dtype, offset)
      using wide = dtype === 'float32' ? x.share() : view.cast(x, 'float32')
      using part = await comm.reduceScatterV(wide, { dim: 0, sizes, ...options })
      return view.read(part.storage, part.byteOffset, part.byteLength)
    })
  }

  /** By rank that is here, all ranks' parts end to end, as bytes on its device; `partOf` a span gives its bytes. */
  async gather(spans: readonly Span[], partOf: (span: Span) => Uint8Array, options: MeetOptions): Promise<Tensor[]> {
    const made: Tensor[] = []
    try {
      return await this.#each(async ({ comm, view }, rank) => {
        const bytes = partOf(spans[this.ranks.indexOf(rank)] as Span)
        using part = Tensor.fromBytes(bytes, [bytes.byteLength], 'uint8', view)
        const whole = await comm.allGatherV(part, { dim: 0, ...options })
        made.push(whole)
        return whole
      })
    } catch (error) {
      for (const whole of made) whole.dispose()
      throw error
    }
  }

  /** The ranks that are here. */
  get here(): number[] {
    return [...this.#ends.keys()]
  }

  /** Nothing more is asked of the transport. */
  leave(): void {
    for (const [device, guard] of this.#guards) device.guards.delete(guard)
    for (const { comm } of this.#ends.values()) comm.destroy()
  }

  /** The whole group has ended: whoever waits in the transport does so no longer. */
  end(failure: RankmeshError): void {
    if (this.#ended) return
    this.#ended = true
    this.#failure ??= failure
    for (const { comm } of this.#ends.values()) comm.abort(failure)
  }

  /** Runs `body` for the ranks that are here, by rank. What goes wrong ends the whole group, and is told at once: a body holds what it uses. */
  async #each<T>(body: (end: End, rank: number) => Promise<T>): Promise<T[]> {
    if (this.#failure) throw this.#failure
    const stop = this.#watch()
    try {
      return await Promise.all(
        [...this.#ends].map(([rank, end]) => body(end, rank).catch((error) => Promise.reject(this.#fail(rank, error)))),
      )
    } finally {
      stop()
    }
  }

  /** A rank's part has failed: nobody may wait for it. Gives what all see, which tells of the first rank that did. */
  #fail(rank: number, error: unknown): RankmeshError {
    if (this.#failure) return this.#failure
    const { members, wire } = this.#host
    const world = (error instanceof RankmeshError ? error.rank : undefined) ?? (members[rank] as number)
    const why = error instanceof Error ? error.message : String(error)
    const own = isAbort(error) ? error : new RankFailedError(`Rank ${world} failed: ${why}`, { rank: world, cause: error })
    this.#failure = wire?.failure ?? own
    this.#host.end(this.#failure)
    this.end(this.#failure)
    return this.#failure
  }

  /** While something here waits for the transport: what ends the whole group ends that. Returns how to stop it. */
  #watch(): () => void {
    const { wire } = this.#host
    if (wire?.failure) this.end(wire.failure)
    return wire?.watch((failure) => this.end(failure)) ?? ((): void => {})
  }

  #guardOf(view: EngineDevice): Guard {
    return () => {
      const stop = this.#watch()
      const ends = [...view.guards].map((guard) => guard())
      return () => {
        stop()
        return ends.map((end) => end()).find((error) => error !== null) ?? null
      }
    }
  }
}
