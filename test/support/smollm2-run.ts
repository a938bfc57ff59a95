// Runs SmolLM2 over ranks and compares with what three independent programs agree on.
import { expect } from 'vitest'
import type { Device } from '../../runtime/device/device.ts'
import { LanguageModel } from '../../runtime/model/generate.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import type { ChatMessage } from '../../runtime/model/tokenizer.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import type { SmolLM2Expected } from './smollm2.ts'

/** The messages of a rendered chat prompt; the model's own system message is what its template adds by itself. */
function messagesOf(prompt: string): ChatMessage[] {
  const messages = [...prompt.matchAll(/<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>/gs)].map(
    ([, role, content]) => ({ role, content }) as ChatMessage,
  )
  return messages.filter(({ role, content }) => role !== 'system' || !content.includes('named SmolLM'))
}

/** The shortest plain and the shortest chat prompt. */
export function shortest({ greedy }: SmolLM2Expected): SmolLM2Expected['greedy'] {
  const byLength = [...greedy].sort((a, b) => a.promptIds.length - b.promptIds.length)
  const chat = byLength.find(({ prompt }) => prompt.startsWith('<|im_start|>'))
  const plain = byLength.find(({ prompt }) => !prompt.startsWith('<|im_start|>'))
  return [plain, chat].filter((prompt) => prompt !== undefined)
}

/** Every prompt's greedy ids, `tokens` of them at most; chat prompts go through the model's own template. */
export async function expectGreedy(
  dir: string,
  prompts: SmolLM2Expected['greedy'],
  ranks: number,
  tokens: number = Number.POSITIVE_INFINITY,
  { devices = ['webgpu'], shares }: { devices?: readonly (string | Device)[]; shares?: number[] | undefined } = {},
): Promise<void> {
  await launch({ ranks, devices: devices.slice(0, ranks) }, async (context) => {
    using model = await LanguageModel.load(fileFolder(dir), context, { capacity: 256, shares })
    for (const { prompt, promptIds, ids, firstTop10 } of prompts) {
      const messages = messagesOf(prompt)
      const given = messages.length === 0 ? prompt : messages
      expect(model.encode(given)).toEqual(promptIds)
      const written: number[] = []
      const count = Math.min(ids.length, tokens)
      for await (const { id } of model.generate(given, { maxNewTokens: count, stopIds: [] })) written.push(id)
      expect(written).toEqual(ids.slice(0, count))
      model.llama.truncate()
      using logits = await model.llama.forward(promptIds)
      const last = await logits.last()
      for (const [id, logit] of firstTop10) expect(Math.abs((last[id] as number) - logit)).toBeLessThan(1e-3)
    }
  })
}
