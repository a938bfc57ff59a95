// EngineGroup: ranks on views of one engine. Their collectives are commands that all of their queues meet for.
import type { RankmeshError } from '../../core/errors.ts'
import { Tensor } from '../../core/tensor.ts'
import { OP } from '../../device/engine/commands.ts'
import type { EngineDevice } from '../../device/engine/device.ts'
import { type Operand as Place, Queue } from '../../device/engine/queue.ts'
import { shareStorage } from '../checks.ts'
import { Results as AnyResults, overlaps, placeOf, QueuedGroup, same } from '../queued.ts'
import type { Operand, Source, Target } from '../staged/group.ts'

export { placeOf }

export class EngineGroup extends QueuedGroup<Results> {
  readonly devices: readonly EngineDevice[]
  /** Of one slice a rank: ((a + b) + c) + ... */
  readonly joins: readonly number[]
  readonly #queues: readonly Queue[]

  /** `devices` by rank: views of one device. */
  constructor(devices: readonly EngineDevice[]) {
    super(devices, null)
    this.devices = devices
    this.joins = devices.map((_, rank) => Number(rank > 0))
    this.#queues = devices.map(({ queue }) => queue)
  }

  /** Records a command that all ranks come to, and share out the work of. */
  together(op: number, numbers: readonly number[], operands: readonly Place[], written: readonly number[]): void {
    if (this.#queues.length > 1) Queue.meet(this.#queues, op, numbers, operands, written)
    else this.alone(0, op, numbers, operands, written)
  }

  /** Brings bytes to the place of another rank, by that rank; nothing where it is the same place. */
  copy(from: Source, to: Source): void {
    if (from.byteLength === 0 || same(from, to)) return
    this.alone(to.rank, OP.copy, [from.byteLength], [placeOf(from), placeOf(to)], [1])
  }

  /** An operand as it is now where a command that reads it writes part of its bytes: itself, or a copy. `inPlace`: it may write exactly there. */
  steady(operand: Operand, written: readonly Source[], inPlace: boolean, results: Results): Place {
    if (!written.some((place) => clash(operand, place, inPlace))) return placeOf(operand)
    const copy = results.scratch(operand.rank, operand.byteLength)
    this.alone(operand.rank, OP.copy, [operand.byteLength], [placeOf(operand), copy], [1])
    return copy
  }

  protected override failed(): RankmeshError | null {
    return null
  }

  protected override results(): Results {
    return new Results(this)
  }
}

/** Where ranks share what a collective makes, too. */
export class Results extends AnyResults {
  readonly #devices: readonly EngineDevice[]

  constructor(group: EngineGroup) {
    super(group)
    this.#devices = group.devices
  }

  /** Every rank's own handle on one result, which nobody may write. */
  shared({ tensor: first, operand }: Target): Tensor[] {
    const { storage, shape, dtype } = first
    shareStorage(storage)
    return this.#devices.map((device, rank) => {
      if (rank === operand.rank) return first
      storage.retain()
      const tensor = new Tensor(device, storage, shape, dtype)
      this.made.push(tensor)
      return tensor
    })
  }
}

function clash(read: Source, written: Source, inPlace: boolean): boolean {
  return overlaps(read, written) && !(inPlace && same(read, written))
}
