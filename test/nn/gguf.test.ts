// A model in six quantizations by llama.cpp's quantizer, in the blocks of its GGUF files over ranks: the logits and greedy ids of a float64 program.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { testDevice } from '../support/device.ts'
import { runGreedy } from '../support/greedy-run.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const device: WebGpuDevice = await testDevice()
afterAll(() => device.dispose())

const root = join(import.meta.dirname, '..', 'fixtures', 'tiny-gguf')
const { promptIds, files } = JSON.parse(readFileSync(join(root, 'expected.json'), 'utf8')) as {
  promptIds: number[]
  files: Record<string, { lastLogits: number[]; greedyIds: number[] }>
}

describe.each(Object.keys(files))('%s gives what a float64 program gives', (file) => {
  const { lastLogits, greedyIds } = files[file] as (typeof files)[string]

  it.each([1, 2])('with %i ranks', async (ranks) => {
    for (const { first, ids } of await runGreedy(device, join(root, file), promptIds, 40, ranks)) {
      expect(maxAbsDiff(first, lastLogits)).toBeLessThan(1e-4)
      expect(ids).toEqual(greedyIds)
    }
  })
})

it('quantized weights rounded to bfloat16 give nearly the same logits', async () => {
  const { lastLogits } = files['q8_0.gguf'] as (typeof files)[string]
  const [run] = await runGreedy(device, join(root, 'q8_0.gguf'), promptIds, 1, 1, { quantizedAs: 'bfloat16' })
  const off = maxAbsDiff(run?.first as Float32Array, lastLogits)
  expect(off).toBeLessThan(0.1)
  expect(off).toBeGreaterThan(1e-4)
})

it("has the same bits for 1, 2 and 3 ranks in 'tp-invariant' mode, in blocks and as float32", async () => {
  const bits = async (ranks: number, quantizedAs: 'blocks' | 'float32') => {
    const options = { deterministic: 'tp-invariant', quantizedAs } as const
    const runs = await runGreedy(device, join(root, 'q4_k_m.gguf'), promptIds, 1, ranks, options)
    return runs.map(({ first }) => Buffer.from(first.slice().buffer).toString('hex'))
  }
  const all = [...(await bits(1, 'blocks')), ...(await bits(2, 'blocks')), ...(await bits(3, 'blocks')), ...(await bits(2, 'float32'))]
  expect(new Set(all).size).toBe(1)
})
