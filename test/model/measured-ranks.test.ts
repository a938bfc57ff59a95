// Measured ranks: speeds that tell a slow rank from a fast one, figures that make sense, and a plan that says how long a token takes.
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { LanguageModel, readConfig } from '../../runtime/model/generate.ts'
import { type MeasuredRanks, measureRanks } from '../../runtime/model/measure.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { slowed } from '../support/slowed.ts'

const gguf = join(import.meta.dirname, '../fixtures/tiny-gguf/q4_k_m.gguf')
const bundled = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const devices = [await openDevice('cpu'), await openDevice('cpu')]
afterAll(() => {
  for (const device of devices) device.dispose()
})

async function measured(path: string, slow?: number): Promise<MeasuredRanks> {
  const folder = fileFolder(path)
  const results = await launch({ ranks: 2, devices }, async ({ rank, comm, device }) => {
    const weights = await openWeights(folder)
    const context = { comm, device: rank === slow ? slowed(device, 100) : device }
    const result = await measureRanks(await readConfig(folder), weights, context)
    expect(weights.bytesRead, 'nothing but headers').toBe(0)
    await weights.close()
    return result
  })
  for (const result of results) expect(result, 'alike on all ranks').toEqual(results[0])
  return results[0] as MeasuredRanks
}

it('a rank that computes a hundred times as much is slower, by its weights and by its share', async () => {
  const { shares, speeds, collectiveSeconds } = await measured(bundled, 1)
  expect(shares[0]).toBe(1)
  expect(shares[1]).toBeLessThanOrEqual(0.5)
  expect(speeds[1]?.bytesPerSecond).toBeLessThan((speeds[0]?.bytesPerSecond as number) / 2)
  for (const { bytesPerSecond, overhead } of speeds) {
    expect(bytesPerSecond).toBeGreaterThan(1e6)
    expect(overhead).toBeGreaterThanOrEqual(0)
    expect(overhead).toBeLessThan(1)
  }
  expect(collectiveSeconds).toBeGreaterThan(0)
  expect(collectiveSeconds).toBeLessThan(10)
})

it('weights in blocks are measured as blocks', async () => {
  const { shares, speeds } = await measured(gguf)
  expect(Math.max(...shares)).toBe(1)
  expect(speeds).toHaveLength(2)
  for (const { bytesPerSecond } of speeds) expect(bytesPerSecond).toBeGreaterThan(1e5)
})

it('a plan by measured speeds says how long a token takes, and no memory is kept', async () => {
  const live = devices.map((device) => (device as CpuDevice).memory.liveBlocks)
  const [plan] = await launch({ ranks: 2, devices }, async (context) => {
    using model = await LanguageModel.load(fileFolder(bundled), context, { capacity: 32, shares: 'measured' })
    const { tokenSeconds } = model.llama.plan
    return { tokenSeconds, text: model.llama.plan.explain() }
  })
  expect(plan?.tokenSeconds).toBeGreaterThan(0)
  expect(plan?.text).toMatch(/^rank +device +heads +kv heads +mlp columns +vocabulary +memory +a token +asked +achieved\n/)
  expect(plan?.text).toMatch(/\nA token: [\d.]+ ms expected, [\d.]+ ms of it in collectives\n$/)
  expect(devices.map((device) => (device as CpuDevice).memory.liveBlocks)).toEqual(live)
})
