// Parallel layers over 1 to 4 ranks, in equal parts and in parts of any size, against the whole layer in float64.
import { afterAll, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import { type DType, dtypeSize, encode, isBlockDType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { blockCut, ColumnParallelLinear, RowParallelLinear } from '../../runtime/nn/linear.ts'
import { ParallelMlp } from '../../runtime/nn/mlp.ts'
import { VocabParallelEmbedding, VocabParallelHead } from '../../runtime/nn/vocab.ts'
import { Workspace } from '../../runtime/nn/workspace.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const start = seed()
const random = new Random(start)
const tokens = 5
const hidden = 24
const columns = 36

/** Rows [start, start + count) of a matrix [rows, width]. */
function rows(matrix: Float32Array, width: number, start: number, count: number): Float32Array {
  return matrix.slice(start * width, (start + count) * width)
}

/** Columns [start, start + count) of a matrix [rows, width]. */
function cut(matrix: Float32Array, width: number, start: number, count: number): Float32Array {
  return Float32Array.from(
    { length: (matrix.length / width) * count },
    (_, i) => matrix[Math.floor(i / count) * width + start + (i % count)] as number,
  )
}

async function onRanks(
  ranks: number,
  main: (context: { rank: number; comm: Communicator; device: Device }) => Promise<void>,
): Promise<void> {
  await launch({ ranks, devices: [device] }, main)
}

describe.each([1, 2, 3, 4])(`with %i ranks (seed ${start})`, (ranks) => {
  const part = columns / ranks

  it('column-parallel, then row-parallel, is the two layers', async () => {
    const x = random.floats(tokens * hidden)
    const up = random.floats(columns * hidden)
    const upBias = random.floats(columns)
    const down = random.floats(hidden * columns)
    const downBias = random.floats(hidden)
    const residual = random.floats(tokens * hidden)
    const gamma = random.floats(hidden)
    const middle = reference.matmul(x, up, { t: tokens, k: hidden, n: columns }, upBias)
    const sum = reference.matmul(middle, down, { t: tokens, k: columns, n: hidden })
    const normed = reference.allReduceResidualBiasRmsNorm(
      { ranks: [sum], residual, bias: downBias, gamma },
      { t: tokens, h: hidden, eps: 1e-6 },
    )
    await onRanks(ranks, async ({ rank, comm, device }) => {
      const tensor = (data: Float32Array, shape: number[]): Tensor => Tensor.from(data, { shape, device })
      const column = new ColumnParallelLinear(
        device,
        tensor(rows(up, hidden, rank * part, part), [part, hidden]),
        tensor(rows(upBias, 1, rank * part, part), [part]),
      )
      const row = new RowParallelLinear(
        comm,
        device,
        tensor(cut(down, columns, rank * part, part), [hidden, part]),
        tensor(downBias, [hidden]),
      )
      const own = column.forward(tensor(x, [tokens, hidden]))
      reference.expectClose((await own.data()) as Float32Array, cut(Float32Array.from(middle), columns, rank * part, part), { abs: 1e-4 })
      const partial = row.forward(own)
      reference.expectClose((await (await partial.sum()).data()) as Float32Array, sum, { abs: 1e-3 })
      const stream = tensor(residual, [tokens, hidden])
      const out = await partial.addNorm(stream, { weight: tensor(gamma, [hidden]), eps: 1e-6 })
      reference.expectClose((await out.data()) as Float32Array, normed.out, { abs: 1e-4 })
      reference.expectClose((await stream.data()) as Float32Array, normed.residual, { abs: 1e-3 })
    })
  })

  it('the gated MLP is the whole MLP', async () => {
    const x = random.floats(tokens * hidden)
    const [gate, up] = [random.floats(columns * hidden), random.floats(columns * hidden)]
    const down = random.floats(hidden * columns)
    const both = Float32Array.from([...gate, ...up])
    const gateUp = reference.matmul(x, both, { t: tokens, k: hidden, n: 2 * columns })
    const expected = reference.matmul(reference.siluMul(gateUp, { t: tokens, i: columns }), down, { t: tokens, k: columns, n: hidden })
    await onRanks(ranks, async ({ rank, comm, device }) => {
      const tensor = (data: Float32Array, shape: number[]): Tensor => Tensor.from(data, { shape, device })
      const own = Float32Array.from([...rows(gate, hidden, rank * part, part), ...rows(up, hidden, rank * part, part)])
      const mlp = new ParallelMlp(
        device,
        new ColumnParallelLinear(device, tensor(own, [2 * part, hidden])),
        new RowParallelLinear(comm, device, tensor(cut(down, columns, rank * part, part), [hidden, part])),
      )
      using workspace = await Workspace.create(comm, 8, {
        gateUp: { width: 2 * part },
        activated: { width: part },
        partial: { width: hidden },
      })
      const partial = mlp.forward(tensor(x, [tokens, hidden]), workspace.rows(tokens))
      reference.expectClose((await (await partial.sum()).data()) as Float32Array, expected, { abs: 5e-3 })
    })
  })

  it('embedding and head, split over a vocabulary that does not divide', async () => {
    const vocab = 29
    const share = Math.ceil(vocab / ranks)
    const table = random.floats(vocab * hidden)
    const ids = [0, 28, 7, 7, 15]
    const embedded = reference.embedding(ids, table, { vocab, h: hidden })
    const logits = reference.matmul(embedded, table, { t: tokens, k: hidden, n: vocab })
    await onRanks(ranks, async ({ rank, comm, device }) => {
      const shard = new Float32Array(share * hidden)
      shard.set(table.subarray(rank * share * hidden, Math.min((rank + 1) * share, vocab) * hidden))
      const weight = Tensor.from(shard, { shape: [share, hidden], device })
      const embedding = new VocabParallelEmbedding(comm, device, weight, rank * share)
      const x = await embedding.forward(Tensor.from(Uint32Array.from(ids), { device })).sum()
      reference.expectClose((await x.data()) as Float32Array, embedded, { abs: 1e-6 })
      const all = await new VocabParallelHead(comm, device, weight).forward(x)
      expect(all.shape).toEqual([tokens, share * ranks])
      reference.expectClose(cut((await all.data()) as Float32Array, share * ranks, 0, vocab), logits, { abs: 1e-4 })
    })
  })
})

describe(`with shards of any size, or none (seed ${start})`, () => {
  /** Where each of `counts` begins. */
  const startsOf = (counts: readonly number[]): number[] => counts.map((_, rank) => counts.slice(0, rank).reduce((a, b) => a + b, 0))

  it.each([[[20, 0, 16]], [[0, 36]], [[3, 1, 32, 0]]])('column-parallel, then row-parallel, in parts of %j', async (counts) => {
    const starts = startsOf(counts)
    const x = random.floats(tokens * hidden)
    const [up, upBias] = [random.floats(columns * hidden), random.floats(columns)]
    const down = random.floats(hidden * columns)
    const middle = reference.matmul(x, up, { t: tokens, k: hidden, n: columns }, upBias)
    const sum = reference.matmul(middle, down, { t: tokens, k: columns, n: hidden })
    await onRanks(counts.length, async ({ rank, comm, device }) => {
      const [at, part] = [starts[rank] as number, counts[rank] as number]
      const tensor = (data: Float32Array, shape: number[]): Tensor => Tensor.from(data, { shape, device })
      const column = new ColumnParallelLinear(
        device,
        tensor(rows(up, hidden, at, part), [part, hidden]),
        tensor(rows(upBias, 1, at, part), [part]),
      )
      const row = new RowParallelLinear(comm, device, tensor(cut(down, columns, at, part), [hidden, part]))
      const own = column.forward(tensor(x, [tokens, hidden]))
      expect(own.shape).toEqual([tokens, part])
      const dirty = await comm.allocate([tokens, hidden])
      dirty.set(random.floats(tokens * hidden))
      for (const out of [undefined, dirty]) {
        reference.expectClose((await (await row.forward(own, out).sum()).data()) as Float32Array, sum, { abs: 1e-3 })
      }
    })
  })

  it.each([[[0, 20, 9]], [[29, 0]]])('embedding and head in parts of %j', async (counts) => {
    const starts = startsOf(counts)
    const vocab = 29
    const table = random.floats(vocab * hidden)
    const ids = [0, 28, 7, 7, 15]
    const embedded = reference.embedding(ids, table, { vocab, h: hidden })
    const logits = reference.matmul(embedded, table, { t: tokens, k: hidden, n: vocab })
    await onRanks(counts.length, async ({ rank, comm, device }) => {
      const [at, part] = [starts[rank] as number, counts[rank] as number]
      const weight = Tensor.from(rows(table, hidden, at, part), { shape: [part, hidden], device })
      const embedding = new VocabParallelEmbedding(comm, device, weight, at)
      const x = await embedding.forward(Tensor.from(Uint32Array.from(ids), { device })).sum()
      reference.expectClose((await x.data()) as Float32Array, embedded, { abs: 1e-6 })
      const all = await new VocabParallelHead(comm, device, weight).forward(x)
      expect(all.shape).toEqual([tokens, vocab])
      reference.expectClose((await all.data()) as Float32Array, logits, { abs: 1e-4 })
    })
  })

  it('blocks are cut anywhere between two of them, also into nothing', () => {
    const spans = (counts: readonly number[]) => startsOf(counts).map((start, rank) => ({ start, count: counts[rank] as number }))
    expect(blockCut(spans([64, 0, 36]), 32).spans).toEqual(spans([2, 0, 2]))
    expect(blockCut(spans([0, 100, 0]), 32).spans).toEqual(spans([0, 4, 0]))
    expect(() => blockCut(spans([50, 50]), 32)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    expect(() => blockCut(spans([64, 30, 6]), 32)).toThrow(/rank 1 has 64 to 94/)
  })
})

describe(`parts of several types (seed ${start})`, () => {
  const k = 256
  /** Random blocks; the exponents of scales are kept small, so that none is infinite. */
  const raw = (dtype: DType, outs: number): Uint8Array => {
    if (!isBlockDType(dtype)) return encode(dtype, random.floats(outs * k))
    return Uint8Array.from({ length: outs * k * dtypeSize(dtype) }, () => random.int(256) & 0x2f)
  }

  it.each<['cpu' | 'webgpu', number | undefined]>([
    ['webgpu', undefined],
    ['webgpu', 32],
    ['cpu', undefined],
    ['cpu', 32],
  ])('on %s, block %s: each product in its columns, none of it for a part without rows', async (kind, block) => {
    const on = kind === 'cpu' ? await openDevice('cpu') : device
    const types: [DType, number][] = [
      ['q4_k', 3],
      ['float32', 0],
      ['q6_k', 5],
      ['bfloat16', 2],
      ['q8_0', 7],
    ]
    const parts = types.map(([dtype, outs]) => Tensor.fromBytes(raw(dtype, outs), [outs, k], dtype, on))
    const whole = Float32Array.from((await Promise.all(parts.map((part) => part.data()))).flatMap((data) => [...(data as Float32Array)]))
    const bias = random.floats(17)
    const layer = new ColumnParallelLinear(on, parts, Tensor.from(bias, { device: on }), { block })
    for (const rows of [1, tokens]) {
      const x = random.floats(rows * k)
      const expected = reference.matmul(x, whole, { t: rows, k, n: 17 }, bias)
      const input = Tensor.from(x, { shape: [rows, k], device: on })
      for (const out of [undefined, Tensor.full([rows, 17], Number.NaN, { device: on })]) {
        const y = layer.forward(input, out)
        expect(y.shape).toEqual([rows, 17])
        const largest = Math.max(...expected.map(Math.abs))
        reference.expectClose((await y.data()) as Float32Array, expected, { abs: 1e-5 * largest })
      }
    }
    if (kind === 'cpu') on.dispose()
  })

  it('need a bias of all their outs', () => {
    const parts = [Tensor.zeros([3, k], { device }), Tensor.zeros([2, k], { device })]
    expect(() => new ColumnParallelLinear(device, parts, Tensor.zeros([3], { device }))).toThrow(/bias \[5\]/)
  })
})

it('refuses weights that are no matrices and biases that do not fit', () => {
  const vector = Tensor.zeros([4], { device })
  const matrix = Tensor.zeros([3, 4], { device })
  expect(() => new ColumnParallelLinear(device, vector)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
  expect(() => new ColumnParallelLinear(device, matrix, vector)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
})
