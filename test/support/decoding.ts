// A model fed a prompt and its own greedy tokens over ranks on given devices, and what every rank saw of it.
import type { Device } from '../../runtime/device/device.ts'
import { readConfig } from '../../runtime/model/generate.ts'
import { Llama, type LlamaOptions } from '../../runtime/model/llama.ts'
import { Sampler } from '../../runtime/model/sampling.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { openWeights } from '../../runtime/model/weights.ts'
import { launch } from '../../runtime/scheduler/launch.ts'

/** What one rank saw. */
export interface Decoded {
  /** The last logits after the prompt. */
  first: Float32Array
  ids: number[]
  /** The logits of all steps, by their bits. */
  bits: Buffer
  /** This rank's heads in each layer. */
  heads: number[]
}

/** `count` greedy tokens after a prompt that is fed in parts of seven; a rank for each of `devices`. */
export function decode(
  dir: string,
  prompt: readonly number[],
  count: number,
  devices: readonly Device[],
  options: LlamaOptions = {},
): Promise<Decoded[]> {
  const folder = fileFolder(dir)
  return launch({ ranks: devices.length, devices, timeoutMs: 60_000 }, async (context) => {
    const weights = await openWeights(folder)
    const capacity = prompt.length + count
    const loading = Llama.load(await readConfig(folder), weights, context, { capacity, maxTokens: 7, ...options })
    using llama = await loading.finally(() => weights.close())
    const sampler = new Sampler()
    const steps: Float32Array[] = []
    const ids: number[] = []
    while (ids.length < count) {
      using logits = await llama.forward(ids.length === 0 ? prompt : ids.slice(-1))
      steps.push(await logits.last())
      ids.push(sampler.next(steps.at(-1) as Float32Array))
    }
    const bits = Buffer.concat(steps.map((step) => Buffer.from(step.slice().buffer)))
    const heads = llama.plan.ranks[context.rank]?.layers.map((layer) => layer.heads.count) ?? []
    return { first: steps[0] as Float32Array, ids, bits, heads }
  })
}
