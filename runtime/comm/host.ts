// HostComm: the control plane of a group, for small values, and its backend for ranks that share a thread.
import { ArgumentError, BackendUnavailableError, checkInteger, describe, invalidArgument } from '../core/errors.ts'
import { type MeetOptions, type Offer, Rendezvous, World } from './rendezvous.ts'

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
  /** The root's value, cloned for every other rank. */
  broadcast<T>(value: T, options?: { root?: number } & MeetOptions): Promise<T>
  /** Every rank's value, in rank order. */
  allGather<T>(value: T, options?: MeetOptions): Promise<T[]>
  /** Elementwise over ranks, ranks ascending. */
  allReduce<T extends Reducible>(value: T, op?: HostOp, options?: MeetOptions): Promise<T>
  /** Ranks of equal color form a group, ordered by key, then by rank; without a color a rank joins none and gets null. */
  split(options: { color: number | null; key?: number }): Promise<HostComm | null>
  close(): void
}

/** The backend of one thread: ranks are concurrent async functions, values pass as structured clones. */
export class LocalHostComm implements HostComm {
  readonly isSameProcess = true
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

  /** The collective all others are made of; see Rendezvous.meet. */
  meet<P, R>(call: string, offer: Offer<P>, complete: (payloads: P[]) => R[] | Promise<R[]>, options?: MeetOptions): Promise<R> {
    return this.#rendezvous.meet(this.rank, call, offer, complete, options)
  }

  sync({ blocking: _, ...options }: { blocking?: boolean } & MeetOptions = {}): Promise<void> {
    return this.#empty('host.sync()', options)
  }

  barrier(options?: MeetOptions): Promise<void> {
    return this.#empty('host.barrier()', options)
  }

  async broadcast<T>(value: T, { root = 0, ...options }: { root?: number } & MeetOptions = {}): Promise<T> {
    checkInteger('root', root, 0, this.size - 1)
    if (this.size === 1) return value
    const payload = this.rank === root ? value : undefined
    return this.meet(
      `host.broadcast(root ${root})`,
      { payload },
      (values) => values.map((_, i) => (i === root ? (values[root] as T) : structuredClone(values[root] as T))),
      options,
    )
  }

  async allGather<T>(value: T, options?: MeetOptions): Promise<T[]> {
    if (this.size === 1) return [value]
    return this.meet('host.allGather()', { payload: value }, (values) => values.map(() => structuredClone(values) as T[]), options)
  }

  async allReduce<T extends Reducible>(value: T, op: HostOp = 'sum', options?: MeetOptions): Promise<T> {
    if (op !== 'sum' && op !== 'min' && op !== 'max') throw invalidArgument('op', "'sum', 'min' or 'max'", op)
    const kind = reducibleKind(value)
    if (this.size === 1) return structuredClone(value)
    return this.meet(`host.allReduce(${op}, ${kind})`, { payload: value }, (values) => this.#share(reduceHost(values as T[], op)), options)
  }

  async split({ color, key = 0 }: { color: number | null; key?: number }): Promise<LocalHostComm | null> {
    if (color !== null) checkInteger('color', color, 0)
    checkInteger('key', key, Number.MIN_SAFE_INTEGER)
    return this.meet('split()', { payload: { color, key } }, (choices) => {
      const groups = new Map<number, number[]>()
      choices.forEach(({ color: c }, i) => {
        if (c !== null) groups.set(c, [...(groups.get(c) ?? []), i])
      })
      const result: (LocalHostComm | null)[] = choices.map(() => null)
      for (const ranks of groups.values()) {
        ranks.sort((a, b) => (choices[a] as { key: number }).key - (choices[b] as { key: number }).key || a - b)
        const rendezvous = new Rendezvous(
          this.#rendezvous.world,
          ranks.map((r) => this.members[r] as number),
        )
        ranks.forEach((parent, i) => {
          result[parent] = new LocalHostComm(rendezvous, i)
        })
      }
      return result
    })
  }

  /** The last collectives of every member, for messages. */
  history(): string {
    return this.#rendezvous.history()
  }

  close(): void {
    this.#rendezvous.close()
  }

  async #empty(call: string, options?: MeetOptions): Promise<void> {
    if (this.size > 1) await this.meet(call, { payload: null }, (all) => all, options)
  }

  #share<T extends Reducible>(value: T): T[] {
    return Array.from({ length: this.size }, () => structuredClone(value))
  }
}

const ARRAYS = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const

function reducibleKind(value: unknown): string {
  if (typeof value === 'number' || typeof value === 'bigint') return typeof value
  for (const type of ARRAYS) if (value instanceof type) return `${type.name}[${value.length}]`
  throw new ArgumentError(
    `Expected a number, a bigint or one of ${ARRAYS.map((a) => a.name).join(', ')} for allReduce but received ${describe(value)}`,
  )
}

function reduceHost<T extends Reducible>(values: readonly T[], op: HostOp): T {
  const join = (a: number | bigint, b: number | bigint): number | bigint =>
    op === 'sum' ? (a as number) + (b as number) : op === 'min' ? (b < a || Number.isNaN(b) ? b : a) : b > a || Number.isNaN(b) ? b : a
  if (typeof values[0] === 'number' || typeof values[0] === 'bigint') {
    return (values as readonly (number | bigint)[]).reduce((a, b) => join(a, b)) as T
  }
  const result = structuredClone(values[0]) as HostArray
  for (const value of values.slice(1) as HostArray[])
    for (let i = 0; i < result.length; i++) result[i] = join(result[i]!, value[i]!) as never
  return result as T
}

export type HostBackend = 'local'

/** A group that is being formed: made once, its id carried to the other ranks, joined by each. */
export interface HostGroup {
  /** The id as bytes, for `importHostGroup` elsewhere. */
  export(): Uint8Array
  /** Joins as `rank` of `size`. Every rank joins once. */
  connect(options: { size: number; rank: number; timeoutMs?: number }): Promise<HostComm>
}

const localGroups = new Map<string, Rendezvous>()
export const DEFAULT_TIMEOUT_MS = 60_000

export function createHostGroup(backend: HostBackend): HostGroup {
  if (backend !== 'local') throw new BackendUnavailableError(`Host backend ${describe(backend)} is not built; this version has 'local'`)
  return localGroup(`local:${globalThis.crypto.randomUUID()}`)
}

export function importHostGroup(id: Uint8Array): HostGroup {
  const text = new TextDecoder().decode(id)
  if (!text.startsWith('local:')) throw new ArgumentError(`Expected the bytes of HostGroup.export() but received ${describe(text)}`)
  return localGroup(text)
}

function localGroup(id: string): HostGroup {
  return {
    export: () => new TextEncoder().encode(id),
    async connect({ size, rank, timeoutMs = DEFAULT_TIMEOUT_MS }): Promise<HostComm> {
      checkInteger('size', size, 1)
      checkInteger('rank', rank, 0, size - 1)
      const known = localGroups.get(id)
      if (known && known.members.length !== size) {
        throw new ArgumentError(`This group has ${known.members.length} ranks, but rank ${rank} joined with size ${size}`)
      }
      const rendezvous =
        known ??
        new Rendezvous(
          new World(size, timeoutMs),
          Array.from({ length: size }, (_, i) => i),
        )
      localGroups.set(id, rendezvous)
      const comm = new LocalHostComm(rendezvous, rank)
      await comm.meet('connect()', { payload: null }, (all) => all)
      localGroups.delete(id)
      return comm
    },
  }
}
