// Weights in GGUF blocks, of every type, by every kernel: values bit by bit, products against float64, the tree's bits against the CPU's.
import { afterAll, describe, expect, it } from 'vitest'
import { BLOCK_FORMATS } from '../../runtime/core/blocks.ts'
import { encodeFloat16 } from '../../runtime/core/codecs.ts'
import { BLOCK_DTYPES, type BlockDType, blockLength, type DType, decode, dtypeSize } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { nodesOf } from '../../runtime/core/tree.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { testDevice } from '../support/device.ts'
import { drawn } from '../support/effort.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'
import { FLOATS, Guarded, sample } from '../support/tensors.ts'
import { tuned } from '../support/ways.ts'

const device = await testDevice()
const cpu = CpuDevice.open(null)
afterAll(() => {
  device.dispose()
  cpu.dispose()
})

const start = seed()
const random = new Random(start)

const TYPES = Object.keys(BLOCK_DTYPES) as BlockDType[]
/** Bytes of a block where its float16 scales are. */
const SCALES: Record<BlockDType, readonly number[]> = { q8_0: [0], q4_0: [0], q4_1: [0, 2], q4_k: [0, 2], q5_k: [0, 2], q6_k: [208] }

/** Random bytes as blocks; their scales are normal values times `size`, or with 0 any finite float16. */
function randomBlocks(dtype: BlockDType, shape: Shape, size: number): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from({ length: sizeOf(shape) * dtypeSize(dtype) }, () => random.int(256))
  const { bytes: length } = BLOCK_FORMATS[BLOCK_DTYPES[dtype]]
  for (let at = 0; at < bytes.length; at += length) {
    for (const scale of SCALES[dtype]) {
      const code = size > 0 ? (encodeFloat16([random.normal() * size])[0] as number) : random.int(0x7c00) | (random.int(2) << 15)
      bytes.set([code & 255, code >> 8], at + scale)
    }
  }
  return bytes
}

interface Weights {
  tensor: Tensor
  bytes: Uint8Array<ArrayBuffer>
  values: Float32Array
}

/** Random weights, `before` rows into a longer tensor. */
function weights(dtype: BlockDType, [rows, k]: readonly [number, number], { size = 0.02, before = 0 } = {}): Weights {
  const all = randomBlocks(dtype, [rows + 2 * before, k], size)
  const row = k * dtypeSize(dtype)
  const bytes = all.slice(before * row, (before + rows) * row)
  using whole = Tensor.fromBytes(all, [rows + 2 * before, k], dtype, device)
  return { tensor: whole.narrow(0, before, rows), bytes, values: decode(dtype, bytes) as Float32Array }
}

/** `width` bytes of each row of `pitch`, from `from` on. */
function cut(bytes: Uint8Array, pitch: number, from: number, width: number): Uint8Array<ArrayBuffer> {
  const own = new Uint8Array((bytes.length / pitch) * width)
  for (let row = 0; row * width < own.length; row++) own.set(bytes.subarray(row * pitch + from, row * pitch + from + width), row * width)
  return own
}

/** The contract of the kernels' headers: (k + 2) * 2^-24 * sum |x w|, and half an ULP for the bias. */
function expectProduct(
  bytes: Uint8Array,
  x: Float32Array,
  w: Float32Array,
  shape: { t: number; k: number; n: number },
  bias?: Float32Array,
): void {
  const got = decode('float32', bytes) as Float32Array
  const expected = reference.matmul(x, w, shape, bias)
  const sizes = reference.matmul(x.map(Math.abs), w.map(Math.abs), shape)
  const off = got.findIndex((value, i) => {
    const most = (shape.k + 2) * 2 ** -24 * (sizes[i] as number) + 2 ** -24 * Math.abs(expected[i] as number)
    return !(Math.abs(value - (expected[i] as number)) <= most)
  })
  expect(off < 0 ? '' : `[${off}] is ${got[off]}, expected ${expected[off]}`, JSON.stringify(shape)).toBe('')
}

describe.each(TYPES)(`embedding of %s (seed ${start})`, (type) => {
  it.each(FLOATS)('to %s: any scale, any row', async (dtype) => {
    for (const blocks of [1, 2, 5]) {
      const [rows, n, first] = [1 + random.int(20), blocks * blockLength(type), random.int(5)]
      const table = weights(type, [rows, n], { size: 0, before: random.int(4) })
      const ids = Array.from({ length: 1 + random.int(30) }, () => random.int(rows + 2 + first))
      const out = new Guarded(device, [ids.length, n], dtype, random.int(3))
      device.embedding(Tensor.from(Uint32Array.from(ids), { device }), table.tensor, { first, out: out.tensor })
      const expected = new Float32Array(ids.length * n)
      for (const [i, id] of ids.entries()) {
        if (id >= first && id < first + rows) expected.set(table.values.subarray((id - first) * n, (id - first + 1) * n), i * n)
      }
      const bytes = await Tensor.from(expected, { dtype }).bytes()
      expect(Buffer.compare(await out.bytes(), bytes), `${rows} rows of ${blocks} blocks`).toBe(0)
    }
  })

  it('at any byte of a storage', async () => {
    const [rows, n] = [3, blockLength(type)]
    const blocks = randomBlocks(type, [rows, n], 0)
    const ids = Tensor.from(Uint32Array.of(2, 0, 1, 2), { device })
    const values = decode(type, blocks) as Float32Array
    const expected = Float32Array.from([2, 0, 1, 2].flatMap((row) => [...values.subarray(row * n, (row + 1) * n)]))
    for (let offset = 0; offset < 8; offset++) {
      const bytes = new Uint8Array(offset + blocks.length + 3).fill(0xff)
      bytes.set(blocks, offset)
      const storage = device.allocate(bytes.length)
      device.write(storage, 0, bytes)
      using table = new Tensor(device, storage, [rows, n], type, offset)
      expect(Buffer.compare(await device.embedding(ids, table).bytes(), Buffer.from(expected.buffer)), `byte ${offset}`).toBe(0)
    }
  })
})

const plain = tuned(device, { tiled: false })
const alone = tuned(device, { tiled: true, matvecLanes: 1, row: 64 })
const shared = tuned(device, { tiled: true, matvecLanes: 16, row: 256 })
const WAYS = [
  { name: 'matmul', run: plain, tokens: [1, 3, 8, 17], types: TYPES },
  { name: 'matvec, 1 lane a row', run: alone, tokens: [1, 3], types: TYPES },
  { name: 'matvec, 16 lanes a row', run: shared, tokens: [1, 4], types: TYPES },
  // Slow to compile.
  { name: 'matmul_tiled', run: shared, tokens: [5, 65], types: drawn(TYPES, 2, start) },
]

describe.each(WAYS)(`$name (seed ${start})`, ({ run, tokens, types }) => {
  it.each(types)('of %s', (type) =>
    run(async () => {
      for (const [blocks, outs] of [
        [1, 1],
        [3, 63],
        [2, 70],
      ] as const) {
        const [t, k] = [tokens[random.int(tokens.length)] as number, blocks * blockLength(type)]
        const x = sample(device, random, [t, k], FLOATS[random.int(3)] as DType, 1, random.int(3))
        const w = weights(type, [outs, k], { before: random.int(4) })
        const bias = sample(device, random, [outs]) // always, since each kernel is compiled with and without
        const out = new Guarded(device, [t, outs], 'float32', random.int(3))
        device.matmul(x.tensor, w.tensor, { bias: bias.tensor, out: out.tensor })
        expectProduct(await out.bytes(), x.values, w.values, { t, k, n: outs }, bias.values)
      }
    }),
  )

  it.each(types)('of %s, into columns, every number of tokens', (type) =>
    run(async () => {
      for (const t of tokens) {
        const [k, outs, column] = [2 * blockLength(type), 9, 1 + random.int(5)]
        const [x, bias] = [sample(device, random, [t, k]), sample(device, random, [outs])]
        const w = weights(type, [outs, k], { before: 1 })
        const out = new Guarded(device, [t, column + outs])
        device.matmul(x.tensor, w.tensor, { bias: bias.tensor, out: out.tensor, column })
        const own = cut(await out.bytes(), 4 * (column + outs), 4 * column, 4 * outs)
        expectProduct(own, x.values, w.values, { t, k, n: outs }, bias.values)
      }
    }),
  )
})

describe.each(TYPES)(`the tree of %s (seed ${start})`, (type) => {
  it('has the bits of the CPU and of any cut of k, and is the product', async () => {
    for (const [t, outs] of [
      [1, 70],
      [6, 5],
    ] as const) {
      const [block, blocks] = [blockLength(type), 7]
      const k = blocks * block
      const x = random.floats(t * k)
      const w = weights(type, [outs, k], { before: 1 })
      const bias = random.floats(outs)
      const xs = Tensor.from(x, { shape: [t, k], device })
      const out = new Guarded(device, [t, outs])
      device.matmulTree(xs, w.tensor, { block, whole: true, bias: Tensor.from(bias, { device }), out: out.tensor })
      const bytes = await out.bytes()
      expectProduct(bytes, x, w.values, { t, k, n: outs }, bias)
      const onCpu = cpu.matmulTree(Tensor.from(x, { shape: [t, k], device: cpu }), Tensor.fromBytes(w.bytes, [outs, k], type, cpu), {
        block,
        whole: true,
        bias: Tensor.from(bias, { device: cpu }),
      })
      expect(Buffer.compare(await onCpu.bytes(), bytes), 'beside the CPU').toBe(0)

      // The whole tree's left half and right half, from ranks with 4 and 3 blocks, are the sums of its subtrees.
      const parts: Float32Array[] = []
      for (const { start, count } of [
        { start: 0, count: 4 },
        { start: 4, count: 3 },
      ]) {
        const own = cut(new Uint8Array(x.buffer), 4 * k, 4 * start * block, 4 * count * block)
        const size = dtypeSize(type)
        const rows = cut(w.bytes, k * size, start * block * size, count * block * size)
        const part = Tensor.fromBytes(rows, [outs, count * block], type, device)
        const sums = device.matmulTree(Tensor.fromBytes(own, [t, count * block], 'float32', device), part, { block, first: start })
        const data = (await sums.data()) as Float32Array
        for (let n = 0; n < nodesOf({ start, count }).length; n++) parts.push(data.subarray(n * t * outs, (n + 1) * t * outs))
      }
      expect(parts).toHaveLength(3) // blocks 0-3, 4-5, 6
      const [left, middle, right] = parts as [Float32Array, Float32Array, Float32Array]
      const joined = left.map((sum, i) => Math.fround(sum + Math.fround((middle[i] as number) + (right[i] as number))))
      const sum = joined.map((sum, i) => sum + (bias[i % outs] as number))
      expect(Buffer.compare(Buffer.from(sum.buffer), bytes), 'cut in two').toBe(0)
    }
  })
})

describe(`ranks, copies and refusals (seed ${start})`, () => {
  it.each(TYPES)('%s: ranks on slices of one buffer are one dispatch', async (type) => {
    const views = Array.from({ length: 4 }, () => device.view())
    const [k, outs] = [2 * blockLength(type), 5]
    const bytes = views.map(() => randomBlocks(type, [outs, k], 0.02))
    const x = sample(device, random, [2, k])
    const slices = (byteLength: number): ReturnType<typeof device.gpu.pool.allocateSlices> =>
      device.gpu.pool.allocateSlices(views.length, byteLength)
    const ws = slices(outs * k * dtypeSize(type)).map((storage, r) => new Tensor(views[r] as WebGpuDevice, storage, [outs, k], type))
    const ys = slices(2 * outs * 4).map((storage, r) => new Tensor(views[r] as WebGpuDevice, storage, [2, outs], 'float32'))
    ws.forEach((w, r) => void w.setBytes(bytes[r] as Uint8Array))
    await device.sync()
    const before = device.stats.dispatches
    views.forEach((view, r) => void view.matmul(x.tensor, ws[r] as Tensor, { out: ys[r] as Tensor }))
    await device.sync()
    expect(device.stats.dispatches - before).toBe(1)
    for (const [r, y] of ys.entries()) {
      const values = decode(type, bytes[r] as Uint8Array) as Float32Array
      expectProduct(await y.bytes(), x.values, values, { t: 2, k, n: outs })
    }
  })

  it.each(TYPES)('%s: copied as they are', async (type) => {
    const w = weights(type, [3, blockLength(type)], { size: 0, before: 1 })
    const to = Tensor.empty([3, blockLength(type)], { dtype: type, device })
    device.copy(w.tensor, to)
    expect(Buffer.compare(await to.bytes(), w.bytes)).toBe(0)
  })

  it.each(TYPES)('%s: refused where they are no weights, or no whole blocks', (type) => {
    const n = blockLength(type)
    const w = weights(type, [2, n]).tensor
    const x = sample(device, random, [2, n]).tensor
    const row = sample(device, random, [n]).tensor
    const ids = Tensor.from(Uint32Array.of(0), { device })
    const refusals: readonly (readonly [code: string, call: () => unknown])[] = [
      ['ERR_SHAPE', () => Tensor.fromBytes(new Uint8Array(0), [2, n - 4], type, device)],
      ['ERR_SHAPE', () => w.narrow(1, 0, n - 4)],
      ['ERR_SHAPE', () => device.matmul(sample(device, random, [2, n - 4]).tensor, w)],
      ['ERR_SHAPE', () => device.matmulTree(sample(device, random, [2, 2 * n]).tensor, w, { block: 4 })],
      ['ERR_DTYPE', () => device.matmul(w, x)],
      ['ERR_DTYPE', () => device.matmulTree(w, x, { block: 4 })],
      ['ERR_DTYPE', () => device.matmul(x, Tensor.zeros([n, n], { device }), { out: Tensor.empty([2, n], { dtype: type, device }) })],
      ['ERR_DTYPE', () => device.embedding(ids, w, { dtype: type })],
      ['ERR_DTYPE', () => device.cast(w, 'float32')],
      ['ERR_DTYPE', () => device.cast(x, type)],
      ['ERR_DTYPE', () => device.add(w, w)],
      ['ERR_DTYPE', () => device.rmsNorm(x, weights(type, [1, n]).tensor.reshape([n]))],
      ['ERR_DTYPE', () => device.siluMul(w)],
      ['ERR_DTYPE', () => w.set(new Float32Array(2 * n))],
    ]
    expect(() => device.rmsNorm(x, row)).not.toThrow()
    for (const [code, call] of refusals) expect(call, call.toString()).toThrow(expect.objectContaining({ code }))
  })
})
