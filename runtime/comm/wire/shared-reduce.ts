// All-reduce of arrays among ranks that share memory: by the addon in one call, else by loops here. The order of additions is the same.
import type { Wait, WireArray, WireOp } from '../wire.ts'
import { LINE, SIGNATURE } from './layout.ts'
import type { LaneGroup, SharedLane } from './shared-lane.ts'

/** Memory of all ranks for arrays in place, by its buffer. */
export type Blocks = Map<ArrayBufferLike, { number: number; blocks: readonly Uint8Array[]; rank: number }>

const OPS: readonly WireOp[] = ['sum', 'min', 'max']
const TYPES = [Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array, Float64Array] as const

/** The arrays of all members combined, in member order, into each member's own. */
export function combine(lane: SharedLane, group: LaneGroup, known: Blocks, array: WireArray, op: WireOp, wait: Wait): Promise<void> {
  const region = known.get(array.buffer)
  const block = region?.blocks[region.rank]
  const inside =
    block !== undefined &&
    array.byteOffset >= block.byteOffset &&
    array.byteOffset + array.byteLength <= block.byteOffset + block.byteLength
  const offset = inside ? array.byteOffset - block.byteOffset : 0
  const type = TYPES.findIndex((one) => array instanceof one)
  const number = inside ? (region as { number: number }).number : 0
  const signature = sign([1 + OPS.indexOf(op), type, array.length, number, offset])
  const shared = inside ? (region as { blocks: readonly Uint8Array[] }).blocks.map((own) => viewLike(array, own, offset)) : null
  return lane.inTurn(() => inLoops(lane, group, array, shared, op, signature, wait))
}

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

async function inLoops(
  lane: SharedLane,
  group: LaneGroup,
  array: WireArray,
  shared: readonly WireArray[] | null,
  op: WireOp,
  signature: number,
  wait: Wait,
): Promise<void> {
  const { words, at } = lane.words
  const meet = async (): Promise<void> => {
    const epoch = lane.epoch
    words[at + lane.rank * LINE + SIGNATURE + (epoch & 1)] = signature
    group.waiter.post(lane.words, epoch)
    if (!lane.arrived(epoch)) await lane.arrive(epoch, wait)
    lane.checkSignatures(epoch & 1, signature)
  }
  if (shared) {
    lane.next()
    await meet()
    const part = Math.ceil(array.length / lane.size)
    const [from, to] = [Math.min(array.length, lane.rank * part), Math.min(array.length, (lane.rank + 1) * part)]
    join(shared, op, from, to, shared)
    lane.next()
    await meet()
    return
  }
  const per = Math.floor((lane.slots[0]?.[0].byteLength as number) / array.BYTES_PER_ELEMENT)
  for (let from = 0; from < array.length || from === 0; from += per) {
    const length = Math.min(per, array.length - from)
    const piece = array.subarray(from, from + length) as WireArray
    const parity = lane.next() & 1
    const slots = lane.slots.map((_, m) => viewLike(piece, lane.slot(m, parity), 0))
    ;(slots[lane.rank] as WireArray).set(piece as never)
    await meet()
    join(slots, op, 0, length, [piece])
  }
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
