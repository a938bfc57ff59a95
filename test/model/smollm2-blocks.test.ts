// A real model in blocks on CPU ranks that divide neither its heads nor its kv heads: the first ids and logits of SmolLM2-135M-Instruct.
import { afterAll, describe, expect, it } from 'vitest'
import { openDevice } from '../../runtime/device/open.ts'
import { LanguageModel } from '../../runtime/model/generate.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { smollm2Gguf } from '../support/smollm2.ts'

const device = await openDevice('cpu')
afterAll(() => device.dispose())

const model = await smollm2Gguf()
const TOKENS = 6
const skipped = model ? '' : ': skipped, the model is not beside the repository'

describe.skipIf(!model)(`SmolLM2-135M-Instruct in blocks${skipped}`, () => {
  it.each([1, 2, 3, 4])('gives the expected ids with %i ranks', async (ranks) => {
    if (!model) return
    const { file, expected } = model
    const plain = expected.greedy.filter(({ prompt }) => !prompt.startsWith('<|im_start|>')).slice(0, 2)
    const sizes = await launch({ ranks, devices: [device] }, async (context) => {
      using model = await LanguageModel.load(fileFolder(file), context, { capacity: 32 })
      for (const { prompt, promptIds, ids, firstTop10 } of plain) {
        const written: number[] = []
        for await (const { id } of model.generate(prompt, { maxNewTokens: TOKENS, stopIds: [] })) written.push(id)
        expect(written).toEqual(ids.slice(0, TOKENS))
        model.llama.truncate()
        using logits = await model.llama.forward(promptIds)
        const last = await logits.last()
        for (const [id, logit] of firstTop10) expect(Math.abs((last[id] as number) - logit)).toBeLessThan(1e-3)
      }
      return { bytes: model.llama.bytes, planned: model.llama.plan.bytes(context.rank) }
    })
    // Q4_1 with a table of Q8_0: 96.5 MB of blocks, 1.5 MB of caches.
    for (const { bytes, planned } of sizes) expect(bytes).toBe(planned)
    expect(sizes.reduce((n, { bytes }) => n + bytes, 0)).toBeLessThan(105e6)
  })
})
