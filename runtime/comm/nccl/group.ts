// NcclGroup: ranks on CUDA devices, one communicator of NCCL a rank. Their collectives are commands on the ranks' queues, in the order of all others;
// those of the ranks of one thread go to NCCL together.
import type { Nccl, NcclCommunicator, NcclError } from '../../core/addon.ts'
import type { DType } from '../../core/dtype.ts'
import { RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import type { Shape } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import type { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Guard } from '../../device/engine/device.ts'
import type { EngineStorage } from '../../device/engine/memory.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { GroupHost } from '../host.ts'
import type { Link } from '../link.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type FarDevice, type Operand, type Source, StagedGroup, type Staging, type Target } from '../staged/group.ts'
import { operandOf } from '../staged/member.ts'
import { type Call, type Part, wordsOf } from './calls.ts'

/** NCCL's code of what passed its deadline. */
const TIMED_OUT = 8

export class NcclGroup extends StagedGroup {
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
  /** Collectives through host memory that have not ended. */
  #staged = 0

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

  override async run<R>(call: string, options: MeetOptions, action: (staging: Staging) => Promise<R>): Promise<R> {
    this.#staged++
    try {
      return await super.run(call, options, action)
    } finally {
      this.#staged--
    }
  }

  /** Runs what only records, behind the collectives before it: at once where they have ended. */
  turn<R>(call: string, options: MeetOptions, record: (results: Results) => R[]): R[] | Promise<R[]> {
    return this.#staged === 0 ? this.record(record) : this.run(call, options, async () => this.record(record))
  }

  record<R>(record: (results: Results) => R[]): R[] {
    const failure = this.look() ?? this.here.map((rank) => this.device(rank).failure).find((lost) => lost !== null)
    if (failure) throw failure
    const results = new Results(this)
    try {
      return record(results)
    } catch (error) {
      results.drop()
      throw error
    } finally {
      results.end()
    }
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
    this.nccl.begin()
    let whole = false
    try {
      for (const part of parts) {
        const { number } = this.natives[part.rank] as NcclCommunicator
        const { queue } = this.cuda(part.rank)
        queue.record(OP.nccl, wordsOf(number, call, part, timeoutMs), [part.from, part.to], part.writes === false ? [] : [1])
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

  /** Records a command of one rank. */
  alone(rank: number, op: number, numbers: readonly number[], operands: readonly Place[], written: readonly number[]): void {
    this.cuda(rank).queue.record(op, numbers, operands, written)
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

/** What one collective makes: tensors for its ranks, given back if it fails, and memory that it needs itself. */
export class Results {
  readonly group: NcclGroup
  readonly #made: Tensor[] = []
  readonly #scratch: EngineStorage[] = []

  constructor(group: NcclGroup) {
    this.group = group
  }

  of(rank: number, shape: Shape, dtype: DType): Target {
    const tensor = Tensor.empty(shape, { dtype, device: this.group.cuda(rank) })
    this.#made.push(tensor)
    return { tensor, operand: operandOf(rank)(tensor, 'w') }
  }

  scratch(rank: number, byteLength: number): Place {
    const storage = this.group.cuda(rank).storage(byteLength)
    this.#scratch.push(storage)
    return { block: storage.block, offset: 0 }
  }

  drop(): void {
    for (const tensor of this.#made) tensor.dispose()
  }

  end(): void {
    for (const storage of this.#scratch) storage.release()
  }
}

export function placeOf({ buffer, offset }: Source): Place {
  return { block: (buffer as EngineStorage).block, offset }
}

export function shifted({ block, offset }: Place, bytes: number): Place {
  return { block, offset: offset + bytes }
}

function clash(read: Source, written: Source): boolean {
  if (read.buffer !== written.buffer || (read.offset === written.offset && read.byteLength === written.byteLength)) return false
  return read.offset < written.offset + written.byteLength && written.offset < read.offset + read.byteLength
}
