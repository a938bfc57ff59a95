// SmolLM2-135M-Instruct, whole: the greedy ids of all prompts at 1 and 3 ranks. `npm run test:models`; a shorter form is in test/nn.
import { describe, it } from 'vitest'
import { smollm2Folder, smollm2Gguf } from '../support/smollm2.ts'
import { expectGreedy } from '../support/smollm2-run.ts'

const model = await smollm2Folder()
const gguf = await smollm2Gguf()

describe.skipIf(!model)('SmolLM2-135M-Instruct', () => {
  it.each([1, 3])('gives the expected ids of all prompts with %i ranks', async (ranks) => {
    if (model) await expectGreedy(model.dir, model.expected.greedy, ranks)
  })
})

describe.skipIf(!gguf)('SmolLM2-135M-Instruct from its GGUF file', () => {
  it('gives the expected ids of all prompts with 3 ranks', async () => {
    if (gguf) await expectGreedy(gguf.file, gguf.expected.greedy, 3)
  })
})
