// A model's logits and greedy ids over ranks, from token ids: for models without a tokenizer worth the name.
import type { Device } from '../../runtime/device/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights, type WeightsOptions } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'

export interface GreedyRun {
  /** Logits after the prompt. */
  first: Float32Array
  ids: number[]
}

/** The prompt's last logits and `count` greedy ids, as every rank sees them. */
export async function runGreedy(
  device: Device,
  path: string,
  prompt: readonly number[],
  count: number,
  ranks: number,
  options: LlamaOptions & WeightsOptions = {},
): Promise<GreedyRun[]> {
  const folder = fileFolder(path)
  const config = await readConfig(folder)
  return launch({ ranks, devices: [device] }, async ({ comm, device }) => {
    const weights = await openWeights(folder, options)
    using llama = await Llama.load(config, weights, { comm, device }, { capacity: prompt.length + count, ...options })
    await weights.close()
    const sampler = new Sampler()
    let logits = await (await llama.forward(prompt)).last()
    const first = logits
    const ids: number[] = []
    for (let i = 0; i < count; i++) {
      ids.push(sampler.next(logits))
      if (i + 1 < count) logits = await (await llama.forward([ids.at(-1) as number])).last()
    }
    return { first, ids }
  })
}
