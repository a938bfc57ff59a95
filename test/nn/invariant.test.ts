// deterministic: 'tp-invariant'. The bundled model's logits have the same bits for 1, 2, 4 and 8 ranks and for uneven shares, on one device or
// two, and whether tokens are fed one by one, in parts or at once; and they are still the model's logits.
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { drawn } from '../support/effort.ts'
import { seed } from '../support/random.ts'
import { loadReference } from '../support/reference-llama.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const dir = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const folder = fileFolder(dir)
const device = await testDevice()
const second = (await openDevice('webgpu')) as WebGpuDevice
afterAll(() => {
  device.dispose()
  second.dispose()
})

const text = 'Now is the winter of our discontent\nMade glorious summer'
const ids = [...Buffer.from(text)]
const hex = (rows: readonly Float32Array[]): string =>
  Buffer.concat(rows.map((row) => Buffer.from(Float32Array.from(row).buffer))).toString('hex')

/** The logits of every position on every rank, the tokens fed in `parts`. */
async function logits(ranks: number, parts: readonly number[], options: LlamaOptions, devices = [device]): Promise<Float32Array[][]> {
  return launch({ ranks, devices }, async (context) => {
    const weights = await openWeights(folder)
    using llama = await Llama.load(await readConfig(folder), weights, context, { capacity: ids.length, ...options })
    await weights.close()
    const rows: Float32Array[] = []
    let at = 0
    for (const count of parts) {
      using step = await llama.forward(ids.slice(at, at + count), { all: true })
      rows.push(...(await step.rows()))
      at += count
    }
    return rows
  })
}

const invariant = { deterministic: 'tp-invariant' } as const
const whole = [ids.length]
const singly = ids.map(() => 1)

describe("deterministic: 'tp-invariant'", async () => {
  const [one] = (await logits(1, whole, invariant)) as [Float32Array[]]

  it('gives the logits of the model', () => {
    const expected = loadReference(dir).forward(ids)
    one.forEach((row, i) => {
      expect(maxAbsDiff(row, expected[i] as Float64Array)).toBeLessThan(1e-4)
    })
  })

  const start = seed()
  it.each(drawn([1, 2, 4, 8], 2, start))(`%i ranks: the same bits at once, in parts, and token by token (seed ${start})`, async (ranks) => {
    for (const parts of [whole, [1, 2, 3, 4, 5, ids.length - 15], singly]) {
      for (const rows of await logits(ranks, parts, invariant)) expect(hex(rows)).toBe(hex(one))
    }
  })

  it.each<[string, number, number[] | undefined]>([
    ['that divide nothing', 3, undefined],
    ['of which one has no head in each layer', 5, undefined],
    ['with shares 0.7, 0.2, 0.1', 3, [0.7, 0.2, 0.1]],
    ['of which two hold nothing', 4, [0, 3, 0, 1]],
  ])('ranks %s: the same bits', async (_, ranks, shares) => {
    for (const [parts, devices] of [
      [[20, ids.length - 20], [device]],
      [whole, [device, second]],
    ] as const) {
      for (const rows of await logits(ranks, parts, { ...invariant, shares }, [...devices])) expect(hex(rows)).toBe(hex(one))
    }
  })

  it('blocks that an even cut would go through: an uneven one does not', async () => {
    const wide = { ...invariant, block: 128 }
    const [expected] = await logits(1, whole, wide)
    for (const rows of await logits(8, whole, wide)) expect(hex(rows)).toBe(hex(expected as Float32Array[]))
    expect(hex(expected as Float32Array[])).not.toBe(hex(one))
  })

  it.each([2, 4])('%i ranks on two devices: the same bits', async (ranks) => {
    for (const rows of await logits(ranks, [20, ids.length - 20], invariant, [device, second])) expect(hex(rows)).toBe(hex(one))
  })

  it('without it the bits depend on the number of ranks: the mode is what does it', async () => {
    const [plainOne] = await logits(1, whole, {})
    const [plainFour] = await logits(4, whole, {})
    expect(hex(plainFour as Float32Array[])).not.toBe(hex(plainOne as Float32Array[]))
  })

  it('refuses blocks that kernels do not read in fours, and unknown modes', async () => {
    await expect(logits(8, whole, { ...invariant, block: 30 })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    await expect(logits(2, whole, { deterministic: 'yes' as 'tp-invariant' })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })
})
