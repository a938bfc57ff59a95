// Conformance of the collectives that move data without computing: allGather, gather, broadcast, allocate, barrier.
import { expect, it } from 'vitest'
import { type DType, dtypeSize } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { type Group, placed, STYLES } from './conformance.ts'

/** One of every width; 16-bit and 8-bit ones make rows that end inside a word. */
const DTYPES: readonly DType[] = ['float32', 'bfloat16', 'float16', 'uint8', 'float8_e4m3fn', 'int32', 'int64']

const PLACES: readonly { shape: Shape; dim: number }[] = [
  { shape: [1], dim: 0 },
  { shape: [7], dim: -1 },
  { shape: [4097], dim: 0 },
  { shape: [3, 5], dim: 0 },
  { shape: [3, 5], dim: 1 },
  { shape: [3, 5], dim: -1 },
  { shape: [3, 5], dim: -2 },
  { shape: [8, 64], dim: 1 },
  { shape: [5, 1000], dim: -1 },
  { shape: [2, 3, 5], dim: 0 },
  { shape: [2, 3, 5], dim: 1 },
  { shape: [2, 3, 5], dim: -1 },
  { shape: [1, 1, 9], dim: 1 },
  { shape: [2, 1, 3, 3], dim: 0 },
  { shape: [2, 1, 3, 3], dim: 1 },
  { shape: [2, 1, 3, 3], dim: -2 },
  { shape: [2, 1, 3, 3], dim: 3 },
  { shape: [0], dim: 0 },
  { shape: [3, 0, 2], dim: 0 },
]

function randomBytes(group: Group, shape: Shape, dtype: DType): Uint8Array[] {
  const size = sizeOf(shape) * dtypeSize(dtype)
  return Array.from({ length: group.ranks }, () => Uint8Array.from({ length: size }, () => group.random.bits() & 255))
}

/** Concatenation in plain loops, element by element. */
function concatenated(parts: readonly Uint8Array[], shape: Shape, dim: number, width: number): { shape: number[]; bytes: Uint8Array } {
  const at = dim < 0 ? dim + shape.length : dim
  const inner = sizeOf(shape.slice(at + 1))
  const wide = shape.map((n, i) => (i === at ? n * parts.length : n))
  const bytes = new Uint8Array(sizeOf(wide) * width)
  for (let element = 0; element < sizeOf(wide); element++) {
    const [before, within, after] = [Math.floor(element / (inner * wide[at]!)), Math.floor(element / inner) % wide[at]!, element % inner]
    const rank = Math.floor(within / shape[at]!)
    const from = (before * shape[at]! + (within % shape[at]!)) * inner + after
    for (let k = 0; k < width; k++) bytes[element * width + k] = parts[rank]![from * width + k]!
  }
  return { shape: wide, bytes }
}

function gatherCases(group: Group, brief: boolean): void {
  const all = group.share({ place: PLACES, dtype: DTYPES, style: STYLES })
  const rows = brief ? all.slice(0, 8) : all
  it(`allGather and gather: ${rows.length} cases`, async () => {
    const cases = rows.map(({ place, dtype, style }) => {
      const dst = group.random.int(group.ranks)
      const parts = randomBytes(group, place.shape, dtype)
      const wanted = concatenated(parts, place.shape, place.dim, dtypeSize(dtype))
      return { what: `[${place.shape}] ${dtype} along ${place.dim}, ${style}, to ${dst}`, ...place, dtype, style, dst, parts, wanted }
    })
    await group.each(cases, async (context, { shape, dim, dtype, style, dst, parts, wanted }) => {
      const { comm, rank } = context
      using x = await placed(context, style, shape, dtype, parts[rank]!)
      using everywhere = await comm.allGather(x.tensor, { dim })
      expect([everywhere.shape, everywhere.dtype]).toEqual([wanted.shape, dtype])
      const found = await everywhere.bytes()
      expect(Buffer.compare(found, wanted.bytes), 'allGather').toBe(0)
      using there = await comm.gather(x.tensor, { dst, dim })
      if (rank !== dst) expect(there).toBeNull()
      else {
        expect([there?.shape, there?.dtype]).toEqual([wanted.shape, dtype])
        expect(Buffer.compare((await there?.bytes()) as Uint8Array, wanted.bytes), 'gather').toBe(0)
      }
      expect(Buffer.compare(await x.tensor.bytes(), parts[rank]!), 'the operand').toBe(0)
    })
  })

  it('gather to every rank, by default to the first; along the last dimension by default', async () => {
    const parts = randomBytes(group, [2, 3], 'float16')
    const wanted = concatenated(parts, [2, 3], 1, 2)
    const found = await group.run(async ({ comm, device, rank }) => {
      using x = Tensor.fromBytes(parts[rank]!, [2, 3], 'float16', device)
      const seen: (Uint8Array | null)[] = []
      for (let dst = 0; dst < group.ranks; dst++) {
        using y = await comm.gather(x, dst === 0 ? {} : { dst })
        seen.push(y && (await y.bytes()))
      }
      using all = await comm.allGather(x)
      expect(await all.bytes()).toEqual(wanted.bytes)
      return seen
    })
    for (const [rank, seen] of found.entries()) {
      for (const [dst, bytes] of seen.entries()) expect(bytes, `rank ${rank}, dst ${dst}`).toEqual(rank === dst ? wanted.bytes : null)
    }
  })
}

function broadcastCases(group: Group, brief: boolean): void {
  const sources = Array.from({ length: group.ranks }, (_, rank) => rank)
  const shapes: Shape[] = [[], [0], [1], [7], [3, 5], [4097]]
  const all = group.share({ src: brief ? [0, group.ranks - 1] : sources, shape: shapes, dtype: DTYPES, style: STYLES })
  const rows = brief ? all.slice(0, 8) : all
  it(`broadcast: ${rows.length} cases`, async () => {
    const cases = rows.map(({ src, shape, dtype, style }) => {
      return { what: `[${shape}] ${dtype} from ${src}, ${style}`, src, shape, dtype, style, parts: randomBytes(group, shape, dtype) }
    })
    await group.each(cases, async (context, { src, shape, dtype, style, parts }) => {
      using x = await placed(context, style, shape, dtype, parts[context.rank]!)
      using y = await context.comm.broadcast(x.tensor, { src })
      expect([y.shape, y.dtype]).toEqual([shape, dtype])
      expect(Buffer.compare(await y.bytes(), parts[src]!), 'the result').toBe(0)
      expect(Buffer.compare(await x.tensor.bytes(), parts[context.rank]!), 'the operand').toBe(0)
    })
  })

  it('broadcast from every rank', async () => {
    const parts = randomBytes(group, [3], 'float16')
    await group.run(async ({ comm, device, rank }) => {
      using x = Tensor.fromBytes(parts[rank]!, [3], 'float16', device)
      for (const src of sources) {
        using y = await comm.broadcast(x, { src })
        expect(await y.bytes(), `from ${src}`).toEqual(parts[src])
      }
    })
  })

  it('broadcast gives a copy, from the first rank by default', async () => {
    if (group.ranks === 1) return // a group of one gets its operand
    await group.run(async ({ comm, device, rank }) => {
      using x = Tensor.full([5], rank + 1, { device })
      using y = await comm.broadcast(x)
      await comm.barrier()
      x.set([9, 9, 9, 9, 9])
      await comm.barrier()
      expect([...((await y.data()) as Float32Array)]).toEqual([1, 1, 1, 1, 1])
    })
  })
}

export function moveCases(group: Group, brief: boolean): void {
  gatherCases(group, brief)
  broadcastCases(group, brief)

  it('allocate: memory of its own for each rank, or one that the ranks of a device share', async () => {
    await group.run(async ({ comm, device, rank }) => {
      using own = await comm.allocate([3, 3], { dtype: 'float16' })
      using shared = await comm.allocate([5], { shared: true })
      expect([own.shape, own.dtype, shared.shape, shared.dtype]).toEqual([[3, 3], 'float16', [5], 'float32'])
      own.set(Array(9).fill(rank))
      if (comm.deviceRank === 0) shared.set(Array(5).fill(7))
      await comm.barrier()
      expect([...((await own.data()) as Float32Array)]).toEqual(Array(9).fill(rank))
      expect([...((await shared.data()) as Float32Array)]).toEqual(Array(5).fill(7))
      expect(own.device.kind).toBe(device.kind)
    })
  })

  it('barrier holds everybody until the last has come', async () => {
    const times = await group.run(async ({ comm, rank }) => {
      if (rank === group.ranks - 1) await new Promise((resolve) => setTimeout(resolve, 20))
      const entered = process.hrtime.bigint() // one clock for all threads and processes
      await comm.barrier()
      const left = process.hrtime.bigint()
      await comm.barrier()
      return { entered, left }
    })
    for (const [rank, { left }] of times.entries()) {
      for (const [other, { entered }] of times.entries()) expect(left >= entered, `rank ${rank} left before ${other} came`).toBe(true)
    }
  })
}
