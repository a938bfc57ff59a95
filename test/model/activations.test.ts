// Models whose products may round their activations on CPU ranks: logits near the exact ones, alike on all ranks; what is refused.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights, type WeightsOptions } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { reason } from '../support/cpu.ts'
import { runGreedy } from '../support/greedy-run.ts'
import { maxAbsDiff } from '../support/reference-ops.ts'

const root = join(import.meta.dirname, '..', 'fixtures', 'tiny-gguf')
const { promptIds } = JSON.parse(readFileSync(join(root, 'expected.json'), 'utf8')) as { promptIds: number[] }
const prompt = [...promptIds, ...promptIds]

/** File and options; logits reach from about -5 to 5. */
const CASES: readonly [string, LlamaOptions & WeightsOptions][] = [
  ['q8_0.gguf', { activations: 'int8', maxTokens: 1 }],
  ['q4_0.gguf', { activations: 'int8', maxTokens: 3 }],
  ['q4_k_m.gguf', { activations: 'int8', maxTokens: 2 }],
  ['q8_0.gguf', { activations: 'bfloat16', quantizedAs: 'bfloat16' }],
  ['q4_k_m.gguf', { activations: 'bfloat16' }],
  ['f16.gguf', { activations: 'int8' }],
]

const ENGINES = [
  ...(reason === '' ? [{ name: 'the native kernels', device: await openDevice('cpu'), most: 0.2 }] : []),
  { name: 'the loops, which round nothing', device: CpuDevice.open(null), most: 1e-4 },
]
if (reason !== '') it.skip(`the native kernels${reason}`, () => {})

describe.each(ENGINES)('$name', ({ device, most }) => {
  afterAll(() => device.dispose())

  it.each(CASES)('%s with %o: near the logits of products that do not round, alike on all ranks', async (file, options) => {
    const [exact] = await runGreedy(device, join(root, file), prompt, 1, 1, { ...options, activations: undefined })
    for (const ranks of [1, 2]) {
      const runs = await runGreedy(device, join(root, file), prompt, 1, ranks, options)
      for (const { first } of runs) {
        expect(maxAbsDiff(first, exact?.first as Float32Array)).toBeLessThan(most)
        expect(first).toEqual(runs[0]?.first)
      }
    }
  })
})

describe('what is refused', async () => {
  const device = await openDevice('cpu')
  afterAll(() => device.dispose())

  const load = (of: (rank: number) => LlamaOptions): Promise<unknown> => {
    const folder = fileFolder(join(root, 'q8_0.gguf'))
    return launch({ ranks: 2, devices: [device] }, async ({ comm, device, rank }) => {
      const weights = await openWeights(folder)
      try {
        using _ = await Llama.load(await readConfig(folder), weights, { comm, device }, of(rank))
      } finally {
        await weights.close()
      }
    })
  }

  it('what no product rounds to', async () => {
    await expect(load(() => ({ activations: 'float16' as 'int8' }))).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })

  it('rounding where bits are to be the same for every number of ranks', async () => {
    const both = { activations: 'int8', deterministic: 'tp-invariant' } as const
    await expect(load(() => both)).rejects.toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('deterministic') })
  })

  it('ranks that round to different types', async () => {
    await expect(load((rank) => (rank === 0 ? {} : { activations: 'int8' }))).rejects.toMatchObject({
      code: 'ERR_COLLECTIVE_MISMATCH',
      message: expect.stringContaining('int8'),
    })
  })
})
