// Uneven shards: ranks that divide nothing, shares of any size, ranks without heads or without anything. Logits within 1e-4 of the float64
// reference, the text of one rank, ranks bit-equal; models of all families; and nothing is held twice.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama } from '../../runtime/model/llama.ts'
import { formatReport } from '../../runtime/model/report.ts'
import { runModel } from '../../runtime/model/run.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { drawn } from '../support/effort.ts'
import { seed } from '../support/random.ts'
import { loadReference } from '../support/reference-llama.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const bundled = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const models = join(import.meta.dirname, '../fixtures/tiny-models')
const device = await testDevice()
const second = (await openDevice('webgpu')) as WebGpuDevice
afterAll(() => {
  device.dispose()
  second.dispose()
})

interface Written {
  /** The last logits after the prompt. */
  first: Float32Array
  ids: number[]
  /** The last step's logits and hidden state, by their bits. */
  bits: Uint8Array
  bytes: number
  /** Heads of this rank in each layer. */
  heads: number[]
}

/** `count` greedy tokens after a prompt that is fed in two parts. */
async function write(
  dir: string,
  prompt: readonly number[],
  count: number,
  ranks: number,
  { shares, devices = [device] }: { shares?: number[] | undefined; devices?: WebGpuDevice[] } = {},
): Promise<Written[]> {
  const folder = fileFolder(dir)
  return launch({ ranks, devices }, async (context) => {
    const weights = await openWeights(folder)
    using llama = await Llama.load(await readConfig(folder), weights, context, { capacity: prompt.length + count, maxTokens: 7, shares })
    await weights.close()
    const sampler = new Sampler()
    let logits = await llama.forward(prompt)
    const first = await logits.last()
    const ids = [sampler.next(first)]
    while (ids.length < count) {
      logits.dispose()
      logits = await llama.forward(ids.slice(-1))
      ids.push(sampler.next(await logits.last()))
    }
    const bits = Buffer.concat([await logits.tensor.bytes(), await llama.hidden.bytes()])
    logits.dispose()
    const heads = llama.plan.ranks[context.rank]?.layers.map((layer) => layer.heads.count) ?? []
    return { first, ids, bits, bytes: llama.bytes, heads }
  })
}

describe('the bundled model', () => {
  const { prompts } = JSON.parse(readFileSync(join(bundled, 'golden.json'), 'utf8'))
  const { ids: prompt, greedy } = prompts[0] as { ids: number[]; greedy: number[] }
  const expected = loadReference(bundled).forward(prompt).at(-1) as Float64Array

  const plans: [string, number, number[] | undefined][] = [
    ['3 ranks', 3, undefined],
    ['5 ranks, of which in each layer one has no head', 5, undefined],
    ['shares 0.7, 0.2, 0.1', 3, [0.7, 0.2, 0.1]],
    ['a rank that is too slow for a head', 2, [0.95, 0.05]],
    ['ranks that hold nothing', 4, [0, 5, 0, 3]],
    ['one rank that holds all', 3, [0, 1, 0]],
  ]
  const start = seed()
  it.each(drawn(plans, 3, start))(`with %s, on one device and on two (seed ${start})`, async (_, ranks, shares) => {
    for (const devices of [[device], [device, second]]) {
      const written = await write(bundled, prompt, 40, ranks, { shares, devices })
      for (const { first, ids, bits } of written) {
        expect(maxAbsDiff(first, expected)).toBeLessThan(1e-4)
        expect(ids).toEqual(greedy.slice(0, 40))
        expect(Buffer.compare(bits, (written[0] as Written).bits)).toBe(0)
      }
      for (const layer of [0, 1, 2, 3]) expect(written.reduce((n, { heads }) => n + (heads[layer] as number), 0)).toBe(8)
    }
  })

  it('no weight and no cached row is held twice, or for nothing', async () => {
    const [{ bytes: whole }] = (await write(bundled, prompt, 2, 1)) as [Written]
    const written = await write(bundled, prompt, 2, 3, { shares: [0.75, 0.25, 0] })
    const capacity = prompt.length + 2
    const shared = (9 * 256 + capacity * 32) * 4 // norms and the table of rotations, which count for each rank
    const own = written.map(({ bytes }) => bytes - shared)
    expect(own[2]).toBe(0)
    expect(own.reduce((a, b) => a + b, 0)).toBe(whole - shared)
    expect(own[0]).toBeCloseTo(0.75 * (whole - shared), -4)
  })

  it('gives all memory back', async () => {
    const before = device.gpu.pool.liveBuffers
    await write(bundled, prompt, 2, 3, { shares: [3, 1, 0] })
    expect(device.gpu.pool.liveBuffers).toBe(before)
  })

  it('the report tells what each rank holds', async () => {
    const report = await runModel({
      folder: fileFolder(bundled),
      ranks: 3,
      shares: [2, 1, 0],
      devices: [device],
      prompt: 'ROMEO:',
      maxNewTokens: 3,
    })
    expect(report.perToken).toMatchObject({ fused: 9, collectives: 10, submits: 1, maps: 1 })
    const lines = formatReport(report).split('\n')
    expect(lines[1]).toMatch(/^0 .* 5\.5 a layer +2\.8 a layer .* 0-170 /)
    expect(lines[2]).toMatch(/^1 .* 2\.5 a layer +1\.3 a layer .* 171-255 /)
    expect(lines[3]).toMatch(/^2 .*none +none +none +none /)
  })
})

// Heads over kv heads: 8/4, 6/2, 4/1, 8/2, 6/2, 8/4; biases, norms of heads, windows, tied tables. Even shares are in families.test.ts.
it.each(['llama-gqa', 'llama-rope3-tied', 'llama-bias-headdim', 'qwen2', 'qwen3', 'mistral-window'])(
  '%s, 3 ranks with shares 1, 0, 2: what transformers gives',
  async (name) => {
    const expected = JSON.parse(readFileSync(join(models, name, 'expected.json'), 'utf8'))
    const written = await write(join(models, name), expected.promptIds, 20, 3, { shares: [1, 0, 2] })
    for (const { first, ids, bits } of written) {
      expect(maxAbsDiff(first, expected.lastLogits)).toBeLessThan(1e-4)
      expect(ids).toEqual(expected.greedyIds.slice(0, 20))
      expect(Buffer.compare(bits, (written[0] as Written).bits)).toBe(0)
    }
  },
)
