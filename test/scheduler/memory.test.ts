// What ranks may take of memory: free memory is shared by the ranks of a machine, numbers stand as they are, and a plan keeps within both.
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LanguageModel } from '../../runtime/model/generate.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { type MemoryGiven, rankMemory } from '../../runtime/scheduler/memory.ts'

const bundled = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')

/** As each rank sees it. */
function memory(ranks: number, given: MemoryGiven): Promise<number[][]> {
  return launch({ ranks, devices: ['cpu'] }, (context) => rankMemory(context, given))
}

describe('memory', () => {
  it('that is free is shared by the ranks of the machine, alike on all of them', async () => {
    const [one] = (await memory(1, 'free')) as [[number]]
    const all = await memory(4, 'free')
    for (const seen of all) expect(seen).toEqual(all[0])
    const [first, ...others] = all[0] as [number, ...number[]]
    for (const bytes of others) expect(bytes).toBe(first)
    // Other programs take and give back memory in between.
    expect(4 * first).toBeGreaterThan(one[0] / 2)
    expect(4 * first).toBeLessThan(one[0] * 2)
    expect(one[0]).toBeLessThanOrEqual(process.constrainedMemory() || Number.POSITIVE_INFINITY)
  })

  it('that is given stands, beside what is free for the others', async () => {
    const [[, two]] = (await memory(2, [1e6, 2e6])) as [[number, number]]
    expect(two).toBe(2e6)
    const [[given, free]] = (await memory(2, [1e6, 'free'])) as [[number, number]]
    expect(given).toBe(1e6)
    expect(free).toBeGreaterThan(1e6)
  })

  it.each<[MemoryGiven]>([[[1e6]], ['much' as 'free'], [[1e6, -1]], [[1e6, 'much' as 'free']]])('%j is refused', async (given) => {
    await expect(memory(2, given)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('decides the shares of a model, and one that does not fit is refused', async () => {
    const load = (given: MemoryGiven) =>
      launch({ ranks: 2, devices: ['cpu'] }, async (context) => {
        using model = await LanguageModel.load(fileFolder(bundled), context, { capacity: 16, memory: given })
        return { shares: model.llama.plan.shares, bytes: model.llama.bytes, text: model.llama.plan.explain() }
      })
    const [even] = await load('free')
    expect(even?.shares).toEqual([0.5, 0.5])
    const whole = (even?.bytes as number) * 2
    const [first, second] = await load([0.8, 0.4].map((part) => Math.floor(part * whole)))
    expect(first?.bytes).toBeLessThanOrEqual(0.8 * whole)
    expect(second?.bytes).toBeLessThanOrEqual(0.4 * whole)
    expect(first?.bytes).toBeGreaterThan(1.5 * (second?.bytes as number))
    expect(first?.text).toMatch(/^rank +device .*\n0 +cpu /)
    await expect(load([0.3, 0.3].map((part) => Math.floor(part * whole)))).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' })
  })
})
