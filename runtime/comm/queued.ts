// QueuedGroup: ranks on devices with an engine. Their collectives are commands on the ranks' queues, which nobody waits for in JavaScript.
import type { DType } from '../core/dtype.ts'
import type { RankmeshError } from '../core/errors.ts'
import type { Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import type { EngineDevice } from '../device/engine/device.ts'
import type { EngineStorage } from '../device/engine/memory.ts'
import type { Operand as Place } from '../device/engine/queue.ts'
import type { Run } from './calls/run.ts'
import { type GroupMember, type HoldAs, outline } from './member.ts'
import type { MeetOptions } from './rendezvous.ts'
import { type Operand, type Source, StagedGroup, type Staging, type Target } from './staged/group.ts'
import { operandOf } from './staged/member.ts'
import { inOrderOfCalls, orEnd } from './turns.ts'

/** `R` is what its collectives make. */
export abstract class QueuedGroup<R extends Results = Results> extends StagedGroup {
  /** Collectives through host memory that have not ended. */
  #staged = 0

  /** Why nothing more can be done, as far as the group itself knows. */
  protected abstract failed(): RankmeshError | null

  protected abstract results(): R

  override async run<T>(call: string, options: MeetOptions, action: (staging: Staging) => Promise<T>): Promise<T> {
    this.#staged++
    try {
      return await super.run(call, options, action)
    } finally {
      this.#staged--
    }
  }

  /** Runs what only records, behind the collectives before it: at once where they have ended. */
  turn<T>(call: string, options: MeetOptions, record: (results: R) => T[]): T[] | Promise<T[]> {
    return this.#staged === 0 ? this.record(record) : this.run(call, options, async () => this.record(record))
  }

  /** Records what the ranks that are here do. */
  record<T>(record: (results: R) => T[]): T[] {
    const failure = this.failed() ?? this.here.map((rank) => this.device(rank).failure).find((lost) => lost !== null)
    if (failure) throw failure
    const results = this.results()
    try {
      return record(results)
    } catch (error) {
      results.drop()
      throw error
    } finally {
      results.end()
    }
  }

  override device(rank: number): EngineDevice {
    return super.device(rank) as EngineDevice
  }

  /** Records a command of one rank, behind what other ranks do with its operands. */
  alone(rank: number, op: number, numbers: readonly number[], operands: readonly Place[], written: readonly number[]): void {
    this.device(rank).queue.record(op, numbers, operands, written)
  }
}

/** One rank's part in group `G`. */
export type QueuedMember<G extends QueuedGroup> = GroupMember<Device, G, Staging, Operand>

/**
 * As GroupMember.run, with a `record` that awaits nothing: it runs once for all ranks that are here, as soon as all have come, and gives each its
 * result. Over a wire a rank's calls come to its device in the order in which it made them, whatever groups they are of.
 */
export function recordedBy<R extends Results, G extends QueuedGroup<R>>(): Run<QueuedMember<G>, Operand, R, 'now'> {
  return async <P, T>(
    member: QueuedMember<G>,
    call: string,
    prepare: (hold: HoldAs<Operand>) => P,
    options: MeetOptions,
    record: (payloads: P[], results: R) => T[],
  ): Promise<T> => {
    const { group, host, device } = member
    const turn = (payloads: P[]): T[] | Promise<T[]> => group.turn(call, options, (results) => record(payloads, results))
    if (!host.wire) return member.holding(prepare, (offer) => host.meet(call, offer, turn, options))
    return inOrderOfCalls(device, (before) => {
      // Its turn in the group is taken now, so that what the group is asked for later stays behind it.
      const inOrder = (payloads: P[]): Promise<T[]> =>
        group.run(call, options, async () => {
          await before
          return group.record((results) => record(payloads, results))
        })
      return member.holding(prepare, (offer) =>
        host.meet(call, offer, (payloads: P[]) => orEnd(host, call, inOrder(payloads)), options, outline),
      )
    })
  }
}

/** What one collective makes: tensors for its ranks, given back if it fails, and memory that it needs itself. */
export class Results {
  readonly group: QueuedGroup
  protected readonly made: Tensor[] = []
  protected readonly needed: { release(): void }[] = []

  constructor(group: QueuedGroup) {
    this.group = group
  }

  /** A result that belongs to one rank, in memory of its own or in some that was made for it. */
  of(rank: number, shape: Shape, dtype: DType, storage: EngineStorage | null = null): Target {
    const device = this.group.device(rank)
    storage?.retain()
    const tensor = storage ? new Tensor(device, storage, shape, dtype) : Tensor.empty(shape, { dtype, device })
    this.made.push(tensor)
    return { tensor, operand: operandOf(rank)(tensor, 'w') }
  }

  scratch(rank: number, byteLength: number): Place {
    const storage = this.group.device(rank).storage(byteLength)
    this.needed.push(storage)
    return { block: storage.block, offset: 0 }
  }

  drop(): void {
    for (const tensor of this.made) tensor.dispose()
  }

  end(): void {
    for (const memory of this.needed) memory.release()
  }
}

export function placeOf({ buffer, offset }: Source): Place {
  return { block: (buffer as EngineStorage).block, offset }
}

export function same(a: Source, b: Source): boolean {
  return a.buffer === b.buffer && a.offset === b.offset && a.byteLength === b.byteLength
}

/** Whether two operands that are here have bytes in common. */
export function overlaps(a: Source, b: Source): boolean {
  return a.buffer !== null && a.buffer === b.buffer && a.offset < b.offset + b.byteLength && b.offset < a.offset + a.byteLength
}
