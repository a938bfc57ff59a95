// WireHostComm: the control plane of ranks in different threads, processes or machines, over the wire that joins them.
import { platform } from '#platform'
import { CollectiveMismatchError, checkInteger, describe, RankFailedError, type RankmeshError } from '../core/errors.ts'
import { announced } from './abort.ts'
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
  snapshot,
} from './host.ts'
import { type MeetOptions, type Offer, offerOf, timeoutOf } from './rendezvous.ts'
import { type Lane, type Wait, type Wire, type WireArray, waitFor } from './wire.ts'

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
      return pending ? announced(this.wire, pending).then(() => result) : Promise.resolve(result)
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
    return this.wire.allocate ? this.wire.allocate(byteLength, wait) : new Uint8Array(byteLength)
  }

  async split({ color, key = 0, ...options }: { color: number | null; key?: number } & MeetOptions): Promise<WireHostComm | null> {
    const at = this.#splits++
    const choices = await this.meet<Choice, Choice[]>('split()', choiceOf(color, key), (all) => all.map(() => all), options)
    const own = (choices[this.rank] as Choice).color
    if (own === null) return null
    const ranks = groupsOf(choices).get(own) as number[]
    const wire = await this.wire.split(ranks, `${at}.${own}`, this.#wait('split()', options))
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

/**
 * One round on a lane in which calls are matched: every member's payload as bytes, the caller's own also as it is. `bytesOf` makes an
 * offer's payload what the others see; bytes go as they are. `members` are the lane's, by rank in the world.
 * @throws as Rendezvous.meet: the caller's own refusal; ERR_COLLECTIVE_MISMATCH on every member.
 */
export async function matched<P>(
  wire: Wire,
  lane: Lane,
  call: string,
  offer: Offer<P>,
  defaultTimeoutMs: number,
  { timeoutMs = defaultTimeoutMs, signal }: MeetOptions,
  bytesOf: (payload: P) => unknown,
  members: readonly number[] = wire.members,
): Promise<{ results: readonly Uint8Array[]; payload: P }> {
  wire.note(call)
  if (signal?.aborted) {
    stopped(wire, call, signal)
    throw signal.reason
  }
  const timed = offerOf(() => timeoutOf(timeoutMs))
  let mine: Offer<P> = 'refusal' in timed ? timed : offer
  let bytes: Uint8Array = NOTHING
  if (!('refusal' in mine)) {
    try {
      const value = bytesOf(mine.payload)
      bytes = value === undefined ? NOTHING : value instanceof Uint8Array ? value : encodeValue(value)
    } catch (refusal) {
      mine = { refusal }
    }
  }
  const wait = waitFor('refusal' in timed ? defaultTimeoutMs : timeoutMs, call, signal)
  const refusal = 'refusal' in mine ? messageOf(mine.refusal) : null
  const messages = (await announced(wire, lane.exchange(pack(call, refusal, bytes), wait))).map(unpack)
  if ('refusal' in mine) throw mine.refusal
  const own = messages[lane.rank] as Message
  const other = messages.findIndex((message) => !sameBytes(message.call, own.call))
  const rankOf = (index: number): number => members[index] as number
  const refused = messages.findIndex((message) => message.refused)
  if (refused >= 0) {
    const rank = rankOf(refused)
    const why = text((messages[refused] as Message).bytes)
    throw new CollectiveMismatchError(`Rank ${rank} could not take part in ${call}: ${why}`, {
      rank,
      cause: new RankFailedError(why, { rank }),
    })
  }
  if (other >= 0) throw mismatch(messages, rankOf)
  return { results: messages.map((message) => message.bytes), payload: (mine as { payload: P }).payload }
}

/** This rank has been told to stop before it could join: the others are not to wait for it. */
function stopped(wire: Wire, call: string, { reason }: AbortSignal): void {
  const rank = wire.members[wire.rank] as number
  wire.fail({ code: 'ERR_RANK_FAILED', message: `Rank ${rank} failed: it was told to stop before ${call}: ${messageOf(reason)}`, rank })
}

interface Message {
  call: Uint8Array
  refused: boolean
  bytes: Uint8Array
}

const NOTHING = new Uint8Array(0)
const NO_OPTIONS = {}
const ARRAYS: ReadonlySet<unknown> = new Set([Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array])
const encoder = new TextEncoder()
const decoder = new TextDecoder()

/** Length of the call, whether refused, the call, then the payload or the refusal. */
function pack(call: string, refusal: string | null, payload: Uint8Array): Uint8Array {
  const name = encoder.encode(call)
  const body = refusal === null ? payload : encoder.encode(refusal)
  const message = new Uint8Array(5 + name.byteLength + body.byteLength)
  new DataView(message.buffer).setUint32(0, name.byteLength, true)
  message[4] = refusal === null ? 0 : 1
  message.set(name, 5)
  message.set(body, 5 + name.byteLength)
  return message
}

function unpack(message: Uint8Array): Message {
  const length = new DataView(message.buffer, message.byteOffset, message.byteLength).getUint32(0, true)
  return { call: message.subarray(5, 5 + length), refused: message[4] === 1, bytes: message.subarray(5 + length) }
}

function mismatch(messages: readonly Message[], rankOf: (index: number) => number): CollectiveMismatchError {
  const first = messages[0] as Message
  const index = messages.findIndex((message) => !sameBytes(message.call, first.call))
  const [a, b] = [rankOf(0), rankOf(index)]
  return new CollectiveMismatchError(
    `Ranks called different collectives: rank ${a} called ${text(first.call)}, rank ${b} called ${text((messages[index] as Message).call)}; all ranks of a group must make the same calls in the same order`,
    { rank: b },
  )
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.byteLength !== b.byteLength) return false
  for (let i = 0; i < a.byteLength; i++) if (a[i] !== b[i]) return false
  return true
}

function text(bytes: Uint8Array): string {
  return decoder.decode(bytes.slice())
}

function messageOf(refusal: unknown): string {
  return refusal instanceof Error ? refusal.message : describe(refusal)
}

/** @throws ERR_ARGUMENT for what cannot be cloned. */
function encodeValue(value: unknown): Uint8Array {
  return snapshot(value, (given) => platform.serialize(given))
}

function decodeValue(bytes: Uint8Array): unknown {
  return bytes.byteLength === 0 ? undefined : platform.deserialize(new Uint8Array(bytes))
}

function isOp(op: unknown): op is HostOp {
  return op === 'sum' || op === 'min' || op === 'max'
}
