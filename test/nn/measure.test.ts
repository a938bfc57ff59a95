// Measured shares: a rank that computes everything several times over gets less, ranks on one device the same, and the text stays the same.
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { LanguageModel, readConfig } from '../../runtime/model/generate.ts'
import { measureShares } from '../../runtime/model/measure.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { slowed } from '../support/slowed.ts'

const folder = fileFolder(join(import.meta.dirname, '../../examples/models/tiny-shakespeare'))
const device = await testDevice()
const second = (await openDevice('webgpu')) as WebGpuDevice
afterAll(() => {
  device.dispose()
  second.dispose()
})

async function measured(ranks: number, slow: number | undefined, devices: WebGpuDevice[]): Promise<number[]> {
  const results = await launch({ ranks, devices }, async ({ rank, comm, device }) => {
    const weights = await openWeights(folder)
    const context = { comm, device: rank === slow ? slowed(device, 10) : device }
    const shares = await measureShares(await readConfig(folder), weights, context)
    expect(weights.bytesRead, 'nothing but headers').toBe(0)
    await weights.close()
    return shares
  })
  for (const shares of results) expect(shares, 'alike on all ranks').toEqual(results[0])
  return results[0] as number[]
}

describe('measured shares', () => {
  it('of a slow rank are smaller', async () => {
    const shares = await measured(2, 1, [device, second])
    expect(shares[0]).toBe(1)
    expect(shares[1]).toBeLessThanOrEqual(0.5)
  })

  it('of ranks on one device are the same, and together those of the device', async () => {
    expect(await measured(3, undefined, [device])).toEqual([1, 1, 1])
    const [one, two, three] = (await measured(3, 2, [device, device, second])) as [number, number, number]
    expect([one, two]).toEqual([1, 1])
    expect(three).toBeLessThanOrEqual(0.75) // ten times slower than twice as much
  })

  it('serve to load a model, and all memory but the model is given back', async () => {
    const before = device.gpu.pool.liveBuffers
    const texts = await launch({ ranks: 3, devices: [device] }, async (context) => {
      using model = await LanguageModel.load(folder, context, { capacity: 32, shares: 'measured' })
      expect(model.llama.plan.shares.reduce((a, b) => a + b, 0)).toBeCloseTo(1)
      let text = ''
      for await (const token of model.generate('ROMEO:', { maxNewTokens: 10 })) text += token.text
      return text
    })
    const [expected] = await launch({ ranks: 1, devices: [device] }, async (context) => {
      using model = await LanguageModel.load(folder, context, { capacity: 32 })
      let text = ''
      for await (const token of model.generate('ROMEO:', { maxNewTokens: 10 })) text += token.text
      return text
    })
    for (const text of texts) expect(text).toBe(expected)
    expect(device.gpu.pool.liveBuffers).toBe(before)
  })
})
