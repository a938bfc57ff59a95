// A real model in short: the first tokens of one plain and one chat prompt of SmolLM2-135M-Instruct over ranks that do not divide its heads,
// from a folder and from its quantized file. test/models has it whole, over 3 ranks.
import { describe, it } from 'vitest'
import { smollm2Folder, smollm2Gguf } from '../support/smollm2.ts'
import { expectGreedy, shortest } from '../support/smollm2-run.ts'

const folder = await smollm2Folder()
const gguf = await smollm2Gguf()

// 9 heads over 3 kv heads: 2 ranks take turns at the odd one, of 4 ranks one has none in each layer.
describe('SmolLM2-135M-Instruct gives the first expected ids', () => {
  it.skipIf(!folder)('from a Hugging Face folder, with 2 ranks', async () => {
    if (folder) await expectGreedy(folder.dir, shortest(folder.expected), 2, 4)
  })

  it.skipIf(!gguf)('from its GGUF file, with 4 ranks', async () => {
    if (gguf) await expectGreedy(gguf.file, shortest(gguf.expected), 4, 4)
  })
})
