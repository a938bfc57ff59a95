// Landing: parts of operands made readable on the devices that need them; what is there already stays where it is.
import type { Range } from '../../device/webgpu/commands.ts'
import { type Cluster, readAll, type Source, upload } from './clusters.ts'
import type { Scope } from './scope.ts'

/** A part of an operand, and the device that needs it. */
export interface Piece extends Source {
  to: Cluster
}

/**
 * Where each piece can be read on its device, in the order of `pieces`. A range leaves its device once, however many devices need it, and
 * reaches each of these once. Pieces of no bytes stay where they are: do not use them.
 */
export async function land(scope: Scope, pieces: readonly Piece[]): Promise<Range[]> {
  const leaving = new Map<string, Source>()
  for (const { cluster, range, to } of pieces) if (cluster !== to && range.byteLength > 0) leaving.set(keyOf(range), { cluster, range })
  if (leaving.size === 0) return pieces.map(({ range }) => range)
  const read = await readAll([...leaving.values()])
  const bytes = new Map([...leaving.keys()].map((key, i) => [key, read[i] as Uint8Array<ArrayBuffer>]))
  const landed = new Map<Cluster, Map<string, Range>>()
  return pieces.map(({ cluster, range, to }) => {
    if (cluster === to || range.byteLength === 0) return range
    const there = landed.get(to) ?? new Map<string, Range>()
    landed.set(to, there)
    const key = keyOf(range)
    const known = there.get(key)
    if (known) return known
    const { buffer, offset } = scope.scratch(to.gpu.pool.allocate(range.byteLength))
    const place = { buffer, offset, byteLength: range.byteLength }
    upload(to, place, bytes.get(key) as Uint8Array<ArrayBuffer>)
    there.set(key, place)
    return place
  })
}

/** `length` bytes of a range, from `start` on. */
export function partOf({ buffer, offset }: Range, start: number, length: number): Range {
  return { buffer, offset: offset + start, byteLength: length }
}

export function sameRange(a: Range, b: Range): boolean {
  return a.buffer === b.buffer && a.offset === b.offset
}

function keyOf({ buffer, offset, byteLength }: Range): string {
  return `${buffer.id} ${offset} ${byteLength}`
}
