// The scale layouts: worked offsets, every place used once, sizes.
import { describe, expect, it } from 'vitest'
import {
  computeFp4SwizzledLayoutSfSize,
  fp4ScaleBytes,
  fp4ScaleOffset,
  packedScaleOffset,
  packedScales,
} from '../../runtime/comm/fusion/scale-layout.ts'

describe('FP4 scales', () => {
  it('lie where the formulas put them', () => {
    expect([fp4ScaleOffset(0, 0, 5, 9), fp4ScaleOffset(0, 33, 0, 9), fp4ScaleOffset(0, 130, 9, 12)]).toEqual([513, 20, 1536 + 1024 + 33])
    expect([fp4ScaleOffset(1, 9, 6, 9), fp4ScaleOffset(1, 7, 3, 4)]).toEqual([96 + 32 + 4 + 2, 31])
    expect(fp4ScaleOffset(2, 3, 2, 5)).toBe(17)
  })

  it.each([0, 1, 2] as const)('layout %i: no two blocks share a byte, all lie inside', (layout) => {
    for (const [rows, columns] of [
      [1, 1],
      [129, 3],
      [260, 9],
      [17, 256],
    ] as const) {
      const places = new Set<number>()
      for (let row = 0; row < rows; row++)
        for (let column = 0; column < columns; column++) places.add(fp4ScaleOffset(layout, row, column, columns))
      expect(places.size).toBe(rows * columns)
      expect(Math.max(...places)).toBeLessThan(fp4ScaleBytes(layout, rows, columns))
    }
  })

  it('take rows padded to 128 and columns to 4', () => {
    expect(computeFp4SwizzledLayoutSfSize(129, 5)).toBe(256 * 8)
    expect(computeFp4SwizzledLayoutSfSize(0, 5)).toBe(0)
    expect(fp4ScaleBytes(0, 129, 5)).toBe(256 * 8)
    expect(fp4ScaleBytes(1, 129, 5)).toBe(136 * 8)
    expect(() => computeFp4SwizzledLayoutSfSize(-1, 4)).toThrow(/totalRow/)
    expect(() => computeFp4SwizzledLayoutSfSize(1, 0.5)).toThrow(/totalColumn/)
  })
})

it('packed scales are columns of four groups, padded to four tokens but for the last', () => {
  expect(packedScales(5, 9)).toEqual({ columns: 3, stride: 8, length: 21 })
  expect(packedScales(0, 9).length).toBe(0)
  expect(packedScaleOffset(packedScales(5, 9), 4, 6)).toBe((8 + 4) * 4 + 2)
})
