// CudaGroup: ranks on CUDA devices whose kernels read and write memory that all have. Their collectives are commands on the ranks' queues; the
// ranks meet in JavaScript to agree on the call, and on the devices to exchange.
import type { RankmeshError } from '../../core/errors.ts'
import type { Tensor } from '../../core/tensor.ts'
import type { CudaDevice } from '../../device/cuda/device.ts'
import type { Device } from '../../device/device.ts'
import { OP } from '../../device/engine/commands.ts'
import type { Operand as Place } from '../../device/engine/queue.ts'
import type { Link } from '../link.ts'
import { Results as AnyResults, overlaps, placeOf, QueuedGroup, same } from '../queued.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { FarDevice, Operand, Site, Source } from '../staged/group.ts'
import type { Doubt } from './doubt.ts'
import type { PeerMemory } from './memory.ts'
import type { PeerPlan } from './plan.ts'

export { placeOf }

/** One rank's part in a command of all of them. */
export interface Part {
  rank: number
  /** The words between the head that all commands have and the operands. */
  numbers: readonly number[]
  operands: readonly Place[]
  /** Which operands are written. */
  written: readonly number[]
}

export class CudaGroup extends QueuedGroup<Results> {
  /** Where some ranks share a device and others do not, each is a site of its own: all sums are in the order of ranks. */
  declare readonly sites: readonly Site[]
  plan: PeerPlan
  /** By rank, of those that are here. */
  readonly #memory: (PeerMemory | undefined)[] = []
  readonly #doubts: (Doubt | undefined)[] = []
  /** Why nothing more can be done, once it is known. */
  readonly #failure: () => RankmeshError | null
  /** Milliseconds that a wait may take, where a call names none. */
  readonly #timeoutMs: number

  /** `failure` looks what the kernels have told. */
  constructor(
    devices: readonly (Device | FarDevice)[],
    link: Link | null,
    { plan, timeoutMs, failure }: { plan: PeerPlan; timeoutMs: number; failure: () => RankmeshError | null },
  ) {
    super(devices, link)
    const { length } = this.sites
    if (length > 1 && length < devices.length) {
      this.sites = devices.map((device, rank) => ({ ranks: [rank], adapter: 'adapter' in device ? device.adapter : device.description }))
    }
    this.plan = plan
    this.#timeoutMs = timeoutMs
    this.#failure = failure
  }

  protected override failed(): RankmeshError | null {
    return this.#failure()
  }

  protected override results(): Results {
    return new Results(this)
  }

  cuda(rank: number): CudaDevice {
    return this.device(rank) as CudaDevice
  }

  /** The memory of a rank that is here. */
  memoryOf(rank: number): PeerMemory {
    return this.#memory[rank] as PeerMemory
  }

  enter(rank: number, memory: PeerMemory, doubt: Doubt): void {
    this.#memory[rank] = memory
    this.#doubts[rank] = doubt
  }

  /** What a rank that is here is given next waits for the other ranks. */
  expect(rank: number): void {
    this.#doubts[rank]?.expect()
  }

  /** Why the group has ended, as far as is known. */
  get ended(): RankmeshError | null {
    return this.#failure()
  }

  /** The program of a rank has heard of the group's end. */
  heard(rank: number): void {
    this.#doubts[rank]?.heard()
  }

  /**
   * Records a command on the queues of the ranks that are here, whose kernels wait for each other: first all that they are to wait for in
   * their queues, or one could wait for another's kernel to end that waits for it.
   */
  together(op: number, { way, blocks }: { way: number; blocks: number }, { timeoutMs }: MeetOptions, parts: readonly Part[]): void {
    const { ranks, dataBytes, packetBytes } = this.plan
    const nanoseconds = (timeoutMs ?? this.#timeoutMs) * 1e6
    for (const { rank, operands, written } of parts) {
      const { queue } = this.cuda(rank)
      for (const [i, { block }] of operands.entries()) queue.order(block, written.includes(i))
      queue.flush()
    }
    for (const { rank, numbers, operands, written } of parts) {
      const { queue } = this.cuda(rank)
      const { places, multicast } = this.memoryOf(rank)
      const head = [way, blocks, ranks, rank, dataBytes, ranks * packetBytes, nanoseconds, Number(multicast)]
      const shifted = written.map((i) => i + places.length)
      this.expect(rank)
      queue.record(op, [...head, ...numbers], [...places, ...operands], shifted)
      queue.flush()
    }
  }
}

/** What one collective makes, and what is left to do behind its kernels. */
export class Results extends AnyResults {
  /** What is copied to its place once all kernels are recorded. */
  readonly #later: { rank: number; from: Place; to: Operand }[] = []

  /** A tensor that was made is the call's own. */
  own(tensor: Tensor): void {
    this.made.splice(this.made.indexOf(tensor), 1)
    this.needed.push({ release: () => tensor.dispose() })
  }

  /**
   * Where a rank's kernel may write what is for `to`: there, unless some operand lies there that is yet to be read; then it is copied behind all
   * kernels. `before` has it begin with the bytes that are there.
   */
  place(to: Operand, { others, own, inPlace = [] }: Neighbours, before = false): Place {
    const inTheWay = (read: Source): boolean => overlaps(read, to)
    const clash = others.some(inTheWay) || own.some(inTheWay) || inPlace.some((read) => overlaps(read, to) && !same(read, to))
    if (!clash || to.byteLength === 0) return placeOf(to)
    const from = this.scratch(to.rank, to.byteLength)
    if (before) this.group.alone(to.rank, OP.copy, [to.byteLength], [placeOf(to), from], [1])
    this.#later.push({ rank: to.rank, from, to })
    return from
  }

  /** Once all kernels are recorded. */
  settle(): void {
    for (const [i, { rank, from, to }] of this.#later.entries()) {
      if (this.#later.slice(0, i).some((earlier) => same(earlier.to, to))) continue
      this.group.alone(rank, OP.copy, [to.byteLength], [from, placeOf(to)], [1])
    }
    this.#later.length = 0
  }
}

/** Operands that are read or written while a rank's kernel writes. */
export interface Neighbours {
  /** Of other ranks. */
  others: readonly Source[]
  /** Its own. */
  own: readonly Source[]
  /** Its own that it may write exactly where it reads them. */
  inPlace?: readonly Source[]
}
