// Uneven plans on CPU ranks, by the native kernels and by the loops: the float64 reference's logits, PyTorch's golden text, ranks bit-equal; in
// tp-invariant mode the bits of one rank, whatever the plan.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import type { LlamaOptions } from '../../runtime/model/llama.ts'
import { reason } from '../support/cpu.ts'
import { type Decoded, decode } from '../support/decoding.ts'
import { loadReference } from '../support/reference-llama.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const dir = join(import.meta.dirname, '../../examples/models/tiny-shakespeare')
const [{ ids: prompt, greedy }] = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')).prompts as [
  { ids: number[]; greedy: number[] },
]
const expected = loadReference(dir).forward(prompt).at(-1) as Float64Array

/** Without the addon `cpu` is the loops too. */
const ENGINES = [
  ...(reason === '' ? [{ name: 'the native kernels', device: await openDevice('cpu'), count: 40 }] : []),
  { name: 'the loops', device: CpuDevice.open(null), count: 5 },
]
afterAll(() => {
  for (const { device } of ENGINES) device.dispose()
})
if (reason !== '') it.skip(`the native kernels${reason}`, () => {})

const PLANS: readonly [string, number, number[] | undefined][] = [
  ['3 ranks', 3, undefined],
  ['shares 0.7, 0.2, 0.1', 3, [0.7, 0.2, 0.1]],
  ['a rank without heads', 3, [0.6, 0.38, 0.02]],
  ['4 ranks, evenly', 4, undefined],
  ['5 ranks, of which in each layer one has no head', 5, undefined],
  ['a rank that holds nothing', 3, [1, 0, 2]],
]

describe.each(ENGINES)('$name', ({ device, count }) => {
  const write = (ranks: number, options: LlamaOptions): Promise<Decoded[]> => decode(dir, prompt, count, Array(ranks).fill(device), options)
  const bits = new Map<string, Buffer>()

  it.each([['one rank', 1, undefined] as const, ...PLANS])(
    '%s: the logits, the text, the same bits on all ranks',
    async (name, ranks, shares) => {
      const ended = await write(ranks, { shares })
      for (const each of ended) {
        expect(maxAbsDiff(each.first, expected)).toBeLessThan(1e-4)
        expect(each.ids).toEqual(greedy.slice(0, count))
        expect(each.bits.equals(ended[0]?.bits as Buffer)).toBe(true)
      }
      for (const layer of [0, 1, 2, 3]) expect(ended.reduce((sum, { heads }) => sum + (heads[layer] as number), 0)).toBe(8)
      if (name === 'a rank without heads') expect(ended[2]?.heads).toEqual([0, 0, 0, 0])
      bits.set(name, ended[0]?.bits as Buffer)
    },
  )

  it('the bits of these plans differ: it is tp-invariant that makes them the same', () => {
    expect(new Set([...bits.values()].map((each) => each.toString('hex'))).size).toBe(bits.size)
  })

  it('tp-invariant: every plan has the bits of one rank', async () => {
    const invariant = { deterministic: 'tp-invariant' } as const
    const [one] = (await write(1, invariant)) as [Decoded]
    expect(maxAbsDiff(one.first, expected)).toBeLessThan(1e-4)
    for (const [name, ranks, shares] of PLANS) {
      for (const each of await write(ranks, { ...invariant, shares })) expect(each.bits.equals(one.bits), name).toBe(true)
    }
  })
})
