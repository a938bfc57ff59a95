// EngineGroup: ranks on views of one engine. Their collectives are commands on the ranks' queues, which nobody waits for in JavaScript.
import type { DType } from '../../core/dtype.ts'
import type { Shape } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { EngineDevice } from '../../device/engine/device.ts'
import type { EngineStorage } from '../../device/engine/memory.ts'
import { type Operand as Place, Queue } from '../../device/engine/queue.ts'
import { shareStorage } from '../checks.ts'
import type { MeetOptions } from '../rendezvous.ts'
import { type Operand, type Source, StagedGroup, type Staging, type Target } from '../staged/group.ts'
import { operandOf } from '../staged/member.ts'

export class EngineGroup extends StagedGroup {
  readonly devices: readonly EngineDevice[]
  /** Of one slice a rank: ((a + b) + c) + ... */
  readonly joins: readonly number[]
  readonly #queues: readonly Queue[]
  /** Collectives through host memory that have not ended. */
  #staged = 0

  /** `devices` by rank: views of one device. */
  constructor(devices: readonly EngineDevice[]) {
    super(devices, null)
    this.devices = devices
    this.joins = devices.map((_, rank) => Number(rank > 0))
    this.#queues = devices.map(({ queue }) => queue)
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
    return this.#staged === 0 ? this.#record(record) : this.run(call, options, async () => this.#record(record))
  }

  /** Records a command that all ranks come to, and share out the work of. */
  together(op: number, numbers: readonly number[], operands: readonly Place[], written: readonly number[]): void {
    if (this.#queues.length > 1) Queue.meet(this.#queues, op, numbers, operands, written)
    else this.alone(0, op, numbers, operands, written)
  }

  /** Records a command of one rank, behind what other ranks do with its operands. */
  alone(rank: number, op: number, numbers: readonly number[], operands: readonly Place[], written: readonly number[]): void {
    ;(this.#queues[rank] as Queue).record(op, numbers, operands, written)
  }

  /** Brings bytes to the place of another rank, by that rank; nothing where it is the same place. */
  copy(from: Source, to: Source): void {
    if (from.byteLength === 0 || samePlace(from, to)) return
    this.alone(to.rank, OP.copy, [from.byteLength], [placeOf(from), placeOf(to)], [1])
  }

  /** An operand as it is now where a command that reads it writes part of its bytes: itself, or a copy. `inPlace`: it may write exactly there. */
  steady(operand: Operand, written: readonly Source[], inPlace: boolean, results: Results): Place {
    if (!written.some((place) => clash(operand, place, inPlace))) return placeOf(operand)
    const copy = results.scratch(this.devices[operand.rank] as EngineDevice, operand.byteLength)
    this.alone(operand.rank, OP.copy, [operand.byteLength], [placeOf(operand), copy], [1])
    return copy
  }

  #record<R>(record: (results: Results) => R[]): R[] {
    const [{ failure }] = this.devices as [EngineDevice]
    if (failure) throw failure
    const results = new Results(this.devices)
    try {
      return record(results)
    } catch (error) {
      results.drop()
      throw error
    } finally {
      results.end()
    }
  }
}

/** What one collective makes: tensors for its ranks, given back if it fails, and memory that it needs itself. */
export class Results {
  readonly #devices: readonly EngineDevice[]
  readonly #made: Tensor[] = []
  readonly #scratch: EngineStorage[] = []

  constructor(devices: readonly EngineDevice[]) {
    this.#devices = devices
  }

  /** A result that belongs to one rank. */
  of(rank: number, shape: Shape, dtype: DType): Target {
    const tensor = Tensor.empty(shape, { dtype, device: this.#devices[rank] as EngineDevice })
    this.#made.push(tensor)
    return { tensor, operand: operandOf(rank)(tensor, 'w') }
  }

  /** Every rank's own handle on one result, which nobody may write. */
  shared({ tensor: first, operand }: Target): Tensor[] {
    const { storage, shape, dtype } = first
    shareStorage(storage)
    return this.#devices.map((device, rank) => {
      if (rank === operand.rank) return first
      storage.retain()
      const tensor = new Tensor(device, storage, shape, dtype)
      this.#made.push(tensor)
      return tensor
    })
  }

  scratch(device: EngineDevice, byteLength: number): Place {
    const storage = device.storage(byteLength)
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

function samePlace(a: Source, b: Source): boolean {
  return a.buffer === b.buffer && a.offset === b.offset
}

function clash(read: Source, written: Source, inPlace: boolean): boolean {
  if (read.buffer !== written.buffer || (inPlace && samePlace(read, written) && read.byteLength === written.byteLength)) return false
  return read.offset < written.offset + written.byteLength && written.offset < read.offset + read.byteLength
}
