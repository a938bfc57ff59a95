// From a model folder to streamed text in one call: launches the ranks, loads their shards, generates, and reports what happened.
import type { CommStats } from '../comm/device-comm.ts'
import { ArgumentError } from '../core/errors.ts'
import type { KernelTime } from '../device/device.ts'
import { type LaunchOptions, launch, type RankContext } from '../scheduler/launch.ts'
import type { RankShard } from '../scheduler/plan.ts'
import { type GenerateOptions, LanguageModel, type LoadOptions } from './generate.ts'
import type { ModelFolder } from './source.ts'
import type { ChatMessage } from './tokenizer.ts'

export interface RunOptions extends Pick<LaunchOptions, 'placement' | 'script' | 'device' | 'devices' | 'timeoutMs'>, GenerateOptions {
  ranks: number
  folder: ModelFolder
  /** Text to continue, or messages to answer through the model's chat template. */
  prompt: string | readonly ChatMessage[]
  /** Positions the key-value cache holds. */
  capacity?: number
  /** The same bits for every number of ranks; see LlamaOptions. */
  deterministic?: 'tp-invariant' | undefined
  /** How the model is shared out over the ranks, what each may take, and what quantized weights are kept as; see LoadOptions. */
  shares?: LoadOptions['shares']
  memory?: LoadOptions['memory']
  quantizedAs?: LoadOptions['quantizedAs']
  /** How coarsely products may round their activations; see LlamaOptions. */
  activations?: LoadOptions['activations']
  /** Told as weights are read: bytes over all ranks of this thread or process, so far and in all. */
  onProgress?: (progress: { loaded: number; total: number; ranks: number }) => void
  /** Told once, before any weight is read. */
  onDevice?: (device: { name: string; description: string; software: boolean; group: string }) => void
  /** Receives the text, piece by piece. */
  onText?: (text: string) => void
  /** Measure the share of device time in collectives, on a few more tokens after the text; off by default. */
  profile?: boolean
}

export interface RankReport {
  rank: number
  device: string
  shard: RankShard
  /** Weights and key-value cache. */
  bytes: number
}

export interface RunReport {
  text: string
  description: string
  software: boolean
  ranks: RankReport[]
  promptTokens: number
  newTokens: number
  loadSeconds: number
  /** From the prompt to the first token. */
  firstTokenSeconds: number
  /** Of all tokens after the first. */
  tokensPerSecond: number
  /** Seconds of a token as the plan expects them of the speeds that were measured; null where they were not. */
  expectedSeconds: number | null
  /** Of rank 0, for one token after the first. */
  perToken: { collectives: number; fused: number; bytes: number; submits: number; maps: number }
  /** Share of the first device's compute time spent in collective kernels; null where it was not or cannot be measured. */
  collectiveShare: number | null
}

const PROFILED_TOKENS = 8

/** @throws what launch, LanguageModel.load and LanguageModel.generate throw. */
export async function runModel(options: RunOptions): Promise<RunReport> {
  const { ranks, placement, script, device, devices, timeoutMs, signal } = options
  const launchOptions: LaunchOptions = {
    ranks,
    ...(placement && { placement }),
    ...(script && { script }),
    ...(device && { device }),
    ...(devices && { devices }),
    ...(timeoutMs && { timeoutMs }),
    ...(signal && { signal }),
  }
  const progress = Array.from({ length: ranks }, () => ({ loaded: 0, total: 0 }))
  const results = await launch(launchOptions, (context) => runRank(context, options, progress))
  const [first] = results as [RankResult]
  return { ...first.run, ranks: results.map((result) => result.report) }
}

interface RankResult {
  report: RankReport
  run: Omit<RunReport, 'ranks'>
}

async function runRank(context: RankContext, options: RunOptions, progress: { loaded: number; total: number }[]): Promise<RankResult> {
  const { rank, device, comm, host } = context
  const { folder, prompt, capacity, deterministic, shares, memory, quantizedAs, activations } = options
  const { onText = () => {}, onDevice = () => {}, onProgress = () => {} } = options
  const lead = rank === 0
  if (lead) onDevice({ name: device.name, description: device.description, software: device.software, group: comm.describe() })
  const tell = (): void => {
    const here = progress.filter(({ total }) => total > 0)
    const sum = (key: 'loaded' | 'total'): number => here.reduce((n, of) => n + of[key], 0)
    onProgress({ loaded: sum('loaded'), total: sum('total'), ranks: here.length })
  }
  const start = performance.now()
  using model = await LanguageModel.load(folder, context, {
    ...(capacity !== undefined && { capacity }),
    ...(deterministic && { deterministic }),
    shares,
    memory,
    quantizedAs,
    activations,
    onProgress: (own) => {
      progress[rank] = own
      if (lead) tell()
    },
  })
  await host.barrier()
  if (lead) tell()
  const begin = performance.now()
  let text = ''
  let newTokens = 0
  let firstAt = begin
  let lastAt = begin
  let before: CommStats = comm.stats()
  let after = before
  for await (const token of model.generate(prompt, options)) {
    // Figures end with the last token: the step that finds the end of the text is nobody's.
    lastAt = performance.now()
    after = comm.stats()
    if (newTokens++ === 0) {
      firstAt = lastAt
      before = after
    }
    text += token.text
    if (lead && token.text !== '') onText(token.text)
  }
  if (newTokens === 0 && text === '') throw new ArgumentError('The model ended the text at once; give another prompt')
  const steps = Math.max(1, newTokens - 1)
  const per = (key: keyof CommStats): number => (after[key] - before[key]) / steps
  return {
    report: { rank, device: device.name, shard: model.llama.plan.ranks[rank] as RankShard, bytes: model.llama.bytes },
    run: {
      text,
      description: device.description,
      software: device.software,
      promptTokens: model.encode(prompt).length,
      newTokens,
      loadSeconds: (begin - start) / 1000,
      firstTokenSeconds: (firstAt - begin) / 1000,
      tokensPerSecond: (1000 * (newTokens - 1)) / (lastAt - firstAt),
      expectedSeconds: model.llama.plan.tokenSeconds,
      perToken: { collectives: per('collectives'), fused: per('fused'), bytes: per('bytes'), submits: per('submits'), maps: per('maps') },
      collectiveShare: options.profile ? await profile(context, model) : null,
    },
  }
}

/** Runs a few more tokens with every kernel timed; all ranks run them, the first of each device measures. */
async function profile({ device, comm }: RankContext, model: LanguageModel): Promise<number | null> {
  const steps = async (): Promise<void> => {
    model.llama.truncate(Math.max(0, Math.min(model.llama.length, model.llama.capacity - PROFILED_TOKENS)))
    for (let i = 0; i < PROFILED_TOKENS; i++) {
      using logits = await model.llama.forward([0])
      await logits.last()
    }
  }
  if (comm.deviceRank > 0) {
    await steps()
    return null
  }
  return share(await device.profile(steps))
}

function share(times: KernelTime[] | null): number | null {
  if (!times) return null
  const sum = (list: KernelTime[]): number => list.reduce((n, { nanoseconds }) => n + nanoseconds, 0)
  const all = sum(times)
  return all > 0 ? sum(times.filter(({ kernel }) => kernel.startsWith('all_reduce'))) / all : null
}
