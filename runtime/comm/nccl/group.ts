// NcclGroup: ranks on CUDA devices, one communicator of NCCL a rank. Their collectives are commands on the ranks' queues, in the order of all others;
// those of the ranks of one thread go to NCCL together.
import type { Nccl, NcclCommunicator, NcclError } from '../../core/addon.ts'
import { RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import type { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Guard } from '../../device/engine/device.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { GroupHost } from '../host.ts'
import type { Link } from '../link.ts'
import { overlaps, placeOf, QueuedGroup, Results, same } from '../queued.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { FarDevice, Operand, Source } from '../staged/group.ts'
import { type Call, type Part, wordsOf } from './calls.ts'

export { placeOf, type Results }

/** NCCL's code of what passed its deadline. */
const TIMED_OUT = 8
/** Calls of NCCL that this thread has made. */
let calls = 0

export class NcclGroup extends QueuedGroup {
  readonly nccl: Nccl
  /** As all ranks have it. */
  readonly version: number
  /** By rank, of those that are here. */
  readonly natives: (NcclCommunicator | undefined)[] = []
  readonly #host: GroupHost
  /** Told once of what ends the group. */
  readonly #onEnd: (error: RankmeshError) => void
  #failure: RankmeshError | null = null
  /** Something was given to NCCL. */
  #used = false

  constructor(
    devices: readonly (Device | FarDevice)[],
    link: Link | null,
    { nccl, version, host, onEnd }: { nccl: Nccl; version: number; host: GroupHost; onEnd: (error: RankmeshError) => void },
  ) {
    super(devices, link)
    this.nccl = nccl
    this.version = version
    this.#host = host
    this.#onEnd = onEnd
  }

  protected override failed(): RankmeshError | null {
    return this.look()
  }

  protected override results(): Results {
    return new Results(this)
  }

  cuda(rank: number): CudaDevice {
    return this.device(rank) as CudaDevice
  }

  /** Gives NCCL one call of the ranks that are here: first their queues get all that it waits for, then the call, and nothing behind it yet. */
  together(call: Call, { timeoutMs = this.#host.timeoutMs }: MeetOptions, parts: readonly Part[]): void {
    for (const { rank, from, to, writes = true } of parts) {
      const { queue } = this.cuda(rank)
      queue.order(from.block, false)
      queue.order(to.block, writes)
      queue.flush()
    }
    this.#used = true
    const round = { number: calls++, members: parts.length }
    this.nccl.begin()
    let whole = false
    try {
      for (const part of parts) {
        const { number } = this.natives[part.rank] as NcclCommunicator
        const { queue } = this.cuda(part.rank)
        queue.record(OP.nccl, wordsOf(number, call, part, timeoutMs, round), [part.from, part.to], part.writes === false ? [] : [1])
        queue.flush()
      }
      whole = true
    } finally {
      if (!whole) this.nccl.end(false)
    }
    try {
      this.nccl.end(true)
    } catch (error) {
      throw this.fail(error as NcclError)
    }
  }

  /** An operand as it is now where one that is written lies over part of it: itself, or a copy. Exactly there it may stay. */
  steady(operand: Operand, written: Source, results: Results): Place {
    if (!clash(operand, written)) return placeOf(operand)
    const copy = results.scratch(operand.rank, operand.byteLength)
    this.alone(operand.rank, OP.copy, [operand.byteLength], [placeOf(operand), copy], [1])
    return copy
  }

  /** Why the group has ended, as far as NCCL or the ranks' wire know; with it, the group ends for all. */
  look(): RankmeshError | null {
    if (this.#failure) return this.#failure
    for (const native of this.natives) {
      const error = native?.failure()
      if (error) return this.fail(error)
    }
    const failure = this.#host.wire?.failure ?? null
    if (failure) this.end(failure)
    return failure
  }

  /** While a rank waits for something else: where its wire tells of the end of the group, NCCL is told. Returns how to stop that. */
  watch(): () => void {
    return this.#host.wire?.watch((failure) => this.end(failure)) ?? ((): void => {})
  }

  /** While a rank waits for its device: what has failed meanwhile has left results without sense. */
  readonly guard: Guard = () => {
    const stop = this.watch()
    return () => {
      stop()
      return this.#used ? this.look() : null
    }
  }

  /** NCCL has failed: the group ends for all ranks. Gives the error that they see. */
  fail(error: NcclError): RankmeshError {
    const { members, rank: me } = this.#host
    const rank = members[error.rank ?? me] as number
    const history = this.#host.wire ? ` Last collectives: ${this.#host.wire.history()}` : ''
    const failure =
      error.result === TIMED_OUT
        ? new TimeoutError(`NCCL: ${error.message}.${history}`, { rank, cause: error })
        : new RankFailedError(`Rank ${rank} failed: ${error.message}`, { rank, cause: error })
    this.end(failure)
    return this.#failure as RankmeshError
  }

  /** What is under way stops, and nothing more can be done. */
  end(error: RankmeshError): void {
    if (this.#failure) return
    this.#failure = error
    for (const native of this.natives) native?.abort(error.message)
    this.#onEnd(error)
  }
}

export function shifted({ block, offset }: Place, bytes: number): Place {
  return { block, offset: offset + bytes }
}

function clash(read: Source, written: Source): boolean {
  return overlaps(read, written) && !same(read, written)
}
