// HostComm: the control plane of a group, for small values, and its backend for ranks that share a thread.
import { ArgumentError, checkInteger, describe, invalidArgument, type RankmeshError } from '../core/errors.ts'
import { type MeetOptions, type Offer, offerOf, Rendezvous } from './rendezvous.ts'
import type { Wire } from './wire.ts'

export type HostOp = 'sum' | 'min' | 'max'
export type HostArray = Int32Array | Uint32Array | BigInt64Array | BigUint64Array | Float32Array | Float64Array
export type Reducible = number | bigint | HostArray

/** One object per rank and group. All members call the same methods in the same order; every wait has a deadline. */
export interface HostComm {
  readonly rank: number
  readonly size: number
  readonly isSameProcess: boolean
  /** A light barrier; `blocking: false` is for waits that may be long (workers then sleep instead of spinning). */
  sync(options?: { blocking?: boolean } & MeetOptions): Promise<void>
  barrier(options?: MeetOptions): Promise<void>
  /** The root's value as it is at the call, cloned for every other rank. */
  broadcast<T>(value: T, options?: { root?: number } & MeetOptions): Promise<T>
  /** Every rank's value as it is at the call, in rank order; each rank gets clones of its own. */
  allGather<T>(value: T, options?: MeetOptions): Promise<T[]>
  /** Elementwise over ranks, ranks ascending; `inPlace` into the given array, which is the result. A NaN in any rank's value of min and max gives NaN. */
  allReduce<T extends Reducible>(value: T, op?: HostOp, options?: { inPlace?: boolean } & MeetOptions): Promise<T>
  /**
   * Zeroed bytes of this rank for arrays that are reduced in place often: where ranks share memory, they are not copied on the way. Begins
   * at a multiple of 64 bytes of its buffer. All ranks ask for the same number of bytes.
   */
  allocate(byteLength: number, options?: MeetOptions): Promise<Uint8Array>
  /** Ranks of equal color form a group, ordered by key, then by rank; without a color a rank joins none and gets null. */
  split(options: { color: number | null; key?: number } & MeetOptions): Promise<HostComm | null>
  /** This rank takes part no more: what the others still call fails for them. */
  close(): void
}

/** What a DeviceComm needs of its ranks' HostComm, whatever it travels over. */
export interface GroupHost extends HostComm {
  /** The members by their ranks in the world. */
  readonly members: readonly number[]
  /** Milliseconds until a wait fails where a call names no deadline. */
  readonly timeoutMs: number
  /** How ranks of other threads are reached; null where all ranks of the group share this thread. */
  readonly wire: Wire | null
  /**
   * The collective all others are made of: calls are matched, then `complete` runs with every rank's payload. In one thread it runs once for
   * all ranks. Over a wire it runs on every rank, and of the other ranks' payloads it sees what `outline` makes of them there (by default
   * a structured clone of the payload); only the caller's own result is looked at.
   */
  meet<P, R>(
    call: string,
    offer: Offer<P>,
    complete: (payloads: P[]) => R[] | Promise<R[]>,
    options?: MeetOptions,
    outline?: (payload: P) => unknown,
  ): Promise<R>
  /** See Rendezvous.watch. */
  watch(watch: (end: (error: RankmeshError) => void) => () => void): void
  /** Pending and later collectives of all ranks fail with `error`. */
  end(error: RankmeshError): void
  split(options: { color: number | null; key?: number } & MeetOptions): Promise<GroupHost | null>
}

/** The backend of one thread: ranks are concurrent async functions, values pass as structured clones. */
export class LocalHostComm implements GroupHost {
  readonly isSameProcess = true
  readonly wire = null
  readonly rank: number
  readonly #rendezvous: Rendezvous

  constructor(rendezvous: Rendezvous, rank: number) {
    this.#rendezvous = rendezvous
    this.rank = rank
  }

  get size(): number {
    return this.#rendezvous.members.length
  }

  /** The members by their ranks in the world. */
  get members(): readonly number[] {
    return this.#rendezvous.members
  }

  get timeoutMs(): number {
    return this.#rendezvous.world.timeoutMs
  }

  /** The collective all others are made of; see Rendezvous.meet. */
  meet<P, R>(call: string, offer: Offer<P>, complete: (payloads: P[]) => R[] | Promise<R[]>, options?: MeetOptions): Promise<R> {
    return this.#rendezvous.meet(this.rank, call, offer, complete, options)
  }

  /** See Rendezvous.watch. */
  watch(watch: Parameters<Rendezvous['watch']>[0]): void {
    this.#rendezvous.watch(watch)
  }

  /** A meeting place of its own for some of the members, with the same deadlines and failures; whoever makes it hands it to the others. */
  channel(ranks: readonly number[]): Rendezvous {
    return new Rendezvous(
      this.#rendezvous.world,
      ranks.map((rank) => this.members[rank] as number),
    )
  }

  /** See Rendezvous.end. */
  end(error: RankmeshError): void {
    this.#rendezvous.end(error)
  }

  sync({ blocking: _, ...options }: { blocking?: boolean } & MeetOptions = {}): Promise<void> {
    return this.#empty('host.sync()', options)
  }

  barrier(options?: MeetOptions): Promise<void> {
    return this.#empty('host.barrier()', options)
  }

  async broadcast<T>(value: T, { root = 0, ...options }: { root?: number } & MeetOptions = {}): Promise<T> {
    const offer = offerOf(() => {
      checkInteger('root', root, 0, this.size - 1)
      return this.rank === root ? snapshot(value) : undefined
    })
    const call = `host.broadcast(root ${root})`
    const copy = await this.meet(call, offer, (values) => values.map(() => structuredClone(values[root]) as T), options)
    return this.rank === root ? value : copy
  }

  async allGather<T>(value: T, options?: MeetOptions): Promise<T[]> {
    const offer = offerOf(() => snapshot(value))
    return this.meet('host.allGather()', offer, (values) => values.map(() => structuredClone(values)), options)
  }

  async allReduce<T extends Reducible>(
    value: T,
    op: HostOp = 'sum',
    { inPlace = false, ...options }: { inPlace?: boolean } & MeetOptions = {},
  ): Promise<T> {
    const offer = offerOf(() => {
      checkReducible(value, op)
      return snapshot(value)
    })
    const call = `host.allReduce(${op}, ${reducibleKind(value) ?? describe(value)}${inPlace ? ', in place' : ''})`
    const complete = (values: T[]): T[] => {
      const sum = reduceHost(values, op)
      return values.map(() => structuredClone(sum))
    }
    const result = await this.meet(call, offer, complete, options)
    if (!inPlace || typeof value !== 'object') return result
    value.set(result as never)
    return value
  }

  async allocate(byteLength: number, options?: MeetOptions): Promise<Uint8Array> {
    const offer = offerOf(() => checkInteger('byteLength', byteLength, 0))
    await this.meet(`host.allocate(${byteLength})`, offer, (all) => all, options)
    return new Uint8Array(byteLength)
  }

  async split({ color, key = 0, ...options }: { color: number | null; key?: number } & MeetOptions): Promise<LocalHostComm | null> {
    const complete = (choices: Choice[]): (LocalHostComm | null)[] => {
      const result: (LocalHostComm | null)[] = choices.map(() => null)
      for (const ranks of groupsOf(choices).values()) {
        const rendezvous = new Rendezvous(
          this.#rendezvous.world,
          ranks.map((r) => this.members[r] as number),
        )
        ranks.forEach((parent, i) => {
          result[parent] = new LocalHostComm(rendezvous, i)
        })
      }
      return result
    }
    return this.meet('split()', choiceOf(color, key), complete, options)
  }

  /** The last collectives of every member, for messages. */
  history(): string {
    return this.#rendezvous.history()
  }

  close(): void {
    this.#rendezvous.leave(this.rank)
  }

  async #empty(call: string, options?: MeetOptions): Promise<void> {
    await this.meet(call, { payload: null }, (all) => all, options)
  }
}

/** What a rank asks of a split. */
export interface Choice {
  color: number | null
  key: number
}

export function choiceOf(color: number | null, key: number): Offer<Choice> {
  return offerOf(() => {
    if (color !== null) checkInteger('color', color, 0)
    checkInteger('key', key, Number.MIN_SAFE_INTEGER)
    return { color, key }
  })
}

/** The ranks of each color, in the order of their new ranks. */
export function groupsOf(choices: readonly Choice[]): Map<number, number[]> {
  const groups = new Map<number, number[]>()
  choices.forEach(({ color }, rank) => {
    if (color !== null) groups.set(color, [...(groups.get(color) ?? []), rank])
  })
  for (const ranks of groups.values()) ranks.sort((a, b) => (choices[a] as Choice).key - (choices[b] as Choice).key || a - b)
  return groups
}

/** A copy of the value that nobody else holds, by default as a structured clone. @throws ERR_ARGUMENT where there can be none. */
export function snapshot<T, C = T>(value: T, clone: (value: T) => C = structuredClone as (value: T) => C): C {
  try {
    return clone(value)
  } catch (cause) {
    throw new ArgumentError(`Expected a value that can be cloned (no functions, no tensors) but received ${describe(value)}`, { cause })
  }
}

const ARRAYS = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const

/** @throws ERR_ARGUMENT for what cannot be reduced. */
export function checkReducible(value: unknown, op: unknown): void {
  if (op !== 'sum' && op !== 'min' && op !== 'max') throw invalidArgument('op', "'sum', 'min' or 'max'", op)
  if (reducibleKind(value) === null) {
    throw invalidArgument('allReduce', `a number, a bigint or one of ${ARRAYS.map((a) => a.name).join(', ')}`, value)
  }
}

/** What must agree between ranks, as text; null for what cannot be reduced. */
export function reducibleKind(value: unknown): string | null {
  if (typeof value === 'number' || typeof value === 'bigint') return typeof value
  for (const type of ARRAYS) if (value instanceof type) return `${type.name}[${value.length}]`
  return null
}

/** The values of all ranks as one; overwrites the first, where it is an array. */
export function reduceHost<T extends Reducible>(values: readonly T[], op: HostOp): T {
  const join = (a: number | bigint, b: number | bigint): number | bigint =>
    op === 'sum' ? (a as number) + (b as number) : op === 'min' ? (b < a || Number.isNaN(b) ? b : a) : b > a || Number.isNaN(b) ? b : a
  if (typeof values[0] === 'number' || typeof values[0] === 'bigint') {
    return (values as readonly (number | bigint)[]).reduce((a, b) => join(a, b)) as T
  }
  const result = values[0] as HostArray // a snapshot: nobody else holds it
  for (const value of values.slice(1) as HostArray[])
    for (let i = 0; i < result.length; i++) result[i] = join(result[i]!, value[i]!) as never
  return result as T
}
