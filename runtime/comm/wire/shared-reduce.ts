// All-reduce of arrays among ranks that share memory: by the addon in one call, else by loops here. The order of additions is the same.
import { type Addon, ARRIVED, ELSEWHERE, MISMATCHED, type Reduce, type ReduceResult } from '../../core/addon.ts'
import type { Wait, WireArray, WireOp } from '../wire.ts'
import { LINE, SIGNATURE } from './layout.ts'
import type { LaneGroup, SharedLane } from './shared-lane.ts'

const OPS: Record<WireOp, 0 | 1 | 2> = { sum: 0, min: 1, max: 2 }

/** How long a reduction may hold the thread before it waits beside the event loop. */
const BLOCK_MICROSECONDS = 2000

/** Memory of all members for arrays in place. */
interface Region {
  number: number
  blocks: readonly Uint8Array[]
  native: Reduce | null
}

export class ArrayReducer {
  readonly #lane: SharedLane
  readonly #group: LaneGroup
  readonly #addon: Addon | null
  /** Carries arrays of private memory through the lane's slots. */
  readonly #carry: Reduce | null
  readonly #regions = new Map<ArrayBufferLike, Region>()

  constructor(lane: SharedLane, group: LaneGroup, addon: Addon | null) {
    this.#lane = lane
    this.#group = group
    this.#addon = addon
    const slots = lane.slots.map(([even, odd]) => new Uint8Array(even.buffer, even.byteOffset, even.byteLength + odd.byteLength))
    this.#carry = addon?.createReducer(lane.words, slots, lane.counter, 0) ?? null
  }

  /** Memory number `number` (from 1), one block for each member. */
  add(number: number, blocks: readonly Uint8Array[]): void {
    const [{ buffer, byteLength }] = blocks as [Uint8Array]
    const native = this.#addon && byteLength > 0 ? this.#addon.createReducer(this.#lane.words, blocks, this.#lane.counter, number) : null
    this.#regions.set(buffer, { number, blocks, native })
  }

  /** The arrays of all members combined, in member order, into each member's own; undefined where that is done already. */
  reduce(array: WireArray, op: WireOp, wait: () => Wait): Promise<void> | undefined {
    const lane = this.#lane
    const region = this.#regions.size > 0 ? this.#regionOf(array) : undefined
    const native = region ? region.native : this.#carry
    if (!native) return lane.inTurn(() => this.#here(region, array, op, wait()))
    if (!lane.idle) return lane.inTurn(() => this.#natively(native, array, OPS[op], wait()))
    lane.check()
    const result = native(array, OPS[op], NATIVE, lane.alarm, BLOCK_MICROSECONDS)
    return result === ARRIVED ? undefined : lane.inTurn(() => this.#natively(native, array, OPS[op], wait(), result))
  }

  /** The region in which an array lies, where that is this member's own block of it; else it is carried as any other. */
  #regionOf({ buffer, byteOffset, byteLength }: WireArray): Region | undefined {
    const region = this.#regions.get(buffer)
    const block = region?.blocks[this.#lane.rank]
    return block && byteOffset >= block.byteOffset && byteOffset + byteLength <= block.byteOffset + block.byteLength ? region : undefined
  }

  async #natively(reduce: Reduce, array: WireArray, op: 0 | 1 | 2, wait: Wait, begun?: ReduceResult): Promise<void> {
    const lane = this.#lane
    if (begun === undefined) lane.check()
    for (let result = begun; ; result = undefined) {
      result ??= reduce(array, op, NATIVE, lane.alarm, BLOCK_MICROSECONDS)
      if (result === ARRIVED) return
      if (result === MISMATCHED || result === ELSEWHERE) throw this.#group.mismatch()
      await lane.arrive(lane.counter[0] as number, wait)
    }
  }

  async #here(region: Region | undefined, array: WireArray, op: WireOp, wait: Wait): Promise<void> {
    const lane = this.#lane
    const offset = region ? array.byteOffset - (region.blocks[lane.rank] as Uint8Array).byteOffset : 0
    const kind = TYPES.findIndex((type) => array instanceof type)
    const signature = sign([1 + OPS[op], kind, array.length, region?.number ?? 0, offset])
    const { words, at } = lane.words
    const meet = async (): Promise<void> => {
      const epoch = lane.counter[0] as number
      words[at + lane.rank * LINE + SIGNATURE + (epoch & 1)] = signature
      this.#group.waiter.post(lane.words, epoch)
      if (!lane.arrived(epoch)) await lane.arrive(epoch, wait)
      lane.checkSignatures(epoch & 1, signature)
    }
    if (region) {
      lane.next()
      await meet()
      const part = Math.ceil(array.length / lane.size)
      const [from, to] = [Math.min(array.length, lane.rank * part), Math.min(array.length, (lane.rank + 1) * part)]
      const shared = region.blocks.map((own) => viewLike(array, own, offset))
      join(shared, op, from, to, shared)
      lane.next()
      await meet()
      return
    }
    const per = Math.floor(lane.slot(0, 0).byteLength / array.BYTES_PER_ELEMENT)
    for (let from = 0; from < array.length || from === 0; from += per) {
      const length = Math.min(per, array.length - from)
      const piece = array.subarray(from, from + length) as WireArray
      const epoch = lane.next()
      const slots = lane.slots.map((_, m) => viewLike(piece, lane.slot(m, epoch), 0))
      ;(slots[lane.rank] as WireArray).set(piece as never)
      await meet()
      join(slots, op, 0, length, [piece])
    }
  }
}

/** The addon itself compares kinds, lengths and places. */
const NATIVE = 1

const TYPES = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const

/** Never 0, which is an exchange. */
function sign(parts: readonly number[]): number {
  let hash = 0x811c9dc5
  for (const part of parts)
    for (const half of [part & 0xffff, Math.floor(part / 0x10000) & 0xffff]) hash = Math.imul(hash ^ half, 0x01000193)
  return hash | 1
}

function viewLike(array: WireArray, { buffer, byteOffset }: Uint8Array, offset: number): WireArray {
  const Type = array.constructor as new (buffer: ArrayBufferLike, byteOffset: number, length: number) => WireArray
  return new Type(buffer, byteOffset + offset, array.length)
}

/** Elements that stay in a processor's cache while all parts are added to them. */
const BLOCK = 4096

/** Elements [from, to) of all `parts` combined, in their order, into each of `targets`. */
function join(parts: readonly WireArray[], op: WireOp, from: number, to: number, targets: readonly WireArray[]): void {
  const [first, ...others] = parts as [WireArray, ...WireArray[]]
  const scratch = new (first.constructor as new (length: number) => Float32Array)(Math.min(BLOCK, to - from))
  for (let at = from; at < to; at += BLOCK) {
    const end = Math.min(to, at + BLOCK)
    scratch.set(first.subarray(at, end) as Float32Array)
    for (const other of others) accumulate(scratch, other.subarray(at, end) as Float32Array, op)
    for (const target of targets) target.set(scratch.subarray(0, end - at) as never, at)
  }
}

/** Written as for floats; the array's own elements round and wrap. */
function accumulate(sum: Float32Array, next: Float32Array, op: WireOp): void {
  const n = next.length
  if (op === 'sum') for (let i = 0; i < n; i++) sum[i]! += next[i]!
  else if (op === 'min') for (let i = 0; i < n; i++) sum[i] = next[i]! < sum[i]! || Number.isNaN(next[i]) ? next[i]! : sum[i]!
  else for (let i = 0; i < n; i++) sum[i] = next[i]! > sum[i]! || Number.isNaN(next[i]) ? next[i]! : sum[i]!
}
