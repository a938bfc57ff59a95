// Llama-family models split over ranks against the float64 reference, transformers' logits and greedy ids, and each other.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { testDevice } from '../support/device.ts'
import { runGreedy } from '../support/greedy-run.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const device: WebGpuDevice = await testDevice()
afterAll(() => device.dispose())

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
    const results = await runGreedy(device, join(root, name), expected.promptIds, 40, ranks)
    for (const { first, ids } of results) {
      expect(maxAbsDiff(first, expected.lastLogits)).toBeLessThan(1e-4)
      expect(ids).toEqual(expected.greedyIds)
    }
  })
})

it("qwen3 has the same bits for 1 and 2 ranks in 'tp-invariant' mode", async () => {
  const { promptIds } = JSON.parse(readFileSync(join(root, 'qwen3', 'expected.json'), 'utf8'))
  const bits = async (ranks: number) => {
    const runs = await runGreedy(device, join(root, 'qwen3'), promptIds, 1, ranks, { deterministic: 'tp-invariant', block: 8 })
    return runs.map(({ first }) => Buffer.from(first.slice().buffer).toString('hex'))
  }
  const [one] = await bits(1)
  expect(new Set([...(await bits(2)), one])).toEqual(new Set([one]))
})
