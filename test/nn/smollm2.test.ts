// A real model in short: the first tokens of one plain and one chat prompt of SmolLM2-135M-Instruct over 3 ranks, one kv head each, from a
// folder and from its quantized file.
import { describe, it } from 'vitest'
import { type SmolLM2Expected, smollm2Folder, smollm2Gguf } from '../support/smollm2.ts'
import { expectGreedy } from '../support/smollm2-run.ts'

const folder = await smollm2Folder()
const gguf = await smollm2Gguf()

/** The shortest plain and the shortest chat prompt. */
function shortest({ greedy }: SmolLM2Expected): SmolLM2Expected['greedy'] {
  const byLength = [...greedy].sort((a, b) => a.promptIds.length - b.promptIds.length)
  const chat = byLength.find(({ prompt }) => prompt.startsWith('<|im_start|>'))
  const plain = byLength.find(({ prompt }) => !prompt.startsWith('<|im_start|>'))
  return [plain, chat].filter((prompt) => prompt !== undefined)
}

describe('SmolLM2-135M-Instruct gives the first expected ids with 3 ranks', () => {
  it.skipIf(!folder)('from a Hugging Face folder', async () => {
    if (folder) await expectGreedy(folder.dir, shortest(folder.expected), 3, 4)
  })

  it.skipIf(!gguf)('from its GGUF file', async () => {
    if (gguf) await expectGreedy(gguf.file, shortest(gguf.expected), 3, 4)
  })
})
