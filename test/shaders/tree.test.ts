// Products and sums in the order of the tree: against float64, and bit-equal for every cut of k, every number of tokens, one device or two.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { type Span, slotsOf } from '../../runtime/core/tree.ts'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { blockCut, RowParallelLinear } from '../../runtime/nn/linear.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { cutColumns, treeCases } from '../support/cases/tree.ts'
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

treeCases(device)

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
