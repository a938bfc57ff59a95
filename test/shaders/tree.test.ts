// Products and sums in the order of the tree: against float64, and bit-equal for every cut of k, every number of tokens, one device or two.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { nodesOf, type Span, slotsOf } from '../../runtime/core/tree.ts'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { blockCut, RowParallelLinear } from '../../runtime/nn/linear.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-ops.ts'

const device = await testDevice()
const second = (await openDevice('webgpu')) as WebGpuDevice
afterAll(() => {
  device.dispose()
  second.dispose()
})

const start = seed()
const random = new Random(start)
const block = 32

function cutColumns(matrix: Float32Array, width: number, { start, count }: Span): Float32Array {
  return Float32Array.from(
    { length: (matrix.length / width) * count },
    (_, i) => matrix[Math.floor(i / count) * width + start + (i % count)] as number,
  )
}

function spansOf(counts: readonly number[]): Span[] {
  let at = 0
  return counts.map((count) => {
    at += count
    return { start: at - count, count }
  })
}

const bitsOf = async (tensor: Tensor): Promise<string> => Buffer.from(await tensor.bytes()).toString('hex')

/** The sum over ranks of x w^T, k cut at `inputs`; the bits on every rank. */
async function rowParallel(
  x: Float32Array,
  w: Float32Array,
  { tokens, k, outs }: { tokens: number; k: number; outs: number },
  inputs: readonly Span[],
  devices: readonly WebGpuDevice[] = [device],
): Promise<{ bits: string; data: Float32Array }[]> {
  const cut = blockCut(inputs, block)
  return launch({ ranks: inputs.length, devices }, async ({ rank, comm, device }) => {
    const own = inputs[rank] as Span
    const weight = Tensor.from(cutColumns(w, k, own), { shape: [outs, own.count], device })
    const layer = new RowParallelLinear(comm, device, weight, undefined, cut)
    const partial = layer.forward(Tensor.from(cutColumns(x, k, own), { shape: [tokens, own.count], device }))
    const sum = await partial.sum(outs)
    return { bits: await bitsOf(sum), data: (await sum.data()) as Float32Array }
  })
}

describe(`matmulTree (seed ${start})`, () => {
  it.each([
    [1, 4, 1],
    [1, 256, 65],
    [3, 100, 5],
    [7, 224, 130],
    [9, 1000, 33],
  ])('is the product: %i tokens, k %i, %i outputs', async (tokens, k, outs) => {
    const [x, w, bias] = [random.floats(tokens * k), random.floats(outs * k), random.floats(outs)]
    const tensors = { x: Tensor.from(x, { shape: [tokens, k], device }), w: Tensor.from(w, { shape: [outs, k], device }) }
    const y = device.matmulTree(tensors.x, tensors.w, { block, whole: true, bias: Tensor.from(bias, { device }) })
    reference.expectClose((await y.data()) as Float32Array, reference.matmul(x, w, { t: tokens, k, n: outs }, bias), { abs: 2e-4 })
  })

  it('a row has the same bits among 1, 4 and 9 tokens, in every weight type', async () => {
    const [k, outs] = [160, 40]
    const x = random.floats(9 * k)
    const w = random.floats(outs * k)
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      const weight = Tensor.from(w, { shape: [outs, k], dtype, device })
      const rows = async (tokens: number): Promise<string> => {
        const y = device.matmulTree(Tensor.from(x.slice(0, tokens * k), { shape: [tokens, k], device }), weight, { block, whole: true })
        return (await bitsOf(y)).slice(0, outs * 8)
      }
      expect(new Set([await rows(1), await rows(4), await rows(9)]).size).toBe(1)
    }
  })

  it("gives this rank's whole subtrees, and leaves the rest of a larger out alone", async () => {
    const [tokens, k, outs] = [2, 7 * block, 8]
    const x = random.floats(tokens * k)
    const w = random.floats(outs * k)
    const nodes = nodesOf({ start: 1, count: 7 }) // blocks 1, 2-3, 4-7
    const out = Tensor.full([4, tokens, outs], Number.NaN, { device })
    device.matmulTree(Tensor.from(x, { shape: [tokens, k], device }), Tensor.from(w, { shape: [outs, k], device }), {
      block,
      first: 1,
      out,
    })
    const sums = (await out.data()) as Float32Array
    for (const [i, { start, level }] of nodes.entries()) {
      const span = { start: (start - 1) * block, count: 2 ** level * block }
      const part = reference.matmul(cutColumns(x, k, span), cutColumns(w, k, span), { t: tokens, k: span.count, n: outs })
      reference.expectClose(sums.slice(i * tokens * outs, (i + 1) * tokens * outs), part, { abs: 1e-4 })
    }
    expect([...sums.slice(3 * tokens * outs)].every(Number.isNaN)).toBe(true)
  })

  it.each([
    ['a block that is no multiple of 4', { block: 6 }, 'ERR_ARGUMENT'],
    ['a bias on part of a sum', { block, bias: Tensor.zeros([4], { device }) }, 'ERR_ARGUMENT'],
    ['an out that is too small', { block, out: Tensor.zeros([2], { device }) }, 'ERR_SHAPE'],
  ])('refuses %s', (_, options, code) => {
    const [x, w] = [Tensor.zeros([2, 64], { device }), Tensor.zeros([4, 64], { device })]
    expect(() => device.matmulTree(x, w, options)).toThrow(expect.objectContaining({ code }))
  })
})

describe(`a row-parallel product has the same bits for every cut (seed ${start})`, () => {
  const dims = { tokens: 3, k: 14 * block, outs: 12 }
  const x = random.floats(dims.tokens * dims.k)
  const w = random.floats(dims.outs * dims.k)
  const expected = reference.matmul(x, w, { t: dims.tokens, k: dims.k, n: dims.outs })
  const cuts = [
    [14],
    [7, 7],
    [8, 6],
    [1, 13],
    [3, 4, 7],
    [5, 0, 9],
    [1, 1, 1, 1, 10],
    [2, 2, 2, 2, 2, 2, 2],
    Array.from({ length: 14 }, () => 1),
  ]

  it.each(cuts.map((counts) => [counts]))('%j blocks', async (counts) => {
    const inputs = spansOf(counts).map(({ start, count }) => ({ start: start * block, count: count * block }))
    const [one] = await rowParallel(x, w, dims, [{ start: 0, count: dims.k }])
    reference.expectClose(one?.data as Float32Array, expected, { abs: 1e-3 })
    const ranks = await rowParallel(x, w, dims, inputs)
    for (const { bits } of ranks) expect(bits).toBe(one?.bits)
    if (counts.length > 1) for (const { bits } of await rowParallel(x, w, dims, inputs, [device, second])) expect(bits).toBe(one?.bits)
  })

  it('and a plain sum of partials has not: the tree is what does it', async () => {
    const plain = async (ranks: number): Promise<string> => {
      const part = dims.k / ranks
      const [bits] = await launch({ ranks, devices: [device] }, async ({ rank, comm, device }) => {
        const span = { start: rank * part, count: part }
        const weight = Tensor.from(cutColumns(w, dims.k, span), { shape: [dims.outs, part], device })
        const layer = new RowParallelLinear(comm, device, weight)
        return bitsOf(await layer.forward(Tensor.from(cutColumns(x, dims.k, span), { shape: [dims.tokens, part], device })).sum())
      })
      return bits as string
    }
    expect(new Set([await plain(1), await plain(2), await plain(7)]).size).toBeGreaterThan(1)
  })

  it('refuses parts that begin inside a block', () => {
    expect(() => blockCut(spansOf([40, 24]), block)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT' }))
    expect(slotsOf(blockCut(spansOf([32, 40]), block).spans)).toBe(2) // blocks 1 and 2 are no subtree
  })
})
