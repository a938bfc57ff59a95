// Conformance of the collectives over parts: allGatherV, reduceScatterV, reduce, scatter, allToAll, allGather2D, broadcast in place.
import { expect, it } from 'vitest'
import { type DType, decode, dtypeSize, encode } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { fixedOrder } from '../support/fixed-order.ts'
import { type Group, placed, STYLES } from './conformance.ts'

const DTYPES: readonly DType[] = ['float32', 'bfloat16', 'float16', 'uint8', 'int64']
const SUMMED: readonly DType[] = ['float32', 'bfloat16', 'float16', 'int32', 'uint32']
const PLACES: readonly { shape: Shape; dim: number }[] = [
  { shape: [0], dim: 0 },
  { shape: [0, 5], dim: 0 },
  { shape: [0, 64], dim: -2 },
  { shape: [3, 0], dim: 1 },
  { shape: [2, 0, 3], dim: 1 },
  { shape: [2, 3, 0], dim: -1 },
]
const LENGTHS = ['random', 'equal', 'none', 'only the last', 'odd'] as const

/** The length of each rank along dim. */
function lengthsOf(group: Group, kind: (typeof LENGTHS)[number]): number[] {
  return Array.from({ length: group.ranks }, (_, rank) => {
    if (kind === 'random') return group.random.int(6)
    if (kind === 'equal') return 3
    if (kind === 'none') return 0
    return kind === 'odd' ? 2 * group.random.int(3) + 1 : rank === group.ranks - 1 ? 5 : 0
  })
}

const withLength = (shape: Shape, dim: number, length: number): number[] =>
  shape.map((n, i) => (i === (dim + shape.length) % shape.length ? length : n))
const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0)

function bytesOf(group: Group, shape: Shape, dtype: DType): Uint8Array {
  return Uint8Array.from({ length: sizeOf(shape) * dtypeSize(dtype) }, () => group.random.bits() & 255)
}

/** Rows of bytes before dim, each cut into the parts of the given byte widths. */
function cut(whole: Uint8Array, widths: readonly number[]): Uint8Array[] {
  const row = sum(widths)
  const outer = row === 0 ? 0 : whole.length / row
  let start = 0
  return widths.map((width) => {
    const part = new Uint8Array(outer * width)
    for (let o = 0; o < outer; o++) part.set(whole.subarray(o * row + start, o * row + start + width), o * width)
    start += width
    return part
  })
}

const innerBytes = (shape: Shape, dim: number, dtype: DType): number =>
  sizeOf(shape.slice(((dim + shape.length) % shape.length) + 1)) * dtypeSize(dtype)
const same = (found: Uint8Array, wanted: Uint8Array, what: string): void => expect(Buffer.compare(found, wanted), what).toBe(0)

function gatherCases(group: Group, brief: boolean): void {
  const all = group.share({ place: PLACES, dtype: DTYPES, style: STYLES, lengths: LENGTHS, given: [true, false] })
  const rows = brief ? all.slice(0, 6) : all
  it(`allGatherV and scatter: ${rows.length} cases`, async () => {
    const cases = rows.map(({ place: { shape, dim }, dtype, style, lengths: kind, given }) => {
      const sizes = lengthsOf(group, kind)
      const whole = bytesOf(group, withLength(shape, dim, sum(sizes)), dtype)
      const inner = innerBytes(shape, dim, dtype)
      const parts = cut(
        whole,
        sizes.map((n) => n * inner),
      )
      const even = bytesOf(group, withLength(shape, dim, 3 * group.ranks), dtype)
      const cuts = cut(even, Array<number>(group.ranks).fill(3 * inner))
      const what = `[${shape}] ${dtype} along ${dim}, ${style}, sizes ${sizes}${given ? '' : ' not given'}`
      return { what, shape, dim, dtype, style, given, sizes, whole, parts, even, cuts, src: group.random.int(group.ranks) }
    })
    await group.each(cases, async (context, one) => {
      const { comm, rank, device } = context
      const { shape, dim, dtype, style, sizes } = one
      using x = await placed(
        context,
        style === 'symmetric' ? 'separate' : style,
        withLength(shape, dim, sizes[rank]!),
        dtype,
        one.parts[rank]!,
      )
      using y = await comm.allGatherV(x.tensor, { dim, sizes: one.given ? sizes : undefined })
      expect([y.shape, y.dtype]).toEqual([withLength(shape, dim, sum(sizes)), dtype])
      same(await y.bytes(), one.whole, 'allGatherV')
      const [first, second] = await comm.allGatherV([x.tensor, x.tensor], { dim, sizes: one.given ? sizes : undefined })
      for (const tensor of [first!, second!]) {
        same(await tensor.bytes(), one.whole, 'allGatherV of a list')
        tensor.dispose()
      }
      using z = rank === one.src ? Tensor.fromBytes(one.even, withLength(shape, dim, 3 * group.ranks), dtype, device) : null
      using part = await comm.scatter(z, { src: one.src, dim })
      expect([part.shape, part.dtype]).toEqual([withLength(shape, dim, 3), dtype])
      same(await part.bytes(), one.cuts[rank]!, 'scatter')
      same(await x.tensor.bytes(), one.parts[rank]!, 'the operand')
    })
  })
}

function reduceCases(group: Group, brief: boolean): void {
  const all = group.share({ place: PLACES, dtype: SUMMED, style: STYLES, lengths: LENGTHS, op: ['sum', 'max'] as const })
  const rows = brief ? all.slice(0, 6) : all
  it(`reduceScatterV and reduce: ${rows.length} cases`, async () => {
    const cases = rows.map(({ place: { shape, dim }, dtype, style, lengths: kind, op }) => {
      const sizes = lengthsOf(group, kind)
      const full = withLength(shape, dim, sum(sizes))
      const numbers = (): number[] => Array.from({ length: sizeOf(full) }, () => group.random.int(8))
      const bytes = Array.from({ length: group.ranks }, () => encode(dtype, numbers()))
      const data = bytes.map((raw) => decode(dtype, raw))
      const whole = encode(dtype, [...fixedOrder(data, group.place, op, dtype)])
      const parts = cut(
        whole,
        sizes.map((n) => n * innerBytes(shape, dim, dtype)),
      )
      const what = `${op} of [${full}] ${dtype} along ${dim}, ${style}, sizes ${sizes}`
      return { what, full, dim, dtype, style, op, sizes, bytes, whole, parts, dst: group.random.int(group.ranks) }
    })
    await group.each(cases, async (context, { full, dim, dtype, style, op, sizes, bytes, whole, parts, dst }) => {
      const { comm, rank } = context
      using x = await placed(context, style, full, dtype, bytes[rank]!)
      using y = await comm.reduceScatterV(x.tensor, { dim, sizes, op })
      expect([y.shape, y.dtype]).toEqual([withLength(full, dim, sizes[rank]!), dtype])
      same(await y.bytes(), parts[rank]!, 'reduceScatterV')
      using there = await comm.reduce(x.tensor, { dst, op })
      if (rank === dst) same((await there?.bytes()) as Uint8Array, whole, 'reduce')
      else expect(there).toBeNull()
      same(await x.tensor.bytes(), bytes[rank]!, 'the operand')
    })
  })
}

function allToAllCases(group: Group, brief: boolean): void {
  const all = group.share({
    tail: [[], [5], [64], [2, 3]] as Shape[],
    dtype: DTYPES,
    style: STYLES,
    splits: ['random', 'equal', 'none'] as const,
  })
  const rows = brief ? all.slice(0, 4) : all
  it(`allToAll: ${rows.length} cases`, async () => {
    const cases = rows.map(({ tail, dtype, style, splits: kind }) => {
      const splits = Array.from({ length: group.ranks }, () => lengthsOf(group, kind))
      const given = splits.map((own) => bytesOf(group, [sum(own), ...tail], dtype))
      const unit = sizeOf(tail) * dtypeSize(dtype)
      const parts = given.map((bytes, s) =>
        cut(
          bytes,
          splits[s]!.map((n) => n * unit),
        ),
      )
      const wanted = given.map((_, r) => Buffer.concat(parts.map((own) => own[r]!)))
      return { what: `[*, ${tail}] ${dtype}, ${style}, splits ${splits.join(' | ')}`, tail, dtype, style, kind, splits, given, wanted }
    })
    await group.each(cases, async (context, { tail, dtype, style, kind, splits, given, wanted }) => {
      const { comm, rank } = context
      const uneven = kind === 'random' && style === 'symmetric' // rows differ: no slices of one buffer
      using x = await placed(context, uneven ? 'separate' : style, [sum(splits[rank]!), ...tail], dtype, given[rank]!)
      const outputSplits = splits.map((own) => own[rank]!)
      using y = await comm.allToAll(x.tensor, kind === 'random' ? { splits: splits[rank]!, outputSplits } : {})
      expect([y.shape, y.dtype]).toEqual([[sum(outputSplits), ...tail], dtype])
      same(await y.bytes(), wanted[rank]!, 'allToAll')
      same(await x.tensor.bytes(), given[rank]!, 'the operand')
    })
  })
}

function inPlaceCases(group: Group): void {
  const P = group.ranks
  it('allGather2D: row-interleaved, in blocks, with gaps, in any dtype and place', async () => {
    const layouts = [
      { pitch: 3 * P, stride: 3, width: 3, height: 2 },
      { pitch: 4 * P, stride: 4, width: 4, height: 3 },
      { pitch: 3, stride: 6, width: 3, height: 2 },
      { pitch: 5 * P + 2, stride: 5, width: 3, height: 3 },
      { pitch: 7, stride: 23, width: 5, height: 3 },
      { pitch: 1, stride: 1, width: 1, height: 1 },
      { pitch: 0, stride: 0, width: 0, height: 4 },
    ]
    const cases = layouts.flatMap((layout) =>
      (['float32', 'bfloat16', 'uint8'] as const).map((dtype) => ({ what: `${JSON.stringify(layout)} ${dtype}`, layout, dtype })),
    )
    const drawn = cases.map((one, i) => {
      const { pitch, stride, width, height } = one.layout
      const width1 = dtypeSize(one.dtype)
      const size = width * height === 0 ? 2 : (P - 1) * stride + (height - 1) * pitch + width + 1
      const before = Array.from({ length: P }, () => bytesOf(group, [size], one.dtype))
      const wanted = before.map((own) => {
        const after = own.slice()
        for (let r = 0; r < P; r++) {
          for (let y = 0; y < height; y++) {
            const at = (r * stride + y * pitch) * width1
            after.set(before[r]!.subarray(at, at + width * width1), at)
          }
        }
        return after
      })
      return { ...one, size, before, wanted, style: STYLES[i % STYLES.length]! }
    })
    await group.each(drawn, async (context, { layout, dtype, size, before, wanted, style }) => {
      using x = await placed(context, style, [size], dtype, before[context.rank]!)
      expect(await context.comm.allGather2D(x.tensor, layout)).toBe(x.tensor)
      same(await x.tensor.bytes(), wanted[context.rank]!, 'the buffer')
      await x.checkSurroundings()
    })
  })

  it('broadcast in place writes into each own x', async () => {
    const cases = ([[0], [7], [3, 5], [4096]] as Shape[]).flatMap((shape, i) =>
      STYLES.map((style) => {
        const dtype = DTYPES[(i + 1) % DTYPES.length]!
        const parts = Array.from({ length: P }, () => bytesOf(group, shape, dtype))
        return { what: `[${shape}] ${dtype}, ${style}`, shape, dtype, style, parts, src: group.random.int(P) }
      }),
    )
    await group.each(cases, async (context, { shape, dtype, style, parts, src }) => {
      using x = await placed(context, style, shape, dtype, parts[context.rank]!)
      const y = await context.comm.broadcast(x.tensor, { src, inPlace: true })
      if (P > 1) expect(y).toBe(x.tensor)
      same(await x.tensor.bytes(), parts[src]!, 'x')
      await x.checkSurroundings()
    })
  })
}

export function vectorCases(group: Group, brief: boolean): void {
  gatherCases(group, brief)
  reduceCases(group, brief)
  allToAllCases(group, brief)
  inPlaceCases(group)
}
