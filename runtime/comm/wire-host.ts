// WireHostComm: the control plane of ranks in different threads, processes or machines, over the wire that joins them.
import { checkInteger, describe, type RankmeshError } from '../core/errors.ts'
import { announced, underway } from './abort.ts'
import {
  type Choice,
  checkReducible,
  choiceOf,
  type GroupHost,
  groupsOf,
  type HostArray,
  type HostOp,
  type Reducible,
  reduceHost,
  reducibleKind,
} from './host.ts'
import { type MeetOptions, type Offer, offerOf, timeoutOf } from './rendezvous.ts'
import { type Wait, type Wire, type WireArray, waitFor } from './wire.ts'
import { decodeValue, encodeValue, matched } from './wire-match.ts'

const NO_OPTIONS = {}
const ARRAYS: ReadonlySet<unknown> = new Set([Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array])

export class WireHostComm implements GroupHost {
  readonly wire: Wire
  readonly timeoutMs: number
  readonly #unwatch: (() => void)[] = []
  #splits = 0
  /** The last reduction of an array, whose text is worth keeping. */
  #last: { kind: unknown; length: number; op: string; inPlace: boolean; call: string } = {
    kind: null,
    length: 0,
    op: '',
    inPlace: false,
    call: '',
  }

  /** `timeoutMs` counts where a call names no deadline of its own. */
  constructor(wire: Wire, timeoutMs: number) {
    this.wire = wire
    this.timeoutMs = timeoutMs
  }

  get rank(): number {
    return this.wire.rank
  }

  get size(): number {
    return this.wire.size
  }

  get isSameProcess(): boolean {
    return this.wire.isSameProcess
  }

  get members(): readonly number[] {
    return this.wire.members
  }

  async meet<P, R>(
    call: string,
    offer: Offer<P>,
    complete: (payloads: P[]) => R[] | Promise<R[]>,
    options: MeetOptions = {},
    outline: (payload: P) => unknown = (payload) => payload,
  ): Promise<R> {
    const { results, payload } = await matched(this.wire, this.wire.control, call, offer, this.timeoutMs, options, outline)
    const payloads = results.map((bytes, rank) => (rank === this.rank ? payload : (decodeValue(bytes) as P)))
    const outcome = complete(payloads)
    const all = outcome instanceof Promise ? await announced(this.wire, outcome) : outcome
    return all[this.rank] as R
  }

  watch(watch: (end: (error: RankmeshError) => void) => () => void): void {
    this.#unwatch.push(watch((error) => this.end(error)))
  }

  end(error: RankmeshError): void {
    const { code, message, rank = this.members[this.rank] as number } = error
    this.wire.fail({ code: code === 'ERR_TIMEOUT' ? code : 'ERR_RANK_FAILED', message, rank })
  }

  async sync({ blocking: _, ...options }: { blocking?: boolean } & MeetOptions = {}): Promise<void> {
    await this.#collect('host.sync()', { payload: undefined }, options)
  }

  async barrier(options: MeetOptions = {}): Promise<void> {
    await this.#collect('host.barrier()', { payload: undefined }, options)
  }

  async broadcast<T>(value: T, { root = 0, ...options }: { root?: number } & MeetOptions = {}): Promise<T> {
    const offer = offerOf(() => {
      checkInteger('root', root, 0, this.size - 1)
      return this.rank === root ? encodeValue(value) : undefined
    })
    const results = await this.#collect(`host.broadcast(root ${root})`, offer, options)
    return this.rank === root ? value : (decodeValue(results[root] as Uint8Array) as T)
  }

  async allGather<T>(value: T, options: MeetOptions = {}): Promise<T[]> {
    const results = await this.#collect(
      'host.allGather()',
      offerOf(() => encodeValue(value)),
      options,
    )
    return results.map((bytes) => decodeValue(bytes) as T)
  }

  allReduce<T extends Reducible>(value: T, op: HostOp = 'sum', options: { inPlace?: boolean } & MeetOptions = NO_OPTIONS): Promise<T> {
    const isArray = ARRAYS.has((value as { constructor?: unknown } | null)?.constructor)
    return isArray && this.wire.reduce && isOp(op)
      ? (this.#reduceArray(value as HostArray, op, options) as Promise<T>)
      : this.#reduceValues(value, op, options)
  }

  /** On the way of the wire, and without a promise of its own where that is done at once. */
  #reduceArray(value: HostArray, op: HostOp, options: { inPlace?: boolean } & MeetOptions): Promise<HostArray> {
    const { inPlace = false, timeoutMs, signal } = options
    const last = this.#last
    if (last.kind !== value.constructor || last.length !== value.length || last.op !== op || last.inPlace !== inPlace) {
      const call = `host.allReduce(${op}, ${reducibleKind(value)}${inPlace ? ', in place' : ''})`
      this.#last = { kind: value.constructor, length: value.length, op, inPlace, call }
    }
    const { call } = this.#last
    if (timeoutMs !== undefined || signal !== undefined) {
      const refused = 'refusal' in offerOf(() => timeoutOf(timeoutMs ?? this.timeoutMs))
      if (refused || signal?.aborted) return this.#reduceValues(value, op, options)
    }
    const result = inPlace ? value : value.slice()
    try {
      const pending = this.wire.reduce?.(result, op, call, () => this.#wait(call, options))
      if (!pending) return Promise.resolve(result)
      return underway(this.wire, this.#wait(call, options), () => pending).then(() => result)
    } catch (error) {
      return announced(this.wire, Promise.reject(error))
    }
  }

  async #reduceValues<T extends Reducible>(
    value: T,
    op: HostOp,
    { inPlace = false, ...options }: { inPlace?: boolean } & MeetOptions,
  ): Promise<T> {
    const call = `host.allReduce(${op}, ${reducibleKind(value) ?? describe(value)}${inPlace ? ', in place' : ''})`
    const offer = offerOf(() => {
      checkReducible(value, op)
      return encodeValue(value)
    })
    const results = await this.#collect(call, offer, options)
    const parts = results.map((bytes) => decodeValue(bytes) as T)
    const sum = reduceHost(parts, op)
    if (!inPlace || typeof sum !== 'object') return sum
    ;(value as WireArray).set(sum as never)
    return value
  }

  async allocate(byteLength: number, options: MeetOptions = {}): Promise<Uint8Array> {
    checkInteger('byteLength', byteLength, 0)
    const call = `host.allocate(${byteLength})`
    const wait = this.#wait(call, options)
    await this.#collect(call, { payload: undefined }, options)
    if (!this.wire.allocate) return new Uint8Array(byteLength)
    return underway(this.wire, wait, () => this.wire.allocate?.(byteLength, wait) as Promise<Uint8Array>)
  }

  async split({ color, key = 0, ...options }: { color: number | null; key?: number } & MeetOptions): Promise<WireHostComm | null> {
    const choices = await this.meet<Choice, Choice[]>('split()', choiceOf(color, key), (all) => all.map(() => all), options)
    const own = (choices[this.rank] as Choice).color
    const at = this.#splits++ // counted once all have agreed: the names of what they make must be alike
    if (own === null) return null
    const ranks = groupsOf(choices).get(own) as number[]
    const wait = this.#wait('split()', options)
    const wire = await underway(this.wire, wait, () => this.wire.split(ranks, `${at}.${own}`, wait))
    return new WireHostComm(wire, this.timeoutMs)
  }

  /** The last collectives of every member, for messages. */
  history(): string {
    return this.wire.history()
  }

  close(): void {
    for (const unwatch of this.#unwatch.splice(0)) unwatch()
    this.wire.close()
  }

  async #collect(call: string, offer: Offer<Uint8Array | undefined>, options: MeetOptions): Promise<readonly Uint8Array[]> {
    const { results } = await matched(this.wire, this.wire.control, call, offer, this.timeoutMs, options, (bytes) => bytes)
    return results
  }

  #wait(call: string, { timeoutMs = this.timeoutMs, signal }: MeetOptions): Wait {
    return waitFor(timeoutMs, call, signal)
  }
}

function isOp(op: unknown): op is HostOp {
  return op === 'sum' || op === 'min' || op === 'max'
}
