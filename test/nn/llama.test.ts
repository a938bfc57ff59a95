// Llama-family models split over ranks against the float64 reference, transformers' logits and greedy ids, and each other.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama } from '../../runtime/model/llama.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const device: WebGpuDevice = await testDevice()
afterAll(() => device.dispose())

interface Run {
  first: Float32Array
  ids: number[]
  margin: number
}

/** The prompt's last logits and `count` greedy ids, as every rank sees them. */
async function run(dir: string, prompt: readonly number[], count: number, ranks: number): Promise<Run[]> {
  const folder = fileFolder(dir)
  const config = await readConfig(folder)
  return launch({ ranks, devices: [device] }, async ({ comm, device }) => {
    const weights = await openWeights(folder)
    using llama = await Llama.load(config, weights, { comm, device }, { capacity: prompt.length + count })
    await weights.close()
    const sampler = new Sampler()
    let logits = await (await llama.forward(prompt)).last()
    const first = logits
    const ids: number[] = []
    for (let i = 0; i < count; i++) {
      ids.push(sampler.next(logits))
      if (i + 1 < count) logits = await (await llama.forward([ids.at(-1) as number])).last()
    }
    return { first, ids, margin: 0 }
  })
}

const root = join(import.meta.dirname, '..', 'fixtures', 'tiny-models')
const cases: [string, number[]][] = [
  ['llama-gqa', [1, 2, 4, 8]],
  ['llama-rope3-tied', [1, 2]],
  ['llama-bias-headdim', [1, 2, 4]],
  ['qwen2', [1, 2, 4, 8]],
  ['qwen3', [1, 2]],
  ['mistral-window', [1, 2, 4, 8]],
]

describe.each(cases)('%s gives what transformers gives', (name, sizes) => {
  const expected = JSON.parse(readFileSync(join(root, name, 'expected.json'), 'utf8'))
  it.each(sizes)('with %i ranks', async (ranks) => {
    const results = await run(join(root, name), expected.promptIds, 40, ranks)
    for (const { first, ids } of results) {
      expect(maxAbsDiff(first, expected.lastLogits)).toBeLessThan(1e-4)
      expect(ids).toEqual(expected.greedyIds)
    }
  })
})
