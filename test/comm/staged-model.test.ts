// The bundled model on CPU ranks, and on CPU and WebGPU ranks together: PyTorch's golden text, equal bits on all ranks, and in tp-invariant mode
// the bits of one rank.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { launchOver } from '../support/over-wire.ts'
import { loadReference } from '../support/reference-llama.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const dir = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const [{ ids: prompt, greedy }] = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')).prompts as [
  { ids: number[]; greedy: number[] },
]
const COUNT = 48

interface Written {
  first: Float32Array
  ids: number[]
  /** All steps' logits. */
  bits: Buffer
}

const write =
  (options: LlamaOptions = {}) =>
  async (context: RankContext): Promise<Written> => {
    const folder = fileFolder(dir)
    const weights = await openWeights(folder)
    using llama = await Llama.load(await readConfig(folder), weights, context, { capacity: prompt.length + COUNT, ...options })
    await weights.close()
    const sampler = new Sampler()
    const steps: Float32Array[] = []
    const ids: number[] = []
    while (ids.length < COUNT) {
      using logits = await llama.forward(ids.length === 0 ? prompt : ids.slice(-1))
      steps.push(await logits.last())
      ids.push(sampler.next(steps.at(-1) as Float32Array))
    }
    const bits = Buffer.concat(steps.map((step) => Buffer.from(step.slice().buffer)))
    return { first: steps[0] as Float32Array, ids, bits }
  }

const expected = loadReference(dir).forward(prompt).at(-1) as Float64Array

it.each([
  { name: 'one cpu rank', ranks: 1, devices: ['cpu'] },
  { name: 'two cpu ranks', ranks: 2, devices: ['cpu'] },
  { name: 'four cpu ranks', ranks: 4, devices: ['cpu'] },
  { name: 'webgpu and cpu', ranks: 2, devices: ['webgpu', 'cpu'] },
  { name: 'two on webgpu, two on cpu', ranks: 4, devices: ['webgpu', 'cpu'] },
])('$name: the reference logits and the golden text, the same bits on every rank', async ({ ranks, devices }) => {
  const written = await launch({ ranks, devices }, write())
  for (const { first, ids, bits } of written) {
    expect(maxAbsDiff(first, expected)).toBeLessThan(1e-4)
    expect(ids).toEqual(greedy.slice(0, COUNT))
    expect(bits.equals((written[0] as Written).bits)).toBe(true)
  }
})

it('tp-invariant: the bits of one cpu rank with two, four and eight, and over a wire', async () => {
  const invariant = write({ deterministic: 'tp-invariant' })
  const [one] = await launch({ ranks: 1, device: 'cpu' }, invariant)
  const { bits, ids } = one as Written
  expect(ids).toEqual(greedy.slice(0, COUNT))
  for (const ranks of [2, 4, 8]) {
    for (const other of await launch({ ranks, device: 'cpu' }, invariant)) expect(other.bits.equals(bits), `${ranks} ranks`).toBe(true)
  }
  using device = await openDevice('cpu')
  for (const ranks of [2, 3]) {
    const options = { devices: Array(ranks).fill(device), timeoutMs: 60_000 }
    for (const other of await launchOver(memoryWires(ranks), options, invariant)) {
      expect(other.bits.equals(bits), `${ranks} ranks over a wire`).toBe(true)
    }
  }
})
