// A model in six quantizations by llama.cpp's quantizer, its weights in blocks on CPU ranks: the logits and greedy ids of a float64 program,
// the memory of the blocks, and the same bits however the blocks are cut over ranks.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { matrixName, matrixTypes } from '../../runtime/model/matrix-types.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights, type WeightsOptions } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const device = await openDevice('cpu')
afterAll(() => device.dispose())

const root = join(import.meta.dirname, '..', 'fixtures', 'tiny-gguf')
const { promptIds, files } = JSON.parse(readFileSync(join(root, 'expected.json'), 'utf8')) as {
  promptIds: number[]
  files: Record<string, { lastLogits: number[]; greedyIds: number[] }>
}
const names = Object.keys(files)

interface Written {
  /** Logits after the prompt, and after the last token. */
  first: Float32Array
  last: Float32Array
  ids: number[]
  bytes: number
  planned: number
  heads: number[]
  columns: number[]
}

async function write(file: string, ranks: number, count: number, options: LlamaOptions & WeightsOptions = {}): Promise<Written[]> {
  const folder = fileFolder(join(root, file))
  const config = await readConfig(folder)
  return launch({ ranks, devices: [device] }, async ({ rank, comm, device }) => {
    const weights = await openWeights(folder, options)
    const capacity = promptIds.length + count
    using llama = await Llama.load(config, weights, { comm, device }, { capacity, maxTokens: 7, ...options })
    await weights.close()
    const sampler = new Sampler()
    const next = async (ids: readonly number[]): Promise<Float32Array> => {
      using logits = await llama.forward(ids)
      return logits.last()
    }
    const first = await next(promptIds)
    let last = first
    const ids: number[] = []
    while (ids.length < count) {
      ids.push(sampler.next(last))
      last = await next(ids.slice(-1))
    }
    const { bytes, plan } = llama
    const held = (of: 'heads' | 'mlp'): number[] => plan.ranks[rank]?.layers.map((layer) => layer[of].count) ?? []
    return { first, last, ids, bytes, planned: plan.bytes(rank), heads: held('heads'), columns: held('mlp') }
  })
}

const bitsOf = (...logits: Float32Array[]): string => logits.map(({ buffer }) => Buffer.from(buffer.slice(0)).toString('hex')).join()

describe.each(names)('%s gives what a float64 program gives', (file) => {
  const { lastLogits, greedyIds } = files[file] as (typeof files)[string]

  it.each<[number, number[] | undefined]>([
    [1, undefined],
    [2, undefined],
    [3, undefined],
    [4, undefined],
    [5, undefined],
    [3, [0.7, 0.2, 0.1]],
    [2, [0, 1]],
  ])('with %i ranks, shares %j', async (ranks, shares) => {
    const written = await write(file, ranks, 40, { shares })
    for (const { first, last, ids } of written) {
      expect(maxAbsDiff(first, lastLogits)).toBeLessThan(1e-4)
      expect(ids).toEqual(greedyIds)
      expect(bitsOf(first, last)).toBe(bitsOf((written[0] as Written).first, (written[0] as Written).last))
    }
  })
})

describe('memory', () => {
  it.each(names)('of %s is that of its blocks, held once, as the plan says', async (file) => {
    const folder = fileFolder(join(root, file))
    const weights = await openWeights(folder)
    let stored = 0
    for (const name of weights.names()) {
      const { begin, end, shape } = await weights.info(name)
      if (shape.length === 2) stored += end - begin
    }
    await weights.close()
    const cache = (promptIds.length + 2) * 2 * (2 * 2 * 64) * 4
    const shared = (5 * 256 + (promptIds.length + 2) * 64) * 4 // norms and the table of rotations, which count for each rank
    for (const [ranks, shares] of [[1], [2], [3, [0.7, 0.2, 0.1]]] as const) {
      const written = await write(file, ranks, 2, { shares })
      for (const { bytes, planned } of written) expect(bytes).toBe(planned)
      expect(written.reduce((n, { bytes }) => n + bytes - shared, 0)).toBe(stored + cache)
    }
  })

  it('of q4_k_m is less than a fifth of that of float32', async () => {
    const [blocks] = (await write('q4_k_m.gguf', 1, 1)) as [Written]
    const [floats] = (await write('q4_k_m.gguf', 1, 1, { quantizedAs: 'float32' })) as [Written]
    expect(floats.bytes / blocks.bytes).toBeGreaterThan(5)
    expect(maxAbsDiff(floats.first, blocks.first)).toBeLessThan(1e-4)
  })
})

describe('blocks are not cut', () => {
  it('heads that share a block of Q4_K stay on one rank, another in each layer; the MLP has a block for each of two', async () => {
    const written = await write('q4_k_m.gguf', 2, 1)
    for (const layer of [0, 1]) expect(written.map(({ heads }) => heads[layer] as number).sort()).toEqual([0, 4])
    expect(new Set(written.map(({ heads }) => String([...heads].sort())))).toEqual(new Set(['0,4']))
    for (const { columns } of written) expect(columns).toEqual([256, 256])
  })

  it('of Q8_0 are small enough to halve all', async () => {
    for (const { heads, columns } of await write('q8_0.gguf', 2, 1)) {
      expect(heads).toEqual([2, 2])
      expect(columns).toEqual([256, 256])
    }
  })
})

describe("in 'tp-invariant' mode", () => {
  const runs: [number, number[] | undefined][] = [
    [1, undefined],
    [2, undefined],
    [3, undefined],
    [4, undefined],
    [5, undefined],
    [3, [0.7, 0.2, 0.1]],
  ]

  it.each(names)('%s has the same bits for 1 to 5 ranks, and as float32', async (file) => {
    const options: LlamaOptions = { deterministic: 'tp-invariant' }
    const bits = new Set<string>()
    for (const [ranks, shares] of runs) {
      for (const { first, last } of await write(file, ranks, 3, { ...options, shares })) bits.add(bitsOf(first, last))
    }
    for (const { first, last } of await write(file, 2, 3, { ...options, quantizedAs: 'float32' })) bits.add(bitsOf(first, last))
    expect(bits.size).toBe(1)
  })

  it('blocks of the tree that are no blocks of the file, nor the other way round', async () => {
    const bits = new Set<string>()
    for (const ranks of [1, 2, 3]) {
      for (const { first } of await write('q4_0.gguf', ranks, 1, { deterministic: 'tp-invariant', block: 48 })) bits.add(bitsOf(first))
    }
    expect(bits.size).toBe(1)
  })
})

it('ranks that keep the weights as different types are refused', async () => {
  const folder = fileFolder(join(root, 'q8_0.gguf'))
  const config = await readConfig(folder)
  const load = launch({ ranks: 2, devices: [device] }, async ({ rank, comm, device }) => {
    const weights = await openWeights(folder, { quantizedAs: rank === 0 ? 'blocks' : 'float32' })
    await Llama.load(config, weights, { comm, device }).finally(() => weights.close())
  })
  await expect(load).rejects.toMatchObject({ code: 'ERR_COLLECTIVE_MISMATCH', message: expect.stringContaining('quantizedAs') })
})

it('the types of a file, as a plan takes them', async () => {
  const folder = fileFolder(join(root, 'q4_k_m.gguf'))
  const weights = await openWeights(folder)
  const types = await matrixTypes(await readConfig(folder), weights)
  expect(types.layers.map(({ q, v, down }) => [q, v, down])).toEqual([
    ['q4_k', 'q4_k', 'q4_k'],
    ['q4_k', 'q6_k', 'q6_k'],
  ])
  expect([types.embedding, types.head]).toEqual(['q4_k', 'q6_k'])
  expect((await weights.info(matrixName(1, 'v'))).dtype).toBe('q6_k')
  await weights.close()
})
