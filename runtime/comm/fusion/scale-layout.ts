// Where the scale of a block lies: the three orders of FP4 block scales, and the packed columns of UE8M0 group scales.
import { checkInteger } from '../../core/errors.ts'
import { roundUp } from '../../core/shape.ts'

/** Order of the FP4 scales in memory; see `fp4ScaleOffset`. */
export const QuantizationSFLayout = { SWIZZLED_128x4: 0, SWIZZLED_8x4: 1, LINEAR: 2 } as const
export type QuantizationSFLayout = (typeof QuantizationSFLayout)[keyof typeof QuantizationSFLayout]

/** Elements that share an FP4 scale. */
export const FP4_BLOCK = 16

/** Rows of a tile by layout; LINEAR has none. */
const TILE_ROWS: Readonly<Record<QuantizationSFLayout, number>> = { 0: 128, 1: 8, 2: 0 }

export function isScaleLayout(layout: unknown): layout is QuantizationSFLayout {
  return layout === 0 || layout === 1 || layout === 2
}

/**
 * Bytes of FP4 scales in SWIZZLED_128x4: rows padded to 128, columns to 4.
 * @param totalRow tokens @param totalColumn scales of a row, hidden size / 16
 * @throws ERR_ARGUMENT unless both are non-negative integers
 */
export function computeFp4SwizzledLayoutSfSize(totalRow: number, totalColumn: number): number {
  checkInteger('totalRow', totalRow, 0)
  checkInteger('totalColumn', totalColumn, 0)
  return roundUp(totalRow, 128) * roundUp(totalColumn, 4)
}

/** Bytes of FP4 scales, one a block, for `rows` tokens of `columns` blocks. */
export function fp4ScaleBytes(layout: QuantizationSFLayout, rows: number, columns: number): number {
  const tile = TILE_ROWS[layout]
  return tile === 0 ? rows * columns : roundUp(rows, tile) * roundUp(columns, 4)
}

/**
 * The byte of block `column` of token `row`, in rows of `columns` blocks. Swizzled: tiles of 4 columns, ordered along the row; in a tile
 * of 8 rows the rows follow each other, in one of 128 the 32 rows m, m + 32, m + 64, m + 96 do.
 */
export function fp4ScaleOffset(layout: QuantizationSFLayout, row: number, column: number, columns: number): number {
  const tile = TILE_ROWS[layout]
  if (tile === 0) return row * columns + column
  const tiles = Math.ceil(columns / 4)
  const inside = row % tile
  const line = tile === 128 ? (inside % 32) * 4 + Math.floor(inside / 32) : inside
  return (Math.floor(row / tile) * tiles + Math.floor(column / 4)) * tile * 4 + line * 4 + (column % 4)
}

/** The UE8M0 scales of `rows` tokens with `groups` groups each, as int32: four groups of a token to one, columns of `stride` tokens. */
export interface PackedScales {
  /** ceil(groups / 4). */
  columns: number
  /** int32 from one column to the next: rows padded to 4. */
  stride: number
  /** int32 in all; the last column has no padding. */
  length: number
}

export function packedScales(rows: number, groups: number): PackedScales {
  const columns = Math.ceil(groups / 4)
  const stride = roundUp(rows, 4)
  return { columns, stride, length: rows === 0 || columns === 0 ? 0 : rows + (columns - 1) * stride }
}

/** The byte of group `group` of token `row`: the least significant byte of an int32 holds the first of its groups. */
export function packedScaleOffset({ stride }: PackedScales, row: number, group: number): number {
  return (Math.floor(group / 4) * stride + row) * 4 + (group % 4)
}
