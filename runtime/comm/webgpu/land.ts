// Landing: parts of operands made readable on the devices that need them; what is there already stays where it is.
import type { Range } from '../../device/webgpu/commands.ts'
import { type Extent, isHere, isLocal, type Site, type Source, upload } from './clusters.ts'
import type { Scope } from './scope.ts'

/** A part of an operand, and the device that needs it. */
export interface Piece extends Source {
  to: Site
}

/**
 * Where each piece can be read on its device, in the order of `pieces`; null for pieces of devices elsewhere. A range leaves its device
 * once, however many devices need it, and reaches each of these once. Pieces of no bytes stay where they are: do not use them.
 */
export async function land(scope: Scope, pieces: readonly Piece[]): Promise<(Range | null)[]> {
  const leaving = new Map<string, Source>()
  for (const piece of pieces) if (piece.site !== piece.to && piece.range.byteLength > 0) leaving.set(keyOf(piece), piece)
  const read = leaving.size > 0 ? await scope.crossing.read([...leaving.values()]) : []
  const bytes = new Map([...leaving.keys()].map((key, i) => [key, read[i] as Uint8Array]))
  const landed = new Map<Site, Map<string, Range>>()
  return pieces.map((piece) => {
    const { to, range } = piece
    if (!isHere(to)) return null
    if (isLocal(piece) && (piece.site === to || range.byteLength === 0)) return piece.range
    if (range.byteLength === 0) return null
    const there = landed.get(to) ?? new Map<string, Range>()
    landed.set(to, there)
    const key = keyOf(piece)
    const known = there.get(key)
    if (known) return known
    const { buffer, offset } = scope.scratch(to.gpu.pool.allocate(range.byteLength))
    const place = { buffer, offset, byteLength: range.byteLength }
    upload(scope, to, place, bytes.get(key) as Uint8Array)
    there.set(key, place)
    return place
  })
}

/** `length` bytes of a range, from `start` on. */
export function partOf<R extends Extent>(
  { buffer, offset }: R,
  start: number,
  length: number,
): { buffer: R['buffer']; offset: number; byteLength: number } {
  return { buffer, offset: offset + start, byteLength: length }
}

export function sameRange(a: Range, b: Range): boolean {
  return a.buffer === b.buffer && a.offset === b.offset
}

function keyOf({ site, range: { buffer, offset, byteLength } }: Source): string {
  return `${site.ranks[0]} ${buffer.id} ${offset} ${byteLength}`
}
