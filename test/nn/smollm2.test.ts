// A real model in short: the first tokens of one plain and one chat prompt of SmolLM2-135M-Instruct over 3 ranks, one kv head each.
import { describe, it } from 'vitest'
import { smollm2Folder } from '../support/smollm2.ts'
import { expectGreedy } from '../support/smollm2-run.ts'

const model = await smollm2Folder()

describe.skipIf(!model)('SmolLM2-135M-Instruct', () => {
  it('gives the first expected ids with 3 ranks', async () => {
    const byLength = [...(model?.expected.greedy ?? [])].sort((a, b) => a.promptIds.length - b.promptIds.length)
    const chat = byLength.find(({ prompt }) => prompt.startsWith('<|im_start|>'))
    const plain = byLength.find(({ prompt }) => !prompt.startsWith('<|im_start|>'))
    if (model)
      await expectGreedy(
        model.dir,
        [plain, chat].filter((prompt) => prompt !== undefined),
        3,
        4,
      )
  })
})
